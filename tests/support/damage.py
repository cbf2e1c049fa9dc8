"""Damage files as disks do."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

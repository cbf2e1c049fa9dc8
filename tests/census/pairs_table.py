"""The table of pairs: by task, by model type, and why the rest is not right."""

from __future__ import annotations

from pathlib import Path


def write_table(page: Path, path: Path) -> None: ...

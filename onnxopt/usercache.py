"""The user's cache folder: where it is, content hashes, and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxopt.errors import InputError

_CHUNK_BYTES = 1 << 20


def cache_root() -> Path:
    """Return the cache folder: `ONNXOPT_CACHE`, else `XDG_CACHE_HOME/onnxopt`, else `~/.cache/onnxopt`."""
    if own := os.environ.get("ONNXOPT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").expanduser().absolute() / "onnxopt"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by its path relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `target` when the block ends well, and disappears when it does not.

    An existing `target` is replaced. When another process finishes the same folder first, its result stays.

    Args:
        target: the folder to make.

    Yields:
        The folder to fill, beside `target` so that the move is one rename.

    Raises:
        InputError: when the cache cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to the cache: {error.strerror}", where=str(target.parent), hint="set ONNXOPT_CACHE"
        ) from error
    try:
        fresh = room / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.replace(room / "old")
        try:
            fresh.replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(room, ignore_errors=True)

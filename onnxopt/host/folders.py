"""Folders that appear whole or not at all, and what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxopt.errors import InputError

_CHUNK_BYTES = 1 << 20


def unwritable(out: Path, error: Exception) -> InputError:
    """Return the error for a folder that cannot be written, with the system's reason."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot be written ({reason})", where=str(out), hint="choose another output folder")


@contextlib.contextmanager
def folder_in_place(out: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `out` when the block ends well, and vanishes in every other case."""
    parents = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    folder: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".part", dir=out.parent))
        yield folder
        folder.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _swap(folder, out)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise unwritable(out, error) from error
        raise


def _swap(folder: Path, out: Path) -> None:
    """Put `folder` in the place of `out`; an older folder comes back when that fails."""
    older: Path | None = None
    try:
        if out.exists():
            aside = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".old", dir=out.parent))
            older = aside / "old"
            out.rename(older)
        folder.rename(out)
    except BaseException:
        if older is not None:
            if older.exists() and not out.exists():
                older.rename(out)
            shutil.rmtree(older.parent, ignore_errors=True)
        raise
    _sync_folder(out.parent)
    if older is not None:
        shutil.rmtree(older.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync(folder: Path) -> None:
    """Bring every file to the disk before the rename makes it visible."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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

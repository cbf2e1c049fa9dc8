"""Folders that appear whole or not at all, and what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxopt.errors import InputError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
CONTENTS_NAME = "contents.json"  # of a cache entry: the SHA-256 of its files


def unwritable(out: Path, error: Exception) -> InputError:
    """Return the error for a folder that cannot be written, with the system's reason."""
    return InputError(f"cannot be written ({_reason(error)})", where=str(out), hint="choose another output folder")


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


@contextlib.contextmanager
def staged(target: Path, *, cache: bool = False) -> Iterator[Path]:
    """Give a fresh folder that becomes `target` when the block ends well, and vanishes in every other case.

    An older `target` is replaced, and it is there again when that fails.

    Args:
        target: the folder to make.
        cache: it is an entry of the user's cache: another process may make the same one meanwhile, and who is first
            there stays.

    Yields:
        The folder to fill, beside `target` so that the move is one rename.

    Raises:
        InputError: when it cannot be written, or a file that is put into it cannot be read.
    """
    parents = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".part", dir=target.parent))
        yield folder
        folder.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _swap(folder, target, cache=cache)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        told = _told(error, target, cache=cache) if isinstance(error, OSError) else None
        if told is not None:
            raise told from error
        raise


def _told(error: OSError, target: Path, *, cache: bool) -> InputError | None:
    """Return an error of the system in a user's words; None for one that is of neither reading nor writing here."""
    if error.errno is None:  # other libraries raise what they like as one
        return None
    if error.filename is not None:
        place, base = Path(os.fsdecode(error.filename)).absolute(), target.parent.absolute()
        if not place.is_relative_to(base) and not base.is_relative_to(place):
            denied = InputError(f"cannot be read ({_reason(error)})", where=str(place))
            return denied if isinstance(error, PermissionError) else None
    if cache:
        reason = f"cannot write to the cache ({_reason(error)})"
        return InputError(reason, where=str(target.parent), hint="set ONNXOPT_CACHE to another folder")
    return unwritable(target, error)


def _swap(folder: Path, out: Path, *, cache: bool) -> None:
    """Put `folder` in the place of `out`; an older folder comes back when that fails."""
    older: Path | None = None
    try:
        if out.exists():
            aside = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".old", dir=out.parent))
            older = aside / "old"
            out.rename(older)
        folder.rename(out)
    except BaseException as error:
        if older is not None:
            if older.exists() and not out.exists():
                older.rename(out)
            shutil.rmtree(older.parent, ignore_errors=True)
        if cache and isinstance(error, OSError) and out.is_dir():
            shutil.rmtree(folder, ignore_errors=True)  # another process has made the same
            return
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


def seal(entry: Path, inside: str = "") -> None:
    """Write down what a cache entry holds, so that `sealed` sees when it is damaged.

    Args:
        entry: the entry's folder, where the record is put.
        inside: the folder in it that is recorded; the whole entry when empty.
    """
    content = content_of(entry / inside)
    content.pop(CONTENTS_NAME, None)
    (entry / CONTENTS_NAME).write_text(json.dumps(content, indent=1), encoding="utf-8")


def sealed(entry: Path, inside: str = "") -> bool:
    """Return whether a cache entry has every file with the content it was sealed with, and no other."""
    try:
        recorded = json.loads((entry / CONTENTS_NAME).read_text(encoding="utf-8"))
        found = content_of(entry / inside)
    except FileNotFoundError:
        return False  # there is none
    except (OSError, ValueError):
        recorded, found = None, {}
    if not inside:
        found.pop(CONTENTS_NAME, None)
    if recorded != found:
        logger.info("the cache entry %s is damaged; it is made again", entry.name)
    return bool(recorded == found)

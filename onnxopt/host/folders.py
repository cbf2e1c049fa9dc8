"""Folders that appear whole or not at all, and what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.claims import claimed, sweep
from onnxopt.host.disk import advice_of, code_of, reason_of
from onnxopt.host.exchange import exchanged
from onnxopt.host.kept import keep

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
MOST_TRIES = 10  # to put a folder where another process keeps putting its own
CONTENTS_NAME = "contents.json"  # of a cache entry: the SHA-256 of its files


class CacheError(InputError):
    """The user's cache cannot be written."""


def unwritable(out: Path, error: Exception) -> InputError:
    """Return the error for a folder that cannot be written, with the system's reason."""
    what = f"cannot be written ({reason_of(error, out.parent)})"
    return InputError(what, where=str(out), hint=advice_of(error, "choose another output folder"))


def check_writable(target: Path) -> None:
    """Make sure that a folder can be made, without leaving anything behind; call it before long work.

    What killed processes left beside it goes now, before its room is needed.

    Args:
        target: the folder; neither it nor what it lies in need be there.

    Raises:
        InputError: when it cannot be written.
    """
    sweep(target.parent)
    base = next(parent for parent in target.absolute().parents if parent.exists())
    if not base.is_dir():
        raise InputError(f"{base} is a file, not a folder", where=str(target), hint="choose another output folder")
    try:
        # os.access does not tell on read-only file systems and for root; trying does
        with claimed(base, "part"):
            pass
    except OSError as error:
        raise unwritable(target, error) from error


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Let errors of writing a file or folder end the block in a user's words.

    Raises:
        InputError: it cannot be written.
    """
    try:
        yield
    except Exception as error:
        told = _told(error, place, cache=False)
        if told is not None:
            raise told from error
        raise


@contextlib.contextmanager
def staged(target: Path, *, cache: bool = False) -> Iterator[Path]:
    """Give a fresh folder that becomes `target` when the block ends well, and vanishes in every other case.

    An older `target` is replaced in one step where the system can do that, else it is there again when that fails. What
    processes that were killed have left beside it goes first.

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
    try:
        waits = cache and not target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        with claimed(target.parent, "part") as folder:
            made = folder.stat().st_ino
            try:
                yield folder
                folder.chmod(_mode_of(target))  # mkdtemp makes it private
                _move(folder, target, stays=waits)
            finally:
                if not cache and _is_at(target, made):
                    keep(target, str(target))
    except BaseException as error:
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        told = _told(error, target, cache=cache) if isinstance(error, Exception) else None
        if told is not None:
            raise told from error
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole, in the place of an older one, or not at all.

    Args:
        path: the file; its folder is there.
        content: all of it; text is written in UTF-8, with line ends as they are.

    Raises:
        OSError: it cannot be written.
    """
    with appearing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give a file to fill that takes the place of `path` when the block ends well, and vanishes in every other case.

    Raises:
        OSError: it cannot be written.
    """
    sweep(path.parent)
    with claimed(path.parent, "part", folder=False) as fresh:
        yield fresh
        fresh.chmod(0o666 & ~_umask())  # mkstemp makes it private
        fresh.replace(path)


def _told(error: Exception, target: Path, *, cache: bool) -> InputError | None:
    """Return an error of the system in a user's words; None for one that is of neither reading nor writing here."""
    if not code_of(error) and (not isinstance(error, OSError) or error.errno is None):
        return None  # other libraries raise what they like as one
    if isinstance(error, OSError) and error.filename is not None:
        place, base = Path(os.fsdecode(error.filename)).absolute(), target.parent.absolute()
        if not place.is_relative_to(base) and not base.is_relative_to(place):
            denied = InputError(f"cannot be read ({error.strerror})", where=str(place))
            return denied if isinstance(error, PermissionError) else None
    if cache:
        reason = f"cannot write to the cache ({reason_of(error, target.parent)})"
        hint = advice_of(error, "set ONNXOPT_CACHE to another folder")
        return CacheError(reason, where=str(target.parent), hint=hint)
    return unwritable(target, error)


def _move(folder: Path, target: Path, *, stays: bool) -> None:
    """Put `folder` in the place of `target`; what was there lies in `folder` then, or nothing does.

    Args:
        folder: it is whole.
        target: where it goes; another process may put a folder there or take it away at any moment.
        stays: a folder that is there by now is left there.
    """
    for left in reversed(range(MOST_TRIES)):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        if stays and target.exists():
            return
        try:
            if not target.exists():
                folder.rename(target)
            elif not exchanged(folder, target):
                _replace(folder, target)
            break
        except OSError as error:
            if not left or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                raise
    _sync_folder(target.parent)


def _replace(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target` in two steps, for file systems that have none that does it in one."""
    with claimed(target.parent, "old") as aside:  # whose content the next process puts back where this one ends here
        older = aside / target.name
        target.rename(older)
        try:
            folder.rename(target)
        except BaseException:
            if not target.exists():
                older.rename(target)
            raise


def _is_at(target: Path, made: int) -> bool:
    """Tell whether a folder that was made has come to its place, by its number in the file system."""
    try:
        return target.stat().st_ino == made
    except OSError:
        return False


def _mode_of(target: Path) -> int:
    """Return the permissions of a folder: those of the one that it takes the place of, else the usual ones."""
    try:
        return target.stat().st_mode & 0o7777
    except OSError:
        return 0o777 & ~_umask()


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

"""Find the files of a model and read them: what is no model is named, and nothing outside of its folder is opened."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from onnxopt.errors import InputError, place, word
from onnxopt.run.there import HEAD_BYTES, refuse_other_kinds

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit for one message
_MEMORY_MARKER = "_ORT_MEM_ADDR_"  # ONNX Runtime reads `offset` as an address of its own process when it meets this
_DRIVE = re.compile(r"^[A-Za-z]:")


def hub_repository(path: Path) -> Path | None:
    """Return the folder of the Hugging Face cache repository that `path` lies in, or None.

    The cache keeps content in `models--org--name/blobs/<hash>` and links to it from `.../snapshots/<revision>/`.
    """
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 - must not follow the links it judges
    for index in range(len(parts) - 1, 1, -1):
        if parts[index] == "snapshots" and parts[index - 1].startswith("models--"):
            repository = Path(*parts[:index])
            return repository if (repository / "blobs").is_dir() else None
    return None


def inside_hub(link: Path) -> bool:
    """Return whether a link of a Hugging Face snapshot leads to a blob of the same repository."""
    repository = hub_repository(link)
    return repository is not None and link.resolve().parent == (repository / "blobs").resolve()


def locate(path: Path, where: str) -> tuple[Path, Path]:
    """Return the real file and the folder of its external data."""
    if "\0" in str(path):
        raise InputError("the path holds a zero byte", where=where, hint="name an .onnx file")
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=place(path), hint="check the path") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or "a loop of links"
        raise InputError(f"cannot be opened ({reason})", where=place(path), hint="check the path") from error
    if stat.S_ISDIR(mode):
        raise InputError("is a folder, not an .onnx file", where=where, hint="name the .onnx file inside it")
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file", where=where, hint="name an .onnx file")
    if path.is_symlink() and hub_repository(path) is not None:
        if not inside_hub(path):
            raise InputError("is a link that leaves its Hugging Face cache", where=where, hint="download it again")
        return real, Path(os.path.abspath(path)).parent  # noqa: PTH100 - external data lies beside the link
    return real, real.parent


def read_bytes(path: Path, where: str) -> bytes:
    """Return what a regular file holds, up to what one ONNX file can; raises InputError otherwise."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InputError("is not a regular file", where=where, hint="name an .onnx file")
            if info.st_size > MAX_FILE_BYTES:
                what = f"has {info.st_size} bytes; one ONNX file holds at most {MAX_FILE_BYTES}"
                raise InputError(what, where=where, hint="save it again with its weights as external data")
            return file.read(info.st_size)
    except OSError as error:
        hint = "check its permissions"
        raise InputError(
            f"cannot be read ({error.strerror or 'input/output error'})", where=where, hint=hint
        ) from error


def check_kind(data: bytes, where: str) -> None:
    """Name the usual wrong files by their first bytes."""
    refuse_other_kinds(data[:HEAD_BYTES], where)
    if data[4:8] == b"ORTM":  # which ONNX Runtime opens, and nothing here can look into
        hint = "give the .onnx file it was made from"
        raise InputError("is in ONNX Runtime's own .ort format, not .onnx", where=where, hint=hint)


class ExternalFiles:
    """Finds and judges the files that hold external data, each once."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder
        self.found: dict[str, Path] = {}
        self._where = where
        self._sizes: dict[str, int] = {}

    def size(self, location: str, tensor: str) -> int:
        """Return the size of the file at `location`; raises InputError when it must not be opened."""
        if location not in self._sizes:
            self._sizes[location] = self._check(location, tensor)
        return self._sizes[location]

    def _check(self, location: str, tensor: str) -> int:
        shown = word(location)
        if _MEMORY_MARKER in location:
            raise self._error(tensor, "points into memory instead of a file", "save the model again")
        if not location or not location.isprintable():
            raise self._error(tensor, "names no readable file for its external data", "save the model again")
        if "\\" in location or _DRIVE.match(location) or location.startswith("/"):
            what = f"names its external data {shown!r} by an absolute or Windows path"
            raise self._error(tensor, what, "external data must lie in the model's folder")
        parts = PurePosixPath(location).parts
        if ".." in parts or not parts:
            what = f"names external data {shown!r} outside the model's folder"
            raise self._error(tensor, what, "external data must lie in the model's folder")
        current = self.folder
        try:
            for part in parts:
                current = current / part
                if current.is_symlink() and not inside_hub(current):
                    what = f"has external data {shown!r} that goes through a link"
                    raise self._error(tensor, what, "put the file itself into the model's folder")
            real = current.resolve(strict=True)
            info = real.stat()
        except FileNotFoundError as error:
            what = f"has external data {shown!r} that is missing"
            raise self._error(tensor, what, "put the file beside the .onnx file") from error
        except (OSError, RuntimeError) as error:
            raise self._error(tensor, f"has external data {shown!r} that cannot be opened", "check the file") from error
        if not stat.S_ISREG(info.st_mode):
            raise self._error(tensor, f"has external data {shown!r} that is not a regular file", "check the file")
        if info.st_nlink > 1:
            what = f"has external data {shown!r} that is a hard link to a file with {info.st_nlink} names"
            raise self._error(tensor, what, "copy the file so that it has one name")
        self.found[location] = real
        return info.st_size

    def _error(self, tensor: str, what: str, hint: str) -> InputError:
        return InputError(f"tensor {tensor!r} {what}", where=self._where, hint=hint)

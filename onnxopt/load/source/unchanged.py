"""Notice that a source changes while it is worked on: half of one model and half of another is neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.folders import sha256_of
from onnxopt.load.source.source import HUB_FILES, Source

SMALL_BYTES = (
    64 << 20
)  # files up to here are compared by content where their times differ; larger ones count as changed


@dataclass(frozen=True)
class _State:
    """What a file was.

    Attributes:
        place: its numbers in the file system, its size and its times; the same means the same content.
        sha256: of its content; empty for a large file.
    """

    place: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Seen:
    """The files of a source as they were before anything was read.

    Attributes:
        files: by path; empty for a source without files.
    """

    files: Mapping[Path, _State]

    @classmethod
    def of(cls, source: Source) -> Seen:
        """Look at the files of a source: a checkpoint's, or an .onnx file and whatever weights lie beside it."""
        return cls({path: state for path in _files_of(source) if (state := _state(path, hashed=True)) is not None})

    def require_same(self, others: Mapping[Path, str] | None = None) -> None:
        """Make sure that the files are as they were; call it before anything is written.

        Args:
            others: more files that were read, with the SHA-256 that they had.

        Raises:
            InputError: one has changed, or is gone.
        """
        more = {path: _State((), digest) for path, digest in (others or {}).items() if path not in self.files}
        for path, before in {**self.files, **more}.items():
            now = _state(path, hashed=False)
            if now is not None and now.place == before.place:
                continue
            if now is None or not before.sha256 or sha256_of(path) != before.sha256:
                what = "has changed" if now is not None else "has vanished"
                hint = "nothing was written; run it again when nothing writes there"
                raise InputError(f"{what} while it was being worked on", where=str(path), hint=hint)


def _files_of(source: Source) -> Iterator[Path]:
    if source.path is None:
        return
    if source.path.is_dir():
        for pattern in HUB_FILES:
            yield from sorted(source.path.glob(pattern))
        return
    yield source.path
    stem = source.path.name.removesuffix(source.path.suffix)
    for path in sorted(source.path.parent.glob("*")):  # weights of external data are mostly called like their graph
        if path != source.path and path.name.startswith(stem) and path.suffix != source.path.suffix:
            yield path


def _state(path: Path, *, hashed: bool) -> _State | None:
    """Return what a file is; None where it is none that can be read."""
    try:
        if not path.is_file():
            return None
        found = path.stat()
        place = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return _State(place, sha256_of(path) if hashed and found.st_size <= SMALL_BYTES else "")
    except OSError:
        return None

"""Check a file before anything reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnxopt.errors import InputError, word
from onnxopt.load.safety.files import ExternalFiles, check_kind, locate, read_bytes
from onnxopt.load.safety.structure import ModelCheck

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Checked:
    """A file that passed.

    Attributes:
        path: the file that was read, with links of a Hugging Face cache resolved.
        folder: the folder that its external data is relative to.
        proto: the parsed model, nodes in topological order, external data not read.
        external: the files of its external data by location, links of a Hugging Face cache resolved.
        notes: what was repaired on the way, as sentences.
    """

    path: Path
    folder: Path
    proto: onnx.ModelProto
    external: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_onnx(path: Path) -> Checked:
    """Read and check one .onnx file.

    Args:
        path: the file a user named.

    Returns:
        The parsed model and where its external data lies.

    Raises:
        InputError: the file cannot be read, is not ONNX, or breaks one of the rules above.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it comes without types

    from onnxopt.load.safety.wire import WireScan

    where = word(path.name)
    real, folder = locate(path, where)
    data = read_bytes(real, where)
    check_kind(data, where)
    WireScan(data, onnx.ModelProto.DESCRIPTOR, where).run()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError, MemoryError) as error:
        raise InputError("is not a sound ONNX file", where=where, hint="copy or download it again") from error
    del data
    files = ExternalFiles(folder, where)
    notes = ModelCheck(proto, where, files).run()
    return Checked(real, folder, proto, files.found, tuple(notes))

"""Look at a source that was found: what it lacks, and what room its result needs, is said before it is loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from onnxopt.artifact.place import resolved
from onnxopt.errors import InputError
from onnxopt.host.disk import free_bytes
from onnxopt.host.sizes import size_text
from onnxopt.load.export.export import look_at
from onnxopt.load.source.source import Source
from onnxopt.road.options import Options

LEAST_SHARE = 8  # the weights of a result take at least one part in so many of those of its source: 4 bits of 32


def require_ready(source: Source, options: Options, out: Path) -> None:
    """Refuse a source that lacks what its task takes, and disks that have no room for it.

    Args:
        source: that was found.
        options: as the user wrote them.
        out: the folder to write.

    Raises:
        InputError: says what is missing and where.
    """
    look_at(source, options.load.task)
    needed = weight_bytes(source)
    is_float = options.quantize.precision == "fp32" and options.prune.what is None
    least = needed if is_float else needed // LEAST_SHARE
    # the cache is not asked: a run goes on without it
    require_room(((resolved(out), least, "--out"), (Path(tempfile.gettempdir()), needed, "TMPDIR")))


def require_room(places: Iterable[tuple[Path, int, str]]) -> None:
    """Refuse folders whose disks have less free than what will surely be written there.

    Args:
        places: a folder that need not be there yet, the bytes, and what names another folder.

    Raises:
        InputError: tells what is free and what is needed.
    """
    for place, needed, name in places:
        free = free_bytes(place)
        if free is not None and free < needed:
            raise InputError(
                f"has no room for the result: {size_text(free)} free, at least {size_text(needed)} needed",
                where=str(place),
                hint=f"make room, or name a folder on another disk with {name}",
            )


def weight_bytes(source: Source) -> int:
    """Return at least how many bytes the weights of a source are; 0 where they are made up or not known."""
    if source.path is None or source.weights == "random":
        return 0
    files = [source.path] if source.kind == "onnx" else source.path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)

"""Choose and check the folder that an artifact is written to."""

from __future__ import annotations

import os
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.claims import sweep
from onnxopt.host.folders import check_writable, unwritable
from onnxopt.records.manifest import MANIFEST_NAME, Manifest

# files that an operating system leaves in a folder it has shown
_DROPPINGS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def check_output_folder(out: Path) -> None:
    """Make sure that an artifact can be written, without leaving anything behind.

    Call it before long work: what killed processes left beside the folder goes now, before its room is needed.

    Args:
        out: the folder that the artifact shall become.

    Raises:
        InputError: when it is a file, holds anything but an artifact, or cannot be written.
    """
    out = resolved(out)
    sweep(out.parent)
    _check_replaceable(out)
    if os.path.ismount(out):
        raise InputError("a mount point cannot be replaced", where=str(out), hint="name a folder inside it")
    check_writable(out)


def resolved(out: Path) -> Path:
    """Return the absolute path of an output folder; raises InputError where there can be none."""
    try:
        return Path(out).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise unwritable(Path(out), error) from error


def _check_replaceable(out: Path) -> None:
    """Refuse to replace anything that we did not write ourselves."""
    try:
        out.stat()  # unlike `exists`, this refuses a name that the file system cannot hold
        if not out.is_dir():
            raise InputError("is a file, not a folder", where=str(out), hint="choose another output folder")
        empty = all(path.name in _DROPPINGS for path in out.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unwritable(out, error) from error
    if empty:
        return
    try:
        manifest = Manifest.read(out)
    except InputError as error:
        raise InputError(
            "holds other files and is no artifact", where=str(out), hint="choose a new or empty output folder"
        ) from error
    files = (path for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    present = {path.relative_to(out).as_posix() for path in files if path.name not in _DROPPINGS}
    foreign = sorted(present - set(manifest.files) - set(manifest.extras) - {MANIFEST_NAME})
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"holds {foreign[0]}{more}, which onnxopt did not write",
            where=str(out),
            hint="move it away or choose another output folder",
        )

"""Look ahead at a pruning: what can be refused by names alone, before anything large is imported or loaded."""

from __future__ import annotations

from pathlib import Path

from onnxopt.calibrate.sources import require_there
from onnxopt.errors import InputError
from onnxopt.host.folders import check_writable
from onnxopt.load.source.source import require_known

RECORD_NAME = "pruning.json"


def look_ahead(text: str, out: Path, data: str) -> None:
    """Refuse what cannot come to a pruned model.

    Args:
        text: what is to be pruned.
        out: folder to write.
        data: calibration data.

    Raises:
        InputError: names what is not there, or a folder that is not ours to replace.
    """
    if out.exists() and not (out / RECORD_NAME).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already", where=str(out), hint="name a new folder with --out")
    require_there(data)
    check_writable(out)
    require_known(text)

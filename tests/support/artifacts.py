"""Artifacts that many tests only read, each made once in a run of the tests."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import onnxopt
from onnxopt.road.options import TargetName


@functools.cache
def _room() -> Path:
    room = Path(tempfile.mkdtemp(prefix="onnxopt-artifacts-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return room


@functools.cache
def shared_artifact(source: str, target: TargetName = "cpu") -> Path:
    """Return the artifact of a sample; whoever changes it works on a copy."""
    return onnxopt.optimize(source, out=_room() / target / source, target=target, measure=False).path

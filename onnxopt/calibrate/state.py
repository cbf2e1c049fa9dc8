"""Keep the state of a long calibration in the user's cache, so that an interrupted one goes on where it was.

What is kept belongs to one graph, one set of tensors and one set of samples, and disappears when it has served.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.data import CalibrationData
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph.weight_files import elements
from onnxopt.host.kept import keep
from onnxopt.host.usercache import cache_root, keep_file
from onnxopt.spec import Array

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20.0  # of work that an interruption may cost; shorter calibrations write nothing
MOST_BYTES = 1 << 30  # of Gram matrices that are not worth a file
_PASSED = "passed"
_EDGE = 1 << 12  # bytes at both ends of a weight that tell it from another


class CalibrationState:
    """What has been seen so far, on disk.

    Args:
        model: that is calibrated.
        values: its tensors that are watched.
        data: the samples.
        about: what else tells this calibration from others.

    Attributes:
        passed: runs that are in the statistics already.
        found: those statistics, by name of the tensor.
    """

    def __init__(self, model: ir.Model, values: Sequence[ir.Value], data: CalibrationData, about: str) -> None:
        digest = hashlib.sha256(f"{data.record.sha256} {about}".encode())
        for value in values:
            digest.update(f"{value.name};".encode())
        for node in model.graph:
            digest.update(f"{node.op_type} {[item.name if item else '' for item in node.inputs]};".encode())
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not tensor.dtype.is_string():
                ends = elements(tensor, 0, _EDGE), elements(tensor, max(0, tensor.size - _EDGE))
                first, last = (np.ascontiguousarray(end).view(np.uint8) for end in ends)
                digest.update(first[:_EDGE].tobytes() + last[-_EDGE:].tobytes())
        self._path = cache_root() / "calibration" / f"{digest.hexdigest()[:32]}.npz"
        self._saved = time.monotonic()
        self.passed = 0
        self.found: dict[str, Statistics] = {}
        self._load()

    def keep(self, passed: int, found: Mapping[ir.Value, Statistics]) -> None:
        """Write the state when the last time is long ago."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._saved = time.monotonic()
        arrays: dict[str, Array] = {_PASSED: np.array(passed)}
        for value, seen in found.items():
            arrays |= {f"{value.name}\n{part}": array for part, array in seen.state().items()}
        if sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
            return

        def write(fresh: Path) -> None:
            with fresh.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle

        keep_file(self._path, write)
        if self._path.is_file():
            keep(self._path, "the calibration so far, in the cache: the same command goes on from there")

    def forget(self) -> None:
        """Remove the file: the calibration has come to its end."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _load(self) -> None:
        if not self._path.is_file():
            return
        parts: dict[str, dict[str, Array]] = {}
        try:
            with np.load(self._path, allow_pickle=False) as content:
                passed = int(content[_PASSED])
                for key in content.files:
                    name, _, part = key.partition("\n")
                    if part:
                        parts.setdefault(name, {})[part] = content[key]
            self.found = {name: Statistics.of_state(state) for name, state in parts.items()}
            self.passed = passed
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:  # as good as none
            logger.warning("%s: the state of a calibration cannot be read (%s)", self._path.name, error)
            self.found = {}
            return
        logger.info("an interrupted calibration goes on behind run %d", self.passed)

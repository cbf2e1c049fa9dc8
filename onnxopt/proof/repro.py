"""Keep what is needed to reproduce a refuted rewrite: both regions as models, and the inputs on which they differ."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Region, detach
from onnxopt.host.disk import reason_of
from onnxopt.spec import Array

logger = logging.getLogger(__name__)


def write_repro(
    folder: Path | None,
    name: str,
    regions: tuple[Region, Region],
    model: ir.Model,
    values: dict[ir.Value, Array] | None,
) -> Path | None:
    """Write `replaced.onnx`, `replacement.onnx` and `inputs.npz` of a refuted match.

    Args:
        folder: parent folder; None writes nothing.
        name: the pass.
        regions: the replaced region and its replacement.
        model: gives opset imports and functions.
        values: an array for each input value of the regions; None writes nothing.

    Returns:
        The folder written; None also where it cannot be.
    """
    if folder is None or values is None:
        return None
    try:
        return _written(folder, name, regions, model, values)
    except OSError as error:  # what helps to look into it is not worth the run
        reason = reason_of(error, folder)
        logger.warning("%s: what was rolled back is not kept there: %s", folder, reason)
        return None


def _written(
    folder: Path, name: str, regions: tuple[Region, Region], model: ir.Model, values: dict[ir.Value, Array]
) -> Path:
    """Write the files of `write_repro`."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", regions[0].outputs[0].name or "match")[-80:]
    target = folder / f"{name}-{label}"
    target.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Array] = {}
    for file, part in zip(("replaced", "replacement"), regions, strict=True):
        cut = detach([part], model.opset_imports, list(model.functions.values()), model.ir_version)
        ir.save(cut.model, target / f"{file}.onnx")
        weights = {key: tensor.numpy() for key, tensor in cut.weights.items()}
        given = {f"in_{index}": values[value] for index, value in enumerate(cut.inputs) if value in values}
        arrays.update({f"{file}/{key}": array for key, array in {**given, **weights}.items()})
    np.savez(target / "inputs.npz", **arrays)  # type: ignore[arg-type]  # the stub allows no mapping of arrays
    return target

"""Plan int8 products for the prompts of a language model: what computes on many rows at a time.

A single token reads every weight once, so it wants few bits per weight. A prompt multiplies many rows with them, so it
wants integers on both sides: the products of QuantizeLinear and MatMulInteger take half the time of weights in blocks.
Not every input lends itself to a fixed grid. Each layer's signal-to-noise ratio is measured on rows that chose nothing;
layers below a floor keep their weights in blocks, and the floor is what a search moves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.calibrate.ranges import METHODS, PLAIN
from onnxopt.graph.linears import Linear, find_linears
from onnxopt.qmath.affine import rounded
from onnxopt.qmath.compare import sqnr_db
from onnxopt.qmath.precision import Plan, PlannedLinear, Scheme
from onnxopt.quantize.columns import by_input
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.search import Group
from onnxopt.quantize.weights import HEAD_FACTOR, LEAST_INPUTS
from onnxopt.records.events import Step
from onnxopt.spec import Array, Say

FITTED, CHOOSING = 32, 8  # samples for grids, and to compare them


@dataclass(frozen=True)
class PromptLayers:
    """What every layer would be with integers on both sides.

    Attributes:
        planned: by label.
        sqnr: signal to noise of its product in dB, by label.
    """

    planned: dict[str, PlannedLinear]
    sqnr: dict[str, float]

    def plan(self, floor: float, rest: Plan) -> Plan:
        """Return the layers that reach a floor, and the rest as another plan has it."""
        kept = {label: one for label, one in self.planned.items() if self.sqnr[label] >= floor}
        return Plan({**rest.linears, **kept})

    def floors(self, shares: Sequence[float]) -> list[float]:
        """Return the floors that shares of all layers reach, the best layers first."""
        ordered = sorted(self.sqnr.values(), reverse=True)
        return [ordered[max(1, round(share * len(ordered))) - 1] for share in shares] if ordered else []


def prompt_layers(
    model: ir.Model,
    data: CalibrationData,
    *,
    keep: Collection[str] = (),
    scheme: Scheme = PLAIN,
    progress: Say | None = None,
) -> PromptLayers:
    """Plan static int8 for the layers of a decoder that see every token of a prompt.

    Args:
        model: fused, with a cache; not changed.
        data: calibration text; `fit` gives grids, `choose` compares them.
        keep: labels that are left out.
        scheme: what the target wants.
        progress: told what is done.
    """
    whole = all_positions(model)
    groups = by_input([one for one in find_linears(whole) if _computes_on_all(one) and one.label not in keep])
    fitted = collect(whole, groups, data, "fit", most=FITTED, progress=progress)
    held = collect(whole, groups, data, "choose", most=CHOOSING, progress=progress)
    found = PromptLayers({}, {})
    for number, (x, readers) in enumerate(groups.items(), start=1):
        seen = fitted.get(x)
        if seen is None or not seen.rows or x not in held:
            continue
        if progress is not None:
            progress(Step.piece("grids for prompts:", number, len(groups)))
        rows = held[x].sample
        group = Group(readers, seen, rows)
        own = group.smooth(METHODS, scheme) or group.plain(METHODS, scheme)
        found.planned.update(own)
        found.sqnr.update({one.label: _sqnr(one, own[one.label], rows) for one in readers})
    return found


def _computes_on_all(linear: Linear) -> bool:
    """Leave out the last layer, which sees one row of a prompt, and what is too small to matter."""
    return linear.rows >= LEAST_INPUTS and linear.columns < HEAD_FACTOR * linear.rows


def _sqnr(linear: Linear, planned: PlannedLinear, rows: Array) -> float:
    """Return the signal-to-noise ratio of the product in dB."""
    assert planned.activation is not None  # noqa: S101 - plan_layer gives both for int8
    assert planned.columns is not None  # noqa: S101
    inputs = rows if planned.factors is None else rows / planned.factors
    codes, scales = planned.columns
    product = rounded(inputs, planned.activation.scale, planned.activation.unsigned) @ (codes * scales)
    return sqnr_db(np.asarray(product, np.float32), np.asarray(rows @ linear.matrix(), np.float32))

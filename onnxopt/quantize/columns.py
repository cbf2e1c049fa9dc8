"""Plan int8 with a scale per column: static, with calibrated grids for the inputs, and dynamic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.calibrate.ranges import METHODS, PLAIN, Method, choose
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph import constant
from onnxopt.graph.linears import Linear
from onnxopt.qmath.affine import columns, rounded
from onnxopt.qmath.precision import Affine, Kind, Plan, PlannedLinear, Precision, Scheme
from onnxopt.spec import Array, Say


def by_input(linears: Sequence[Linear]) -> dict[ir.Value, list[Linear]]:
    """Group linears by what they read: one grid serves all readers of a tensor."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.x, []).append(linear)
    return groups


def plan_columns(
    model: ir.Model,
    linears: Sequence[Linear],
    data: CalibrationData,
    *,
    kind: Kind = "int8",
    methods: tuple[Method, ...] = METHODS,
    scheme: Scheme = PLAIN,
    progress: Say | None = None,
) -> Plan:
    """Plan int8 for linear layers.

    Args:
        model: fused, standard operators; not changed.
        linears: the layers of it that are quantized.
        data: calibration samples.
        kind: `int8` or `int8-dynamic`.
        methods: calibrators to compare.
        scheme: what the target wants.
        progress: told what is done.
    """
    inputs = list(by_input(linears))
    fitted = collect(model, inputs, data, "fit", progress=progress)
    held = collect(model, inputs, data, "choose", progress=progress)
    planned: dict[str, PlannedLinear] = {}
    for x, readers in by_input(linears).items():
        seen = fitted.get(x)
        if seen is None or not seen.rows:
            planned.update(_kept(readers, "its input is not computed from what is calibrated"))
            continue
        rows = held[x].sample if x in held else seen.sample
        weights = [linear.matrix() for linear in readers]
        planned.update(plan_layer(readers, weights, seen, rows, methods, kind=kind, scheme=scheme))
    return Plan(planned)


def plan_layer(
    readers: Sequence[Linear],
    weights: Sequence[Array],
    seen: Statistics,
    held_out: Array,
    methods: tuple[Method, ...],
    *,
    kind: Kind = "int8",
    scheme: Scheme = PLAIN,
    factors: Array | None = None,
) -> dict[str, PlannedLinear]:
    """Plan the readers of one tensor.

    Args:
        readers: the linears.
        weights: float [in, out] of each, rows multiplied by the factors already.
        seen: statistics of the tensor, divided by the factors.
        held_out: float32 [rows, in] of other samples, divided too.
        methods: calibrators to compare.
        kind: `int8` or `int8-dynamic`.
        scheme: what the target wants.
        factors: of the smoothing.
    """
    grid = (
        choose(seen, held_out, np.concatenate(weights, axis=1), methods, scheme=scheme)[0] if kind == "int8" else None
    )
    found = {}
    for linear, weight in zip(readers, weights, strict=True):
        stored = columns(weight, bits=scheme.weight_bits, importance=seen.moments)
        bias = _corrected(linear, weight, stored, grid, seen)
        found[linear.label] = PlannedLinear(
            Precision(kind), activation=grid, columns=stored, bias=bias, factors=factors
        )
    return found


def _kept(linears: Sequence[Linear], reason: str) -> Mapping[str, PlannedLinear]:
    return {linear.label: PlannedLinear(Precision(), reason) for linear in linears}


def _corrected(
    linear: Linear, weight: Array, stored: tuple[Array, Array], grid: Affine | None, seen: Statistics
) -> Array | None:
    """Return the bias that takes away the mean error of the product, E[x W − x̂ Ŵ], measured on sampled rows.

    Source: bias correction, Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """
    own = constant(linear.bias)
    if own is None or not len(seen.sample):
        return None
    rows = seen.sample
    inputs = rounded(rows, grid.scale, grid.unsigned) if grid is not None else rows
    codes, scales = stored
    error = rows.mean(axis=0, dtype=np.float64) @ weight - inputs.mean(axis=0, dtype=np.float64) @ (codes * scales)
    return np.asarray(own + error).astype(own.dtype)

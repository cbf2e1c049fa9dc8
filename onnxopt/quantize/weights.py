"""Plan weights only: which linear layers and tables are stored in 4 or 8 bits, on which grids.

Without data weights are rounded (`rtn`), on grids with the least squared error (`mse`) or with searched zero points
(`hqq`). With what calibration has seen of each layer's input, `gptq` lets the inputs that are rounded later take back
what the earlier ones did to the product, and the bias takes back what is left of the mean.

Two choices hold for every method. The last layer of a language model, told by its width, is stored in 8 bits also where
the others get 4: it has no layer behind it that could forgive. A table that shares its weight is stored once, in that
layer's codes, if its rows are whole blocks; so such a layer gets the largest block that divides them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import constant, dims
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import Linear
from onnxopt.graph.weight_files import elements
from onnxopt.qmath.blocks import METHODS, dequantize, quantize
from onnxopt.qmath.gptq import Inputs, gptq
from onnxopt.qmath.precision import Blocked, Plan, PlannedLinear, Precision
from onnxopt.records.events import Step
from onnxopt.spec import Array, Say

WeightMethod = Literal["auto", "rtn", "mse", "hqq", "gptq"]
WEIGHT_METHODS: tuple[WeightMethod, ...] = ("auto", "gptq", *METHODS)
BITS = {"int4-weights": 4, "int8-weights": 8}
LEAST_INPUTS = 16  # fewer are less than a block
HEAD_FACTOR = 8  # a layer with this many more outputs than inputs is a choice among words
HEAD = Precision("int8-weights", 64)
LEAST_BLOCK = 16
ROWS_AT_ONCE = 4096  # of a table
LEAST_TABLE = 1 << 16  # elements: position tables and the like are not worth a kernel


@dataclass(frozen=True)
class SeenInput:
    """What calibration has seen of the input of a linear layer.

    Attributes:
        moment: float [in, in], E[x xᵀ], or float [in], E[x²].
        mean: float [in].
    """

    moment: Array
    mean: Array

    @cached_property
    def inputs(self) -> Inputs:
        """What GPTQ wants of them, where the whole moment is known; layers that read one tensor share it."""
        return Inputs.of(self.moment)


def plan_weights(
    layers: Layers,
    precision: Precision | Mapping[str, Precision],
    *,
    method: WeightMethod = "auto",
    keep: Collection[str] = (),
    seen: Mapping[str, SeenInput] | None = None,
    given: Mapping[str, Blocked] | None = None,
    head: Precision | None = HEAD,
    progress: Say | None = None,
) -> Plan:
    """Decide on codes for every linear layer and table.

    Args:
        layers: of a fused or lowered graph.
        precision: `int8-weights` or `int4-weights` for all layers, or one per label; other layers stay in float.
        method: how weights are rounded; `auto` is `gptq` for 4 bits where inputs have been seen, else `mse`.
        keep: labels that stay in float.
        seen: inputs of layers, by label; `gptq` needs the whole moment.
        given: codes that are already known, by label, from a checkpoint that has them: they are taken as they are.
        head: for the last layer of a language model, unless `precision` names it; None treats it like the others.
        progress: told which layer is rounded.

    Returns:
        A plan with every label: also of what stays in float, with the reason.

    Raises:
        InputError: the precision is not of weights only, or `gptq` has not seen an input.
    """
    linears, tables = layers.linears, layers.tables
    shared = {table.weight: table.label for table in tables}
    made: dict[str, PlannedLinear] = {}
    for number, linear in enumerate(linears, start=1):
        wanted = _wanted(linear, precision, head)
        reason = _reason(linear, wanted, keep)
        if reason or wanted is None:
            made[linear.label] = PlannedLinear(Precision(), reason)
            continue
        if progress is not None:
            progress(Step.piece("rounding", number, len(linears), linear.label))
        if linear.weight in shared:
            wanted = whole_blocks(wanted, linear.rows)
        known = (given or {}).get(linear.label)
        if known is not None:
            made[linear.label] = PlannedLinear.as_given(known)
        else:
            made[linear.label] = round_weight(linear, wanted, method, (seen or {}).get(linear.label))
    for table in tables:
        made[table.label] = _table(table.weight, table.label, linears, made, keep)
    return Plan(made)


def _wanted(linear: Linear, precision: Precision | Mapping[str, Precision], head: Precision | None) -> Precision | None:
    if isinstance(precision, Precision):
        return precision_of(linear, precision, head)
    return precision.get(linear.label)


def precision_of(linear: Linear, precision: Precision, head: Precision | None = HEAD) -> Precision:
    """Return what a layer gets where all are to get one precision: the last layer of a language model not 4 bits.

    Args:
        linear: the layer.
        precision: of all layers.
        head: for the last layer in the place of 4 bits; None treats it like the others.
    """
    is_head = linear.columns >= HEAD_FACTOR * linear.rows
    return head if head is not None and is_head and precision.kind == "int4-weights" else precision


def _reason(linear: Linear, wanted: Precision | None, keep: Collection[str]) -> str:
    """Return why a layer stays in float; empty when it does not."""
    if linear.label in keep:
        return "kept by the user"
    if wanted is None or wanted.kind == "fp32":
        return "kept by the plan"
    if wanted.kind not in BITS:
        raise InputError(
            f"{wanted} is not a precision of weights only",
            where=linear.label,
            hint="use int8-weights or int4-weights",
        )
    if linear.rows < LEAST_INPUTS:
        return f"{linear.rows} inputs are less than a block"
    return ""


def whole_blocks(precision: Precision, width: int) -> Precision:
    """Return a precision whose blocks divide a width, when there is one; the largest, up to its own."""
    block = precision.block_size
    while block >= LEAST_BLOCK:
        if width % block == 0:
            return replace(precision, block_size=block)
        block //= 2
    return precision


def round_weight(
    linear: Linear, precision: Precision, method: WeightMethod = "auto", seen: SeenInput | None = None
) -> PlannedLinear:
    """Round the weight of one layer.

    Raises:
        InputError: `gptq` without the whole moment of the input.
    """
    weight = linear.matrix()
    try:
        precision, blocks = encoded(weight, precision, method, seen)
    except InputError as error:
        raise InputError(error.what, where=linear.label, hint=error.hint) from error
    return PlannedLinear(precision, blocks=blocks, bias=_corrected(linear, weight, blocks, seen))


def encoded(
    weight: Array, precision: Precision, method: WeightMethod = "auto", seen: SeenInput | None = None
) -> tuple[Precision, Blocked]:
    """Return the codes of a weight, or of some of its outputs, with the precision as the method has it.

    Args:
        weight: float32 [in, out].
        precision: of weights only.
        method: how it is rounded.
        seen: its input.

    Raises:
        InputError: `gptq` without the whole moment of the input.
    """
    bits, symmetric = BITS[precision.kind], precision.symmetric
    whole = seen is not None and seen.moment.ndim == 2
    if method == "auto":
        method = "gptq" if whole and bits < 8 else "mse"  # 8 bits are near enough without
    if method == "hqq" and symmetric:
        precision, symmetric = replace(precision, symmetric=False), False
    if method == "gptq":
        if seen is None or not whole:
            raise InputError("gptq has not seen the input of this layer", hint="calibrate, or use mse")
        blocks = gptq(weight, seen.inputs, bits, precision.block_size, symmetric=symmetric)
    else:
        moment = None if seen is None else np.diag(seen.moment) if whole else seen.moment
        blocks = quantize(weight, bits, precision.block_size, symmetric=symmetric, method=method, moment=moment)
    return precision, blocks


def _corrected(linear: Linear, weight: Array, blocks: Blocked, seen: SeenInput | None) -> Array | None:
    """Return the layer's bias with E[x]·(W − Ŵ) added: what rounding shifts on average; None for no change.

    A layer without a bias gets none: the mean of an input behind a norm is close to 0, and its projection would no
    longer pack with its neighbours.
    """
    own = constant(linear.bias)
    if own is None or seen is None:
        return None
    return np.asarray(own + seen.mean @ (weight - dequantize(blocks)), np.float32)


def _table(
    weight: ir.Value,
    label: str,
    linears: Collection[Linear],
    made: Mapping[str, PlannedLinear],
    keep: Collection[str],
) -> PlannedLinear:
    """Plan a table: in the codes of the layer that shares its weight, else in 8 bits; in float when that layer is."""
    twin = next((linear for linear in linears if linear.weight is weight and linear.transposed), None)
    width = (dims(weight) or (0, 0))[1]
    if label in keep:
        return PlannedLinear(Precision(), "kept by the user")
    if twin is not None:
        blocks = made[twin.label].blocks
        if blocks is not None and isinstance(width, int) and width % blocks.block_size == 0:
            return replace(made[twin.label], bias=None)
        return PlannedLinear(Precision(), f"it shares the weight of {twin.label}, which keeps it")
    if not any(one.blocks is not None for one in made.values()):
        return PlannedLinear(Precision(), "nothing else is quantized")
    return _own_table(weight)


def plan_tables(layers: Layers, keep: Collection[str] = ()) -> dict[str, PlannedLinear]:
    """Plan the tables of an encoder whose layers are in int8: in 8 bits, with a scale per block of a row.

    Args:
        layers: of a fused or lowered graph.
        keep: labels that stay in float.
    """
    shared = {linear.weight for linear in layers.linears}
    made: dict[str, PlannedLinear] = {}
    for table in layers.tables:
        if table.label in keep:
            made[table.label] = PlannedLinear(Precision(), "kept by the user")
        elif table.weight in shared:
            made[table.label] = PlannedLinear(Precision(), "it shares the weight of a layer")
        else:
            made[table.label] = _own_table(table.weight)
    return made


def _own_table(weight: ir.Value) -> PlannedLinear:
    """Plan a table whose weight nobody shares."""
    entries, width = (int(d) if isinstance(d, int) else 0 for d in dims(weight) or (0, 0))
    precision, tensor = whole_blocks(HEAD, width), weight.const_value
    if tensor is None or width % precision.block_size:
        return PlannedLinear(Precision(), f"rows of {width} are not whole blocks")
    if entries * width < LEAST_TABLE:
        return PlannedLinear(Precision(), "small")
    return PlannedLinear(precision, blocks=_rows_in_8_bits(tensor, (entries, width), precision.block_size))


def _rows_in_8_bits(tensor: ir.TensorProtocol, sizes: tuple[int, int], block_size: int) -> Blocked:
    """Round a table [entries, width], some rows at a time: each block has a grid of its own."""
    entries, width = sizes
    codes = np.empty((entries, width), np.uint8)
    scales = []
    for start in range(0, entries, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, entries)
        rows = elements(tensor, start * width, stop * width).reshape(-1, width)
        made = quantize(rows.T, 8, block_size, method="mse")
        codes[start:stop] = made.codes
        scales.append(made.scales)
    return Blocked(codes, np.concatenate(scales), None, 8, block_size)

"""Store the weights of linear layers and embeddings in 4 or 8 bits, in blocks; activations stay float.

Before::

    x ─ MatMul(W) ─ Add(b) ─ y            ids ─ Gather(table) ─ y

After::

    x ─ MatMulNBits(codes, scales, zero points, b) ─ y

    ids ─ GatherBlockQuantized(codes, scales, zero points) ─ y

Meets: every linear layer and embedding that the plan names, before or behind the passes that lower attention: a packed
    projection takes the codes of its parts. A table that is also the last layer's weight is stored once.
Numerics: lossy. Besides the weights the kernel rounds each row of x to 8 bits per block. So this comes behind all
    passes that are proved to rounding errors: one more rounding error of x may move it to the next of 256 steps.
Source: ONNX Runtime contrib operators MatMulNBits (codes [out, blocks, bytes], the low half of a byte first, the middle
    of the codes as zero point when none is given; accuracy_level 4 computes with 8-bit integers, without it the CPU
    dequantizes 8-bit weights on every call and takes twice as long with 4-bit ones) and GatherBlockQuantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, constant, dims, is_op
from onnxopt.graph.linears import find_tables, name_after, parts_of
from onnxopt.graph.weight_files import tensor_of
from onnxopt.passes.words.planned import Planned, PlannedLayer
from onnxopt.qmath.blocks import pack
from onnxopt.qmath.precision import Blocked, Kind, Plan, PlannedLinear
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.spec import Array, Lossy

INT8_COMPUTE = 4  # of MatMulNBits

# Below, a layer was planned for another weight: rounding to 4 bits in blocks of 256 leaves 17 dB of a normal weight.
FLOOR_4_BITS, FLOOR_8_BITS = 6.0, 20.0


@dataclass(frozen=True)
class Codes:
    """The weight in blocks that the plan has."""

    blocked: Blocked


def side_by_side(parts: Sequence[Blocked]) -> Blocked:
    """Return the codes of one product that gives the columns of several; large ones lie in a file where that is wanted.

    All products of a model are put together before the first is proved.
    """
    points = [part.zero_points for part in parts if part.zero_points is not None]
    return replace(
        parts[0],
        codes=tensor_of(np.concatenate([part.codes for part in parts]), "codes").numpy(),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate(points) if points else None,
    )


class InBlocks(Planned):
    """X @ W + b  →  MatMulNBits(X, codes, scales, zero points, b)."""

    behind_lowering = True

    def guard(self, match: Match) -> None:
        """The plan must have codes of the layer's shape."""
        super().guard(match)
        layer = match.noted(PlannedLayer)
        linear, blocked = layer.linear, layer.planned.blocks
        match.require(blocked is not None, "the plan has no codes for it", match.root)
        if blocked is None:
            return
        shape = blocked.codes.shape
        match.require(shape == (linear.columns, linear.rows), f"the plan's codes are {list(shape)}", linear.weight)
        match.note(Codes(blocked))

    def planned(self, label: str) -> PlannedLinear | None:
        """Return the plan of a layer, put together from those of its parts when it is packed."""
        if label in self.plan.linears:
            return self.plan.get(label, self.kind)
        parts = [part for one in parts_of(label) if (part := self.plan.get(one, self.kind)) is not None]
        blocks = [part.blocks for part in parts if part.blocks is not None]
        layouts = {(one.bits, one.block_size, one.zero_points is None) for one in blocks}
        whole = len(parts) == len(blocks) == len(parts_of(label)) and len(layouts) == 1
        if not whole or any(part.bias is not None for part in parts):
            return None
        return replace(parts[0], blocks=side_by_side(blocks))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """One node, and an Add where the layer adds more than its bias."""
        linear, blocked = match.noted(PlannedLayer).linear, match.noted(Codes).blocked
        stored = packed_codes(blocked)
        codes = op.constant(stored, "codes")
        name_after(codes, [linear.weight])
        points = blocked.zero_points
        product = op.contrib(
            "MatMulNBits",
            x,
            codes,
            op.constant(blocked.scales, "scales"),
            None if points is None else op.constant(pack(points, blocked.bits), "zero_points"),
            None,
            self.bias(op, match),
            K=linear.rows,
            N=linear.columns,
            bits=blocked.bits,
            block_size=blocked.block_size,
            accuracy_level=INT8_COMPUTE,
        )
        return self.with_rest(op, match, product)


@register
class QuantizeWeights4(InBlocks):
    """X @ W + b  →  MatMulNBits(X, codes, scales, zero points, b), in 4 bits."""

    name = "quantize-weights-4"
    numerics = Lossy("sqnr_db", FLOOR_4_BITS)
    kind: Kind = "int4-weights"


@register
class QuantizeWeights8(InBlocks):
    """X @ W + b  →  MatMulNBits(X, codes, scales, zero points, b), in 8 bits."""

    name = "quantize-weights-8"
    numerics = Lossy("sqnr_db", FLOOR_8_BITS)
    kind: Kind = "int8-weights"


def packed_codes(blocked: Blocked) -> Array:
    """Return uint8 [out, blocks, bytes of a block]; what fills the last block stands for 0."""
    rows, columns = blocked.codes.shape
    blocks = blocked.scales.shape[1]
    filled = np.full((rows, blocks * blocked.block_size), 1 << (blocked.bits - 1), np.uint8)
    filled[:, :columns] = blocked.codes
    return pack(filled, blocked.bits).reshape(rows, blocks, -1)


@register
class QuantizeEmbedding(Rule):
    """Gather(table, ids)  →  GatherBlockQuantized(codes, ids, scales, zero points).

    Args:
        plan: what becomes of each table, by its label (see `onnxopt.graph.linears.find_tables`).
    """

    behind_lowering = True
    name = "quantize-embedding"
    numerics = Lossy("sqnr_db", FLOOR_4_BITS)

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()

    def patterns(self, op: Ops, ids: Pat) -> Iterator[Pat]:
        """A lookup of rows."""
        yield op.Gather(any_constant("table"), ids)

    def guard(self, match: Match, ids: ir.Value) -> None:
        """The plan decides; a row must be whole blocks."""
        table = next((one for one in find_tables(match.model) if one.node is match.root), None)
        match.needs(table is not None, "no lookup of rows")
        planned = self.plan.linears.get(table.label) if table is not None else None
        match.needs(planned is not None and planned.blocks is not None, "the plan keeps it")
        match.require(ids.dtype in (ir.DataType.INT32, ir.DataType.INT64), f"the indices are {ids.dtype}", ids)
        blocked = planned.blocks if planned is not None else None
        if blocked is None or table is None:
            return
        match.require(blocked.codes.shape == dims(table.weight), "the plan's codes are for another table", table.weight)
        whole = blocked.codes.shape[1] % blocked.block_size == 0
        match.require(whole, f"a row is not whole blocks of {blocked.block_size}", table.weight)
        match.note(Codes(blocked))

    def rewrite(self, op: Builder, match: Match, ids: ir.Value) -> ir.Value:
        """Read the codes of the last layer where they are the same."""
        blocked = match.noted(Codes).blocked
        stored = packed_codes(blocked)
        points = None if blocked.zero_points is None else pack(blocked.zero_points, blocked.bits)
        twin = _twin(match.model, stored, blocked.scales)
        if twin is None:
            codes = op.constant(stored.reshape(len(stored), -1), "codes")
            scales = op.constant(blocked.scales, "scales")
            zeros = None if points is None else op.constant(points, "zero_points")
        else:
            codes = op.Reshape(twin.inputs[1], op.ints([len(stored), -1], "rows"))
            scales = twin.inputs[2]  # type: ignore[assignment]  # a twin is one by its scales
            zeros = twin.inputs[3] if len(twin.inputs) > 3 else None
        return op.contrib(
            "GatherBlockQuantized",
            codes,
            ids,
            scales,
            zeros,
            bits=blocked.bits,
            block_size=blocked.block_size,
            gather_axis=0,
            quantize_axis=1,
        )


def _twin(model: ir.Model, stored: Array, scales: Array) -> ir.Node | None:
    """Return the product whose weight has the same codes."""
    for node in model.graph:
        if not is_op(node, "MatMulNBits", domain=CONTRIB) or dims(node.inputs[1]) != stored.shape:
            continue
        own, steps = constant(node.inputs[1]), constant(node.inputs[2])
        if own is not None and np.array_equal(own, stored) and steps is not None and np.array_equal(steps, scales):
            return node
    return None

"""What ONNX Runtime's own operators mean, in ai.onnx operators of the opset that the graph has.

A single standard operator where the opset has one (LayerNormalization-17, Gelu-20, RMSNormalization-23, Attention-23),
else its parts, in a spelling that the fuse stage reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import opset
from onnxopt.probe.sidegraph import origin_of_mask
from onnxopt.rewrite import Builder, Match

WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
LOWEST = float(np.finfo(np.float32).min)
FAR_BELOW = -1e30  # swallows every score
MASK_FILTER = -10000.0  # the kernels' default of mask_filter_value


def given(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or the runtime's default: the schemas of its domain are not in the onnx package."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def require_wide(match: Match, x: ir.Value, version: int, operator: str) -> None:
    """Refuse to spell out in half precision what the kernel computes in float32 inside."""
    match.require(
        opset(match.model) >= version or x.dtype in WIDE,
        f"x is {x.dtype} and opset {opset(match.model)} has no {operator}: its parts would overflow or round",
        x,
    )


def number_like(op: Builder, x: ir.Value, value: float, name: str) -> ir.Value:
    """Make a scalar of the type of x."""
    kind = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
    return op.constant(np.array(value, dtype=kind), name)


def unsqueeze(op: Builder, x: ir.Value, axes: Sequence[int], name: str) -> ir.Value:
    """Insert axes; they became an input in opset 13."""
    if opset(op.model) < 13:
        return op.Unsqueeze(x, axes=list(axes))
    return op.Unsqueeze(x, op.ints(axes, name))


def split_last(op: Builder, x: ir.Value, sizes: Sequence[int], name: str) -> tuple[ir.Value, ...]:
    """Cut the last axis; the sizes became an input in opset 13."""
    if opset(op.model) < 13:
        return op.node("Split", [x], {"axis": -1, "split": list(sizes)}, outputs=len(sizes))
    return op.node("Split", [x, op.ints(sizes, name)], {"axis": -1}, outputs=len(sizes))


def length_of(op: Builder, x: ir.Value, axis: int, name: str) -> ir.Value:
    """The int64 [1] size of an axis."""
    return op.sizes(x, axis, axis + 1, name)


def count_up(op: Builder, x: ir.Value, axis: int, name: str) -> ir.Value:
    """The int64 numbers 0, 1, ... as many as an axis is long."""
    if opset(op.model) < 15:
        stop = op.Gather(op.Shape(x), op.constant(np.array(axis), f"{name}_axis"), axis=0)
    else:
        stop = op.Reshape(op.Shape(x, start=axis, end=axis + 1), op.ints([], f"{name}_scalar"))
    return op.Range(op.constant(np.array(0), f"{name}_first"), stop, op.constant(np.array(1), f"{name}_step"))


def gelu(op: Builder, x: ir.Value, approximate: str) -> ir.Value:
    """Gelu-20, or its parts."""
    if opset(op.model) >= 20:
        return op.Gelu(x, approximate=approximate)
    half, one = number_like(op, x, 0.5, "half"), number_like(op, x, 1.0, "one")
    if approximate == "none":
        bent = op.Erf(op.Div(x, number_like(op, x, math.sqrt(2), "root")))
    else:
        cube = op.Mul(op.Mul(op.Mul(x, x), x), number_like(op, x, 0.044715, "coefficient"))
        bent = op.Tanh(op.Mul(op.Add(x, cube), number_like(op, x, math.sqrt(2 / math.pi), "root")))
    return op.Mul(op.Mul(x, half), op.Add(bent, one))


def layer_norm(op: Builder, x: ir.Value, gamma: ir.Value, beta: ir.Value | None, epsilon: float) -> ir.Value:
    """LayerNormalization-17, or its parts."""
    if opset(op.model) >= 17:
        return op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=epsilon, stash_type=1)
    centred = op.Sub(x, _mean_last(op, x))
    variance = _mean_last(op, op.Mul(centred, centred))
    deviation = op.Sqrt(op.Add(variance, number_like(op, x, epsilon, "epsilon")))
    scaled = op.Mul(op.Div(centred, deviation), gamma)
    return scaled if beta is None else op.Add(scaled, beta)


def rms_norm(op: Builder, x: ir.Value, gamma: ir.Value, epsilon: float) -> ir.Value:
    """RMSNormalization-23, or its parts."""
    if opset(op.model) >= 23:
        return op.RMSNormalization(x, gamma, axis=-1, epsilon=epsilon, stash_type=1)
    power = op.Add(_mean_last(op, op.Mul(x, x)), number_like(op, x, epsilon, "epsilon"))
    return op.Mul(op.Mul(x, op.Reciprocal(op.Sqrt(power))), gamma)


def _mean_last(op: Builder, x: ir.Value) -> ir.Value:
    if opset(op.model) < 18:
        return op.ReduceMean(x, axes=[-1], keepdims=1)
    return op.ReduceMean(x, op.ints([-1], f"last_{len(op.nodes)}"), keepdims=1)


ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "HardSwish": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}


def activation(op: Builder, x: ir.Value, name: str, parameters: Sequence[float]) -> ir.Value:
    """Apply an activation that a product or a convolution carries; an empty name is none."""
    if not name:
        return x
    if name == "Clip" and opset(op.model) >= 11:
        return op.Clip(x, *(number_like(op, x, p, role) for p, role in zip(parameters, ("min", "max"), strict=False)))
    attributes: dict[str, Any] = dict(zip(ACTIVATIONS[name], (float(p) for p in parameters), strict=False))
    return op.node(name, [x], attributes)[0]


@dataclass(frozen=True)
class Scores:
    """What an attention does with its scores.

    Attributes:
        heads: heads of queries.
        kv_heads: heads of keys and values.
        sizes: width of one head of queries and keys, and of values.
        scale: factor of the scores.
        fill: what is added to the score of a masked key.
        causal: no key after its query.
        softcap: 0, or where scores saturate.
    """

    heads: int
    kv_heads: int
    sizes: tuple[int, int]
    scale: float
    fill: float = LOWEST
    causal: bool = False
    softcap: float = 0.0


def attend(
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scores: Scores,
    *,
    allowed: ir.Value | None = None,
    bias: ir.Value | None = None,
) -> ir.Value:
    """Attention-23 on tokens, or its parts.

    Args:
        op: builds.
        q: [batch, queries, heads · size].
        k: [batch, keys, kv_heads · size].
        v: [batch, keys, kv_heads · value size].
        scores: what happens to the scores.
        allowed: bool [batch, 1, 1 or queries, keys].
        bias: float, broadcasts to [batch, heads, queries, keys].

    Returns:
        [batch, queries, heads · value size].
    """
    if opset(op.model) >= 23:
        return _attention(op, q, k, v, scores, allowed, bias)
    size, value_size = scores.sizes
    factor = number_like(op, q, scores.scale, "scale")
    rows = op.Transpose(op.Reshape(q, op.ints([0, 0, scores.heads, size], "heads_q")), perm=[0, 2, 1, 3])
    columns = op.Transpose(op.Reshape(k, op.ints([0, 0, scores.heads, size], "heads_k")), perm=[0, 2, 3, 1])
    values = op.Transpose(op.Reshape(v, op.ints([0, 0, scores.heads, value_size], "heads_v")), perm=[0, 2, 1, 3])
    product = op.Mul(op.MatMul(rows, columns), factor)
    if bias is not None:
        product = op.Add(product, bias)
    if scores.causal:
        below = LOWEST if scores.fill > FAR_BELOW else scores.fill  # the kernel hides what comes later for good
        product = op.Add(product, _hidden(op, q, _causal(op, q, k), below, "causal"))
    if allowed is not None:
        product = op.Add(product, _hidden(op, q, allowed, scores.fill, "padding"))
    merged = op.Transpose(op.MatMul(op.Softmax(product, axis=-1), values), perm=[0, 2, 1, 3])
    return op.Reshape(merged, op.ints([0, 0, scores.heads * value_size], "merged"))


def _attention(
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scores: Scores,
    allowed: ir.Value | None,
    bias: ir.Value | None,
) -> ir.Value:
    causal = scores.causal
    mask = None
    if allowed is not None or bias is not None:
        one = op.ints([1], "one")
        full = [length_of(op, q, 0, "batch"), one, length_of(op, q, 1, "queries"), length_of(op, k, 1, "keys")]
        if allowed is not None:
            allowed = op.Expand(allowed, op.Concat(*full, axis=0))  # runtimes want a row for every query
        near = scores.fill > FAR_BELOW  # a score may outweigh it, so it is added, as the kernel does
        if allowed is not None and causal and not near:
            allowed, causal = op.And(allowed, _causal(op, q, k)), False
        if allowed is None:
            mask = bias
        elif near:
            mask = _hidden(op, q, allowed, scores.fill, "padding")
            mask = op.Add(mask, bias) if bias is not None else mask
            if causal:
                mask, causal = op.Where(_causal(op, q, k), mask, number_like(op, q, LOWEST, "later")), False
        elif bias is not None:
            mask = op.Where(allowed, bias, number_like(op, q, scores.fill, "fill"))
        elif origin_of_mask(allowed).free is not None:
            # a row that sees nothing has an answer by what the kernel adds; Attention takes finfo.min for -inf
            mask = _hidden(op, q, allowed, FAR_BELOW, "padding")
        else:
            mask = allowed
    return op.Attention(
        q,
        k,
        v,
        mask,
        q_num_heads=scores.heads,
        kv_num_heads=scores.kv_heads,
        scale=scores.scale,
        is_causal=1 if causal else None,
        softcap=scores.softcap or None,
    )


def _hidden(op: Builder, q: ir.Value, allowed: ir.Value, fill: float, name: str) -> ir.Value:
    """0 where a key is allowed, `fill` elsewhere."""
    return op.Where(allowed, number_like(op, q, 0.0, f"{name}_zero"), number_like(op, q, fill, f"{name}_fill"))


def _causal(op: Builder, q: ir.Value, k: ir.Value) -> ir.Value:
    """Bool [queries, keys]: no key after its query."""
    queries = unsqueeze(op, count_up(op, q, 1, "causal_queries"), [1], "causal_column")
    return op.Not(op.Less(queries, count_up(op, k, 1, "causal_keys")))


def allowed_keys(op: Builder, mask: ir.Value, keys: ir.Value) -> ir.Value:
    """Read a kernel's integer mask as bool [batch, 1, 1 or queries, keys].

    Args:
        op: builds.
        mask: [batch] lengths of rows that are padded on the right, [batch, keys] or [batch, queries, keys] switches.
        keys: [batch, keys, ...].
    """
    width = 0 if mask.shape is None else len(mask.shape)
    if width == 1:
        places = unsqueeze(op, count_up(op, keys, 1, "places"), [0], "places_row")
        lengths = unsqueeze(op, op.Cast(mask, to=ir.DataType.INT64.value), [1], "lengths_column")
        return unsqueeze(op, op.Less(places, lengths), [1, 2], "mask_axes")
    source = _behind_cast(mask)
    if source.dtype != ir.DataType.BOOL and origin_of_mask(source).free is not None:  # the kernels see what is above 0
        kind = mask.dtype.numpy() if mask.dtype is not None else np.int32
        switches = op.Greater(mask, op.constant(np.zeros((), kind), "nothing"))
    else:
        switches = op.Cast(source, to=ir.DataType.BOOL.value)
    return unsqueeze(op, switches, [1, 2] if width == 2 else [1], "mask_axes")


def _behind_cast(mask: ir.Value) -> ir.Value:
    """Step over the int32 copy that the kernels want; a float would have been cut to whole numbers by it."""
    node = mask.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return source if source is not None and source.dtype in (ir.DataType.INT64, ir.DataType.BOOL) else mask

"""Fuse the spelled-out group normalization into one GroupNormalization node.

Before::

    x ─ Reshape [batch, groups, -1] ─ InstanceNormalization(1, 0) ─ Reshape ─ Mul(γ) ─ Add(β) ─ y

After::

    x ─ GroupNormalization(γ, β, groups) ─ y

Meets: TorchScript and dynamo below opset 21; the normalization as InstanceNormalization or decomposed into ReduceMean,
    with γ and β of shape [channels, 1, 1] or [1, channels, 1, 1]. lower-group-norm takes it apart again, since runtimes
    expand the operator into a form that loses small deviations from a large mean.
Numerics: reassociated. The runtime computes mean and variance in another order, and divides before it subtracts: with
    an ε below 1e-8 the parts stay, since large numbers without a difference would overflow.
Source: Wu & He 2018, arXiv:1803.08494; ONNX operator GroupNormalization-21.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, dims
from onnxopt.passes.words.norms import require_last_axis
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant, either, mean_last, scalar, square_root, squared
from onnxopt.sizes.derive import same_dimension, same_shape
from onnxopt.sizes.emptiness import shape_may_be_empty
from onnxopt.spec import Reassociated

# InstanceNormalization gives x / σ − mean / σ, and σ is at least √ε: equal numbers up to 3e34 stay in range, 1e30 among
# them, where their difference from the mean is 0.
LEAST_EPSILON = 1e-8


@dataclass(frozen=True)
class Groups:
    """How many groups the channels are in."""

    number: int


@register
class FuseGroupNorm(Rule):
    """γ · (x − mean of group) / √(var of group + ε) + β  →  GroupNormalization(x, γ, β)."""

    name = "fuse-group-norm"
    min_opset = 21
    numerics = Reassociated(rtol=2e-5, atol=5e-6)
    enables = ("lower-group-norm",)
    taken_apart_again = True  # the runtime's own form squares numbers and is not a number from 1.8e19 on

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The normalization of [batch, groups, rest], in one operator or in its parts."""
        grouped = op.Reshape(x, Var("shape"), _name="split")
        whole = op.InstanceNormalization(grouped, constant("ones"), constant("zeros"), _name="norm")
        centred = op.Sub(grouped, mean_last(grouped, "mean_axes"))
        deviation = square_root(op.Add(mean_last(squared(centred), "variance_axes"), scalar(name="epsilon")))
        normal = either(whole, op.Div(centred, deviation), op.Mul(centred, op.Reciprocal(deviation)))
        yield op.Add(op.Mul(op.Reshape(normal, Var("back"), _name="merge"), constant("gamma")), constant("beta"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Groups of whole channels, γ and β per channel."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; lower-group-norm takes float32", x)
        grouped, merged = match.named["split"].outputs[0], match.named["merge"].outputs[0]
        before, inner = dims(x) or (), dims(grouped) or ()
        match.require(len(before) >= 3 and isinstance(before[1], int), "x is not [batch, channels, ...]", x)
        match.require(
            len(inner) == 3 and same_dimension(grouped, x, 0) and isinstance(inner[1], int),
            f"the groups have shape {inner}, not [batch, groups, rest]",
            grouped,
        )
        channels, groups = int(before[1] or 0), int(inner[1] or 0)
        match.require(channels % groups == 0, f"{groups} groups do not divide {channels} channels", x)
        match.require(same_shape(merged, x), "the groups are not merged into the shape of x", merged)
        if "norm" in match.named:
            plain = np.all(match.array("ones") == 1) and np.all(match.array("zeros") == 0)
            match.require(plain, "the groups have factors of their own")
        else:
            require_last_axis(match, grouped, "mean_axes", "variance_axes")
            match.require(match.number("epsilon") >= LEAST_EPSILON, "equal large numbers would overflow")
            some = not shape_may_be_empty(match.model, x)
            match.require(some, "x may have no entries, at which InstanceNormalization ends the process", x)
        wanted = (channels, *[1] * (len(before) - 2))
        for name in ("gamma", "beta"):
            shape = dims(match.values[name]) or ()
            match.require(shape[-len(wanted) :] == wanted, f"{name} has shape {shape}, needs {wanted}")
            match.require(all(dim == 1 for dim in shape[: -len(wanted)]), f"{name} has shape {shape}, needs {wanted}")
        match.note(Groups(groups))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """γ and β as vectors."""
        norm = match.named.get("norm")
        epsilon = match.number("epsilon") if norm is None else attribute(norm, "epsilon")
        gamma, beta = (op.constant(match.array(name).reshape(-1), name) for name in ("gamma", "beta"))
        return op.GroupNormalization(x, gamma, beta, num_groups=match.noted(Groups).number, epsilon=epsilon)

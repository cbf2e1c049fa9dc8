"""Find out what of a lowered graph may be stored and computed in 16 bits, and prove it on every tensor inside.

What a tensor reaches on real samples decides: what comes near the end of the range of fp16 stays in float32 with the
nodes that make and read it, and so does a node with a number that fp16 rounds to nothing. Then both graphs run side by
side on other samples, and every tensor that both have is compared; a node that first makes one too wrong goes back to
float32 as well. Looking for infinities at the end would not do: a variance that overflows gives an output of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant, dims, in_groups, is_constant
from onnxopt.passes.quantize.half_precision import FLOAT, HalfPrecision, half_nodes, narrow
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.precision import HalfKind, HalfPlan
from onnxopt.spec import Array, Feeds, Say

FP16_MAX = 65504.0
MARGIN = 2.0  # other inputs than those that were seen reach further
MASKED = 1e9  # no activation is that large; what is added to masked scores is, and is clamped
# Root mean square of the difference over that of the tensor, per tensor. Rounding once leaves 2^-12 and 2^-9 of it at
# most; a network of tens of layers adds up some ten of those.
TOLERANCES: dict[HalfKind, float] = {"fp16": 0.01, "bf16": 0.08}
ROUNDS = 6
CAPTURED_BYTES = 1 << 28  # of the tensors of one run


@dataclass(frozen=True)
class TensorError:
    """How far a tensor of the narrow graph is from that of the float graph.

    Attributes:
        name: of the tensor.
        error: root mean square of the difference over that of the tensor.
    """

    name: str
    error: float


@dataclass
class Halved:
    """A graph in 16 bits with its proof.

    Attributes:
        model: the graph.
        plan: what stayed in float32, and why.
        nodes: how many nodes compute in 16 bits.
        errors: of every tensor that both graphs have, the worst first.
        clamped: literals beyond the range of fp16.
    """

    model: ir.Model
    plan: HalfPlan
    nodes: int
    errors: list[TensorError] = field(default_factory=list)
    clamped: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every tensor is within the tolerance."""
        return not self.errors or self.errors[0].error <= TOLERANCES[self.plan.kind]


def halve(
    model: ir.Model,
    kind: HalfKind,
    samples: Sequence[Feeds],
    others: Sequence[Feeds],
    *,
    caches: frozenset[str] = frozenset(),
    say: Say = lambda _: None,
) -> Halved:
    """Convert a copy of a lowered float32 graph.

    Args:
        model: not changed.
        kind: `fp16` or `bf16`.
        samples: inputs without padding that the ranges are read from.
        others: inputs without padding that both graphs are compared on.
        caches: inputs and outputs of the graph to be handed over in 16 bits.
        say: told what is done.
    """
    say("ranges of all tensors")
    plan = HalfPlan(kind, caches=caches)
    wide = _literals(model, plan)
    if kind == "fp16":
        wide |= _beyond(model, plan, peaks(model, samples))
    references = [_Reference(model, feeds) for feeds in others]
    for attempt in range(ROUNDS):
        plan = replace(plan, wide=dict(wide))
        step = HalfPrecision(plan)
        narrowed = model.clone()
        found = Halved(narrowed, plan, step.run(narrowed), clamped=list(step.clamped))
        say(f"tensors compared, attempt {attempt + 1}")
        found.errors = _compare(narrowed, references)
        worse = _first_makers(model, plan, found)
        if found.holds or not worse:
            break
        wide |= worse
    return found


def peaks(model: ir.Model, samples: Sequence[Feeds]) -> dict[str, float]:
    """Return the largest magnitude of every float tensor that a node of the main graph makes, masks left out."""
    found: dict[str, float] = {}
    for group in _groups(model, samples):
        runner = GraphRunner(model, group, with_outputs=False)
        for feeds in samples:
            for value, array in runner.run(feeds)[1].items():
                usual = np.abs(array[np.abs(array) < MASKED]) if array.size else array
                top = float(usual.max()) if usual.size else 0.0
                found[value.name or ""] = max(found.get(value.name or "", 0.0), top)
    return found


def _floats(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from (value for value in node.outputs if value.name and value.dtype == FLOAT)


def _groups(model: ir.Model, samples: Sequence[Feeds]) -> list[list[ir.Value]]:
    """Split the tensors so that those of one run fit into memory."""
    rows = max((max((array.size for array in feeds.values()), default=1) for feeds in samples), default=1)

    def bytes_of(value: ir.Value) -> int:
        return 4 * rows * math.prod(dim for dim in dims(value) or () if isinstance(dim, int))

    return in_groups(_floats(model), bytes_of, CAPTURED_BYTES)


def _beyond(model: ir.Model, plan: HalfPlan, seen: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that touch a tensor which may leave the range of fp16."""
    found = {}
    for node in half_nodes(model, plan):
        touched = [*(v for v in node.inputs if v is not None and not is_constant(v)), *node.outputs]
        largest = max(touched, key=lambda value: seen.get(value.name or "", 0.0))
        peak = seen.get(largest.name or "", 0.0)
        if peak * MARGIN > FP16_MAX:
            found[node.outputs[0].name or ""] = f"{largest.name} reached {peak:.3g}"
    return found


def _literals(model: ir.Model, plan: HalfPlan) -> dict[str, str]:
    """Return the nodes with a number that 16 bits round to nothing: an epsilon, say."""
    found = {}
    for node in half_nodes(model, plan):
        for value in node.inputs:
            if value is None or not is_constant(value) or value.dtype != FLOAT or math.prod(_sizes(value)) != 1:
                continue
            array = constant(value)
            if array is not None and array.item() != 0 and float(narrow(array, plan.kind)[0].item()) == 0:
                found[node.outputs[0].name or ""] = f"the number {array.item():.3g} would become 0"
    return found


def _sizes(value: ir.Value) -> list[int]:
    return [dim for dim in dims(value) or () if isinstance(dim, int)]


class _Reference:
    """The tensors of the float graph on one set of inputs, in pieces that fit into memory."""

    def __init__(self, model: ir.Model, feeds: Feeds) -> None:
        self.feeds = feeds
        self._model = model
        self._groups = [[value.name or "" for value in group] for group in _groups(model, [feeds])]

    def pairs(self, other: ir.Model) -> Iterator[tuple[str, Array, Array]]:
        """Yield name, tensor of the float graph and of another that has tensors of the same names."""
        own = {value.name: value for value in _floats(self._model)}
        theirs = {value.name: value for node in other.graph for value in node.outputs if value.name}
        for group in self._groups:
            names = [name for name in group if name in theirs]
            expected = GraphRunner(self._model, [own[n] for n in names], with_outputs=False).run(self.feeds)[1]
            runner = GraphRunner(other, [theirs[n] for n in names], with_outputs=False, widen=True)
            given = {**self.feeds, **_as_typed(other, self.feeds)}
            found = runner.run(given)[1]
            for name in names:
                yield name, expected[own[name]], found[theirs[name]].astype(np.float32)


def _as_typed(model: ir.Model, feeds: Feeds) -> Feeds:
    """Return the float inputs in the types that a graph declares."""
    types = {value.name: value.dtype for value in model.graph.inputs}
    return {
        name: array.astype(kind.numpy())
        for name, array in feeds.items()
        if array.dtype.kind == "f" and (kind := types.get(name)) is not None
    }


def _compare(narrowed: ir.Model, references: Sequence[_Reference]) -> list[TensorError]:
    sums: dict[str, tuple[float, float]] = {}
    for reference in references:
        for name, expected, found in reference.pairs(narrowed):
            usual = np.isfinite(expected) & (np.abs(expected) < MASKED)
            a, b = expected[usual].astype(np.float64), found[usual].astype(np.float64)
            noise, signal = float(np.sum((b - a) ** 2)), float(np.sum(a**2))
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + noise, before[1] + signal)
    errors = [TensorError(name, _ratio(noise, signal)) for name, (noise, signal) in sums.items()]
    return sorted(errors, key=lambda one: -one.error)


def _ratio(noise: float, signal: float) -> float:
    if not math.isfinite(noise):
        return math.inf
    return math.sqrt(noise / signal) if signal > 0 else (0.0 if noise == 0 else math.inf)


def _first_makers(model: ir.Model, plan: HalfPlan, found: Halved) -> dict[str, str]:
    """Return the nodes that make a tensor too wrong out of tensors that are not.

    Where such a node is in float32 already, digits are missing in what it reads: the nodes that make that are returned.
    """
    limit = TOLERANCES[plan.kind]
    wrong = {one.name: one.error for one in found.errors if not one.error <= limit}
    narrow_nodes = half_nodes(model, plan)
    makers: dict[str, str] = {}
    for node in model.graph:
        made = [value.name for value in node.outputs if value.name in wrong]
        if not made or any(value is not None and value.name in wrong for value in node.inputs):
            continue
        for one in _narrow_at(node, narrow_nodes):
            makers[one.outputs[0].name or ""] = f"{made[0]} would be wrong by {wrong[made[0] or '']:.2g}"
    return makers


def _narrow_at(node: ir.Node, narrow_nodes: set[ir.Node]) -> Iterator[ir.Node]:
    """Yield a node in 16 bits; for one in float32 the nearest ones ahead of it."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current in narrow_nodes:
            yield current
            continue
        ahead = (value.producer() for value in current.inputs if value is not None)
        fresh = [one for one in ahead if one is not None and one not in seen]
        seen.update(fresh)
        stack.extend(fresh)

"""Make inputs for a graph of which nothing is known but the graph: token ids, masks, positions, numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph.roles import POSITIONS, Role, role_of
from onnxopt.load.operands import Operand, operand_of, steering
from onnxopt.probe.draws import Draws
from onnxopt.qmath.compare import is_float
from onnxopt.spec import CONTAINERS, Array, Feeds, Padding, TensorSpec, Value, padding_of_row

Kind = Literal["ids", "mask", "ones", "positions", "float", "integer", "text", "default"]
DEFAULT_SIZES: dict[Role, int] = {"batch": 2, "sequence": 8, "past": 4, "total": 8, "other": 8}
MAX_FED_ELEMENTS = 1 << 28  # of all inputs together: 1 GiB of float32
_ORDINARY_IDS = 10  # vocabularies keep their special tokens first; made-up text starts behind them
_HOLE_SHARE = 0.3
SEQUENCE_LENGTH = 2  # tensors in a made-up sequence, one more in every second
UNKNOWN_SHAPE = (3,)  # of tensors in a sequence of which the file says nothing
NEAR = 0.1  # how far, in deviations, a made-up value lies from the one that a file holds for an input
_SAME_VALUES = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Expand", "Transpose", "Tile", "Split"}
)


@dataclass(frozen=True)
class InputPlan:
    """How one input is filled.

    Attributes:
        spec: its name, type and axes.
        kind: what its numbers mean.
        rows: ids stay below this; 0 when no table limits them.
        default: what the file holds for an input that may be left out.
        operand: what the input is to the operator that it steers.
    """

    spec: TensorSpec
    kind: Kind
    rows: int = 0
    default: ir.TensorProtocol | None = field(default=None, compare=False)
    operand: Operand | None = None


@dataclass(frozen=True)
class GraphFeeder:
    """Makes inputs from the plans that the graph's own structure suggests.

    Attributes:
        plans: one per input, in graph order.
        defaults: a size per axis; sizes at which the reference was seen to run.
        limits: the largest size of an axis that the reference takes, where it is known.
        roles: what axes count, where their names do not tell.
        tied: groups of axes that are equal; of those only that no caller asks for.
        values: what an input that is compared with constants is filled with: one after the other, as the seed counts.
        examples: inputs that somebody gave; what is made is cut out of them, or they are repeated.
        names: of axes as a caller knows them, for messages.
        apart: axes that read as a sum of others and are none: other sizes run.
        draws: what the model draws at random; made-up numbers come with the inputs.
    """

    plans: tuple[InputPlan, ...]
    defaults: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    examples: tuple[Feeds, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    draws: Draws | None = None

    def terms(self, axis: str) -> tuple[str, ...]:
        """Return the parts of an axis written as a sum of axes and numbers, or nothing."""
        if "+" not in axis:
            return ()
        terms = tuple(part.strip() for part in axis.split("+"))
        known = {other for other in self.axes if "+" not in other}
        is_sum = all(term.isdigit() or term in known for term in terms)
        return terms if is_sum and axis not in self.apart else ()

    def role(self, axis: str) -> Role:
        """Return what an axis counts: as it was found, or as its name says."""
        return self.roles.get(axis) or role_of(axis)

    @property
    def combinations(self) -> int:
        """How many seeds in a row it takes until every combination of compared values was made."""
        return math.prod(len(choices) for choices in self.values.values())

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the dynamic axes, in order of first use."""
        return tuple(dict.fromkeys(axis for plan in self.plans for axis in plan.spec.axes if isinstance(axis, str)))

    def resolve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return a size for every axis.

        An axis takes the size asked under its own name; or, for the names `batch`, `sequence`, `past_sequence` and
        `total_sequence`, under the name of its role (`batch_size` is a batch); or its default. An axis that is a sum of
        others (`past + sequence`), and a total without a size of its own, follow from the others.
        """
        # a usual name that no axis bears stands for the axes of its role
        usual = {name: size for name, size in sizes.items() if _is_role(name) and name not in self.axes}
        asked = {**{f"role:{role_of(name)}": size for name, size in usual.items()}, **sizes}
        for group in self.tied:
            said = next((asked[axis] for axis in group if axis in asked), None)
            if said is not None:
                asked = {**dict.fromkeys(group, said), **asked}
        own = {axis: self._own_size(axis, asked) for axis in self.axes if not self.terms(axis)}
        past = next((own[axis] for axis in own if self.role(axis) == "past"), 0)
        sequence = next((own[axis] for axis in own if self.role(axis) == "sequence"), None)
        for axis in own:
            is_asked = axis in sizes or self._role_key(axis) in asked
            if self.role(axis) == "total" and sequence is not None and not is_asked:
                own[axis] = past + sequence
        for axis in self.axes:
            if axis not in own:
                own[axis] = sum(int(term) if term.isdigit() else own[term] for term in self.terms(axis))
        for axis, limit in self.limits.items():
            if own.get(axis, 0) > limit:
                shown = self.names.get(axis, axis)
                raise InputError(f"axis '{shown}' is asked at {own[axis]}; the model takes at most {limit}")
        return own

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        """Return one array per input; the first row of a mask is never padded.

        Raises:
            InputError: the sizes are beyond what the model takes or what is sane to allocate.
        """
        chosen = self.resolve(sizes)
        shapes = {plan.spec.name: plan.spec.shape(chosen) for plan in self.plans}
        if sum(math.prod(shape) for shape in shapes.values()) > MAX_FED_ELEMENTS:
            raise InputError(f"inputs of the sizes {_listed(chosen)} are too large to make", hint="ask smaller sizes")
        masks = {plan.spec.name: _mask(plan, shapes[plan.spec.name], padding, seed) for plan in self._of("mask")}
        plane = next((mask for mask in masks.values() if mask.ndim == 2), None)
        chances = self._chances(seed)
        example = self.examples[seed % len(self.examples)] if self.examples else {}
        feeds: Feeds = {}
        for plan in self.plans:
            name = plan.spec.name
            if name in example and (plan.kind not in ("mask", "positions") or padding == "none"):
                given = example[name]
                can_be = given.size or not math.prod(shapes[name])  # of nothing, nothing can be repeated
                feeds[name] = repeated(given, shapes[name]) if can_be else _fill_form(plan, shapes[name], seed)
            elif plan.kind == "mask":
                feeds[name] = masks[name].astype(plan.spec.dtype)
            elif plan.kind == "positions":
                feeds[name] = self._positions(shapes[name], plane, chosen).astype(plan.spec.dtype)
            elif plan.operand is not None:
                feeds[name] = steering(plan.operand, shapes[name], shapes, chosen, seed).astype(plan.spec.dtype)
            elif name in chances:
                feeds[name] = np.full(shapes[name], chances[name], dtype=plan.spec.dtype)
            else:
                feeds[name] = _fill_form(plan, shapes[name], seed)
        return feeds if self.draws is None else self.draws.with_drawn(feeds, seed)

    def _chances(self, seed: int) -> dict[str, Any]:
        """Return the combination of compared values that a seed stands for."""
        chosen: dict[str, Any] = {}
        for name, choices in self.values.items():
            seed, place = divmod(seed, len(choices))
            chosen[name] = choices[place]
        return chosen

    def _of(self, kind: Kind) -> Iterator[InputPlan]:
        return (plan for plan in self.plans if plan.kind == kind)

    def _own_size(self, axis: str, asked: Mapping[str, int]) -> int:
        usual = self.defaults.get(axis, DEFAULT_SIZES[self.role(axis)])
        size = asked.get(axis, asked.get(self._role_key(axis), usual))
        return min(size, self.limits[axis]) if axis in self.limits and axis not in asked else size

    def _role_key(self, axis: str) -> str:
        """Return the key under which a role's size is asked; axes without a role have a key nobody asks for."""
        role = self.role(axis)
        return axis if role == "other" else f"role:{role}"

    def _positions(self, shape: tuple[int, ...], mask: Array | None, sizes: Mapping[str, int]) -> Array:
        """Return int64 positions: 0, 1, ... over the tokens that are not padding, as transformers counts them."""
        length = shape[-1] if shape else 1
        past = next((size for axis, size in sizes.items() if self.role(axis) == "past"), 0)
        batch = shape[-2] if len(shape) >= 2 else 1
        if mask is None or mask.shape[0] != batch or mask.shape[1] < length:
            return np.broadcast_to(past + np.arange(length), shape)
        counted = np.maximum(np.cumsum(mask.astype(np.int64), axis=-1) - 1, 0)[:, mask.shape[1] - length :]
        return np.broadcast_to(counted if len(shape) >= 2 else counted[0].reshape(shape), shape)


def plan_input(value: ir.Value, spec: TensorSpec, functions: Mapping[Any, ir.Function]) -> InputPlan:
    """Decide how to fill one graph input.

    Args:
        value: the input in the graph, for its uses.
        spec: its name, type and axes.
        functions: the model's own functions, by identifier.
    """
    name = spec.name.lower()
    dtype = np.dtype(spec.dtype)
    if spec.form == "default":
        return InputPlan(spec, "default", default=value.const_value)
    if dtype == np.dtype(object):
        return InputPlan(spec, "text")
    is_number = is_float(dtype)
    operand = operand_of(value)
    if operand is not None and not spec.form:
        return InputPlan(spec, "float" if is_number else "integer", operand=operand)
    if spec.form in CONTAINERS:
        return InputPlan(spec, "float" if is_number else "integer")
    if "mask" in name and len(spec.axes) >= 2:
        return InputPlan(spec, "mask" if not is_number or "att" in name else "ones")
    if is_number:
        return InputPlan(spec, "float")
    rows = row_bound(value, functions)
    if POSITIONS.search(name):
        return InputPlan(spec, "positions", rows)
    if rows:
        return InputPlan(spec, "ids", rows)
    return InputPlan(spec, "mask" if len(spec.axes) == 2 else "integer")


def row_bound(value: ir.Value, functions: Mapping[Any, ir.Function]) -> int:
    """Return the number of rows of the smallest table that a value indexes, or 0 when it indexes none."""
    bounds: list[int] = []
    queue: list[tuple[ir.Value, int]] = [(value, 0)]
    seen: set[tuple[int, int]] = set()
    while queue:
        current, offset = queue.pop()
        if (id(current), offset) in seen or len(seen) > 10_000:
            continue
        seen.add((id(current), offset))
        for node, index in current.uses():
            rows = _indexed_rows(node, index)
            if rows:
                bounds.append(max(1, rows - offset))
            queue.extend(_carried(node, index, offset, functions))
    return min(bounds, default=0)


def _indexed_rows(node: ir.Node, index: int) -> int:
    """Return the rows of the table that input `index` of this node looks up, or 0."""
    place = (node.op_type, index)
    if place in (("Gather", 1), ("GatherElements", 1)):
        axis = node.attributes.get_int("axis", 0)
        return _rows(node.inputs[0], axis)
    tables = {("EmbedLayerNormalization", 0): 2, ("EmbedLayerNormalization", 1): 4}
    if place in tables and len(node.inputs) > tables[place]:
        return _rows(node.inputs[tables[place]], 0)
    if place == ("OneHot", 0):
        depth = _constant(node.inputs[1])
        return int(depth.reshape(-1)[0]) if depth is not None and depth.size else 0
    return 0


def _rows(table: ir.Value | None, axis: int) -> int:
    for _ in range(8):  # Cast and DequantizeLinear in front of a table keep its shape
        if table is None:
            return 0
        shape = table.const_value.shape if table.const_value is not None else table.shape
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if isinstance(size, int):
            return size
        node = table.producer()
        if node is None or node.op_type not in ("Cast", "Identity", "DequantizeLinear"):
            return 0
        table = node.inputs[0]
    return 0


def _carried(
    node: ir.Node, index: int, offset: int, functions: Mapping[Any, ir.Function]
) -> Iterator[tuple[ir.Value, int]]:
    """Yield the values that hold the same numbers as input `index` of this node, shifted by `offset`."""
    function = functions.get(node.op_identifier())
    if function is not None:
        if index < len(function.inputs):
            yield function.inputs[index], offset
        return
    passes = index == 0 and node.op_type in (*_SAME_VALUES, "Gather")
    passes = passes or node.op_type == "Concat" or (node.op_type == "Where" and index > 0)
    if passes:
        yield from ((output, offset) for output in node.outputs)
    elif node.op_type == "Add":
        other = _constant(node.inputs[1 - index])
        if other is not None and other.size == 1 and np.issubdtype(other.dtype, np.integer):
            yield node.outputs[0], offset + int(other.reshape(-1)[0])


def _constant(value: ir.Value | None) -> Array | None:
    """Return a small constant, from an initializer or a Constant node."""
    if value is None:
        return None
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and tensor.size <= 1024 else None


def _fill_form(plan: InputPlan, shape: tuple[int, ...], seed: int) -> Value:
    """Return a value of an input's form; of a sequence some tensors, of an optional one that is there."""
    rng = np.random.default_rng([seed, zlib.crc32(plan.spec.name.encode())])
    if plan.default is not None:
        return _near(plan.default.numpy(), seed, rng)
    if plan.spec.form in CONTAINERS and not shape:
        shape = UNKNOWN_SHAPE
    if plan.spec.form in ("sequence", "optional sequence"):
        return [_fill(plan, shape, rng) for _ in range(SEQUENCE_LENGTH + seed % 2)]
    return _fill(plan, shape, rng)


def _near(array: Array, seed: int, rng: np.random.Generator) -> Array:
    """Return the value that a file holds for an input; at most seeds one that is near it, where it counts nothing."""
    if seed == 0 or not is_float(array.dtype):
        return array
    return np.asarray(array + NEAR * rng.standard_normal(array.shape)).astype(array.dtype)


def _fill(plan: InputPlan, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = np.dtype(plan.spec.dtype)
    if plan.kind == "text":
        return np.full(shape, "a", dtype=object)
    if plan.kind == "float":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if plan.kind == "ids":
        top = min(plan.rows, int(np.iinfo(dtype).max)) if dtype != np.dtype(bool) else 2
        low = _ORDINARY_IDS if top > 10 * _ORDINARY_IDS else 0
        return np.asarray(rng.integers(low, top, shape)).astype(dtype)
    return np.ones(shape, dtype=dtype)


def repeated(array: Array, shape: tuple[int, ...]) -> Array:
    """Return an array cut to a shape or repeated up to it, axis by axis.

    Args:
        array: of the same rank.
        shape: of the result.
    """
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size), axis=axis, mode="wrap")
    return array


def _mask(plan: InputPlan, shape: tuple[int, ...], padding: Padding, seed: int) -> Array:
    """Return bool of `shape`: which positions of the last axis are real, one pattern per entry of the first axis."""
    rng = np.random.default_rng([seed, zlib.crc32(plan.spec.name.encode())])
    rows = [_row(shape[-1], padding_of_row(padding, index), rng) for index in range(shape[0])]
    plane = np.array(rows, dtype=np.bool_).reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1])
    return np.broadcast_to(plane, shape)


def _row(length: int, padding: Padding, rng: np.random.Generator) -> Array:
    row = np.ones(length, dtype=np.bool_)
    if length < 2 or padding == "none":
        return row
    if padding == "holes":
        row = rng.random(length) >= _HOLE_SHARE
        row[int(rng.integers(length))] = True
        return row
    padded = int(rng.integers(1, length))
    row[slice(length - padded, None) if padding == "right" else slice(0, padded)] = False
    return row


def _is_role(name: str) -> bool:
    return name in ("batch", "sequence", "past_sequence", "total_sequence")


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def input_kinds(plans: Sequence[InputPlan]) -> str:
    """Return one line that tells how each input is filled, for the log."""
    return ", ".join(f"{plan.spec.name}: {plan.kind}" + (f" < {plan.rows}" if plan.rows else "") for plan in plans)

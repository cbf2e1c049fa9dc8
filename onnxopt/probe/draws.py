"""Take what a graph draws at random as given, so that the rest of it can be proved: for any numbers, the same in both.

While a model is worked on, what a drawing node makes is an input of the graph, and what the node reads is an output, so
that it stays as it is. Afterwards the nodes are put back. Nothing about the drawing itself changes, and everything else
is compared on equal numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from onnxopt.errors import InputError, word
from onnxopt.graph import attribute, constant, constant_value, is_op
from onnxopt.graph.exchange import dtype_name
from onnxopt.probe.apart.session import BoundError
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import ShapeRunner
from onnxopt.spec import Array, Feeds, TensorSpec

DRAWING = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_TRAINING = 2  # the input of Dropout that switches it on
_SUFFIX = "::drawn"


@dataclass(frozen=True)
class Draw:
    """One node that draws.

    Attributes:
        node: apart from any graph; attributes and names are read from it.
        reads: for each of its inputs the value's name, empty for none.
        constants: those of its inputs that never change, by name.
        made: the graph inputs that stand for its outputs, with their types; None for an output that nobody uses.
    """

    node: ir.Node
    reads: tuple[str, ...]
    constants: Mapping[str, ir.TensorProtocol]
    made: tuple[tuple[str, ir.DataType] | None, ...]


@dataclass(frozen=True)
class Draws:
    """All drawing nodes of a model, in the order in which they run.

    Attributes:
        draws: one per node.
        model: a copy of the graph without them, to find the sizes of what they draw.
        added: the outputs that the graph has for the sake of what the nodes read.
    """

    draws: tuple[Draw, ...]
    model: ir.Model = field(compare=False)
    added: tuple[str, ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The graph inputs that stand for what is drawn."""
        made = (one for draw in self.draws for one in draw.made if one is not None)
        return tuple(TensorSpec(name, dtype_name(dtype), (), "any rank") for name, dtype in made)

    @property
    def note(self) -> str:
        """A sentence for the user."""
        nodes = [draw.node for draw in self.draws]
        names = [f"{node.op_type} {word(node.name or node.outputs[0].name or '')!r}" for node in nodes]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        return f"draws random numbers ({shown}): proved with the same numbers given to both; there are no golden cases"

    def with_drawn(self, feeds: Feeds, seed: int) -> Feeds:
        """Return inputs together with made-up numbers in place of what the nodes would draw.

        Raises:
            InputError: the sizes of what is drawn cannot be found out.
        """
        given = dict(feeds)
        waiting = {spec.name: np.zeros(0, spec.dtype) for spec in self.specs}
        for index, draw in enumerate(self.draws):
            shape = self._shape(index, {**waiting, **given})
            for place, made in enumerate(draw.made):
                if made is not None:
                    rng = np.random.default_rng([seed, zlib.crc32(made[0].encode())])
                    given[made[0]] = _drawn(draw.node, shape, place, made[1], rng)
        return given

    def _shape(self, index: int, feeds: Feeds) -> tuple[int, ...]:
        node = self.draws[index].node
        declared = attribute(node, "shape")
        if declared is not None:
            return tuple(int(size) for size in declared)
        source = self.draws[index].reads[0]
        if source in feeds:
            return feeds[source].shape
        if source in self.draws[index].constants:
            tensor = self.draws[index].constants[source]
            return tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]  # a tensor's
        runner = self._runners[source]
        try:
            shapes, _ = runner.run(feeds)
        except ProbeError as error:
            tried = f"cannot be run up to {word(source)!r}, which random numbers follow"
            if isinstance(error.__cause__, BoundError):
                raise error.__cause__.told("", tried) from error
            raise InputError(f"{tried}: {error}") from error
        return next(iter(shapes.values()))

    @cached_property
    def _runners(self) -> dict[str, ShapeRunner]:
        values = {value.name: value for node in self.model.graph for value in node.outputs}
        sources = {draw.reads[0] for draw in self.draws if draw.reads} & set(values)
        return {source: ShapeRunner(self.model, [values[source]], apart=True) for source in sources if source}


def draws_at(node: ir.Node) -> bool:
    """Tell whether a node draws random numbers; a Dropout does unless it is switched off for good."""
    if is_op(node, "Dropout"):
        switch = node.inputs[_TRAINING] if len(node.inputs) > _TRAINING else None
        off = constant(switch)
        return switch is not None and (off is None or bool(off.any()))
    return is_op(node, *DRAWING)


def take_out(model: ir.Model, where: str) -> Draws | None:
    """Take the drawing nodes out of a graph; None when there are none.

    Args:
        model: changed in place.
        where: the file, for messages.

    Raises:
        InputError: a node draws inside a function, a loop or a branch.
    """
    inside = [node for graph in model.graphs() if graph is not model.graph for node in graph]
    inside += [node for function in model.functions.values() for node in function]
    hidden = next((node for node in inside if draws_at(node)), None)
    if hidden is not None:
        shown = f"node {word(hidden.name or hidden.outputs[0].name or '')!r} ({hidden.op_type})"
        what = f"{shown} draws random numbers inside a loop, a branch or a function"
        raise InputError(what, where=where, hint="move it into the main graph, so that the rest can be proved")
    TopologicalSortPass()(model)
    _drop_unread(model.graph)
    nodes = [node for node in model.graph if draws_at(node)]
    if not nodes:
        return None
    dtypes = _types(model, nodes, where)
    before = len(model.graph.outputs)
    draws = tuple(_take_out(model.graph, node, dtypes) for node in nodes)
    added = tuple(value.name or "" for value in model.graph.outputs[before:])
    return Draws(draws, model.clone(), added)


def _drop_unread(graph: ir.Graph) -> None:
    """Remove what is drawn and reaches no output, with all that is made of it: nothing could be proved of it.

    Args:
        graph: its nodes in topological order.
    """
    drawn: set[ir.Node] = set()
    for node in graph:
        if draws_at(node) or any(value is not None and value.producer() in drawn for value in node.inputs):
            drawn.add(node)
    for node in reversed(list(graph)):
        holds_graphs = any(attr.type in _GRAPHS for attr in node.attributes.values())
        if node in drawn and not holds_graphs and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)


def _types(model: ir.Model, nodes: list[ir.Node], where: str) -> dict[ir.Value, ir.DataType]:
    """Return the types of what nodes draw and of what they read."""
    values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    made = [value for value in dict.fromkeys(values) if value.producer() is not None]
    try:
        return {**ShapeRunner(model, made).dtypes}
    except ProbeError as error:
        raise InputError(f"ONNX Runtime cannot open it: {error}", where=where) from error


def _take_out(graph: ir.Graph, node: ir.Node, dtypes: Mapping[ir.Value, ir.DataType]) -> Draw:
    made: list[tuple[str, ir.DataType] | None] = []
    for value in node.outputs:
        if not value.name or not (value.uses() or value.is_graph_output()):
            made.append(None)
            continue
        given = ir.Value(name=f"{value.name}{_SUFFIX}", type=ir.TensorType(dtypes[value]))
        for place, output in enumerate(graph.outputs):
            if output is value:  # an output keeps its name
                kept = ir.node("Identity", [given])
                kept.outputs[0].name, kept.outputs[0].type, kept.outputs[0].shape = value.name, given.type, value.shape
                graph.outputs[place] = kept.outputs[0]
                graph.insert_before(node, kept)
        value.replace_all_uses_with(given)
        graph.inputs.append(given)
        made.append((given.name or "", dtypes[value]))
    constants: dict[str, ir.TensorProtocol] = {}
    for read in node.inputs:
        array = constant(read)
        if read is None:
            continue
        if array is not None:
            constants[read.name or ""] = ir.tensor(array)
        elif read.producer() is not None and not read.is_graph_output():
            read.type = read.type or ir.TensorType(dtypes[read])
            graph.outputs.append(read)
    reads = tuple("" if value is None else value.name or "" for value in node.inputs)
    graph.remove(node, safe=True)
    return Draw(node, reads, constants, tuple(made))


def _drawn(node: ir.Node, shape: tuple[int, ...], place: int, dtype: ir.DataType, rng: np.random.Generator) -> Array:
    """Return numbers of the kind that a node draws."""
    if is_op(node, "RandomUniform", "RandomUniformLike"):
        low, high = float(attribute(node, "low")), float(attribute(node, "high"))
        return np.asarray(low + (high - low) * rng.random(shape)).astype(dtype.numpy())
    if is_op(node, "Multinomial"):
        wanted = (shape[0], int(attribute(node, "sample_size")))
        return np.asarray(rng.integers(0, max(shape[-1], 1), wanted)).astype(dtype.numpy())
    if is_op(node, "Bernoulli") or place:  # the second output of a Dropout is its mask
        return np.asarray(rng.random(shape) < 0.5).astype(dtype.numpy())
    if is_op(node, "Dropout"):
        return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy())
    mean, scale = float(attribute(node, "mean")), float(attribute(node, "scale"))
    return np.asarray(mean + scale * rng.standard_normal(shape)).astype(dtype.numpy())


def put_back(model: ir.Model, draws: Draws) -> None:
    """Put the drawing nodes back into a graph, and take away the outputs that stood for what they read."""
    graph = model.graph
    named = {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *graph.outputs)}
    for draw in draws.draws:
        names = [None if made is None else made[0] for made in draw.made]
        node = ir.Node(
            draw.node.domain,
            draw.node.op_type,
            [_read(graph, name, named, draw.constants) for name in draw.reads],
            list(draw.node.attributes.values()),
            num_outputs=len(names),
            name=draw.node.name,
        )
        graph.append(node)
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name or ""
            if name is not None:
                given = named[name]
                value.type = given.type
                given.replace_all_uses_with(value, replace_graph_outputs=True)
                graph.inputs.remove(given)
                named[name] = value  # another node that draws may read it
    for value in [value for value in graph.outputs if value.name in draws.added]:
        graph.outputs.remove(value)
    TopologicalSortPass()(model)


def _read(
    graph: ir.Graph, name: str, named: Mapping[str | None, ir.Value], constants: Mapping[str, ir.TensorProtocol]
) -> ir.Value | None:
    """Return the value that a node reads under a name; a constant that is gone comes back."""
    if not name:
        return None
    if name in constants and (name not in named or named[name].is_graph_output()):
        value = constant_value(constants[name], name if name not in named else f"{name}{_SUFFIX}")
        graph.register_initializer(value)
        return value
    return named[name]

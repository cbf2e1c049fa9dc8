"""Make a graph that goes wrong smaller for as long as it goes wrong in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

StillBad = Callable[[onnx.ModelProto], bool]

ROUNDS = 4


def shrunk(model: onnx.ModelProto, still_bad: StillBad, *, seconds: float = 60.0) -> onnx.ModelProto:
    """Return a smaller graph that is still bad.

    Args:
        model: bad.
        still_bad: tells whether a graph is, in the same way; may be told graphs that are not valid.
        seconds: to spend, about.

    Returns:
        The smallest that was found; it has no node that does not lead to an output.
    """
    until = time.monotonic() + seconds
    best = _cut_short(tidied(model), still_bad, until)
    for _ in range(ROUNDS):
        before = best.SerializeToString()
        for proposals in (_single_outputs, _earlier_outputs, _bypassed, _fewer_lines):
            best = _accept(best, proposals, still_bad, until)
        if best.SerializeToString() == before or time.monotonic() > until:
            break
    return best


def _cut_short(model: onnx.ModelProto, still_bad: StillBad, until: float) -> onnx.ModelProto:
    """Find by halving an early value that is bad as the only output: much is gone after a few tries."""
    shorter = list(_earlier_outputs(model))
    best, low, high = model, 0, len(shorter)
    while low < high and time.monotonic() < until:
        middle = (low + high) // 2
        if still_bad(shorter[middle]):
            best, high = shorter[middle], middle
        else:
            low = middle + 1
    return best


def _accept(
    model: onnx.ModelProto,
    proposals: Callable[[onnx.ModelProto], Iterator[onnx.ModelProto]],
    still_bad: StillBad,
    until: float,
) -> onnx.ModelProto:
    """Take the first proposal that is still bad, and go on from it, until none is."""
    while True:
        for proposal in proposals(model):
            if time.monotonic() > until:
                return model
            if still_bad(proposal):
                model = proposal
                break
        else:
            return model


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph without nodes, initializers and inputs that lead to no output."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    graph = kept.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) | {name for body in _bodies(node) for name in _read(body)}
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    for items in (graph.initializer, graph.input):
        left = [item for item in items if item.name in needed]
        del items[:]
        items.extend(left)
    return kept


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _read(graph: onnx.GraphProto) -> set[str]:
    """Return every name that the nodes and outputs of a body read, those of bodies in it included."""
    names = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    return names.union(*(_read(body) for node in graph.node for body in _bodies(node)))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of values, as far as ONNX's own inference tells."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # noqa: BLE001  a proposal may be invalid
        inferred = model.graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.input)}
    return found | {item.name: item.data_type for item in model.graph.initializer}


def _single_outputs(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Propose each output alone."""
    if len(model.graph.output) < 2:
        return
    for value in model.graph.output:
        made = _copy(model)
        del made.graph.output[:]
        made.graph.output.append(value)
        yield tidied(made)


def _earlier_outputs(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Propose each value as the only output, the earliest first."""
    types = _types(model)
    last = {name for node in model.graph.node[-1:] for name in node.output}
    for node in model.graph.node:
        for name in node.output:
            if not types.get(name) or name in last:
                continue
            made = _copy(model)
            del made.graph.output[:]
            made.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
            yield tidied(made)


def _bypassed(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Propose to leave out each node: who reads its output reads one of its inputs."""
    types = _types(model)
    outputs = {value.name for value in model.graph.output}
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        if len(node.output) != 1 or (node.output[0] in outputs and len(model.graph.node) == 1):
            continue
        for name in node.input:
            if not name or types.get(name) != types.get(node.output[0], types.get(name)):
                continue
            made = _copy(model)
            if node.output[0] in outputs:
                _rename_output(made, node.output[0], name)
            del made.graph.node[index]
            _reread(made.graph, node.output[0], name)
            yield tidied(made)


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in model.graph.output:
        if value.name == old:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(new, kind, None))


def _reread(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for body in _bodies(node):
            _reread(body, old, new)


def _fewer_lines(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Propose smaller whole numbers, and weights of one value."""
    for index, tensor in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64 and array.size == 1:
            number = int(array.ravel()[0])
            smaller: list[float] = [item for item in (2, 5, number // 4, number // 2) if 1 < item < number]
        elif array.dtype == np.float32 and array.size > 1 and len(np.unique(array)) > 1:
            smaller = [0.5]
        else:
            continue
        for less in smaller:
            made = _copy(model)
            made.graph.initializer[index].CopyFrom(
                numpy_helper.from_array(np.full(array.shape, less, array.dtype), tensor.name)
            )
            yield made

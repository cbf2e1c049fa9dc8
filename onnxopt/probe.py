"""Run graphs, or parts of them, in ONNX Runtime with its own optimizations off.

Weights are handed over as inputs that share NumPy's memory, so a probe costs neither a copy nor a serialization of
them; a weight that lies in a file is read through its mapping. What is not asked for is not computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.exchange import CARRIERS, PLAIN, Exchange, type_of
from onnxopt.graph import (
    CONTRIB,
    SMALL_CONSTANT_BYTES,
    STANDARD_DOMAINS,
    Detached,
    Region,
    detach,
    dims,
    has_subgraph,
    is_op,
    rank,
)
from onnxopt.model import Array, Feeds, tensors_of
from onnxopt.runtime import runtime_errors, runtime_line
from onnxopt.spec import available_threads

logger = logging.getLogger(__name__)

MAX_IR_VERSION = 11  # the newest that every ONNX Runtime we accept (1.23 on) reads
SESSIONS_KEPT = 64  # of small regions: the layers of a model ask the same question, each in its turn
LARGEST_KEPT_BYTES = 2**16
OLDEST_OPSET = 13  # for the Shape and Cast nodes of a probe where the model imports no standard operators

MILES = 8
LEAST_PAGED_BYTES = 2**26  # less is not worth a thread
PAGING_SECONDS = 0.03


class ProbeError(Exception):
    """A graph could not be run; carries ONNX Runtime's line."""


class _Program:
    """An open session; types that the runtime does not exchange with NumPy are carried in others."""

    def __init__(self, proto: Any) -> None:
        """Open a session on an `onnx.ModelProto`, which may be changed."""
        self._session = _open(proto)
        self.types = {item.name: str(item.type) for item in self._session.get_outputs()}
        self._exchange = Exchange.of(self._session)
        if self._exchange.needed:
            self._exchange.build(proto)
            _import_standard(proto)
            self._session = _open(proto)
        given = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = {item.name for item in given}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Return the named outputs; feeds of inputs that the session does not have are passed over."""
        import onnxruntime as ort

        options = ort.RunOptions()
        options.log_severity_level = 4
        given = {name: value for name, value in self._exchange.give(feeds).items() if name in self._inputs}
        try:
            found = list(self._session.run(self._exchange.names(outputs), given, options))
        except runtime_errors() as error:
            raise ProbeError(runtime_line(error)) from error
        return self._exchange.take(outputs, found)


def _open(proto: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 4
    # a session lives for a few runs of different sizes: memory that it keeps for the next one is only in the way
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        raise ProbeError(runtime_line(error)) from error


def _compute_in_float(proto: Any) -> None:
    """Put a Cast to float32 in front of each node that reads 16 bits, and one back behind each that makes them."""
    import onnx

    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    graph = proto.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes, cast, make = [], set(), onnx.helper.make_node
    for node in list(graph.node):
        behind = []
        if node.op_type not in ("Cast", "Shape"):
            for place, name in enumerate(node.input):
                if types.get(name) in half:
                    if name not in cast:
                        cast.add(name)
                        nodes.append(
                            onnx.helper.make_node("Cast", [name], [f"{name}::read"], to=onnx.TensorProto.FLOAT)
                        )
                    node.input[place] = f"{name}::read"
            for place, name in enumerate(node.output):
                if types.get(name) in half:
                    node.output[place] = f"{name}::made"
                    behind.append(make("Cast", [f"{name}::made"], [name], to=types[name]))
        nodes += [node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
    _import_standard(proto)


def _import_standard(proto: Any) -> None:
    if not any(entry.domain in STANDARD_DOMAINS for entry in proto.opset_import):
        proto.opset_import.add(domain="", version=OLDEST_OPSET)


class RegionRunner:
    """Regions cut out side by side, ready to run on given activations."""

    def __init__(self, regions: Sequence[Region], model: ir.Model) -> None:
        self._detached: Detached = detach(
            regions, model.opset_imports, list(model.functions.values()), model.ir_version
        )
        self._outputs = [value.name or "" for value in self._detached.model.graph.outputs]
        self._program = _region_program(self._detached.model)

    def run(self, values: Mapping[ir.Value, Array]) -> list[Array]:
        """Return the outputs of all regions in order, for an array per input value."""
        feeds = {f"in_{i}": np.asarray(values[value], order="C") for i, value in enumerate(self._detached.inputs)}
        return self._program.run(self._outputs, {**feeds, **self._detached.feeds})


_programs: OrderedDict[bytes, _Program] = OrderedDict()


def _region_program(model: ir.Model) -> _Program:
    """Open a region, or return the open session of an equal one: what is alike has the same bytes."""
    proto = ir.to_proto(model)
    key = proto.SerializeToString(deterministic=True)
    if len(key) > LARGEST_KEPT_BYTES:
        return _Program(proto)
    if key not in _programs:
        _programs[key] = _Program(proto)
        if len(_programs) > SESSIONS_KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


class GraphRunner:
    """A whole model that also hands out chosen intermediate values.

    Args:
        model: not changed; its values must have unique names.
        fetch: values of the main graph.
        with_outputs: False leaves the outputs of the graph out, with all that only they need.
        known: values of the main graph that are fed by name, as inputs are; `feedable`. They are not fetched, and what
            only they need does not run.
        widen: compute what is stored in 16 bits in float32 and round each result, as kernels of a GPU do: the CPU has
            none for bfloat16, and the runtime keeps fp16 in float32 from one node to the next.
        turned: let products read a transposed weight as it lies, instead of writing it anew in every run. They add up
            in another order, so results that must be equal to the bit do without.
    """

    def __init__(
        self,
        model: ir.Model,
        fetch: Iterable[ir.Value] = (),
        *,
        with_outputs: bool = True,
        known: Collection[ir.Value] = (),
        widen: bool = False,
        turned: bool = False,
    ) -> None:
        self._fetch = [v for v in dict.fromkeys(fetch) if v.producer() is not None and v not in known]
        outputs = list(model.graph.outputs) if with_outputs else []
        self._outputs = [value.name or "" for value in outputs]
        self._names = list(dict.fromkeys([*self._outputs, *(value.name or "" for value in self._fetch)]))
        if not self._names:
            return
        cut = _Cut(model, [*outputs, *self._fetch], known=known, turned=turned)
        cut.hand_out([*outputs, *self._fetch])
        self._weights, self._mapped = cut.weights, cut.mapped
        if widen:
            _compute_in_float(cut.proto)
        self._program = _Program(cut.proto)

    def run(self, feeds: Mapping[str, Array]) -> tuple[Feeds, dict[ir.Value, Array]]:
        """Return the graph's outputs by name, sequences as `tensors_of` writes them, and the fetched values."""
        if not self._names:
            return {}, {}
        with _paging(self._mapped):
            found = self._program.run(self._names, {**self._weights, **feeds})
        results = dict(zip(self._names, found, strict=True))
        outputs = tensors_of({name: results[name] for name in self._outputs})
        return outputs, {v: results[v.name or ""] for v in self._fetch}


class ShapeRunner:
    """A whole model that hands out the shapes of values instead of their data, which it drops as it goes.

    Args:
        model: not changed; its values must have unique names.
        values: made by nodes of the main graph.
        known: values of the main graph that are fed by name, as inputs are; `feedable`.
        fetch: values whose data is handed out too.

    Attributes:
        dtypes: the type of each value that is a tensor; a sequence, say, has no shape and is left out.
    """

    def __init__(
        self,
        model: ir.Model,
        values: Sequence[ir.Value],
        *,
        known: Collection[ir.Value] = (),
        fetch: Sequence[ir.Value] = (),
    ) -> None:
        self.dtypes = dtypes_of(model, values)
        self._measured, self._fetch = list(self.dtypes), fetch
        if not self._measured:
            return
        cut = _Cut(model, [*self._measured, *fetch], measured=self.dtypes, known=known, turned=True)
        cut.hand_out(fetch)
        self._weights, self._mapped = cut.weights, cut.mapped
        self._program = _Program(cut.proto)

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[ir.Value, tuple[int, ...]], dict[ir.Value, Array]]:
        """Return the shape of each value, and the fetched values."""
        if not self._measured:
            return {}, {}
        names = [*(value.name or "" for value in self._fetch), *map(_shape_name, self._measured)]
        with _paging(self._mapped):
            found = self._program.run(names, {**self._weights, **feeds})
        arrays, shapes = found[: len(self._fetch)], found[len(self._fetch) :]
        return (
            {value: tuple(shape.tolist()) for value, shape in zip(self._measured, shapes, strict=True)},
            dict(zip(self._fetch, arrays, strict=True)),
        )


def _shape_name(value: ir.Value) -> str:
    return f"{value.name}::shape"


def dtypes_of(model: ir.Model, values: Sequence[ir.Value]) -> dict[ir.Value, ir.DataType]:
    """Return the types of values: what the graph declares, which the runtime checks; else what the runtime infers."""
    types: dict[ir.Value, ir.DataType | None] = dict.fromkeys(values)
    unknown = [value for value in values if value.type is None]
    found: dict[str, str] = {}
    if unknown:
        cut = _Cut(model, unknown)
        cut.hand_out(unknown)
        found = _Program(cut.proto).types
    for value in values:
        is_tensor = isinstance(value.type, ir.TensorType)
        types[value] = value.dtype if is_tensor else type_of(found.get(value.name or "", ""))
    return {value: dtype for value, dtype in types.items() if dtype is not None}


class _Cut:
    """The part of a model that some values need, as a message without large weights.

    Attributes:
        proto: an `onnx.ModelProto`; its graph has no outputs yet but the shapes of `measured`.
        weights: the large constants by name, inputs of the graph.
        mapped: those of them that lie in a file.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Sequence[ir.Value],
        *,
        measured: Mapping[ir.Value, ir.DataType] = MappingProxyType({}),
        known: Collection[ir.Value] = (),
        turned: bool = False,
    ) -> None:
        import onnx

        self.weights: Feeds = {}
        self.mapped: list[ir.TensorProtocol] = []
        self.proto = onnx.ModelProto()
        self.proto.ir_version = model.ir_version
        for domain, version in model.opset_imports.items():
            self.proto.opset_import.add(domain=domain, version=version)
        for function in model.functions.values():
            self.proto.functions.append(ir.serde.serialize_function(function))
        self.proto.graph.name = "probe"
        weight_of = _turned_weight if turned else _no_weight
        nodes, values = _needed(model, wanted, known, weight_of)
        self._add_inputs(model, values)
        # what a node makes that runs for another of its outputs is there without being fed
        fed = [value for value in known if value in values and value.producer() not in nodes]
        self.proto.graph.input.extend(_fed(value) for value in fed)
        for node in model.graph:
            if node not in nodes:
                continue
            ir.serde.serialize_node_into(self.proto.graph.node.add(), node)
            if (weight := weight_of(node)) is not None:
                _turn(self.proto, self.proto.graph.node[-1], weight)
            for value in node.outputs:
                self._declare(value)
        # The runtime works its way back from the nodes that nobody reads, the last in the list first, and on that way
        # runs what needs no inputs (the transposition of every weight, say). So each shape is read as soon as its value
        # is there, and no value waits for the others; where none are asked for, some are read to that end.
        for value in reversed(list(measured) or _milestones(model, nodes)):
            self._measure(value, measured.get(value, value.dtype), hand_out=bool(measured))

    def hand_out(self, values: Sequence[ir.Value]) -> None:
        """Make values outputs of the graph."""
        for value in dict.fromkeys(values):
            found = self.proto.graph.output.add()
            found.name = value.name or ""
            if isinstance(value.type, ir.TensorType):
                found.type.tensor_type.elem_type = value.type.dtype.value

    def _add_inputs(self, model: ir.Model, needed: set[ir.Value]) -> None:
        graph = self.proto.graph
        for value in model.graph.inputs:
            graph.input.append(ir.serde.serialize_value(value))
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or (value not in needed and not value.is_graph_input()):
                continue
            small = tensor.nbytes <= SMALL_CONSTANT_BYTES or value.is_graph_output()
            if small or tensor.dtype not in PLAIN:
                inside = ir.tensor(tensor.numpy(), name=name) if isinstance(tensor, ir.ExternalTensor) else tensor
                ir.serde.serialize_tensor_into(graph.initializer.add(), inside)
                graph.initializer[-1].name = name
                continue
            self.weights[name] = tensor.numpy()
            if isinstance(tensor, ir.ExternalTensor):
                self.mapped.append(tensor)
            if not value.is_graph_input():
                found = graph.input.add()
                found.name = name
                found.type.tensor_type.elem_type = tensor.dtype.value
                for dim in tensor.shape:
                    found.type.tensor_type.shape.dim.add().dim_value = int(dim)  # type: ignore[arg-type]  # a tensor's

    def _declare(self, value: ir.Value) -> None:
        """Say the type that a value is known to have: the runtime refuses the graph when it is wrong."""
        if value.name and isinstance(value.type, ir.TensorType):
            found = self.proto.graph.value_info.add()
            found.name = value.name
            found.type.tensor_type.elem_type = value.type.dtype.value
            width = (dims(value) or (None,))[-1]
            if isinstance(width, int) and any(is_op(use.node, "Attention") for use in value.uses()):
                # ONNX Runtime (1.32) takes attention on three axes for 0 wide where it knows no width of the values
                sizes = found.type.tensor_type.shape.dim
                for axis in range((rank(value) or 1) - 1):
                    sizes.add(dim_param=f"{value.name}::{axis}")
                sizes.add(dim_value=width)

    def _measure(self, value: ir.Value, dtype: ir.DataType | None, *, hand_out: bool) -> None:
        import onnx

        _import_standard(self.proto)
        graph, name = self.proto.graph, _shape_name(value)
        read = value.name or ""
        carrier = CARRIERS.get(dtype) if dtype is not None else None
        if carrier is not None:  # the runtime has no Shape for some of these types
            read = f"{name}::carried"
            graph.node.append(onnx.helper.make_node("Cast", [value.name or ""], [read], to=carrier.value))
        graph.node.append(onnx.helper.make_node("Shape", [read], [name], name=name))
        if not hand_out:
            return
        found = graph.output.add()
        found.name = name
        found.type.tensor_type.elem_type = onnx.TensorProto.INT64


def _milestones(model: ir.Model, nodes: set[ir.Node]) -> list[ir.Value]:
    """Return some values along the way, in order."""
    passed = [node.outputs[0] for node in model.graph if node in nodes][::MILES]
    return [value for value in passed if value.name and isinstance(value.type, ir.TensorType)]


def feedable(value: ir.Value) -> bool:
    """Tell whether a value is a tensor of a type that NumPy and the runtime exchange."""
    return bool(value.name) and isinstance(value.type, ir.TensorType) and value.type.dtype in PLAIN


def _fed(value: ir.Value) -> Any:
    import onnx

    found = onnx.ValueInfoProto()
    found.name = value.name or ""
    found.type.tensor_type.elem_type = value.type.dtype.value if isinstance(value.type, ir.TensorType) else 0
    return found


def _needed(
    model: ir.Model,
    wanted: Sequence[ir.Value],
    known: Collection[ir.Value],
    weight_of: Callable[[ir.Node], ir.Value | None],
) -> tuple[set[ir.Node], set[ir.Value]]:
    """Return the nodes of the main graph that values need where some are known, and all values that those read."""
    nodes: set[ir.Node] = set()
    values: set[ir.Value] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value in values:
            continue
        values.add(value)
        node = None if value in known else value.producer()
        if node is None or node in nodes:
            continue
        if node.graph is model.graph:
            nodes.add(node)
        weight = weight_of(node)
        read = node.inputs if weight is None else (node.inputs[0], weight)
        stack.extend(parent for parent in read if parent is not None)
        if has_subgraph(node):
            stack.extend(_read_inside(node))
    return nodes, values


def _turned_weight(node: ir.Node) -> ir.Value | None:
    """Return the weight [columns, rows] that a product reads transposed.

    The runtime would write the transposed weight anew in every run. Its product that reads it as it lies, which the
    runtime's own optimizer puts there too, gives the same numbers.
    """
    turn = node.inputs[1].producer() if is_op(node, "MatMul") and node.inputs[1] is not None else None
    weight = turn.inputs[0] if turn is not None and is_op(turn, "Transpose") else None
    if weight is None or weight.const_value is None or not weight.is_initializer() or node.graph is not weight.graph:
        return None
    tensor = weight.const_value
    large = tensor.nbytes > LARGEST_KEPT_BYTES and tensor.dtype == ir.DataType.FLOAT
    return weight if large and len(tensor.shape) == 2 and turn is not None and _swaps(turn) else None


def needed_nodes(model: ir.Model, wanted: Sequence[ir.Value], known: Collection[ir.Value] = ()) -> set[ir.Node]:
    """Return the nodes of the main graph that run for some values where others are known."""
    return _needed(model, wanted, known, _no_weight)[0]


def _no_weight(_: ir.Node) -> ir.Value | None:
    return None


def _swaps(turn: ir.Node) -> bool:
    order = turn.attributes.get("perm")
    return order is None or list(order.as_ints()) == [1, 0]


def _turn(proto: Any, product: Any, weight: ir.Value) -> None:
    import onnx

    product.op_type, product.domain = "FusedMatMul", CONTRIB
    product.input[1] = weight.name
    product.attribute.append(onnx.helper.make_attribute("transB", 1))
    if not any(entry.domain == CONTRIB for entry in proto.opset_import):
        proto.opset_import.add(domain=CONTRIB, version=1)


def _read_inside(node: ir.Node) -> Iterable[ir.Value]:
    """Yield what the graphs that a node carries read."""
    for attr in node.attributes.values():
        if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        for graph in [attr.value] if attr.type == ir.AttributeType.GRAPH else attr.value:
            yield from graph.outputs
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None)
                for part in inner.attributes.values():
                    if part.type == ir.AttributeType.GRAPH:
                        yield from part.value.outputs


def release_pages(tensors: Iterable[ir.TensorProtocol | None]) -> None:
    """Let go of the memory behind tensors that are mapped from a file; they are read again when they are used."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None:
        return
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
            tensor.raw.madvise(advice)


@contextlib.contextmanager
def _paging(tensors: Sequence[ir.TensorProtocol]) -> Iterator[None]:
    """While a model runs, let go of the weights that it has read; they come back from the system's cache."""
    if sum(tensor.nbytes for tensor in tensors) < LEAST_PAGED_BYTES:
        yield
        return
    done = threading.Event()

    def let_go() -> None:
        while not done.wait(PAGING_SECONDS):
            release_pages(tensors)

    thread = threading.Thread(target=let_go, name="onnxopt-paging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release_pages(tensors)


def release_memory() -> None:
    """Give memory that is free back to the system, where the C library can; it keeps much of it after large runs."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


@functools.cache
def _trimmer() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no such thing on Windows
        return None

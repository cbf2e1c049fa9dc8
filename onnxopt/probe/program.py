"""A small graph as a program of the runtime, with its optimizations off."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onnxopt.graph import STANDARD_DOMAINS
from onnxopt.graph.exchange import Exchange
from onnxopt.graph.files import MAX_IR_VERSION
from onnxopt.host.bounds import bounds
from onnxopt.host.runtime_errors import runtime_errors, runtime_line
from onnxopt.host.threads import available_threads
from onnxopt.host.watch import watched
from onnxopt.probe.apart.session import ApartError, ApartSession, too_slow
from onnxopt.spec import Array

OLDEST_OPSET = 13  # for the Shape and Cast nodes of a probe where the model imports no standard operators


class ProbeError(Exception):
    """A graph could not be run; carries ONNX Runtime's line."""


class Program:
    """An open session; types that the runtime does not exchange with NumPy are carried in others."""

    def __init__(self, proto: Any, *, apart: bool = False, as_stored: Collection[str] = ()) -> None:
        """Open a session on an `onnx.ModelProto`, which may be changed.

        Args:
            proto: the graph.
            apart: run it in a worker, which it may kill: what nobody has run yet.
            as_stored: inputs that are fed values of the runtime's own, in whatever type.

        Raises:
            ProbeError: the runtime does not open it.
        """
        open_it = _open_apart if apart else _open
        self._session = open_it(proto)
        self.types = {item.name: str(item.type) for item in self._session.get_outputs()}
        self._exchange = Exchange.of(self._session, as_stored)
        if self._exchange.needed:
            self._exchange.build(proto)
            import_standard(proto)
            self._session = open_it(proto)
        given = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = {item.name for item in given}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Return the named outputs; feeds of inputs that the session does not have are passed over."""
        import onnxruntime as ort

        options = ort.RunOptions()
        options.log_severity_level = 4
        given = {name: value for name, value in self._exchange.give(feeds).items() if name in self._inputs}
        seconds = bounds().seconds_for(0, sum(map(_elements, given.values())))
        with watched(options, seconds) as run:
            try:
                found = list(self._session.run(self._exchange.names(outputs), given, options))
            except runtime_errors() as error:
                raise ProbeError(runtime_line(too_slow(seconds) if run.ended else error)) from error
        return self._exchange.take(outputs, found)


def _elements(value: Any) -> int:
    """Return how many numbers go in with a feed: an array, a value of the runtime's own, or anything else."""
    if hasattr(value, "size"):
        return int(value.size)
    return math.prod(value.shape()) if hasattr(value, "element_type") else 0


def _open_apart(proto: Any) -> Any:
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    try:
        return ApartSession(proto.SerializeToString())
    except ApartError as error:
        raise ProbeError(runtime_line(error)) from error


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


def compute_in_float(proto: Any) -> None:
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
    import_standard(proto)


def import_standard(proto: Any) -> None:
    """Import the standard operators where the model imports none."""
    if not any(entry.domain in STANDARD_DOMAINS for entry in proto.opset_import):
        proto.opset_import.add(domain="", version=OLDEST_OPSET)

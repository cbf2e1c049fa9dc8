"""Run graphs, or parts of them, in ONNX Runtime with its own optimizations off.

Weights are handed over as inputs that share NumPy's memory, so a probe costs neither a copy nor a serialization of
them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import SMALL_CONSTANT_BYTES, Detached, Region, detach, tensor_shape
from onnxopt.model import Array, Feeds
from onnxopt.runtime import runtime_errors, runtime_line
from onnxopt.spec import available_threads

logger = logging.getLogger(__name__)

MAX_IR_VERSION = 11  # the newest that every ONNX Runtime we accept (1.23 on) reads


class ProbeError(Exception):
    """A graph could not be run; carries ONNX Runtime's line."""


def _open(model: ir.Model) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    try:
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        raise ProbeError(runtime_line(error)) from error


def _run(session: Any, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        return list(session.run(list(outputs), feeds, options))
    except runtime_errors() as error:
        raise ProbeError(runtime_line(error)) from error


class RegionRunner:
    """Regions cut out side by side, ready to run on given activations."""

    def __init__(self, regions: Sequence[Region], model: ir.Model) -> None:
        self._detached: Detached = detach(
            regions, model.opset_imports, list(model.functions.values()), model.ir_version
        )
        self._session = _open(self._detached.model)
        self._outputs = [value.name or "" for value in self._detached.model.graph.outputs]

    def run(self, values: Mapping[ir.Value, Array]) -> list[Array]:
        """Return the outputs of all regions in order, for an array per input value."""
        feeds = {f"in_{i}": np.ascontiguousarray(values[value]) for i, value in enumerate(self._detached.inputs)}
        used = {item.name for item in self._session.get_inputs()}
        feeds.update(self._detached.feeds)
        return _run(self._session, self._outputs, {name: array for name, array in feeds.items() if name in used})


class GraphRunner:
    """A whole model that also hands out chosen intermediate values.

    Args:
        model: not changed; its values must have unique names.
        fetch: values of the main graph.
    """

    def __init__(self, model: ir.Model, fetch: Iterable[ir.Value] = ()) -> None:
        self._fetch = [value for value in dict.fromkeys(fetch) if value.producer() is not None]
        self._outputs = [value.name or "" for value in model.graph.outputs]
        names = [value.name or "" for value in self._fetch]
        copy = model.clone()
        by_name = {value.name: value for node in copy.graph for value in node.outputs}
        present = set(self._outputs)
        copy.graph.outputs.extend(by_name[name] for name in dict.fromkeys(names) if name not in present)
        self._weights: Feeds = {}
        for name, value in list(copy.graph.initializers.items()):
            tensor = value.const_value
            keep = tensor is None or tensor.nbytes <= SMALL_CONSTANT_BYTES or value.is_graph_output()
            if tensor is None or keep or tensor.dtype in (ir.DataType.BFLOAT16, ir.DataType.STRING):
                continue
            self._weights[name] = tensor.numpy()
            del copy.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), tensor_shape(tensor)
            if not value.is_graph_input():
                copy.graph.inputs.append(value)
        self._session = _open(copy)
        self._used = {item.name for item in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array]) -> tuple[Feeds, dict[ir.Value, Array]]:
        """Return the graph's outputs by name, and the fetched values."""
        names = list(dict.fromkeys([*self._outputs, *(value.name or "" for value in self._fetch)]))
        given = {name: array for name, array in {**self._weights, **feeds}.items() if name in self._used}
        results = dict(zip(names, _run(self._session, names, given), strict=True))
        return {name: results[name] for name in self._outputs}, {v: results[v.name or ""] for v in self._fetch}

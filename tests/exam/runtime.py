"""Run a file in ONNX Runtime on values of every type: those that its Python interface cannot exchange are cast.

bfloat16 and float8 go in and out as float32, which holds each of their numbers; integers of 4 and 2 bits in 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from tests.exam.cases import Value

_T = onnx.TensorProto
# by the numbers of ONNX
_FLOATS: dict[int, type[np.generic]] = {
    _T.BFLOAT16: ml_dtypes.bfloat16,
    _T.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    _T.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    _T.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    _T.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    _T.FLOAT8E8M0: ml_dtypes.float8_e8m0fnu,
    _T.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}
_SIGNED: dict[int, type[np.generic]] = {_T.INT4: ml_dtypes.int4, _T.INT2: ml_dtypes.int2}
_UNSIGNED: dict[int, type[np.generic]] = {_T.UINT4: ml_dtypes.uint4, _T.UINT2: ml_dtypes.uint2}
_CARRIERS: dict[int, int] = {
    **dict.fromkeys(_FLOATS, _T.FLOAT),
    **dict.fromkeys(_SIGNED, _T.INT8),
    **dict.fromkeys(_UNSIGNED, _T.UINT8),
}
_NUMPY: dict[int, type[np.generic]] = {
    **_FLOATS,
    **_SIGNED,
    **_UNSIGNED,
    _T.FLOAT: np.float32,
    _T.INT8: np.int8,
    _T.UINT8: np.uint8,
}


class RuntimeModel:
    """A model ready to answer.

    Args:
        model: the file, or the graph itself.
        optimize: false switches off the runtime's own optimizations.
    """

    def __init__(self, model: Path | onnx.ModelProto, *, optimize: bool = True) -> None:
        proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else _copy(model)
        folder = str(model.parent) if isinstance(model, Path) else ""
        self._inputs = _carry_inputs(proto)
        self._outputs = _carry_outputs(proto)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Return every output by name."""
        taken = {value.name for value in self._session.get_inputs()}
        given = {
            name: value.astype(_NUMPY[self._inputs[name]]) if name in self._inputs else value
            for name, value in feeds.items()
            if name in taken
        }
        options = ort.RunOptions()
        options.log_severity_level = 4
        names = [value.name for value in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, given, options), strict=True))
        return {n: v.astype(_NUMPY[self._outputs[n]]) if n in self._outputs else v for n, v in found.items()}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _carry_inputs(proto: onnx.ModelProto) -> dict[str, int]:
    """Let inputs of unexchangeable types come in another one; return that one by name."""
    carried: dict[str, int] = {}
    casts = []
    for value in proto.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind not in _CARRIERS:
            continue
        carried[value.name] = _CARRIERS[kind]
        value.type.tensor_type.elem_type = _CARRIERS[kind]
        casts.append(onnx.helper.make_node("Cast", [value.name], [f"{value.name}::own"], to=kind))
    _rename_reads(proto.graph, {name: f"{name}::own" for name in carried})
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *nodes])
    return carried


def _rename_reads(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_reads(attribute.g, names)


def _carry_outputs(proto: onnx.ModelProto) -> dict[str, int]:
    """Let outputs of unexchangeable types go out in another one; return their own types by name."""
    own: dict[str, int] = {}
    for value in proto.graph.output:
        kind = value.type.tensor_type.elem_type
        if kind not in _CARRIERS:
            continue
        own[value.name] = kind
        inner = f"{value.name}::own"
        for node in proto.graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = inner if name == value.name else name
            for place, name in enumerate(node.input):
                node.input[place] = inner if name == value.name else name
        for tensor in proto.graph.initializer:
            tensor.name = inner if tensor.name == value.name else tensor.name
        proto.graph.node.append(onnx.helper.make_node("Cast", [inner], [value.name], to=_CARRIERS[kind]))
        value.type.tensor_type.elem_type = _CARRIERS[kind]
    return own

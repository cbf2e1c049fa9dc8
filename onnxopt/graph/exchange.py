"""Hand values of every type to ONNX Runtime and take them back, also those that its Python interface does not know.

NumPy and the runtime share 13 types. bfloat16, float8 and the types of 4 and 2 bits are carried in one of those: a Cast
behind such an input and in front of such an output, in a copy of the graph that is run, never in the file. The carrier
holds every number of the type it carries, so nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxopt.qmath.compare import FLOATS
from onnxopt.spec import CONTAINERS, Form, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime

CARRIERS: Mapping[ir.DataType, ir.DataType] = {
    **{ir.DataType[name]: ir.DataType.FLOAT for name in FLOATS},
    **dict.fromkeys((ir.DataType.INT4, ir.DataType.INT2), ir.DataType.INT8),
    **dict.fromkeys((ir.DataType.UINT4, ir.DataType.UINT2), ir.DataType.UINT8),
}
PLAIN = frozenset(
    getattr(ir.DataType, name)
    for name in (
        *("FLOAT", "FLOAT16", "DOUBLE", "BOOL", "INT8", "INT16", "INT32", "INT64"),
        *("UINT8", "UINT16", "UINT32", "UINT64"),
    )
)  # numbers that NumPy and the runtime exchange as they are
_BY_RUNTIME_NAME = {f"tensor({dtype.name.lower()})": dtype for dtype in CARRIERS}
FOLDER_KEY = "session.model_external_initializers_file_folder_path"  # where a graph in memory finds its weights


_BY_ANY_RUNTIME_NAME = {f"tensor({dtype.name.lower()})": dtype for dtype in ir.DataType}
_WRAPPERS: tuple[tuple[str, str], ...] = (("optional(", "optional"), ("seq(", "sequence"))


def dtype_name(dtype: ir.DataType) -> str:
    """Return the name of a type in signatures: NumPy's, with those that ml_dtypes adds; `object` for strings."""
    return "object" if dtype.is_string() else np.dtype(dtype.numpy()).name


def type_of(runtime_name: str) -> ir.DataType | None:
    """Return the type behind a name such as `tensor(float16)`; None for what is no tensor or has no such type."""
    return _BY_ANY_RUNTIME_NAME.get(runtime_name)


def spec_of(node: onnxruntime.NodeArg) -> TensorSpec:
    """Read an input or output of a session; an axis without a name gets `?`.

    The runtime tells no axes of a tensor of unknown rank, as of a scalar; what it does not know the type of keeps the
    runtime's own name for it.
    """
    form, inner = [], str(node.type)
    for opening, said in _WRAPPERS:
        if inner.startswith(opening):
            form.append(said)
            inner = inner[len(opening) : -1]
    dtype = type_of(inner)
    shape = node.shape if not form else ()
    axes = tuple(axis if isinstance(axis, int | str) else "?" for axis in shape)
    return TensorSpec(node.name, dtype_name(dtype) if dtype is not None else inner, axes, _FORMS[" ".join(form)])


_FORMS: Mapping[str, Form] = {form: form for form in ("", *CONTAINERS)}


@dataclass(frozen=True)
class Exchange:
    """The inputs and outputs of a session that must be carried.

    Attributes:
        inputs: type by name.
        outputs: the same.
    """

    inputs: Mapping[str, ir.DataType]
    outputs: Mapping[str, ir.DataType]

    @classmethod
    def of(cls, session: Any, but: Collection[str] = ()) -> Exchange:
        """Read off an open session what must be carried.

        Args:
            session: of the runtime.
            but: inputs that are fed values of the runtime's own.
        """
        inputs, outputs = (
            {i.name: _BY_RUNTIME_NAME[i.type] for i in items if i.type in _BY_RUNTIME_NAME and i.name not in but}
            for items in (session.get_inputs(), session.get_outputs())
        )
        return cls(inputs, outputs)

    @property
    def needed(self) -> bool:
        """Whether there is anything to carry."""
        return bool(self.inputs or self.outputs)

    def build(self, proto: onnx.ModelProto) -> None:
        """Put the Casts into a graph, whose carried inputs and outputs get other names outside."""
        from onnx.helper import make_node

        first, graph = [], proto.graph
        for value in graph.input:
            if value.name in self.inputs:
                first.append(make_node("Cast", [_outer(value.name)], [value.name], to=self.inputs[value.name].value))
                value.type.tensor_type.elem_type = CARRIERS[self.inputs[value.name]].value
                value.name = _outer(value.name)
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*first, *rest])
        for value in graph.output:
            if value.name in self.outputs:
                carrier = CARRIERS[self.outputs[value.name]].value
                graph.node.append(make_node("Cast", [value.name], [_outer(value.name)], to=carrier))
                value.type.tensor_type.elem_type = carrier
                value.name = _outer(value.name)

    def give(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs as the graph with the Casts takes them."""
        return {
            _outer(name) if name in self.inputs else name: _carried(value, self.inputs[name])
            if name in self.inputs
            else value
            for name, value in feeds.items()
        }

    def names(self, outputs: Sequence[str]) -> list[str]:
        """Return the names under which that graph gives outputs."""
        return [_outer(name) if name in self.outputs else name for name in outputs]

    def take(self, outputs: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return outputs in their own types."""
        return [
            value.astype(self.outputs[name].numpy()) if name in self.outputs else _taken(value)
            for name, value in zip(outputs, values, strict=True)
        ]


def carried_file(path: Path, exchange: Exchange, graph: bytes = b"") -> tuple[bytes, dict[str, str]]:
    """Return a file's graph with the Casts, and the entry that tells a session where its external data stays.

    Args:
        path: the file.
        exchange: what is carried.
        graph: in place of the file's own.
    """
    import onnx

    proto = onnx.load_model_from_string(graph) if graph else onnx.load(path, load_external_data=False)
    exchange.build(proto)
    return proto.SerializeToString(), {FOLDER_KEY: str(path.absolute().parent)}


def _outer(name: str) -> str:
    return f"{name}::carried"


def _taken(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else np.asarray(value)


def _carried(value: Any, dtype: ir.DataType) -> Any:
    return np.asarray(value).astype(CARRIERS[dtype].numpy())

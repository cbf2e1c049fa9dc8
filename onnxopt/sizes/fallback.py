"""Ask onnx's own shape inference about one operator that has no rule here.

onnx infers the output types of a single node from the types of its inputs. Sizes that hang on axes go in as names, and
what comes out under one of those names is that size; a dimension that comes out without a name is not known.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS, constant, is_constant, opset_of
from onnxopt.sizes.facts import LARGEST_ELEMENTS, UNKNOWN, Fact
from onnxopt.sizes.rules import Step
from onnxopt.sizes.terms import Size, fresh

logger = logging.getLogger(__name__)


def infer(step: Step) -> Sequence[Fact]:
    """Return one fact per output, as far as onnx knows the operator."""
    node = step.node
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return []
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    version = opset_of(node) or 1
    if not onnx.defs.has(node.op_type, domain=domain, max_inclusive_version=version):
        return []
    names: dict[str, Size] = {}
    types, data = {}, {}
    for value, fact in zip(node.inputs, step.inputs, strict=True):
        if value is None or not value.name:
            continue
        if not isinstance(value.type, ir.TensorType):
            return []
        types[value.name] = _type(value.type.dtype, fact, names)
        array = constant(value) if is_constant(value) and _is_small(fact) else None
        if array is not None and array.dtype.kind in "iufb":
            data[value.name] = onnx.numpy_helper.from_array(array, value.name)
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid(domain, version)],
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        logger.debug("%s: %s", node.op_type, error)
        return []
    return [_fact(found.get(value.name or ""), names) for value in node.outputs]


def _is_small(fact: Fact) -> bool:
    total = 1
    for size in fact.dims or ():
        total = total * size if isinstance(size, int) else LARGEST_ELEMENTS + 1
    return total <= LARGEST_ELEMENTS


def _type(dtype: ir.DataType, fact: Fact, names: dict[str, Size]) -> onnx.TypeProto:
    dims: list[int | str] | None = None
    if fact.dims is not None:
        dims = []
        for size in fact.dims:
            if isinstance(size, int):
                dims.append(size)
                continue
            name = next((name for name, known in names.items() if known == size), f"s{len(names)}")
            names[name] = size
            dims.append(name)
    return onnx.helper.make_tensor_type_proto(dtype.value, dims)


def _fact(found: onnx.TypeProto | None, names: dict[str, Size]) -> Fact:
    if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return UNKNOWN
    dims: list[Size] = []
    for dim in found.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value)
        else:
            dims.append(names[dim.dim_param] if dim.dim_param in names else fresh())
    return Fact(tuple(dims))

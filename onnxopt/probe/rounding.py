"""Write a graph whose operators round otherwise: every float32 result is moved by up to one unit in its last place.

What an answer moves by then is what another order of additions may do to it, wherever it happens: a variance as a
difference of two means, say, keeps little of what its inputs show, and models that read whole numbers have no input
that could be moved instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxopt.graph import STANDARD_DOMAINS
from onnxopt.qmath.compare import MASK_LIKE

if TYPE_CHECKING:
    import onnx

UNIT = 2.0**-23  # in the last place of float32
LEAST_OPSET = 9  # the first whose Where chooses between tensors
# What these give was rounded before, or is no result of rounding.
EXACT = frozenset(
    {
        *("Abs", "Cast", "Clip", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout"),
        *("DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "LeakyRelu"),
        *("Max", "MaxPool", "Min", "Neg", "OneHot", "Pad", "QuantizeLinear", "RandomNormal", "RandomUniform", "Relu"),
        *("Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze"),
        *("ReduceMax", "ReduceMin", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where"),
    }
)
_LIMIT = "onnxopt::mask_like"


def rounds_otherwise(proto: onnx.ModelProto) -> bool:
    """Move the float32 results of a graph's own nodes; infinite ones, and those as large as a mask's, stay.

    Args:
        proto: changed in place; nodes inside of branches and loops are left alone.

    Returns:
        Whether anything is moved.
    """
    import onnx

    version = max((item.version for item in proto.opset_import if item.domain in STANDARD_DOMAINS), default=0)
    if version < LEAST_OPSET:
        return False
    floats = _floats(proto)
    nodes: list[onnx.NodeProto] = []
    moved = 0
    for node in list(proto.graph.node):
        behind: list[onnx.NodeProto] = []
        for place, name in enumerate(node.output):
            if name in floats and node.op_type not in EXACT:
                moved += 1
                node.output[place] = f"{name}::exact"
                behind += _moving(name, moved)
        nodes += [node, *behind]
    if moved:
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        proto.graph.initializer.append(onnx.helper.make_tensor(_LIMIT, onnx.TensorProto.FLOAT, [], [MASK_LIKE]))
    return bool(moved)


def _floats(proto: onnx.ModelProto) -> set[str]:
    """Return the names of the float32 values of a graph."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _moving(name: str, seed: int) -> list[onnx.NodeProto]:
    """Return the nodes between `name::exact` and `name`."""
    from onnx.helper import make_node

    exact, noise, moved = f"{name}::exact", f"{name}::noise", f"{name}::moved"
    size, small = f"{name}::size", f"{name}::small"
    return [
        make_node("RandomUniformLike", [exact], [noise], low=1 - UNIT, high=1 + UNIT, seed=float(seed)),
        make_node("Mul", [exact, noise], [moved]),
        make_node("Abs", [exact], [size]),
        make_node("Less", [size, _LIMIT], [small]),
        make_node("Where", [small, moved, exact], [name]),
    ]

"""What changed between operator sets 7 and 28, operator by operator, and how to write a node the newer way.

Every change of a schema that is not purely an addition has a rule here; the versions are those of the ONNX operator
changelog (https://onnx.ai/onnx/operators/). A change without a rule that `compatible` does not accept stops the raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.spec import Array

REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
COERCED = ("Softmax", "LogSoftmax", "Hardmax")  # before 13 they flattened their input to two dimensions at `axis`
OBSERVED = (*COERCED, "Clip", "Pad")  # rules that want to know the type or rank of the first input


@dataclass(frozen=True)
class Seen:
    """What a run showed about a value.

    Attributes:
        dtype: its element type.
        rank: its number of dimensions.
    """

    dtype: ir.DataType
    rank: int


class Edit:
    """One node about to be written anew, with the means to do so.

    Attributes:
        node: the node; rules change it in place.
    """

    def __init__(self, node: ir.Node, names: set[str], seen: Mapping[ir.Value, Seen]) -> None:
        self.node = node
        self._names = names
        self._seen = seen

    def take(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and return its value."""
        attribute = self.node.attributes.pop(name, None)
        return default if attribute is None else attribute.value

    def constant(self, array: Array, role: str) -> ir.Value:
        """Return a new initializer beside the node."""
        value = ir.val(self.name(role), const_value=ir.tensor(array))
        graph = self.node.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("rules run on graphs; functions are inlined before")
        graph.register_initializer(value)
        return value

    def name(self, role: str) -> str:
        """Return a value name that the model does not use yet."""
        base = f"{self.node.outputs[0].name or self.node.op_type}_{role}"
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name

    def set_input(self, index: int, value: ir.Value | None) -> None:
        """Set an input, adding empty ones before it when needed."""
        if value is None and index >= len(self.node.inputs):
            return
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def move(self, name: str, index: int) -> None:
        """Turn a list attribute into an int64 input; an absent or empty list becomes an absent input."""
        numbers = self.take(name)
        if numbers is not None and len(numbers):
            self.set_input(index, self.constant(np.array(numbers, dtype=np.int64), name))

    def scalar(self, number: float, role: str) -> ir.Value | None:
        """Return `number` as a constant of the type of the first input, or None when that type is unknown."""
        dtype = self.dtype()
        return None if dtype is None else self.constant(np.array(number, dtype=dtype.numpy()), role)

    def dtype(self) -> ir.DataType | None:
        """Return the type of the first input."""
        data = self.node.inputs[0]
        if data is None or data.dtype is not None:
            return None if data is None else data.dtype
        return self._seen[data].dtype if data in self._seen else None

    def rank(self) -> int | None:
        """Return the rank of the first input."""
        data = self.node.inputs[0]
        if data is None or data.shape is not None:
            return None if data is None or data.shape is None else len(data.shape)
        return self._seen[data].rank if data in self._seen else None


Rule = Callable[[Edit], str]
RULES: dict[tuple[str, int], Rule] = {}


def _rule(version: int, *operators: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update({(operator, version): function for operator in operators})
        return function

    return add


@_rule(9, "BatchNormalization")
def _batch_normalization_9(edit: Edit) -> str:
    """Statistics per element of a channel are gone."""
    return "" if int(edit.take("spatial", 1)) == 1 else "keeps statistics for each element of a channel"


@_rule(9, "Upsample")
def _upsample_9(edit: Edit) -> str:
    """The scales became an input."""
    edit.set_input(1, edit.constant(np.array(edit.take("scales"), dtype=np.float32), "scales"))
    return ""


@_rule(9, "Scan")
def _scan_9(edit: Edit) -> str:  # noqa: ARG001 - all rules look alike
    """Scan lost its axis of batches."""
    return "runs over batches, which it does not since opset 9"


@_rule(10, "Slice")
def _slice_10(edit: Edit) -> str:
    """starts, ends and axes became inputs."""
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        edit.move(name, index)
    return ""


@_rule(10, "TopK")
def _top_k_10(edit: Edit) -> str:
    """K became an input."""
    edit.set_input(1, edit.constant(np.array([edit.take("k")], dtype=np.int64), "k"))
    return ""


@_rule(10, "Upsample")
def _upsample_10(edit: Edit) -> str:
    """Upsample became Resize."""
    edit.node.op_type = "Resize"
    return ""


@_rule(11, "Resize")
def _resize_11(edit: Edit) -> str:
    """Coordinates became attributes; the old ones were asymmetric, and nearest rounded down when it enlarges."""
    scales = _constant(edit.node.inputs[1])
    mode = edit.node.attributes["mode"].value if "mode" in edit.node.attributes else "nearest"
    if mode == "nearest" and (scales is None or bool((scales < 1).any())):
        return "shrinks by nearest neighbour, which rounded differently before opset 11"
    edit.set_input(2, edit.node.inputs[1])
    edit.set_input(1, edit.constant(np.zeros(0, dtype=np.float32), "roi"))
    edit.node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    edit.node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    return ""


@_rule(11, "Scatter")
def _scatter_11(edit: Edit) -> str:
    """Scatter was renamed."""
    edit.node.op_type = "ScatterElements"
    return ""


@_rule(11, "Clip")
def _clip_11(edit: Edit) -> str:
    """Bounds (min and max) became inputs; without them the range is open."""
    for index, name in enumerate(("min", "max"), start=1):
        bound = edit.take(name)
        if bound is None:
            continue
        value = edit.scalar(bound, name)
        if value is None:
            return "has an input of unknown type"
        edit.set_input(index, value)
    return ""


@_rule(11, "Pad")
def _pad_11(edit: Edit) -> str:
    """Widths and value became inputs."""
    edit.set_input(1, edit.constant(np.array(edit.take("pads"), dtype=np.int64), "pads"))
    number = edit.take("value", 0.0)
    if number:
        value = edit.scalar(number, "value")
        if value is None:
            return "has an input of unknown type"
        edit.set_input(2, value)
    return ""


@_rule(12, "Dropout")
def _dropout_12(edit: Edit) -> str:
    """The ratio became an input; in inference it has no effect."""
    edit.take("ratio")
    return ""


@_rule(13, *COERCED)
def _softmax_13(edit: Edit) -> str:
    """The input is no longer flattened at `axis`; flatten it in the graph unless axis is the last."""
    axis, rank = int(edit.take("axis", 1)), edit.rank()
    node = edit.node
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return ""
    data, result, graph = node.inputs[0], node.outputs[0], node.graph
    if data is None or graph is None:
        return "has no input"
    flat = ir.node("Flatten", [data], {"axis": axis}, outputs=[ir.val(edit.name("flat"))])
    shape = ir.node("Shape", [data], outputs=[ir.val(edit.name("shape"))])
    inner = ir.node(node.op_type, [flat.outputs[0]], {"axis": -1}, outputs=[ir.val(edit.name("inner"))])
    back = ir.node("Reshape", [inner.outputs[0], shape.outputs[0]], name=node.name)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [flat, shape, inner, back], [result], [back.outputs[0]]
    )
    return ""


@_rule(13, "ReduceSum", "Squeeze", "Unsqueeze")
@_rule(18, *(f"Reduce{name}" for name in REDUCTIONS))
def _axes_to_input(edit: Edit) -> str:
    """The axes became an input."""
    edit.move("axes", 1)
    return ""


@_rule(13, "Split")
def _split_13(edit: Edit) -> str:
    """The sizes became an input."""
    edit.move("split", 1)
    return ""


@_rule(18, "Split")
def _split_18(edit: Edit) -> str:
    """Equal parts must be counted."""
    if len(edit.node.inputs) < 2 or edit.node.inputs[1] is None:
        edit.node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(edit.node.outputs))
    return ""


@_rule(14, "BatchNormalization")
def _batch_normalization_14(edit: Edit) -> str:
    """The statistics outputs of training changed; inference has only the first output."""
    used = [value for value in edit.node.outputs[1:] if value.name]
    return "computes training statistics" if used else ""


@_rule(16, "RoiAlign")
def _roi_align_16(edit: Edit) -> str:
    """The default coordinates changed to half_pixel."""
    if "coordinate_transformation_mode" not in edit.node.attributes:
        mode = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
        edit.node.attributes["coordinate_transformation_mode"] = mode
    return ""


@_rule(20, "GridSample")
def _grid_sample_20(edit: Edit) -> str:
    """The modes bilinear and bicubic were renamed, because they also take volumes."""
    mode = edit.take("mode", "bilinear")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    edit.node.attributes["mode"] = ir.AttrString("mode", renamed)
    return ""


@_rule(20, "DFT")
def _dft_20(edit: Edit) -> str:
    """The axis became an input; its old default was 1."""
    edit.set_input(2, edit.constant(np.array(edit.take("axis", 1), dtype=np.int64), "axis"))
    return ""


@_rule(21, "GroupNormalization")
def _group_normalization_21(edit: Edit) -> str:
    """Scale and bias went from one number per group to one per channel."""
    node = edit.node
    data, groups = node.inputs[0], int(node.attributes["num_groups"].value)
    channels = None if data is None or data.shape is None or len(data.shape) < 2 else data.shape[1]
    if not isinstance(channels, int) or channels % groups:
        return "has an unknown number of channels"
    for index, role in ((1, "scale"), (2, "bias")):
        array = _constant(node.inputs[index])
        if array is None:
            return f"computes its {role}"
        edit.set_input(index, edit.constant(np.repeat(array, channels // groups), role))
    return ""


def compatible(old: Any, new: Any) -> bool:
    """Return whether a node written for one schema means the same under a later one, as far as schemas tell.

    Args:
        old: onnx.defs.OpSchema that applied.
        new: the later one.
    """
    if new.deprecated or len(new.inputs) < len(old.inputs):
        return False
    single = new.FormalParameterOption.Single
    for index, parameter in enumerate(new.inputs):
        if parameter.option == single and (index >= len(old.inputs) or old.inputs[index].option != single):
            return False
    if [parameter.option for parameter in old.outputs] != [p.option for p in new.outputs[: len(old.outputs)]]:
        return False
    for name, attribute in old.attributes.items():
        later = new.attributes.get(name)
        if later is None or str(later.default_value) != str(attribute.default_value):
            return False
    return not any(attribute.required for name, attribute in new.attributes.items() if name not in old.attributes)


def _constant(value: ir.Value | None) -> Array | None:
    if value is None:
        return None
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()

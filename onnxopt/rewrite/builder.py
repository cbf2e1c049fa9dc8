"""Build the nodes that replace a match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, PASS_KEY, constant_value, known_dims, opset
from onnxopt.graph.cache import PAST
from onnxopt.graph.weight_files import tensor_of
from onnxopt.rewrite.match import Refusal
from onnxopt.spec import Array

ALLOWS_ZERO = 14  # the opset since which Reshape knows the attribute
READS_A_PART = 15  # the opset since which Shape knows start and end


class Builder:
    """Builds the nodes of a replacement, detached from any graph until the proof has passed.

    `op.Gelu(x, approximate="tanh")` makes a node and returns its output. `_domain` chooses another operator domain; all
    other keywords are attributes, and None leaves one out.
    """

    def __init__(self, model: ir.Model, prefix: str, pass_name: str, form: str = "") -> None:
        self.model = model
        self.form = form
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._prefix = prefix
        self._pass_name = pass_name

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: ir.Value | None, _domain: str = "", **attributes: Any) -> ir.Value:
            return self.node(op_type, inputs, attributes, domain=_domain)[0]

        return make

    def contrib(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Make a node of ONNX Runtime's own domain."""
        return self.node(op_type, inputs, attributes, domain=CONTRIB)[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """Make a node and return all its outputs."""
        name = f"{self._prefix}/{self._pass_name}/{op_type}_{len(self.nodes)}"
        used = list(inputs)
        while used and used[-1] is None:
            used.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, used, given, domain=domain, num_outputs=outputs, name=name)
        node.metadata_props[PASS_KEY] = self._pass_name
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_output_{index}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, array: Array, name: str) -> ir.Value:
        """Make an initializer.

        Args:
            array: its data; kept in row-major order.
            name: the role it plays, part of its name in the graph; a number is added where one role is played twice.
        """
        full = f"{self._prefix}/{self._pass_name}/{name}"
        if any(value.name == full for value in self.initializers):
            full = f"{full}_{len(self.initializers)}"
        value = constant_value(tensor_of(array, full), full)
        self.initializers.append(value)
        return value

    def ints(self, values: Sequence[int], name: str) -> ir.Value:
        """Make an int64 initializer of rank 1."""
        return self.constant(np.array(values, dtype=np.int64), name)

    def reshape(self, value: ir.Value, wanted: Sequence[int | str], name: str) -> ir.Value:
        """Reshape a value to sizes and named axes.

        An axis that is read from an input may be 0 long, which Reshape would take for "as it was" (from opset 14 on it
        can be told).

        Raises:
            Refusal: no graph input has a wanted axis, a wanted size is 0, beside which none can be inferred, or that of
                a past may be, which cannot be told.
        """
        if 0 in wanted:
            raise Refusal("the tensor is empty")
        named = sum(isinstance(dim, str) for dim in wanted)
        told = opset(self.model) >= ALLOWS_ZERO
        if named > 1 and PAST in wanted and not told:
            raise Refusal(f"a past may be empty, and below opset {ALLOWS_ZERO} no Reshape keeps a 0")
        read = named > 1 and told
        return self.node("Reshape", [value, self.dimensions(wanted, name)], {"allowzero": 1 if read else None})[0]

    def dimensions(self, wanted: Sequence[int | str], name: str) -> ir.Value:
        """Make the int64 [n] value of a shape.

        Sizes become constants; named axes are read from a graph input that has them. With one named axis at most the
        shape is a constant with -1 in its place, so use the result for Reshape only.

        Raises:
            Refusal: no graph input has a wanted axis.
        """
        named = [dim for dim in wanted if isinstance(dim, str)]
        if len(named) <= 1:
            return self.ints([-1 if isinstance(dim, str) else dim for dim in wanted], name)
        parts: list[ir.Value] = []
        index = 0
        while index < len(wanted):
            dim = wanted[index]
            if isinstance(dim, int):
                stop = next((i for i in range(index, len(wanted)) if isinstance(wanted[i], str)), len(wanted))
                parts.append(self.ints([int(d) for d in wanted[index:stop]], f"{name}_{index}"))
            else:
                source, axis, length = self._axis_source(wanted[index:])
                stop = index + length
                parts.append(self.sizes(source, axis, axis + length, f"{name}_{index}"))
            index = stop
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=0)

    def sizes(self, value: ir.Value, start: int, stop: int, name: str) -> ir.Value:
        """Read the sizes of axes in a row, int64 [stop - start], as the opset of the model says it.

        Args:
            value: whose axes.
            start: the first axis, counted from the front.
            stop: the axis behind the last one.
            name: the role that they play, where the model's opset needs a constant.
        """
        if opset(self.model) >= READS_A_PART:
            return self.Shape(value, start=start, end=stop)
        return self.Gather(self.Shape(value), self.ints(range(start, stop), f"{name}_axes"), axis=0)

    def _axis_source(self, wanted: Sequence[int | str]) -> tuple[ir.Value, int, int]:
        best: tuple[ir.Value, int, int] | None = None
        for value in self.model.graph.inputs:
            shape = known_dims(value) or ()
            for axis, dim in enumerate(shape):
                length = 0
                while (
                    length < len(wanted)
                    and axis + length < len(shape)
                    and isinstance(wanted[length], str)
                    and shape[axis + length] == wanted[length]
                ):
                    length += 1
                if dim == wanted[0] and (best is None or length > best[2]):
                    best = (value, axis, length)
        if best is None:
            raise Refusal(f"no graph input has the axis {wanted[0]!r}")
        return best

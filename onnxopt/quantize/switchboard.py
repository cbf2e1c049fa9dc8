"""One session in which every linear layer can be quantized or not, by what it is fed.

A clone of the graph gets, in front of every linear, x + on · (f · DQ(Q(x / f)) − x) with the switch `on`, the grid
and the factors f as inputs; weights are inputs of a probe anyway. So trying another plan, or one layer alone, costs a
run and no new session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import Linear, find_linears
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear
from onnxopt.spec import Array, Feeds

_OFF = Affine(1.0, 0)


@dataclass(frozen=True)
class _Switch:
    """The inputs that belong to one linear: names of switch, scale, zero point and factors."""

    linear: Linear
    name: str
    weight: str
    bias: str


class Switchboard:
    """A model with its linears on switches.

    Args:
        layers: of a fused graph of standard operators, which is not changed.
        output: the output that is wanted.
    """

    def __init__(self, layers: Layers, output: str) -> None:
        copy = layers.model.clone()
        self._switches = {
            linear.label: _install(copy, number, linear) for number, linear in enumerate(find_linears(copy))
        }
        self._shared = {linear.label for linear in layers.linears if len(linear.weight.uses()) > 1}
        self._output = output
        keep = [value for value in copy.graph.outputs if value.name == output]
        copy.graph.outputs[:] = keep
        self._runner = GraphRunner(copy)

    @property
    def labels(self) -> list[str]:
        """Labels of the linears, in order."""
        return list(self._switches)

    def run(self, feeds: Mapping[str, Array], plan: Plan | Mapping[str, PlannedLinear]) -> Array:
        """Return the output with the linears of a plan quantized."""
        linears = plan.linears if isinstance(plan, Plan) else plan
        given: Feeds = dict(feeds)
        for label, switch in self._switches.items():
            given.update(self._inputs(label, switch, linears.get(label)))
        return self._runner.run(given)[0][self._output]

    def _inputs(self, label: str, switch: _Switch, planned: PlannedLinear | None) -> Iterator[tuple[str, Array]]:
        grid = planned.activation if planned is not None and planned.activation is not None else _OFF
        on = planned is not None and planned.activation is not None
        factors = planned.factors if planned is not None and planned.factors is not None else np.ones(1, np.float32)
        yield f"{switch.name}::on", np.array(1.0 if on else 0.0, np.float32)
        yield f"{switch.name}::scale", np.array(grid.scale, np.float32)
        yield f"{switch.name}::zero", np.array(grid.unsigned, np.uint8)
        yield f"{switch.name}::factors", np.asarray(factors, np.float32)
        # another reader of the weight, an embedding say, would move too; then only the input is rounded
        weight = None if label in self._shared else dequantized(planned, switch.linear)
        if weight is not None:
            yield switch.weight, weight
        if switch.bias and planned is not None and planned.bias is not None:
            yield switch.bias, planned.bias


def dequantized(planned: PlannedLinear | None, linear: Linear) -> Array | None:
    """Return the weight as a plan leaves it, in the layout of the initializer; None when it stays."""
    if planned is None or planned.columns is None:
        return None
    codes, scales = planned.columns
    found: Array = (codes * scales).astype(np.float32)
    if planned.factors is not None:
        found = found / planned.factors[:, None]
    return np.asarray(found.T if linear.transposed else found, order="C")


def _install(model: ir.Model, number: int, linear: Linear) -> _Switch:
    name = f"switch{number}"
    kinds = {"on": (ir.DataType.FLOAT, 0), "scale": (ir.DataType.FLOAT, 0), "zero": (ir.DataType.UINT8, 0)}
    kinds["factors"] = (ir.DataType.FLOAT, 1)
    made = {}
    for part, (dtype, rank) in kinds.items():
        value = ir.Value(name=f"{name}::{part}", type=ir.TensorType(dtype), shape=ir.Shape([None] * rank))
        model.graph.inputs.append(value)
        made[part] = value
    x = linear.x
    nodes = [ir.node("Div", [x, made["factors"]])]

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op_type, inputs))
        return nodes[-1].outputs[0]

    codes = add("QuantizeLinear", nodes[0].outputs[0], made["scale"], made["zero"])
    rounded = add("Mul", add("DequantizeLinear", codes, made["scale"], made["zero"]), made["factors"])
    result = add("Add", x, add("Mul", add("Sub", rounded, x), made["on"]))
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"{name}::{index}"
    model.graph.insert_before(linear.node, nodes)
    linear.node.replace_input_with(0, result)
    return _Switch(linear, name, linear.weight.name or "", (linear.bias.name or "") if linear.bias is not None else "")

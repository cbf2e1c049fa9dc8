"""Plans for small graphs."""

from __future__ import annotations

from onnxopt.graph.linears import find_linears, find_tables
from onnxopt.qmath.blocks import quantize
from onnxopt.qmath.precision import Kind, Plan, PlannedLinear, Precision
from onnxopt.spec import Array
from tests.support.rules import parse

KIND: dict[int, Kind] = {4: "int4-weights", 8: "int8-weights"}


def planned(weight: Array, bits: int = 8, block: int = 32, *, symmetric: bool = True) -> PlannedLinear:
    """Round a float32 [in, out] weight."""
    precision = Precision(KIND[bits], block, symmetric)
    return PlannedLinear(precision, blocks=quantize(weight, bits, block, symmetric=symmetric))


def plan_of(text: str, weights: dict[str, Array], bits: int = 8, block: int = 32, *, symmetric: bool = True) -> Plan:
    """Plan every linear layer and table of a graph."""
    model = parse(text, weights)
    made = {one.label: planned(one.matrix(), bits, block, symmetric=symmetric) for one in find_linears(model)}
    for table in find_tables(model):
        entries = weights[table.weight.name or ""].T
        made[table.label] = planned(entries, bits, block, symmetric=symmetric)
    return Plan(made)

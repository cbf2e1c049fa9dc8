"""Small graphs around attention, linear layers and activations, in the shapes that nobody's exporter writes.

Odd ranks, no batch or a batch of one, constants of any rank, biases [1, n] and [1, 1, n], transposed weights, scales in
every place, masks of every shape and kind. Each follows from its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxopt.spec import Array

LOWEST = float(np.finfo(np.float32).min)
OPEN = ("batch", "sequence", "batch", "sequence", 1, 2, 3)
Dims = Sequence[int | str]


@dataclass
class Graph:
    """A graph that is being written.

    Attributes:
        choose: draws everything.
        inputs: its inputs as ONNX text.
        nodes: its nodes as ONNX text.
        weights: its constants.
    """

    choose: random.Random
    inputs: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)

    def input(self, name: str, dims: Dims, kind: str = "float") -> str:
        """Add an input and return its name."""
        self.inputs.append(f"{kind}[{','.join(map(str, dims))}] {name}")
        return name

    def constant(self, array: Array) -> str:
        """Add a constant and return its name."""
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        return name

    def number(self, number: float) -> str:
        """Add a constant of one element, of rank 0 most of the time."""
        rank = self.choose.choice([0, 0, 0, 1, 1, 2, 3, 4])
        return self.constant(np.full((1,) * rank, number, np.float32))

    def normal(self, *shape: int) -> str:
        """Add a constant of normal floats."""
        drawn = np.random.default_rng(self.choose.randrange(2**20)).standard_normal(shape)
        return self.constant(drawn.astype(np.float32))

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """Add a node and return its result."""
        given = ", ".join(f"{name}={value}" for name, value in attributes.items()).replace(" ", "")
        name = f"v{len(self.nodes)}"
        self.nodes.append(f"{name} = {op_type}{f'<{given}>' if given else ''}({', '.join(inputs)})")
        return name

    def either(self, op_type: str, a: str, b: str) -> str:
        """Add a commutative node, its operands in any order."""
        return self.op(op_type, *self.choose.sample([a, b], 2))

    def scaled(self, value: str, factor: float, often: float = 1.0) -> str:
        """Multiply or divide by a number, most of the time."""
        if self.choose.random() > often:
            return value
        if self.choose.random() < 0.5:
            return self.either("Mul", value, self.number(factor))
        return self.op("Div", value, self.number(1 / factor))

    def text(self, output: str) -> str:
        """Return the graph as ONNX text."""
        return f"g ({', '.join(self.inputs)}) => (float {output}) {{ {' '.join(self.nodes)} }}"


def activation(graph: Graph) -> str:
    """Write GELU in one of its forms, or SiLU."""
    choose, number, either = graph.choose, graph.number, graph.either
    x = graph.input("x", [choose.choice(OPEN) for _ in range(choose.choice([1, 2, 2, 3, 3, 4]))])
    kind = choose.choice(["erf", "tanh", "silu"])
    if kind == "silu":
        negated = graph.op("Neg", x) if choose.random() < 0.5 else either("Mul", x, number(-1.0))
        below = either("Add", graph.op("Exp", negated), number(1.0))
        forms: list[Callable[[], str]] = [
            lambda: graph.op("Div", x, below),
            lambda: either("Mul", x, graph.op("Sigmoid", x)),
        ]
        return choose.choice(forms)()
    if kind == "erf":
        inner = graph.op("Erf", graph.scaled(x, 0.5**0.5))
    else:
        cube = graph.op("Pow", x, number(3.0)) if choose.random() < 0.5 else graph.op("Mul", graph.op("Mul", x, x), x)
        summed = either("Add", x, either("Mul", cube, number(0.044715)))
        inner = graph.op("Tanh", either("Mul", summed, number((2 / np.pi) ** 0.5)))
    gate = either("Add", inner, number(1.0))
    places: list[Callable[[], str]] = [
        lambda: either("Mul", either("Mul", x, number(0.5)), gate),
        lambda: either("Mul", either("Mul", x, gate), number(0.5)),
        lambda: either("Mul", x, either("Mul", gate, number(0.5))),
    ]
    return choose.choice(places)()


def linear(graph: Graph) -> str:
    """Write one to three linear layers with something between them."""
    choose, width = graph.choose, graph.choose.choice([1, 3, 4])
    leading = [choose.choice(OPEN) for _ in range(choose.choice([1, 2, 2, 3, 4]))]
    y = graph.input("x", [*leading, width])
    for _ in range(choose.choice([1, 2, 3])):
        columns, stack = choose.choice([2, 3, 4]), (1,) * choose.choice([0, 0, 0, 1, 2])
        if choose.random() < 0.25:
            turn = [*range(len(stack)), len(stack) + 1, len(stack)]
            weight = graph.op("Transpose", graph.normal(*stack, columns, width), perm=turn)
        else:
            weight = graph.normal(*stack, width, columns)
        y, width = graph.op("MatMul", y, weight), columns
        bias = choose.choice([(), (1,), (columns,), (columns,), (columns,), (1, columns), (1, 1, columns)])
        y = graph.either("Add", y, graph.normal(*bias))
        y = _between(graph, y, leading, columns)
    return y


def _between(graph: Graph, y: str, leading: Dims, width: int) -> str:
    choose = graph.choose
    kind = choose.choice(["", "function", "constant", "itself", "softmax", "norm", "input"])
    if kind == "function":
        return graph.op(choose.choice(["Relu", "Tanh", "Neg", "Gelu", "LeakyRelu"]), y)
    if kind == "constant":
        return graph.either("Mul", y, graph.normal(*choose.choice([(), (1,), (width,), (1, width), (1, 1, width)])))
    if kind == "itself":
        return graph.op("Add", y, y)
    if kind == "softmax":
        return graph.op("Softmax", y, axis=choose.choice([-1, -1, 0]))
    if kind == "norm":
        shapes = [(width,), (1,), (1, width), *([(1, 1, width)] if len(leading) > 1 else [])]
        scale, shift = (graph.normal(*choose.choice(shapes)) for _ in range(2))
        return graph.op("LayerNormalization", y, scale, shift, axis=-1)
    if kind == "input":
        dims = [dim if choose.random() < 0.6 else 1 for dim in leading][choose.choice([0, 0, 1]) :]
        return graph.either("Add", y, graph.input(f"z{len(graph.inputs)}", [*dims, choose.choice([width, 1])]))
    return y


def attention(graph: Graph) -> str:
    """Write an attention, its scores scaled and masked in any way."""
    choose, rank = graph.choose, graph.choose.choice([3, 4, 4, 4, 4, 5])
    batches: Dims = ["batch", "batch", 1, 2]
    lengths: Dims = ["sequence", "sequence", 1, 3]
    batch, heads, size = choose.choice(batches), choose.choice([1, 2, 3]), choose.choice([1, 4, 8])
    rows = choose.choice(lengths)
    keys = choose.choice([rows, rows, "sequence", 5])
    lead: list[int | str] = [batch, *([1] if rank == 5 else []), *([heads] if rank > 3 else [])]
    shared = [dim if choose.random() < 0.85 else 1 for dim in lead]
    q, v = graph.input("q", [*lead, rows, size]), graph.input("v", [*shared, keys, choose.choice([size, 2])])
    if choose.random() < 0.7:
        k = graph.op("Transpose", graph.input("k", [*shared, keys, size]), perm=[*range(rank - 2), rank - 1, rank - 2])
    else:
        k = graph.input("k", [*shared, size, keys])
    factor = choose.choice([0.5, 0.5, 2.0, -0.5])
    scores = graph.op("MatMul", graph.scaled(q, factor, 0.3), graph.scaled(k, factor, 0.3))
    scores = graph.scaled(scores, factor, 0.4)
    for step in range(choose.choice([0, 1, 1, 2])):
        scores = _masked(graph, scores, [*lead, rows, keys], step)
    weights = graph.op("Softmax", scores, axis=choose.choice([-1, -1, -1, -1, rank - 1, rank - 2]))
    if choose.random() < 0.2:
        weights = graph.op("Where", graph.op("IsNaN", weights), graph.number(0.0), weights)
    return graph.op("MatMul", weights, v)


def _masked(graph: Graph, scores: str, full: Dims, step: int) -> str:
    choose, number = graph.choose, graph.number
    dims = [1 if choose.random() < 0.4 else dim for dim in full[choose.choice([0, 0, 1, 2, len(full) - 1]) :]]
    kind = choose.choice(["bias", "counted", "written", "added", "number"])
    fill = number(choose.choice([-1e4, -1e9, LOWEST, -np.inf]))
    if kind == "bias":
        return graph.either("Add", scores, graph.input(f"bias_{step}", dims))
    if kind == "counted":
        far = graph.number(choose.choice([-1e4, -1e9, LOWEST, -1.0]))
        rest = graph.op("Sub", number(1.0), graph.input(f"mask_{step}", dims))
        return graph.either("Add", scores, graph.either("Mul", rest, far))
    if kind == "number":
        return graph.either("Add", scores, number(choose.choice([-1e4, 0.7])))
    flags = graph.input(f"mask_{step}", dims, "bool")
    if kind == "written":
        return graph.op("Where", flags, *choose.sample([scores, fill], 2))
    return graph.either("Add", scores, graph.op("Where", flags, number(0.0), fill))


FAMILIES: dict[str, Callable[[Graph], str]] = {"activation": activation, "linear": linear, "attention": attention}


def odd_graph(family: str, seed: int) -> tuple[str, dict[str, Array]]:
    """Return a graph as ONNX text, and its constants."""
    graph = Graph(random.Random(f"{family} {seed}"))  # noqa: S311 - nothing is kept secret
    output = FAMILIES[family](graph)
    text = graph.text(output)
    return text, {name: array for name, array in graph.weights.items() if f"{name}," in text or f"{name})" in text}

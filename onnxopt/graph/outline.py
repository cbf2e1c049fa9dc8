"""The bare outline of a graph, kept while the graph is rewritten, and the blocks of two that correspond."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

MOST_NODES = 45  # of a block, so that its drawing can be read
MOST_KEPT = 16  # of what it became


@dataclass(frozen=True)
class Step:
    """A node by its names.

    Attributes:
        operator: with its domain, unless that is ONNX's own.
        inputs: names of the values it takes; weights and left out inputs are not among them.
        outputs: names of the values it makes.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """What makes one value of a graph, and what makes it in the rewritten one.

    Attributes:
        output: name of the value, in both graphs.
        before: nodes of the one graph, each behind those it needs.
        after: nodes of the other.
    """

    output: str
    before: tuple[Step, ...]
    after: tuple[Step, ...]

    @property
    def lost(self) -> int:
        """How many nodes fewer it has now."""
        return len(self.before) - len(self.after)


def outline_of(model: ir.Model) -> tuple[Step, ...]:
    """Return the nodes of a model's main graph in their order; constants are left out."""
    graph = model.graph
    constants = {name for name, value in graph.initializers.items() if not value.is_graph_input()}
    steps = []
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constants.update(str(value.name) for value in node.outputs)
            continue
        inputs = (str(value.name) for value in node.inputs if value is not None)
        operator = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        outputs = tuple(str(value.name) for value in node.outputs if value.name)
        steps.append(Step(operator, tuple(name for name in inputs if name and name not in constants), outputs))
    return tuple(steps)


def largest_block(before: Collection[Step], after: Collection[Step]) -> Block | None:
    """Return the block that lost most nodes between values that both graphs have by the same name.

    Args:
        before: the outline of a graph.
        after: that of the graph which it was rewritten to.

    Returns:
        The block, not larger than can be drawn; of several alike the one in the middle. None when none lost a node,
        as where all inner values were renamed.
    """
    made = {name: step for step in before for name in step.outputs}
    kept = {name: step for step in after for name in step.outputs}
    shared = [name for name in made if name in kept]
    blocks = [
        Block(name, _behind(name, made, set(shared), before), _behind(name, kept, set(shared), after))
        for name in shared
    ]
    small = [block for block in blocks if len(block.before) <= MOST_NODES and len(block.after) <= MOST_KEPT]
    most = max((block.lost for block in small), default=0)
    alike = [block for block in small if block.lost == most > 0]
    return alike[len(alike) // 2] if alike else None


def _behind(name: str, made: Mapping[str, Step], ends: Collection[str], order: Collection[Step]) -> tuple[Step, ...]:
    """Return the nodes that a value needs, back to values that both graphs have."""
    needed: set[int] = set()
    todo = [name]
    while todo and len(needed) <= MOST_NODES:
        current = todo.pop()
        step = made.get(current)
        if step is None or (current in ends and current != name) or id(step) in needed:
            continue
        needed.add(id(step))
        todo += step.inputs
    return tuple(step for step in order if id(step) in needed)

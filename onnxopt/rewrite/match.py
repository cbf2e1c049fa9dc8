"""The match that a rule works on, and why it leaves one alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import onnx_ir as ir

from onnxopt.errors import PassAuthorError
from onnxopt.graph import Region, constant, number, region
from onnxopt.spec import Array

Fact = TypeVar("Fact")


class Refusal(Exception):  # noqa: N818 - a decision, not an error
    """A guard's decision that the identity does not hold here; the reason is for the user.

    Args:
        reason: why.
        where: the value or node that did not fit.
        needless: nothing is missed: the region has the wanted form already, or belongs to another pass.
    """

    def __init__(self, reason: str, where: str = "", *, needless: bool = False) -> None:
        self.reason = reason
        self.where = where
        self.needless = needless
        super().__init__(f"{where}: {reason}" if where else reason)


@dataclass
class Match:
    """A region that has the shape of a pattern.

    Attributes:
        model: the model it lies in.
        root: the node whose outputs are replaced.
        values: what the pattern's variables are bound to.
        named: nodes bound by `_name`.
        nodes: the nodes of the region and whether each may be shared.
        facts: what `guard` found out for `rewrite`, by class; `note` and `noted` keep it.
        probes: arrays that the replaced region must also be compared on, besides captured and random ones.
        spelled: the nodes that the pattern names; a rule may take others into the region.
    """

    model: ir.Model
    root: ir.Node
    values: dict[str, ir.Value | None]
    named: dict[str, ir.Node]
    nodes: tuple[tuple[ir.Node, bool], ...]
    facts: dict[type, object] = field(default_factory=dict)
    probes: tuple[dict[ir.Value, Array], ...] = ()
    spelled: tuple[ir.Node, ...] = ()

    def note(self, fact: object) -> None:
        """Keep what `guard` found out for `rewrite`: an object of a class of the pass, one of each class."""
        self.facts[type(fact)] = fact

    def noted(self, kind: type[Fact]) -> Fact:
        """Return what `guard` noted of a class.

        Raises:
            PassAuthorError: it noted nothing of that class.
        """
        found = self.facts.get(kind)
        if not isinstance(found, kind):
            raise PassAuthorError(f"guard noted no {kind.__name__}; call match.note({kind.__name__}(...)) in it")
        return found

    def require(self, condition: object, reason: str, where: ir.Value | ir.Node | None = None) -> None:
        """Refuse with a reason unless the condition holds."""
        if not condition:
            raise Refusal(reason, (where.name or "") if where is not None else "")

    def needs(self, condition: object, reason: str) -> None:
        """Leave the region alone unless the condition holds; nothing is missed by that, so no report mentions it."""
        if not condition:
            raise Refusal(reason, needless=True)

    def number(self, name: str) -> float:
        """Return the number of a bound scalar constant."""
        found = number(self.values[name])
        if found is None:
            raise PassAuthorError(f"{name} is not bound to a scalar constant")
        return found

    def array(self, name: str) -> Array:
        """Return the array of a bound constant."""
        found = constant(self.values[name])
        if found is None:
            raise PassAuthorError(f"{name} is not bound to a constant")
        return found

    def region(self) -> Region:
        """Return the matched nodes, bounded."""
        return region([node for node, _ in self.nodes], self.root.outputs)

    def shared_values(self) -> Iterator[ir.Value]:
        """Yield inner values that something outside the match uses."""
        members = {node for node, _ in self.nodes}
        free = {node for node, shared in self.nodes if shared} | {self.root}
        for node in dict.fromkeys(node for node, _ in self.nodes):
            if node in free:
                continue
            for value in node.outputs:
                if value.is_graph_output() or any(use.node not in members for use in value.uses()):
                    yield value

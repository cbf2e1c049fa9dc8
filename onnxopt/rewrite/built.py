"""See that what a rule has built can stand where it is going to stand."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.errors import PassAuthorError
from onnxopt.rewrite.builder import Builder
from onnxopt.rewrite.match import Match


def check_built(match: Match, op: Builder, outputs: Sequence[object]) -> None:
    """Check that a replacement is made of what is there in front of the root that it replaces.

    Args:
        match: what is to be replaced.
        op: that the replacement was built with.
        outputs: what `rewrite` has returned.

    Raises:
        PassAuthorError: an output is no value, or something in it is made neither by `op` nor in front of the root:
            in the graph it would wait for itself, or for what is not in there.
    """
    for output in outputs:
        if output is not None and not isinstance(output, ir.Value):
            raise PassAuthorError(f"rewrite gives {type(output).__name__}, not a value made by op")
    used = [value for node in op.nodes for value in node.inputs] + [one for one in outputs if isinstance(one, ir.Value)]
    known = {*op.initializers, *(value for node in op.nodes for value in node.outputs)}
    known.update(value for node, _ in match.nodes for value in node.inputs if value is not None)  # the root needs them
    strangers = [value for value in dict.fromkeys(used) if value is not None and value not in known]
    earlier = _earlier(match) if strangers else set()
    for value in strangers:
        node = value.producer()
        is_there = node in earlier if node is not None else value.graph is match.model.graph
        if not is_there:
            root = match.root.name or match.root.op_type
            raise PassAuthorError(f"rewrite uses {value.name or 'a value'}, which is not there in front of {root}")


def _earlier(match: Match) -> set[ir.Node]:
    """Return the nodes in front of the root; a graph is kept in an order in which it can be run."""
    found: set[ir.Node] = set()
    for node in match.model.graph:
        if node is match.root:
            break
        found.add(node)
    return found

"""Ask a rule's guard about a graph that the runtime does not open, so that no pass can run over it."""

from __future__ import annotations

from collections.abc import Mapping

from onnxopt.rewrite import Refusal, Rule
from onnxopt.rewrite.patterns import Miss
from onnxopt.rewrite.registry import get
from onnxopt.spec import Array
from tests.support.rules import parse


def refusal(text: str, name: str, weights: Mapping[str, Array] | None = None, *, opset: int = 23) -> str:
    """Return why the rule refuses the first node that has its form; empty when it does not refuse."""
    rule, model = get(name), parse(text, weights, opset=opset)
    assert isinstance(rule, Rule)
    found = [match for node in model.graph for match in rule.find(node, rule.compiled(), model, Miss())]
    try:
        rule.decide(found[0])
    except Refusal as reason:
        return reason.reason
    return ""

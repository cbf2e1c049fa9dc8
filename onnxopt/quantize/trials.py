"""Carry out a plan of precisions on a fused graph, and tell what of it could not be done."""

from __future__ import annotations

from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import parts_of
from onnxopt.pipeline.orders import carrying_out
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.qmath.precision import Plan, Precision


def carry_out(trial: Pipeline, plan: Plan) -> None:
    """Quantize inputs and weights before the graph is lowered, weights alone behind that."""
    steps = carrying_out(plan, trial.target)
    trial.quantize(steps)
    trial.lower()
    trial.quantize_lowered(steps)


def left_in_float(trial: Pipeline, fused: Layers, plan: Plan) -> dict[str, str]:
    """Return the layers that a plan has in fewer bits and that stayed in float all the same, with the reason.

    A rewrite that fails its proof is rolled back, and a guard may turn a layer down: what a plan says is not yet done.

    Args:
        trial: behind `carry_out`.
        fused: the layers of the graph before.
        plan: what was to be done.
    """
    after = Layers.of(trial.model)
    roots = fused.label_by_node() | after.label_by_node()
    reasons: dict[str, str] = {}
    for entry in trial.ledger.entries:
        if entry.stage != "quantize":
            continue
        found = {item.node: f"rolled back: {item.reason}" for item in entry.rolled_back}
        found |= {item.node: item.reason for item in entry.refused if not item.needless}
        for node, reason in found.items():
            label = roots.get(node, "")
            for one in [label] if label in plan.linears else parts_of(label):
                reasons.setdefault(one, reason)
    standing = {one.label for one in after.linears} | {one.label for one in after.tables}
    planned = [label for label, one in plan if one.precision != Precision()]
    return {
        label: reasons.get(label, "no pass could carry it out")
        for label in planned
        if label in reasons or label in standing
    }

"""Carry out a plan of precisions on a fused graph, and time what came of it beside another graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxopt.convs import find_convs
from onnxopt.latency import in_turns, summed_up
from onnxopt.linears import find_linears, find_tables, parts_of
from onnxopt.machine import describe_machine
from onnxopt.measurements import Race
from onnxopt.observe import Observation
from onnxopt.pipeline import Pipeline, carrying_out
from onnxopt.precision import Plan, Precision, Scheme
from onnxopt.spec import Target, Workload
from onnxopt.timing import write_job

SECONDS = 12.0

Say = Callable[[str], None]
Save = Callable[[ir.Model, Path], Path]


def carry_out(trial: Pipeline, plan: Plan) -> None:
    """Quantize inputs and weights before the graph is lowered, weights alone behind that."""
    steps = carrying_out(plan, trial.target)
    trial.quantize(steps)
    trial.lower()
    trial.quantize_lowered(steps)


def left_in_float(trial: Pipeline, fused: ir.Model, plan: Plan) -> dict[str, str]:
    """Return the layers that a plan has in fewer bits and that stayed in float all the same, with the reason.

    A rewrite that fails its proof is rolled back, and a guard may turn a layer down: what a plan says is not yet done.

    Args:
        trial: behind `carry_out`.
        fused: the graph before.
        plan: what was to be done.
    """
    roots = _labels(fused) | _labels(trial.model)
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
    standing = {one.label for one in find_linears(trial.model)} | {one.label for one in find_tables(trial.model)}
    planned = [label for label, one in plan if one.precision != Precision()]
    return {
        label: reasons.get(label, "no pass could carry it out")
        for label in planned
        if label in reasons or label in standing
    }


def _labels(model: ir.Model) -> dict[str, str]:
    """Return the label of each layer that a plan may name, by the name under which a ledger has it."""
    layers = [(one.root, one.label) for one in find_linears(model)]
    layers += [(one.root, one.label) for one in find_convs(model)]
    layers += [(one.node, one.label) for one in find_tables(model)]
    return {node.name or node.op_type: label for node, label in layers}


def scheme_of(target: Target) -> Scheme:
    """Return how a target wants int8: TensorRT without zero points; an x86 without VNNI with 7-bit weights."""
    if target.provider == "tensorrt":
        return Scheme(symmetric=True)
    machine = describe_machine()
    isa = machine.get("isa") or ()
    is_x86 = str(machine.get("architecture", "")).lower() in ("x86_64", "amd64")
    return Scheme(weight_bits=7 if is_x86 and not any("vnni" in str(flag) for flag in isa) else 8)


def speedup_of(
    slow: Path,
    fast: Path,
    requests: Sequence[Observation],
    target: Target,
    say: Say,
    *,
    workload: Workload | None = None,
) -> Race:
    """Time a graph beside another, in turns, and sum it up over the workload.

    Args:
        slow: file of the one graph.
        fast: file of the other, whose speed-up it is.
        requests: the workload, made.
        target: how they are run.
        say: told what is done.
        workload: weighs the requests; they all count the same without.
    """
    feeds = [request.feeds for request in requests]
    jobs = [write_job(path, feeds, target, path.parent / "speed") for path in (slow, fast)]
    first, second = in_turns(jobs, ["before", "after"], seconds=SECONDS, say=say)
    return summed_up(first, second, requests, form="optimized", workload=workload or Workload())

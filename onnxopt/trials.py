"""Carry out a plan of precisions on a fused graph, and time what came of it beside another graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.machine import describe_machine
from onnxopt.observe import Observation
from onnxopt.pipeline import Pipeline, carrying_out
from onnxopt.precision import Plan, Scheme
from onnxopt.spec import Target
from onnxopt.timing import run_rounds, shape_stats, write_job

ROUNDS, SECONDS = 5, 12.0

Say = Callable[[str], None]
Save = Callable[[ir.Model, Path], Path]


def carry_out(trial: Pipeline, plan: Plan) -> None:
    """Quantize inputs and weights before the graph is lowered, weights alone behind that."""
    steps = carrying_out(plan, trial.target)
    trial.quantize(steps)
    trial.lower()
    trial.quantize_lowered(steps)


def scheme_of(target: Target) -> Scheme:
    """Return how a target wants int8: TensorRT without zero points; an x86 without VNNI with 7-bit weights."""
    if target.provider == "tensorrt":
        return Scheme(symmetric=True)
    machine = describe_machine()
    isa = machine.get("isa") or ()
    is_x86 = str(machine.get("architecture", "")).lower() in ("x86_64", "amd64")
    return Scheme(weight_bits=7 if is_x86 and not any("vnni" in str(flag) for flag in isa) else 8)


def speedup_of(slow: Path, fast: Path, requests: Sequence[Observation], target: Target, say: Say) -> float:
    """Return how much faster a graph is than another, in turns, the geometric mean over the shapes of the workload.

    Args:
        slow: file of the one graph.
        fast: file of the other.
        requests: the workload.
        target: how they are run.
        say: told what is done.
    """
    feeds = [request.feeds for request in requests]
    jobs = [write_job(path, feeds, target, path.parent / "speed") for path in (slow, fast)]
    first, second = run_rounds(jobs, ["before", "after"], rounds=ROUNDS, seconds=SECONDS, progress=say)
    ratios = []
    for index, request in enumerate(requests):
        before, after = ([start.times_ms[index] for start in own] for own in (first, second))
        ratios.append(shape_stats(request.sizes, after, before).speedup)
    return float(np.exp(np.mean(np.log(ratios))))

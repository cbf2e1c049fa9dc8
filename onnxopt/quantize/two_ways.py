"""Give a quantized language model a second way, for prompts, where that stays inside the budget and is faster."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxopt.calibrate.data import CalibrationData
from onnxopt.graph.by_length import by_length
from onnxopt.judge.gate import judge_result
from onnxopt.judge.metrics import Judge, MetricBudget
from onnxopt.pipeline.orders import carrying_out
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.probe.observe import Observation
from onnxopt.qmath.precision import Plan, PlannedLinear
from onnxopt.quantize.options import scheme_of
from onnxopt.quantize.prompts import prompt_layers
from onnxopt.quantize.trials import Save, left_in_float
from onnxopt.records.quantization import GateRecord
from onnxopt.spec import Say
from onnxopt.timing.latency import speedup_of

logger = logging.getLogger(__name__)

LONGEST_STEP = 8  # tokens; from about there on integers on both sides win over weights in blocks
SHARES = (0.85, 0.7)  # of the layers that get them, one try after the other


@dataclass(frozen=True)
class Finished:
    """A quantized graph.

    Attributes:
        pipeline: with the graph.
        plan: it was made by.
        path: its file.
        gate: its judgement.
    """

    pipeline: Pipeline
    plan: Plan
    path: Path
    gate: GateRecord


@dataclass(frozen=True)
class TwoWays:
    """A graph of two.

    Attributes:
        finished: the whole; its gate is the worse of the two.
        prompts: what layers are in prompts, by label, where they are something else there.
    """

    finished: Finished
    prompts: Mapping[str, PlannedLinear]


def with_prompts(
    fused: Pipeline,
    step: Finished,
    data: CalibrationData,
    judge: Judge,
    budget: MetricBudget,
    *,
    keep: Collection[str],
    original: Path,
    scratch: Path,
    save: Save,
    requests: Sequence[Observation],
    say: Say,
) -> TwoWays | None:
    """Put a graph for prompts beside one for single tokens.

    Args:
        fused: the float graph before it is lowered; not changed.
        step: the graph for single tokens, inside the budget; its pipeline gets the graph of both.
        data: calibration samples.
        judge: what results are judged by.
        budget: that each of the two must keep.
        keep: labels that stay as they are.
        original: the model as it was loaded.
        scratch: for files.
        save: writes a graph into a new folder.
        requests: the workload; empty to measure no time.
        say: told what is done.

    Returns:
        None where no choice of layers keeps the budget, or the graph of both is not faster.
    """
    layers = prompt_layers(fused.model, data, keep=keep, scheme=scheme_of(fused.target), progress=say)
    for number, floor in enumerate(layers.floors(SHARES)):
        plan = layers.plan(floor, step.plan)
        trial = fused.fork()
        trial.lower_and_quantize(carrying_out(plan, trial.target))
        path = save(trial.model, scratch / f"prompts-{number}")
        gate = judge_result(fused.loaded, path, original, data, budget, judge=judge, say=say)
        say(f"prompts with {_count(plan)} layers in int8: {gate}")
        if not gate.holds:
            continue
        both = step.pipeline.fork()
        both.loaded.model = by_length(trial.model, both.model, longest_step=LONGEST_STEP)
        both.ledger.notes.append(
            f"inputs of more than {LONGEST_STEP} tokens go through products of 8-bit integers, shorter ones through "
            "weights in blocks: both stand in one If"
        )
        together = save(both.model, scratch / "both-ways")
        gain = (
            speedup_of(step.path, together, requests, fused.target, say, workload=fused.workload) if requests else None
        )
        if gain is not None and gain.speedup <= 1.0:
            logger.info("a graph for prompts does not pay on this workload (%s)", gain)
            return None
        worse = gate if gate.value > step.gate.value else step.gate
        undone = left_in_float(trial, fused.model, plan)
        return TwoWays(
            Finished(both, step.plan, together, worse),
            {label: one for label, one in plan if one.precision.kind == "int8" and label not in undone},
        )
    return None


def _count(plan: Plan) -> int:
    return sum(one.precision.kind == "int8" for _, one in plan)

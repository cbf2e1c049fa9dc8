"""Give a quantized language model a second way, for prompts, where that stays inside the budget and is faster."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.graph.by_length import by_length
from onnxopt.graph.layers import Layers
from onnxopt.judge.gate import Judge
from onnxopt.pipeline.orders import carrying_out
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.qmath.precision import Plan, PlannedLinear
from onnxopt.quantize.options import scheme_of
from onnxopt.quantize.prompts import prompt_layers
from onnxopt.quantize.trials import left_in_float
from onnxopt.quantize.workplace import Workplace
from onnxopt.records.quantization import GateRecord

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
    fused: Pipeline, layers: Layers, step: Finished, judge: Judge, place: Workplace, *, keep: Collection[str]
) -> TwoWays | None:
    """Put a graph for prompts beside one for single tokens.

    Args:
        fused: the float graph before it is lowered; not changed.
        layers: of that graph.
        step: the graph for single tokens, inside the budget; its pipeline gets the graph of both.
        judge: of the results; each of the two must keep its budget.
        place: where results are tried.
        keep: labels that stay as they are.

    Returns:
        None where no choice of layers keeps the budget, or the graph of both is not faster.
    """
    candidates = prompt_layers(fused.model, judge.data, keep=keep, scheme=scheme_of(fused.target), progress=place.say)
    for number, floor in enumerate(candidates.floors(SHARES)):
        plan = candidates.plan(floor, step.plan)
        trial = fused.fork()
        trial.lower_and_quantize(carrying_out(plan, trial.target))
        path = place.write(trial.model, f"prompts-{number}")
        gate = judge.judged(path, place.say)
        place.say(f"prompts with {_count(plan)} layers in int8: {gate}")
        if not gate.holds:
            continue
        both = step.pipeline.fork()
        both.loaded.model = by_length(trial.model, both.model, longest_step=LONGEST_STEP)
        both.ledger.notes.append(
            f"inputs of more than {LONGEST_STEP} tokens go through products of 8-bit integers, shorter ones through "
            "weights in blocks: both stand in one If"
        )
        together = place.write(both.model, "both-ways")
        gain = place.speedup(step.path, together, fused)
        if gain is not None and gain.speedup <= 1.0:
            logger.info("a graph for prompts does not pay on this workload (%s)", gain)
            return None
        worse = gate if gate.value > step.gate.value else step.gate
        undone = left_in_float(trial, layers, plan)
        return TwoWays(
            Finished(both, step.plan, together, worse),
            {label: one for label, one in plan if one.precision.kind == "int8" and label not in undone},
        )
    return None


def _count(plan: Plan) -> int:
    return sum(one.precision.kind == "int8" for _, one in plan)

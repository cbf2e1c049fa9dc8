"""What a search for precisions found, whatever kind of model it was for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxopt.judge.gate import Judge
from onnxopt.qmath.knapsack import Searched
from onnxopt.qmath.precision import Plan
from onnxopt.records.quantization import FrontRecord, SensitivityRecord


@dataclass(frozen=True)
class Found:
    """What was decided on.

    Attributes:
        plan: the fastest that fits, or the most careful one; by layer.
        value: of the metric, on the samples that decided; None where nothing was searched for.
        fits: whether that is within the budget.
        sensitivities: by layer, the most harmful first.
        front: plans that were measured, fastest first.
    """

    plan: Plan
    value: float | None = None
    fits: bool = True
    sensitivities: tuple[SensitivityRecord, ...] = ()
    front: tuple[FrontRecord, ...] = ()


def front_of(searched: Searched, value: Callable[[float], float]) -> tuple[FrontRecord, ...]:
    """Return what a search measured, fastest first.

    Args:
        searched: assignments and what they lose.
        value: of the metric, by what it has lost.
    """
    return tuple(
        FrontRecord(value=value(one.loss), seconds=one.assignment.seconds, counts=one.assignment.counts)
        for one in searched.front
    )


def found_of(
    plan: Plan,
    searched: Searched,
    judge: Judge,
    sensitivities: tuple[SensitivityRecord, ...],
) -> Found:
    """Return what a search by a judge's metric found.

    Args:
        plan: of its best assignment, with all that was not searched for.
        searched: what was measured.
        judge: of whose metric losses are measured.
        sensitivities: by layer, the most harmful first.
    """
    value = judge.metric.value_at(searched.best.loss)
    return Found(plan, value, judge.budget.holds(value), sensitivities, front_of(searched, judge.metric.value_at))

"""What was asked of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.calibrate.ranges import methods_of
from onnxopt.errors import InputError
from onnxopt.judge.metrics import MetricBudget
from onnxopt.quantize.options import HALF_IO, QuantizeOptions
from onnxopt.quantize.sixteen_bits import HalfOptions
from onnxopt.rewrite import Rewrite
from onnxopt.spec import Budget, Target, Workload


def asked_precision(
    budget: float | str | Budget | None,
    target: Target,
    *,
    precision: str,
    samples: int | None,
    calibrator: str,
    **given: Any,
) -> tuple[Budget | None, QuantizeOptions | None, HalfOptions | None]:
    """Return the budget of the float graph, and what is asked of quantization and of 16 bits, None for nothing."""
    chosen = QuantizeOptions.parse_precision(precision, target)
    limit: Budget | None = None
    metric: MetricBudget | None = None
    if isinstance(budget, str):
        try:
            limit = Budget(float(budget))
        except ValueError:
            metric = MetricBudget.parse(budget)
    elif budget is not None:
        limit = budget if isinstance(budget, Budget) else Budget(float(budget))
    if chosen is None:
        if metric is not None:
            raise InputError(
                f"the budget {metric} is one of quantization, and the precision is fp32",
                hint="add --precision int8, or write the largest relative error, such as 1e-4",
            )
        return limit, None, None
    if chosen == "fp16" or chosen == "bf16":  # noqa: PLR1714 - what the type checker follows
        if given.pop("keep") or calibrator != "auto":
            raise InputError(
                f"--keep and --calibrator are for int8, not for {precision}",
                hint="drop them: what needs float32 keeps it, by what is seen in it",
            )
        with_io = precision.strip().lower().endswith(HALF_IO)
        return limit, None, HalfOptions(chosen, metric, samples=samples, with_io=with_io, asked=precision, **given)
    options = QuantizeOptions(chosen, metric, samples=samples, methods=methods_of(calibrator), asked=precision, **given)
    return limit, options, None


@dataclass(frozen=True)
class Asked:
    """What was asked for."""

    target: Target
    workload: Workload
    budget: Budget
    out: Path
    measure: bool
    tune: bool
    retune: bool
    quantize: QuantizeOptions | None = None
    half: HalfOptions | None = None
    own: Sequence[type[Rewrite]] = ()  # passes from outside of onnxopt

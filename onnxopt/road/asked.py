"""What a user asked for, read from words before anything is loaded."""

from __future__ import annotations

from onnxopt.calibrate.ranges import methods_of
from onnxopt.errors import InputError
from onnxopt.host.sizes import parse_size
from onnxopt.judge.metrics import MetricBudget
from onnxopt.prune.spec import PruneSpec
from onnxopt.quantize.options import HALF_IO, HalfOptions, QuantizeOptions
from onnxopt.road.options import PackageOptions, PrecisionOptions, PruneOptions
from onnxopt.spec import Budget, Target


def target_of(options: PackageOptions) -> Target:
    """Return where the model will run; raises InputError for a name that is none."""
    return options.target if isinstance(options.target, Target) else Target.parse(options.target)


def shard_bytes_of(options: PackageOptions) -> int | None:
    """Return the bytes of the largest file of weights that is asked for; None for one file.

    Raises:
        InputError: it is no size.
    """
    asked = options.shard_size
    try:
        return None if asked is None else parse_size(str(asked))
    except InputError as error:
        raise InputError(error.what, where="--shard-size", hint=error.hint) from error


def precision_of(
    options: PrecisionOptions, target: Target
) -> tuple[Budget | None, QuantizeOptions | None, HalfOptions | None]:
    """Return the budget of the float graph, and what is asked of quantization and of 16 bits, None for nothing.

    Raises:
        InputError: the precision is none of the target, or budget or options are of another one.
    """
    asked = options.precision
    chosen = QuantizeOptions.parse_precision(asked, target)
    limit, metric = _budgets(options.budget)
    if chosen is None:
        if metric is not None:
            raise InputError(
                f"the budget {metric} is one of quantization, and the precision is fp32",
                hint="add --precision int8, or write the largest relative error, such as 1e-4",
            )
        return limit, None, None
    if chosen == "fp16" or chosen == "bf16":  # noqa: PLR1714 - what the type checker follows
        if options.keep or options.calibrator != "auto":
            raise InputError(
                f"--keep and --calibrator are for int8, not for {asked}",
                hint="drop them: what needs float32 keeps it, by what is seen in it",
            )
        half = HalfOptions(
            kind=chosen,
            budget=metric,
            calibration=str(options.calibration),
            samples=options.calibration_samples,
            force=options.force_calibration,
            with_io=asked.strip().lower().endswith(HALF_IO),
            asked=asked,
        )
        return limit, None, half
    quantize = QuantizeOptions(
        precision=chosen,
        budget=metric,
        calibration=str(options.calibration),
        samples=options.calibration_samples,
        methods=methods_of(options.calibrator),
        keep=options.keep,
        force=options.force_calibration,
        allow_slower=options.allow_slower,
        asked=asked,
    )
    return limit, quantize, None


def _budgets(asked: float | str | Budget | None) -> tuple[Budget | None, MetricBudget | None]:
    """Return a budget as one of the float graph, or as one of the task's metric."""
    if asked is None or isinstance(asked, Budget):
        return asked, None
    if not isinstance(asked, str):
        return Budget(float(asked)), None
    try:
        return Budget(float(asked)), None
    except ValueError:
        return None, MetricBudget.parse(asked)


def spec_of(what: str | PruneSpec, options: PruneOptions) -> PruneSpec:
    """Read what to prune, and how to choose; raises InputError in one line.

    Args:
        what: as in the options, where it may be left out.
        options: how to choose; a `PruneSpec` says that itself.
    """
    if isinstance(what, PruneSpec):
        return what
    return PruneSpec.parse(
        what,
        importance=options.importance,
        compensate=options.compensate,
        align=options.align,
        allocation=options.allocation,
        seed=options.seed,
    )


def left_of(options: PruneOptions) -> MetricBudget | None:
    """Read what pruning must leave of the answers; raises InputError in one line."""
    return MetricBudget.parse(options.budget) if isinstance(options.budget, str) else options.budget

"""What a run is to reach: its options as they are read, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxopt.artifact.place import check_output_folder
from onnxopt.calibrate.ranges import methods_of
from onnxopt.errors import InputError
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.source.source import Source
from onnxopt.prune.spec import PruneSpec
from onnxopt.quantize.options import HALF_IO, QuantizeOptions
from onnxopt.quantize.sixteen_bits import HalfOptions
from onnxopt.rewrite import Rewrite
from onnxopt.road.options import Options, PackageOptions, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.road.pinned import Pins
from onnxopt.spec import Budget, Target, Workload


@dataclass(frozen=True)
class Goal:
    """What a run is to reach.

    Attributes:
        target: where the model will run.
        workload: what will be asked of it.
        budget: how far an answer of the float graph may move.
        out: the folder to write.
        tune: what may be measured.
        quantize: what is asked of integers; None for nothing.
        half: what is asked of 16 bits; None for nothing.
        own: passes from outside of onnxopt.
        pins: the measured choices of another build, where they are taken over.
    """

    target: Target
    workload: Workload
    budget: Budget
    out: Path
    tune: TuneOptions
    quantize: QuantizeOptions | None = None
    half: HalfOptions | None = None
    own: Sequence[type[Rewrite]] = ()
    pins: Pins | None = None

    @classmethod
    def of(
        cls,
        options: Options,
        target: Target,
        source: Source,
        out: Path | None,
        own: Sequence[type[Rewrite]] = (),
        *,
        pins: Pins | None = None,
    ) -> Goal:
        """Read the options for a source; what they leave open is as its recipe has it.

        Args:
            options: as the user wrote them.
            target: of `target_of`.
            source: what was found under the user's name for it.
            out: the folder; `build/<name>` when None.
            own: passes from outside of onnxopt, loaded.
            pins: of `options.tune.forms_from`, read.

        Raises:
            InputError: one of them cannot be read, or the folder is not ours to write.
        """
        recipe = source.recipe
        asked = options.package.workload
        workload = Workload.parse(asked) if isinstance(asked, str) else asked
        limit, quantize, half = precision_of(options.quantize, target)
        folder = out if out is not None else Path("build") / source.name
        check_output_folder(folder)
        return cls(
            target,
            workload or (recipe.workload if recipe else Workload()),
            limit or (recipe.budget if recipe else Budget()),
            folder,
            options.tune,
            quantize,
            half,
            own,
            pins,
        )


def target_of(options: PackageOptions) -> Target:
    """Return where the model will run; raises InputError for a name that is none."""
    return options.target if isinstance(options.target, Target) else Target.parse(options.target)


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

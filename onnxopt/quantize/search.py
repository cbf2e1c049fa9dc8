"""Choose a precision for every linear layer of an encoder: as fast as its budget allows.

Every layer has alternatives, from fast to careful: int8 on one grid per tensor, int8 behind a smoothing multiplication
(`onnxopt.quantize.smooth`), float. What one layer alone costs in accuracy at the output is measured by one run of the
whole model with only that layer switched (`onnxopt.quantize.switchboard`); such losses add up as long as they are
small. So layers are made more careful in the order of what that gains over what it costs in time, until the estimate
is within the budget; then the whole plan is measured, and the estimate corrected, until it fits
(`onnxopt.qmath.knapsack`).

What every plan costs in time is an estimate too, of the products' arithmetic and of passes over activations, in the
ratios measured on one thread of an AVX-512 VNNI processor (onnxruntime 1.31.1; 128 x 384 x 1536: u8 x s8 411 us,
float 1459 us; one pass over 128 x 384 floats 10 us). It only ranks; the finished graph is measured against the float
one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.ranges import PLAIN, Method
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import Linear
from onnxopt.judge.gate import Judge
from onnxopt.judge.metrics import Metric, MetricBudget
from onnxopt.qmath.knapsack import Assignment, Option, Scaling, Search, Searched
from onnxopt.qmath.precision import Plan, PlannedLinear, Precision, Scheme
from onnxopt.quantize.columns import by_input, plan_layer
from onnxopt.quantize.found import Found, found_of
from onnxopt.quantize.smooth import choose_smoothing, divided
from onnxopt.quantize.switchboard import Switchboard
from onnxopt.records.events import Step, under
from onnxopt.records.quantization import SensitivityRecord
from onnxopt.spec import Array, Feeds, Say

INT8_SECONDS = 411e-6 / (128 * 384 * 1536)  # per multiplication
FLOAT_SECONDS = 1459e-6 / (128 * 384 * 1536)
PASS_SECONDS = 10e-6 / (128 * 384)  # per element read and written
SAMPLES_TO_CHOOSE = 32
SAMPLES_TO_RANK = 12  # for one layer alone: orders them; what is chosen is measured on more
MARGIN = 0.8  # of the loss that a budget allows: the judge looks at other samples
MOST_TRIES = 6


class Measured(Protocol):
    """Measures plans on one set of samples.

    Attributes:
        metric: what is measured.
        decisions: answers that are compared, once something has been measured.
    """

    metric: Metric
    decisions: int

    def value(self, plan: Mapping[str, PlannedLinear], /) -> float:
        """Return the metric of a plan."""


@dataclass
class _Trial:
    """Plans on one set of samples against the float model."""

    board: Switchboard
    metric: Metric
    batches: Sequence[Feeds]
    reference: list[Array] = field(default_factory=list)
    decisions: int = 0

    def value(self, plan: Mapping[str, PlannedLinear]) -> float:
        if not self.reference:
            self.reference = [self.board.run(feeds, {}) for feeds in self.batches]
        self.decisions = decisions(self.reference)
        found = [self.board.run(feeds, plan) for feeds in self.batches]
        return self.metric.value(self.metric.over(found, self.reference, self.batches))

    def loss(self, plan: Mapping[str, PlannedLinear]) -> float:
        return self.metric.loss(self.value(plan))


def decisions(outputs: Sequence[Array]) -> int:
    """Return how many choices among classes some outputs are."""
    return sum(output.size // max(output.shape[-1], 1) for output in outputs)


def gentle(metric: Metric) -> Metric:
    """Return what ranks layers: whether a likeliest class changes says nothing about one layer on few samples."""
    return Metric("cosine", metric.output) if metric.name == "agreement" else metric


def search_columns(
    layers: Layers,
    judge: Judge,
    *,
    methods: tuple[Method, ...],
    keep: Collection[str] = (),
    strictness: float = 1.0,
    scheme: Scheme = PLAIN,
    progress: Say | None = None,
) -> Found:
    """Find the fastest static int8 plan within a budget.

    Args:
        layers: of a fused graph of standard operators, which is not changed.
        judge: with the calibration samples; what is measured on them, and how far it may fall.
        methods: calibrators to compare.
        keep: labels that stay in float.
        scheme: what the target wants.
        strictness: below 1 asks for less loss than the budget allows, after a judge has turned a plan down.
        progress: told what is done.
    """
    say = progress or (lambda _: None)
    data, metric, budget = judge.data, judge.metric, judge.budget
    wanted = layers.without(keep).linears
    kept = {one.label: PlannedLinear(Precision(), "kept by the user") for one in layers.linears if one.label in keep}
    inputs = list(by_input(wanted))
    fitted = collect(layers.model, inputs, data, "fit", progress=lambda step: say(under("calibrate", step)))
    held = collect(layers.model, inputs, data, "choose", progress=lambda step: say(under("calibrate", step)))
    board, batches = Switchboard(layers, metric.output), list(data.batches("choose", most=SAMPLES_TO_CHOOSE))
    trial = _Trial(board, metric, batches)
    ranks = _Trial(board, gentle(metric), list(data.batches("choose", most=SAMPLES_TO_RANK)))
    groups = [
        Group(readers, seen, held.get(x, seen).sample)
        for x, readers in by_input(wanted).items()
        if (seen := fitted.get(x)) is not None and seen.rows
    ]
    calibrated = {one.label for group in groups for one in group.readers}
    unseen = [one.label for one in wanted if one.label not in calibrated]
    kept |= {label: PlannedLinear(Precision(), "its input was never computed") for label in unseen}
    plain: dict[str, PlannedLinear] = {}
    for number, group in enumerate(groups, start=1):
        say(Step.piece("grids", number, len(groups), group.readers[0].label))
        plain |= group.plain(methods, scheme)
    value = trial.value(plain)
    say(f"{len(plain)} int8: {budget.metric} {value:.5f}")
    fits = metric.loss(value) <= allowed_loss(trial, budget, strictness)
    options: dict[str, list[Option]] = {}
    ranking: dict[str, SensitivityRecord] = {}
    for number, group in enumerate(groups, start=1):
        say(Step.piece("sensitivity", number, len(groups), group.readers[0].label))
        _weigh(
            group, plain, smooth=not fits, scheme=scheme, methods=methods, trial=ranks, options=options, ranking=ranking
        )
    searched = fit(list(options.values()), trial, budget, strictness, say, all_fit=value if fits else None)
    plan = searched.best.assignment.planned
    order = sorted(ranking.values(), key=lambda one: -one.loss)
    found = tuple(one.model_copy(update={"precision": str(plan[one.label].precision)}) for one in order)
    return found_of(Plan({**kept, **plan}), searched, judge, found)


@dataclass(frozen=True)
class Group:
    """The linears that read one tensor, its statistics, and rows of it from other samples."""

    readers: Sequence[Linear]
    seen: Statistics
    sample: Array

    def plain(self, methods: tuple[Method, ...], scheme: Scheme) -> dict[str, PlannedLinear]:
        """Return all of them in int8 on one grid."""
        weights = [linear.matrix() for linear in self.readers]
        return plan_layer(self.readers, weights, self.seen, self.sample, methods, scheme=scheme)

    def smooth(self, methods: tuple[Method, ...], scheme: Scheme) -> dict[str, PlannedLinear]:
        """Return them behind a smoothing multiplication; nothing where that gains nothing."""
        weights = [linear.matrix() for linear in self.readers]
        smoothing = choose_smoothing(self.seen, self.sample, weights, ("min-max", "mse"))
        if not smoothing.strength:
            return {}
        factors = smoothing.factors
        scaled = [weight * factors[:, None] for weight in weights]
        seen, sample = divided(self.seen, factors), self.sample / factors
        return plan_layer(self.readers, scaled, seen, sample, methods, scheme=scheme, factors=factors)


def _weigh(
    group: Group,
    plain: Mapping[str, PlannedLinear],
    *,
    smooth: bool,
    methods: tuple[Method, ...],
    scheme: Scheme,
    trial: _Trial,
    options: dict[str, list[Option]],
    ranking: dict[str, SensitivityRecord],
) -> None:
    """Measure each reader of one tensor alone, plain and, where that is wanted, smoothed."""
    careful = group.smooth(methods, scheme) if smooth else {}
    for linear in group.readers:
        label, products = linear.label, linear.rows * linear.columns
        losses = [max(trial.loss({label: plain[label]}), 0.0)]
        found = [Option({label: plain[label]}, losses[0], INT8_SECONDS * products)]
        if label in careful:
            losses.append(max(trial.loss({label: careful[label]}), 0.0))
            seconds = INT8_SECONDS * products + PASS_SECONDS * linear.rows
            found.append(Option({label: careful[label]}, losses[1], seconds))
        reason = f"costs {losses[0]:.2g} in int8"
        found.append(Option({label: PlannedLinear(Precision(), reason)}, 0.0, FLOAT_SECONDS * products))
        options[label] = found
        ranking[label] = SensitivityRecord(
            label=label,
            loss=losses[0],
            smoothed=losses[1] if len(losses) > 1 else None,
            weights=max(trial.loss({label: _weight_only(plain[label])}), 0.0),
            reason=why(group.seen),
        )


def _weight_only(planned: PlannedLinear) -> PlannedLinear:
    return replace(planned, activation=None, bias=None)


def why(seen: Statistics) -> str:
    """Say what makes a tensor hard: channels far larger than the others, or rare values far outside the rest."""
    typical, largest = float(np.median(seen.magnitude)), float(seen.magnitude.max())
    spread = float(np.sqrt(seen.moments.mean()))
    if largest > 8 * max(typical, 1e-12):
        return f"outlier channels: the largest reaches {largest:.3g}, the median one {typical:.3g}"
    if largest > 12 * max(spread, 1e-12):
        return f"range: {largest:.3g} at most, {spread:.3g} on average"
    return "no outliers"


def allowed_loss(trial: Measured, budget: MetricBudget, strictness: float) -> float:
    """Return what a plan may lose on the samples of a trial, which has measured something.

    Of choices among classes at least one: fewer samples than a budget of 99 % asks for cannot tell more.
    """
    allowed = trial.metric.loss(budget.limit) * MARGIN * strictness
    return max(allowed, strictness / max(trial.decisions, 1)) if trial.metric.name == "agreement" else allowed


def fit(
    units: Sequence[Sequence[Option]],
    trial: Measured,
    budget: MetricBudget,
    strictness: float,
    say: Say,
    *,
    all_fit: float | None = None,
) -> Searched:
    """Return the fastest choice whose measured loss is within the budget, and what was measured.

    Losses of layers that choose classes are those of `gentle`: then their sum is lowered until the classes agree.

    Args:
        units: the options of each layer, the fastest first.
        trial: measures them together.
        budget: how far the metric may fall.
        strictness: below 1 asks for less loss than the budget allows.
        say: told what is measured.
        all_fit: value of all first options together, when that is within the budget: there is nothing to search.
    """
    metric, allowed = trial.metric, allowed_loss(trial, budget, strictness)

    def measure(assignment: Assignment) -> float:
        value = trial.value(assignment.planned)
        say(f"{budget.metric} {value:.5f}, {assignment.counts}")
        return metric.loss(value)

    search = Search(units, measure)
    if all_fit is not None:
        search.know_fastest(metric.loss(all_fit))
        return search.within(allowed, lambda _: None)
    in_loss = metric.name != "agreement"
    start = allowed if in_loss else sum(own[0].loss for own in units)
    return search.within(allowed, Scaling(allowed, start, MOST_TRIES, in_loss=in_loss))

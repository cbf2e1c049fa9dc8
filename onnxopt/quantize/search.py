"""Choose a precision for every linear layer of an encoder: as fast as its budget allows.

Every layer has alternatives, from fast to careful: int8 on one grid per tensor, int8 behind a smoothing multiplication
(`onnxopt.quantize.smooth`), float. What one layer alone costs in accuracy at the output is measured by one run of the
whole model with only that layer switched (`onnxopt.quantize.switchboard`); such losses add up as long as they are
small. So layers are made more careful in the order of what that gains over what it costs in time, until the estimate
is within the budget; then the whole plan is measured, and the estimate corrected, until it fits.

What every plan costs in time is an estimate too, of the products' arithmetic and of passes over activations, in the
ratios measured on one thread of an AVX-512 VNNI processor (onnxruntime 1.31.1; 128 x 384 x 1536: u8 x s8 411 us,
float 1459 us; one pass over 128 x 384 floats 10 us). It only ranks; the finished graph is measured against the float
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.calibrate.ranges import PLAIN, Method
from onnxopt.calibrate.statistics import Statistics
from onnxopt.linears import Linear, find_linears
from onnxopt.manifest import FrontRecord, SensitivityRecord
from onnxopt.metrics import Judge, MetricBudget
from onnxopt.model import Array, Feeds
from onnxopt.precision import Plan, PlannedLinear, Precision, Scheme
from onnxopt.quantize.columns import by_input, plan_layer
from onnxopt.quantize.smooth import choose_smoothing, divided
from onnxopt.quantize.switchboard import Switchboard

INT8_SECONDS = 411e-6 / (128 * 384 * 1536)  # per multiplication
FLOAT_SECONDS = 1459e-6 / (128 * 384 * 1536)
PASS_SECONDS = 10e-6 / (128 * 384)  # per element read and written
SAMPLES_TO_RANK = 32
MARGIN = 0.8  # of the loss that a budget allows: the judge looks at other samples
MOST_TRIES = 6

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        plan: the fastest that fits, or the most careful one.
        value: of the metric, on the samples that chose.
        fits: whether it is within the budget.
        sensitivities: by layer, the most harmful first.
        front: plans that were measured, fastest first.
    """

    plan: Plan
    value: float
    fits: bool
    sensitivities: tuple[SensitivityRecord, ...] = ()
    front: tuple[FrontRecord, ...] = ()


@dataclass(frozen=True)
class _Option:
    planned: PlannedLinear
    loss: float
    seconds: float


@dataclass
class _Trial:
    """Plans on one set of samples against the float model."""

    board: Switchboard
    judge: Judge
    batches: Sequence[Feeds]
    reference: list[Array] = field(default_factory=list)

    def value(self, plan: Mapping[str, PlannedLinear]) -> float:
        if not self.reference:
            self.reference = [self.board.run(feeds, {}) for feeds in self.batches]
        scores = [
            self.judge.scores(self.board.run(feeds, plan), expected, feeds)
            for feeds, expected in zip(self.batches, self.reference, strict=True)
        ]
        return self.judge.value(np.concatenate(scores))

    def loss(self, plan: Mapping[str, PlannedLinear]) -> float:
        return _loss(self.judge, self.value(plan))


def _loss(judge: Judge, value: float) -> float:
    """Return what a metric has lost: 1 − cosine, 1 − agreement, or the logarithm of a ratio of perplexities."""
    return math.log(max(value, 1e-9)) if judge.metric == "perplexity" else 1.0 - value


def search_columns(
    model: ir.Model,
    data: CalibrationData,
    judge: Judge,
    budget: MetricBudget,
    *,
    methods: tuple[Method, ...],
    keep: Collection[str] = (),
    strictness: float = 1.0,
    scheme: Scheme = PLAIN,
    progress: Say | None = None,
) -> Found:
    """Find the fastest static int8 plan within a budget.

    Args:
        model: fused, standard operators; not changed.
        data: calibration samples.
        judge: what is measured.
        budget: how far it may fall.
        methods: calibrators to compare.
        keep: labels that stay in float.
        scheme: what the target wants.
        strictness: below 1 asks for less loss than the budget allows, after a judge has turned a plan down.
        progress: told what is done.
    """
    say = progress or (lambda _: None)
    linears = find_linears(model)
    wanted = [linear for linear in linears if linear.label not in keep]
    kept = {linear.label: PlannedLinear(Precision(), "kept by the user") for linear in linears if linear.label in keep}
    inputs = list(by_input(wanted))
    fitted = collect(model, inputs, data, "fit", progress=lambda step: say(f"calibrate: {step}"))
    held = collect(model, inputs, data, "choose", progress=lambda step: say(f"calibrate: {step}"))
    trial = _Trial(Switchboard(model, judge.output), judge, list(data.batches("choose", most=SAMPLES_TO_RANK)))
    options: dict[str, list[_Option]] = {}
    ranking: dict[str, SensitivityRecord] = {}
    groups = by_input(wanted)
    for number, (x, readers) in enumerate(groups.items(), start=1):
        say(f"sensitivity {number} of {len(groups)}: {readers[0].label}")
        seen = fitted.get(x)
        if seen is None or not seen.rows:
            kept.update({one.label: PlannedLinear(Precision(), "its input was never computed") for one in readers})
            continue
        sample = held[x].sample if x in held else seen.sample
        _weigh(readers, seen, sample, methods=methods, scheme=scheme, trial=trial, options=options, ranking=ranking)
    chosen, value, front = _fit(options, trial, budget, strictness, say)
    plan = {label: option.planned for label, option in chosen.items()}
    order = sorted(ranking.values(), key=lambda one: -one.loss)
    found = tuple(one.model_copy(update={"precision": str(plan[one.label].precision)}) for one in order)
    return Found(Plan({**kept, **plan}), value, budget.holds(value), found, front)


def _weigh(
    readers: Sequence[Linear],
    seen: Statistics,
    sample: Array,
    *,
    methods: tuple[Method, ...],
    scheme: Scheme,
    trial: _Trial,
    options: dict[str, list[_Option]],
    ranking: dict[str, SensitivityRecord],
) -> None:
    """Make the alternatives of the readers of one tensor and measure each alone."""
    weights = [linear.matrix() for linear in readers]
    plain = plan_layer(readers, weights, seen, sample, methods, scheme=scheme)
    smoothing = choose_smoothing(seen, sample, weights, ("min-max", "mse"))
    smooth: Mapping[str, PlannedLinear] = {}
    if smoothing.strength:
        factors = smoothing.factors
        scaled = [weight * factors[:, None] for weight in weights]
        smooth = plan_layer(
            readers, scaled, divided(seen, factors), sample / factors, methods, scheme=scheme, factors=factors
        )
    for linear in readers:
        label, products = linear.label, linear.rows * linear.columns
        losses = [max(trial.loss({label: plain[label]}), 0.0)]
        found = [_Option(plain[label], losses[0], INT8_SECONDS * products)]
        if label in smooth:
            losses.append(max(trial.loss({label: smooth[label]}), 0.0))
            seconds = INT8_SECONDS * products + PASS_SECONDS * linear.rows
            found.append(_Option(smooth[label], losses[1], seconds))
        reason = f"costs {losses[0]:.2g} in int8"
        found.append(_Option(PlannedLinear(Precision(), reason), 0.0, FLOAT_SECONDS * products))
        options[label] = found
        ranking[label] = SensitivityRecord(
            label=label,
            loss=losses[0],
            smoothed=losses[1] if len(losses) > 1 else None,
            weights=max(trial.loss({label: _weight_only(plain[label])}), 0.0),
            reason=_why(seen),
        )


def _weight_only(planned: PlannedLinear) -> PlannedLinear:
    return replace(planned, activation=None, bias=None)


def _why(seen: Statistics) -> str:
    """Say what makes a tensor hard: channels far larger than the others, or rare values far outside the rest."""
    typical, largest = float(np.median(seen.magnitude)), float(seen.magnitude.max())
    spread = float(np.sqrt(seen.moments.mean()))
    if largest > 8 * max(typical, 1e-12):
        return f"outlier channels: the largest reaches {largest:.3g}, the median one {typical:.3g}"
    if largest > 12 * max(spread, 1e-12):
        return f"range: {largest:.3g} at most, {spread:.3g} on average"
    return "no outliers"


def _fit(
    options: Mapping[str, list[_Option]], trial: _Trial, budget: MetricBudget, strictness: float, say: Say
) -> tuple[dict[str, _Option], float, tuple[FrontRecord, ...]]:
    """Return the fastest choice whose measured value is within the budget, its value, and what was measured."""
    allowed = _loss(trial.judge, budget.limit) * MARGIN * strictness
    limit, tried = allowed, []
    best: tuple[dict[str, _Option], float] | None = None
    for _ in range(MOST_TRIES):
        chosen = assign(options, limit)
        value = trial.value({label: option.planned for label, option in chosen.items()})
        tried.append(_point(chosen, value))
        best = chosen, value
        loss = _loss(trial.judge, value)
        say(f"{budget.metric} {value:.5f}, {tried[-1].counts}")
        careful = all(option is options[label][-1] for label, option in chosen.items())
        if loss <= allowed or careful:
            break
        limit *= min(0.9 * allowed / loss, 0.8)
    if best is None:
        raise ValueError("nothing was tried")
    return best[0], best[1], tuple(sorted(tried, key=lambda point: point.seconds))


def assign(options: Mapping[str, Sequence[_Option]], limit: float) -> dict[str, _Option]:
    """Choose an option per layer so that the losses add up to at most a limit, in the least time.

    Greedy: the step with the most loss saved per time added comes first, as for a fractional knapsack (Dantzig 1957).
    """
    places = dict.fromkeys(options, 0)
    total = sum(own[0].loss for own in options.values())
    while total > limit:
        steps = [
            ((own[place].loss - own[other].loss) / max(own[other].seconds - own[place].seconds, 1e-12), label, other)
            for label, own in options.items()
            if (place := places[label]) < len(own)
            for other in range(place + 1, len(own))
            if own[other].loss < own[place].loss
        ]
        if not steps:
            break
        _, label, other = max(steps)
        total -= options[label][places[label]].loss - options[label][other].loss
        places[label] = other
    return {label: own[places[label]] for label, own in options.items()}


def _point(chosen: Mapping[str, _Option], value: float) -> FrontRecord:
    counts: dict[str, int] = {}
    for option in chosen.values():
        smooth = " smoothed" if option.planned.factors is not None else ""
        name = f"{option.planned.precision}{smooth}"
        counts[name] = counts.get(name, 0) + 1
    return FrontRecord(value=value, seconds=sum(option.seconds for option in chosen.values()), counts=counts)

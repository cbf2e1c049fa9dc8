"""Choose the bits of every linear layer of a language model: the fastest single tokens within a perplexity budget.

Three things are known of a layer in a precision:

* its **time** for one token, in recorded ratios: the finished graph is measured;
* its **harm**: the divergence KL(p ‖ q) of the predicted words when only this weight and those of its kind nearby are
  replaced, by a run of the whole model: weights are inputs of the probe, so a swap costs no new session;
* its **noise** in every precision, tr(Eᵀ M E) with the second moment M of its input: harm in other precisions is
  estimated in proportion to it, since divergence grows with the square of a small disturbance.

Harms of layers add up as long as they are small. So the assignment is a knapsack; it is solved greedily by harm saved
per time added, and its result is measured: the budget on the sum of harms is moved until the measured divergence of the
whole fits. What was measured on the way is the front that `--budget` chooses from.

exp(KL) is how much the perplexity of text drawn from the model's own predictions p would rise. Given text rises less,
but a few thousand words of it hardly tell two plans apart: rounding makes one word likelier, the next one less.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.graph.linears import Linear, find_linears, find_tables
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.blocks import dequantize
from onnxopt.qmath.precision import Blocked, Kind, Plan, PlannedLinear, Precision
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.weights import LEAST_INPUTS, SeenInput, WeightMethod, plan_weights, round_weight, whole_blocks
from onnxopt.spec import Array, Feeds, Say

LOGITS, IDS = "logits", "input_ids"
CLOSEST, MOST_KEPT = 2, 1 << 26  # every how manieth position is compared; numbers that are kept of what is predicted
ROWS_AT_ONCE = 64
# MatMulNBits on one row, two threads of an AVX-512 VNNI EPYC, onnxruntime 1.32.0, weights beyond the cache, 2026-11-26:
# 576 x 1536 in 40, 45 and 56 us (4 bits, blocks of 128, 64, 32), 55 us (8 bits, blocks of 128). They only rank.
WEIGHT_SECONDS = {"int4-weights": 39e-12, "int8-weights": 56e-12}
BLOCK_SECONDS, POINT_SECONDS = 0.75e-9, 0.85e-9
FITTED, CHOOSING = 64, 8  # samples of calibration text for statistics, and for decisions
DEPTHS = 3  # groups of layers that do the same at different depths
STEPS = 7  # of the search for the budget on the sum of harms


class LanguageProbe:
    """A language model with weights that can be replaced for one run.

    Args:
        model: float, with `logits` of all positions; not changed.
        windows: inputs without padding; what the last `input_ids` of a window predicts is not known.
    """

    def __init__(self, model: ir.Model, windows: Sequence[Feeds]) -> None:
        self.linears = {linear.label: linear for linear in find_linears(model)}
        self.windows = list(windows)
        self._model = model
        self._runner: GraphRunner | None = None
        self._base: list[Array] = []

    def logits(self, window: Feeds, replaced: Mapping[str, Array] | None = None) -> Array:
        """Return float32 [batch, sequence, words].

        Args:
            window: the inputs.
            replaced: float32 [in, out] weights by label.
        """
        swaps = {}
        for label, weight in (replaced or {}).items():
            linear = self.linears[label]
            swaps[linear.weight.name or ""] = np.ascontiguousarray(weight.T if linear.transposed else weight)
        if self._runner is None:
            self._runner = GraphRunner(self._model)
        return self._runner.run({**window, **swaps})[0][LOGITS]

    def release(self) -> None:
        """Let go of the session and of the weights it reads; the next run opens them again."""
        self._runner = None

    def divergence(self, replaced: Mapping[str, Array], *, most: int | None = None) -> float:
        """Return the mean KL(p ‖ q) of the words predicted by the model, p, and with replaced weights, q, in nats.

        Args:
            replaced: float32 [in, out] weights by label.
            most: the most windows to run.
        """
        windows = self.windows[:most]
        for window in windows[len(self._base) :]:
            self._base.append(_log_softmax(self._compared(window)))
        total, count = 0.0, 0
        for window, known in zip(windows, self._base, strict=False):
            found = self._compared(window, replaced)
            for start in range(0, len(found), ROWS_AT_ONCE):
                p, rows = known[start : start + ROWS_AT_ONCE], found[start : start + ROWS_AT_ONCE]
                total += float((np.exp(p) * (p - _log_softmax(rows))).sum())
            count += len(found)
        return total / max(count, 1)

    def _compared(self, window: Feeds, replaced: Mapping[str, Array] | None = None) -> Array:
        """Return float32 [positions, words]: logits of some positions, as many as may be kept."""
        logits = self.logits(window, replaced)
        tokens = sum(one[IDS].size for one in self.windows)
        every = max(CLOSEST, -(-tokens * logits.shape[-1] // MOST_KEPT))
        return logits[:, ::every].reshape(-1, logits.shape[-1])


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


@dataclass(frozen=True)
class Option:
    """A layer in one precision.

    Attributes:
        planned: with its codes.
        noise: tr(Eᵀ M E), what rounding adds to the energy of the product.
        seconds: one token.
    """

    planned: PlannedLinear
    noise: float
    seconds: float


@dataclass(frozen=True)
class FrontPoint:
    """One assignment that was measured.

    Attributes:
        seconds: one token through all its linear layers.
        ratio: perplexity over that of the original, by what the predictions diverge.
        counts: how many layers have which precision.
    """

    seconds: float
    ratio: float
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class DecoderSearch:
    """What a search found.

    Attributes:
        plan: the fastest that fits; the most careful one when nothing does.
        fits: whether its perplexity is within the budget.
        ratio: its perplexity over that of the original, on the samples that decided.
        harms: estimated divergence of each layer in its chosen precision, by label, the worst first.
        front: all that was measured, fastest first.
    """

    plan: Plan
    fits: bool
    ratio: float
    harms: tuple[tuple[str, float], ...]
    front: tuple[FrontPoint, ...]


def options_of(
    linear: Linear,
    precisions: Sequence[Precision],
    seen: SeenInput,
    seconds: Callable[[int, int, Precision], float],
    *,
    method: WeightMethod = "auto",
    whole: bool = False,
) -> list[Option]:
    """Round a layer in every precision.

    Args:
        linear: the layer.
        precisions: which.
        seen: its input.
        seconds: of one token for inputs, outputs and a precision.
        method: how.
        whole: rows must be whole blocks, for a weight that is a table too.
    """
    found = []
    weight = linear.matrix()
    wanted = dict.fromkeys(whole_blocks(one, linear.rows) if whole else one for one in precisions)
    for precision in wanted:
        planned = round_weight(linear, precision, method, seen)
        error = weight - dequantize(planned.blocks) if planned.blocks is not None else np.zeros_like(weight)
        noise = (seen.moment @ error if seen.moment.ndim == 2 else seen.moment[:, None] * error) * error
        found.append(Option(planned, float(noise.sum()), seconds(linear.rows, linear.columns, precision)))
    return found


def harms_of(
    probe: LanguageProbe, options: Mapping[str, Sequence[Option]], *, most: int = 1, progress: Say | None = None
) -> dict[str, float]:
    """Measure what the first options do to the predictions, one group of alike layers at a time.

    Returns:
        Divergence in nats by label, per unit of noise: that of the group.
    """
    found: dict[str, float] = {}
    started = time.perf_counter()
    groups = alike([label for label, own in options.items() if own[0].planned.blocks is not None])
    for number, labels in enumerate(groups, start=1):
        blocks = {label: options[label][0].planned.blocks for label in labels}
        harm = probe.divergence({label: dequantize(one) for label, one in blocks.items() if one}, most=most)
        noise = sum(options[label][0].noise for label in labels)
        found.update(dict.fromkeys(labels, max(harm, 0.0) / max(noise, 1e-30)))
        if progress is not None:
            left = (time.perf_counter() - started) / number * (len(groups) - number)
            progress(f"sensitivity {number} of {len(groups)}, {left:.0f} s left")
    return found


def alike(labels: Sequence[str]) -> list[list[str]]:
    """Group layers whose names differ in numbers only, a third of the depth apart at most."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kinds.setdefault(re.sub(r"\d+", "*", label), []).append(label)
    groups = []
    for own in kinds.values():
        size = max(1, -(-len(own) // DEPTHS))
        groups += [own[start : start + size] for start in range(0, len(own), size)]
    return groups


@dataclass(frozen=True)
class _Choice:
    """An option for layers that are decided together.

    Attributes:
        members: option by label.
        harm: estimated divergence of all.
        seconds: of all.
    """

    members: Mapping[str, Option]
    harm: float
    seconds: float


@dataclass(frozen=True)
class Knapsack:
    """Options of layers, and what is known of their harm.

    Attributes:
        options: by label.
        slopes: harm per unit of noise, by label.
        groups: labels that must get the same precision, since they read the same tensor and may become one product;
            layers in no group are decided alone.
    """

    options: Mapping[str, Sequence[Option]]
    slopes: Mapping[str, float]
    groups: Sequence[Sequence[str]] = ()

    def assign(self, limit: float) -> dict[str, Option]:
        """Choose so that the estimated harms add up to at most a limit, in the least time, greedily.

        Args:
            limit: on the sum of harms; the most careful choice when it cannot be kept.
        """
        fronts = [_front(own) for own in self._choices()]
        places = [0] * len(fronts)
        total = sum(own[0].harm for own in fronts)
        while total > limit:
            steps = [
                (_gain(own[places[unit]], own[other]), unit, other)
                for unit, own in enumerate(fronts)
                for other in range(places[unit] + 1, len(own))
            ]
            if not steps:
                break
            _, unit, other = max(steps)
            total -= fronts[unit][places[unit]].harm - fronts[unit][other].harm
            places[unit] = other
        self._take_back(fronts, places, limit - total)
        chosen = [own[place] for own, place in zip(fronts, places, strict=True)]
        return {label: option for one in chosen for label, option in one.members.items()}

    @staticmethod
    def _take_back(fronts: Sequence[Sequence[_Choice]], places: list[int], left: float) -> None:
        """Undo steps that one large step behind them has made needless, the one that saves the most time first."""
        while True:
            steps = [
                (own[place].seconds - own[other].seconds, unit, other)
                for unit, (own, place) in enumerate(zip(fronts, places, strict=True))
                for other in range(place)
                if own[other].harm - own[place].harm <= left
            ]
            if not steps:
                return
            _, unit, other = max(steps)
            left -= fronts[unit][other].harm - fronts[unit][places[unit]].harm
            places[unit] = other

    def harm(self, chosen: Mapping[str, Option]) -> float:
        """Return the sum of the estimated harms."""
        return sum(self.slopes[label] * option.noise for label, option in chosen.items())

    def _choices(self) -> list[list[_Choice]]:
        grouped = {label for group in self.groups for label in group}
        units = [*self.groups, *([label] for label in self.options if label not in grouped)]
        return [self._of(unit) for unit in units]

    def _of(self, unit: Sequence[str]) -> list[_Choice]:
        by_precision: dict[str, dict[str, Option]] = {}
        for label in unit:
            for option in self.options[label]:
                own = by_precision.setdefault(str(option.planned.precision), {})
                if label not in own or option.noise < own[label].noise:
                    own[label] = option
        return [
            _Choice(members, self.harm(members), sum(option.seconds for option in members.values()))
            for members in by_precision.values()
            if len(members) == len(unit)
        ]


def _front(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return what nothing else beats in both time and harm, fastest first."""
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda one: (one.seconds, one.harm)):
        if not kept or choice.harm < kept[-1].harm:
            kept.append(choice)
    return kept


def _gain(now: _Choice, then: _Choice) -> float:
    return (now.harm - then.harm) / max(then.seconds - now.seconds, 1e-12)


class Search:
    """Finds assignments within budgets; what was measured for one budget is known for the next.

    Args:
        probe: with the windows that decide.
        knapsack: options and harms.
        progress: told what was measured.

    Attributes:
        probe: as given.
    """

    def __init__(self, probe: LanguageProbe, knapsack: Knapsack, progress: Say | None = None) -> None:
        self.probe, self._knapsack, self._say = probe, knapsack, progress or (lambda _: None)
        self._tried: dict[tuple[str, ...], tuple[FrontPoint, dict[str, Option]]] = {}

    def within(self, most_ratio: float) -> DecoderSearch:
        """Find the fastest assignment whose measured divergence is within a budget of perplexity.

        Args:
            most_ratio: perplexity over that of the original, 1.02 for two percent more.
        """
        fastest, careful = self._knapsack.assign(math.inf), self._knapsack.assign(0.0)
        low, high = self._knapsack.harm(careful), self._knapsack.harm(fastest)
        if self._ratio(fastest) > most_ratio and self._ratio(careful) <= most_ratio:
            for _ in range(STEPS):  # halved on a logarithmic scale: harms span orders of magnitude
                middle = math.sqrt(max(low, 1e-9) * high)
                if self._ratio(self._knapsack.assign(middle)) <= most_ratio:
                    low = middle
                else:
                    high = middle
        tried = list(self._tried.values())
        fitting = [(point, chosen) for point, chosen in tried if point.ratio <= most_ratio]
        best = min(fitting, key=lambda one: one[0].seconds) if fitting else min(tried, key=lambda one: one[0].ratio)
        harms = {label: self._knapsack.slopes[label] * option.noise for label, option in best[1].items()}
        return DecoderSearch(
            Plan({label: option.planned for label, option in best[1].items()}),
            bool(fitting),
            best[0].ratio,
            tuple(sorted(harms.items(), key=lambda item: -item[1])),
            tuple(sorted((point for point, _ in tried), key=lambda point: point.seconds)),
        )

    def _ratio(self, chosen: dict[str, Option]) -> float:
        key = tuple(f"{label} {option.planned.precision}" for label, option in sorted(chosen.items()))
        if key not in self._tried:
            point = _measured(self.probe, chosen)
            self._tried[key] = point, chosen
            self._say(f"{point.seconds * 1e3:.2f} ms, perplexity x{point.ratio:.4f}")
        return self._tried[key][0].ratio


def _measured(probe: LanguageProbe, chosen: Mapping[str, Option]) -> FrontPoint:
    blocks = {label: option.planned.blocks for label, option in chosen.items()}
    loss = probe.divergence({label: dequantize(one) for label, one in blocks.items() if one is not None})
    names = [str(option.planned.precision) for option in chosen.values()]
    counts = tuple((name, names.count(name)) for name in dict.fromkeys(sorted(names)))
    return FrontPoint(sum(option.seconds for option in chosen.values()), math.exp(loss), counts)


def recorded_seconds(rows: int, columns: int, precision: Precision) -> float:
    """Return what one token takes in a linear layer: a part per weight, by its bits, and a part per block."""
    weights = rows * columns
    blocks = columns * -(-rows // precision.block_size)
    return weights * WEIGHT_SECONDS[precision.kind] + blocks * (BLOCK_SECONDS if precision.symmetric else POINT_SECONDS)


def all_options(
    linears: Collection[Linear],
    seen: Mapping[str, SeenInput],
    precisions: Sequence[Precision],
    seconds: Callable[[int, int, Precision], float],
    *,
    method: WeightMethod = "auto",
    tables: Collection[ir.Value] = (),
    progress: Say | None = None,
) -> Iterator[tuple[str, list[Option]]]:
    """Yield the options of every layer whose input has been seen."""
    for number, linear in enumerate(linears, start=1):
        if linear.label in seen:
            if progress is not None:
                progress(f"rounding {number} of {len(linears)}: {linear.label}")
            whole = linear.weight in tables
            yield linear.label, options_of(linear, precisions, seen[linear.label], seconds, method=method, whole=whole)


def _exact(linear: Linear, blocks: Blocked, seconds: Callable[[int, int, Precision], float]) -> Option:
    kind: Kind = "int4-weights" if blocks.bits == 4 else "int8-weights"
    precision = Precision(kind, blocks.block_size, blocks.zero_points is None)
    planned = PlannedLinear(precision, "the checkpoint's own grid", blocks=blocks)
    return Option(planned, 0.0, seconds(linear.rows, linear.columns, precision))


@dataclass(frozen=True)
class DecoderPlanner:
    """Plans for one decoder, within any budget; rounding and ranking, which take long, are done once.

    Attributes:
        model: fused; not changed.
        search: among the options of its layers.
        keep: labels that stay in float.
    """

    model: ir.Model
    search: Search
    keep: Collection[str]

    @classmethod
    def of(
        cls,
        model: ir.Model,
        data: CalibrationData,
        precisions: Sequence[Precision],
        *,
        keep: Collection[str] = (),
        method: WeightMethod = "auto",
        given: Mapping[str, Blocked] | None = None,
        seconds: Callable[[int, int, Precision], float] = recorded_seconds,
        progress: Say | None = None,
    ) -> DecoderPlanner:
        """Round every linear layer in every precision, and measure what that does to the predictions.

        Args:
            model: fused, with a cache, its logits of the last position or of all; not changed.
            data: calibration text; `fit` gives statistics, `choose` decides.
            precisions: of weights only, those that layers may get.
            keep: labels that stay in float.
            method: how weights are rounded.
            given: codes that stand for the weights exactly, by label, as the checkpoint has them: one more option.
            seconds: of one token for inputs, outputs and a precision.
            progress: told what is done.
        """
        say = progress or (lambda _: None)
        whole = all_positions(model)
        linears = [one for one in find_linears(whole) if one.label not in keep and one.rows >= LEAST_INPUTS]
        inputs = list(dict.fromkeys(one.x for one in linears))
        grams = inputs if any(one.kind == "int4-weights" for one in precisions) else []  # 8 bits do without
        found = collect(whole, inputs, data, "fit", grams=grams, most=FITTED, progress=lambda s: say(f"calibrate: {s}"))
        seen = {}
        for one in linears:
            known = found.get(one.x)
            if known is not None and known.rows:
                moment = known.moments if known.gram is None else known.gram / known.rows
                seen[one.label] = SeenInput(moment, known.mean)
        del found
        tables = {table.weight for table in find_tables(whole)}
        options = dict(all_options(linears, seen, precisions, seconds, method=method, tables=tables, progress=progress))
        for one in linears:
            known_codes = (given or {}).get(one.label)
            if known_codes is not None and one.label in options:
                options[one.label].append(_exact(one, known_codes, seconds))
        probe = LanguageProbe(whole, list(data.batches("choose", most=CHOOSING)))
        slopes = harms_of(probe, options, progress=progress)
        readers: dict[ir.Value, list[str]] = {}
        for one in linears:
            if one.label in options:
                readers.setdefault(one.x, []).append(one.label)
        return cls(model, Search(probe, Knapsack(options, slopes, list(readers.values())), progress), keep)

    def within(self, most_ratio: float) -> DecoderSearch:
        """Find the fastest precision of every linear layer within a budget of perplexity.

        Args:
            most_ratio: perplexity over that of the original, 1.02 for two percent more.

        Returns:
            The plan, with every label, and what it was chosen from.
        """
        try:
            chosen = self.search.within(most_ratio)
        finally:
            self.search.probe.release()  # files that it maps may be written anew
        # tables, and the reasons of what stays in float, are those of a plan by layer
        by_label = {label: one.precision for label, one in chosen.plan}
        codes = {label: one.blocks for label, one in chosen.plan if one.blocks is not None}
        rest = plan_weights(self.model, by_label, keep=self.keep, given=codes, head=None)
        return replace(chosen, plan=Plan({**rest.linears, **chosen.plan.linears}))

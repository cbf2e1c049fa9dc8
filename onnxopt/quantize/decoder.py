"""Choose the bits of every linear layer of a language model: the fastest single tokens within a perplexity budget.

Three things are known of a layer in a precision:

* its **time** for one token, in recorded ratios: the finished graph is measured;
* its **harm**: the divergence KL(p ‖ q) of the predicted words when only this weight and those of its kind nearby are
  replaced, by a run of the whole model: weights are inputs of the probe, so a swap costs no new session;
* its **noise** in every precision, tr(Eᵀ M E) with the second moment M of its input: harm in other precisions is
  estimated in proportion to it, since divergence grows with the square of a small disturbance.

Harms of layers add up as long as they are small. So the assignment is a knapsack (`onnxopt.qmath.knapsack`), and its
result is measured: the limit on the sum of harms is moved until the measured divergence of the whole fits. What was
measured on the way is the front that `--budget` chooses from.

exp(KL) is how much the perplexity of text drawn from the model's own predictions p would rise. Given text rises less,
but a few thousand words of it hardly tell two plans apart: rounding makes one word likelier, the next one less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import Linear
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.blocks import dequantize
from onnxopt.qmath.knapsack import Assignment, Halving, Option, Search
from onnxopt.qmath.precision import Blocked, Kind, Plan, PlannedLinear, Precision
from onnxopt.quantize.found import Found, front_of
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.weights import LEAST_INPUTS, SeenInput, WeightMethod, plan_weights, round_weight, whole_blocks
from onnxopt.records.events import Step, under
from onnxopt.records.quantization import SensitivityRecord
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
STEPS = 7  # of the search for the limit on the sum of harms


class LanguageProbe:
    """A language model with weights that can be replaced for one run.

    Args:
        layers: of a float graph with `logits` of all positions, which is not changed.
        windows: inputs without padding; what the last `input_ids` of a window predicts is not known.
    """

    def __init__(self, layers: Layers, windows: Sequence[Feeds]) -> None:
        self.linears = {linear.label: linear for linear in layers.linears}
        self.windows = list(windows)
        self._model = layers.model
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
class Rounding:
    """A layer in one precision.

    Attributes:
        planned: with its codes.
        noise: tr(Eᵀ M E), what rounding adds to the energy of the product.
        seconds: one token.
    """

    planned: PlannedLinear
    noise: float
    seconds: float


def roundings_of(
    linear: Linear,
    precisions: Sequence[Precision],
    seen: SeenInput,
    seconds: Callable[[int, int, Precision], float],
    *,
    method: WeightMethod = "auto",
    whole: bool = False,
) -> list[Rounding]:
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
        found.append(Rounding(planned, float(noise.sum()), seconds(linear.rows, linear.columns, precision)))
    return found


def harms_of(
    probe: LanguageProbe, roundings: Mapping[str, Sequence[Rounding]], *, most: int = 1, progress: Say | None = None
) -> dict[str, float]:
    """Measure what the first roundings do to the predictions, one group of alike layers at a time.

    Returns:
        Divergence in nats by label, per unit of noise: that of the group.
    """
    found: dict[str, float] = {}
    groups = alike([label for label, own in roundings.items() if own[0].planned.blocks is not None])
    for number, labels in enumerate(groups, start=1):
        blocks = {label: roundings[label][0].planned.blocks for label in labels}
        harm = probe.divergence({label: dequantize(one) for label, one in blocks.items() if one}, most=most)
        noise = sum(roundings[label][0].noise for label in labels)
        found.update(dict.fromkeys(labels, max(harm, 0.0) / max(noise, 1e-30)))
        if progress is not None:
            words = f"sensitivity {number} of {len(groups)}"
            progress(Step(words, work="sensitivity", done=number, total=len(groups)))
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


def units_of(
    roundings: Mapping[str, Sequence[Rounding]], slopes: Mapping[str, float], groups: Sequence[Sequence[str]] = ()
) -> list[list[Option]]:
    """Return what is decided: the options of every group of layers, and of every layer alone.

    Args:
        roundings: by label.
        slopes: harm per unit of noise, by label.
        groups: labels that must get the same precision, since they read the same tensor and may become one product;
            layers in no group are decided alone.
    """
    grouped = {label for group in groups for label in group}
    units = [*groups, *([label] for label in roundings if label not in grouped)]
    return [_options_of(unit, roundings, slopes) for unit in units]


def _options_of(
    unit: Sequence[str], roundings: Mapping[str, Sequence[Rounding]], slopes: Mapping[str, float]
) -> list[Option]:
    """Return an option for every precision that all layers have, each in the rounding with the least noise."""
    by_precision: dict[str, dict[str, Rounding]] = {}
    for label in unit:
        for rounding in roundings[label]:
            own = by_precision.setdefault(str(rounding.planned.precision), {})
            if label not in own or rounding.noise < own[label].noise:
                own[label] = rounding
    return [
        Option(
            {label: one.planned for label, one in members.items()},
            sum(slopes[label] * one.noise for label, one in members.items()),
            sum(one.seconds for one in members.values()),
        )
        for members in by_precision.values()
        if len(members) == len(unit)
    ]


def recorded_seconds(rows: int, columns: int, precision: Precision) -> float:
    """Return what one token takes in a linear layer: a part per weight, by its bits, and a part per block."""
    weights = rows * columns
    blocks = columns * -(-rows // precision.block_size)
    return weights * WEIGHT_SECONDS[precision.kind] + blocks * (BLOCK_SECONDS if precision.symmetric else POINT_SECONDS)


def all_roundings(
    linears: Collection[Linear],
    seen: Mapping[str, SeenInput],
    precisions: Sequence[Precision],
    seconds: Callable[[int, int, Precision], float],
    *,
    method: WeightMethod = "auto",
    tables: Collection[ir.Value] = (),
    progress: Say | None = None,
) -> Iterator[tuple[str, list[Rounding]]]:
    """Yield the roundings of every layer whose input has been seen."""
    for number, linear in enumerate(linears, start=1):
        if linear.label in seen:
            if progress is not None:
                progress(Step.piece("rounding", number, len(linears), linear.label))
            whole = linear.weight in tables
            yield (
                linear.label,
                roundings_of(linear, precisions, seen[linear.label], seconds, method=method, whole=whole),
            )


def _exact(linear: Linear, blocks: Blocked, seconds: Callable[[int, int, Precision], float]) -> Rounding:
    kind: Kind = "int4-weights" if blocks.bits == 4 else "int8-weights"
    precision = Precision(kind, blocks.block_size, blocks.zero_points is None)
    planned = PlannedLinear(precision, "the checkpoint's own grid", blocks=blocks)
    return Rounding(planned, 0.0, seconds(linear.rows, linear.columns, precision))


@dataclass(frozen=True)
class DecoderPlanner:
    """Plans for one decoder, within any budget; rounding and ranking, which take long, are done once.

    Attributes:
        layers: of the fused graph, which is not changed.
        probe: with the windows that decide.
        roundings: of its layers, by label.
        slopes: harm per unit of noise, by label.
        search: among what `units_of` makes of the two.
        keep: labels that stay in float.
    """

    layers: Layers
    probe: LanguageProbe
    roundings: Mapping[str, Sequence[Rounding]]
    slopes: Mapping[str, float]
    search: Search
    keep: Collection[str]

    @classmethod
    def of(
        cls,
        layers: Layers,
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
            layers: of a fused graph with a cache, its logits of the last position or of all; it is not changed.
            data: calibration text; `fit` gives statistics, `choose` decides.
            precisions: of weights only, those that layers may get.
            keep: labels that stay in float.
            method: how weights are rounded.
            given: codes that stand for the weights exactly, by label, as the checkpoint has them: one more option.
            seconds: of one token for inputs, outputs and a precision.
            progress: told what is done.
        """
        say = progress or (lambda _: None)
        on_all = Layers.of(all_positions(layers.model))
        whole = on_all.model
        linears = [one for one in on_all.without(keep).linears if one.rows >= LEAST_INPUTS]
        inputs = list(dict.fromkeys(one.x for one in linears))
        grams = inputs if any(one.kind == "int4-weights" for one in precisions) else []  # 8 bits do without

        def calibrating(step: str) -> None:
            say(under("calibrate", step))

        found = collect(whole, inputs, data, "fit", grams=grams, most=FITTED, progress=calibrating)
        inputs_seen = {
            value: SeenInput(known.moments if known.gram is None else known.gram / known.rows, known.mean)
            for value, known in found.items()
            if known.rows
        }
        seen = {one.label: inputs_seen[one.x] for one in linears if one.x in inputs_seen}
        del found
        tables = {table.weight for table in on_all.tables}
        roundings = dict(
            all_roundings(linears, seen, precisions, seconds, method=method, tables=tables, progress=progress)
        )
        for one in linears:
            known_codes = (given or {}).get(one.label)
            if known_codes is not None and one.label in roundings:
                roundings[one.label].append(_exact(one, known_codes, seconds))
        probe = LanguageProbe(on_all, list(data.batches("choose", most=CHOOSING)))
        slopes = harms_of(probe, roundings, progress=progress)
        readers: dict[ir.Value, list[str]] = {}
        for one in linears:
            if one.label in roundings:
                readers.setdefault(one.x, []).append(one.label)
        search = Search(units_of(roundings, slopes, list(readers.values())), lambda found: _diverged(probe, found, say))
        return cls(layers, probe, roundings, slopes, search, keep)

    def within(self, most_ratio: float) -> Found:
        """Find the fastest precision of every linear layer within a budget of perplexity.

        Args:
            most_ratio: perplexity over that of the original, 1.02 for two percent more.

        Returns:
            The plan, with every label, and what it was chosen from; its value is the ratio by what predictions diverge.
        """
        allowed = math.log(most_ratio)
        try:
            searched = self.search.within(allowed, Halving(allowed, STEPS))
        finally:
            self.probe.release()  # files that it maps may be written anew
        chosen = searched.best.assignment.planned
        # tables, and the reasons of what stays in float, are those of a plan by layer
        by_label = {label: one.precision for label, one in chosen.items()}
        codes = {label: one.blocks for label, one in chosen.items() if one.blocks is not None}
        rest = plan_weights(self.layers, by_label, keep=self.keep, given=codes, head=None)
        return Found(
            Plan({**rest.linears, **chosen}),
            math.exp(searched.best.loss),
            searched.fits,
            self._harms(chosen),
            front_of(searched, math.exp),
        )

    def _harms(self, chosen: Mapping[str, PlannedLinear]) -> tuple[SensitivityRecord, ...]:
        """Return the estimated divergence of each layer in its chosen precision, the worst first."""
        found = []
        for label, planned in chosen.items():
            noise = next(one.noise for one in self.roundings[label] if one.planned is planned)
            harm = self.slopes[label] * noise
            found.append(SensitivityRecord(label=label, loss=harm, precision=str(planned.precision)))
        return tuple(sorted(found, key=lambda one: -one.loss))


def _diverged(probe: LanguageProbe, assignment: Assignment, say: Say) -> float:
    """Return the divergence of a model with all its chosen weights, in nats."""
    blocks = {label: one.blocks for label, one in assignment.planned.items()}
    loss = probe.divergence({label: dequantize(one) for label, one in blocks.items() if one is not None})
    say(f"{assignment.seconds * 1e3:.2f} ms, perplexity x{math.exp(loss):.4f}")
    return loss

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

A large model is rounded piece by piece (`onnxopt.quantize.by_layer`). Harm is then the noise relative to the energy of
the layer's own product, which ranks; the divergence of all layers together is measured as ever, on fewer samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import TABLE, Linear
from onnxopt.graph.weight_files import is_large
from onnxopt.probe.pieces import Pieces
from onnxopt.qmath.blocks import dequantize
from onnxopt.qmath.knapsack import Assignment, Halving, Option, Search, Searched
from onnxopt.qmath.precision import Blocked, Plan, PlannedLinear, Precision
from onnxopt.quantize.by_layer import ByLayer, relative_harms
from onnxopt.quantize.divergence import LOGITS, LanguageProbe, PiecewiseProbe, Probe
from onnxopt.quantize.found import Found, front_of
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.roundings import Rounding, Seconds, exact, recorded_seconds
from onnxopt.quantize.weights import (
    LEAST_INPUTS,
    SeenInput,
    WeightMethod,
    plan_weights,
    precision_of,
    round_weight,
    whole_blocks,
)
from onnxopt.records.events import Step, under
from onnxopt.records.quantization import SensitivityRecord
from onnxopt.spec import Say

FITTED, CHOOSING = 64, 8  # samples of calibration text for statistics, and for decisions
FEWER = 4  # samples for decisions about a large model: a run of it takes minutes
DEPTHS = 3  # groups of layers that do the same at different depths
STEPS, FEWER_STEPS = 7, 4  # of the search for the limit on the sum of harms; of a large model


def roundings_of(
    linear: Linear,
    precisions: Sequence[Precision],
    seen: SeenInput,
    seconds: Seconds,
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


def all_roundings(
    linears: Collection[Linear],
    seen: Mapping[str, SeenInput],
    precisions: Sequence[Precision],
    seconds: Seconds,
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
        steps: of the search, at most.
    """

    layers: Layers
    probe: Probe
    roundings: Mapping[str, Sequence[Rounding]]
    slopes: Mapping[str, float]
    search: Search
    keep: Collection[str]
    steps: int = STEPS

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
        seconds: Seconds = recorded_seconds,
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
        linears = [one for one in on_all.without(keep).linears if one.rows >= LEAST_INPUTS]
        work = _Work(on_all, linears, data, precisions, method, seconds, say)
        large = is_large(on_all.model)
        roundings, slopes, probe = (work.by_layer if large else work.at_once)(given or {})
        readers: dict[ir.Value, list[str]] = {}
        for one in linears:
            if one.label in roundings:
                readers.setdefault(one.x, []).append(one.label)
        search = Search(units_of(roundings, slopes, list(readers.values())), lambda found: _diverged(probe, found, say))
        return cls(layers, probe, roundings, slopes, search, keep, FEWER_STEPS if large else STEPS)

    def within(self, most_ratio: float) -> Found:
        """Find the fastest precision of every linear layer within a budget of perplexity.

        Args:
            most_ratio: perplexity over that of the original, 1.02 for two percent more.

        Returns:
            The plan, with every label, and what it was chosen from; its value is the ratio by what predictions diverge.
        """
        allowed = math.log(most_ratio)
        try:
            searched = self.search.within(allowed, Halving(allowed, self.steps))
        finally:
            self.probe.release()  # files that it maps may be written anew
        chosen = searched.best.assignment.planned
        # tables, and the reasons of what stays in float, are those of a plan by layer
        by_label = {label: one.precision for label, one in chosen.items()}
        codes = {label: one.blocks for label, one in chosen.items() if one.blocks is not None}
        rest = plan_weights(self.layers, by_label, keep=self.keep, given=codes, head=None)
        return Found(
            _together(rest, chosen),
            math.exp(searched.best.loss),
            searched.fits,
            self._harms(searched),
            front_of(searched, math.exp),
        )

    def _harms(self, searched: Searched) -> tuple[SensitivityRecord, ...]:
        """Return the estimated divergence of each layer in its chosen precision, the worst first."""
        best = searched.best
        # harms of a large model are in no unit: what was measured of all of them together gives them one
        unit = (
            best.loss / best.assignment.loss if isinstance(self.probe, PiecewiseProbe) and best.assignment.loss else 1.0
        )
        found = []
        for label, planned in best.assignment.planned.items():
            noise = next(one.noise for one in self.roundings[label] if one.planned is planned)
            harm = self.slopes[label] * noise * unit
            found.append(SensitivityRecord(label=label, loss=harm, precision=str(planned.precision)))
        return tuple(sorted(found, key=lambda one: -one.loss))


def plan_unseen(
    layers: Layers,
    precision: Precision,
    *,
    keep: Collection[str] = (),
    given: Mapping[str, Blocked] | None = None,
    progress: Say | None = None,
) -> Plan:
    """Plan one precision for every layer of a decoder by its weights alone; the last layer gets 8 bits.

    Args:
        layers: of a fused graph; the codes of a large one lie in files of the user's cache.
        precision: of weights only.
        keep: labels that stay in float.
        given: codes that stand for the weights exactly, by label, as the checkpoint has them.
        progress: told what is done.
    """
    known = dict(given or {})
    if not is_large(layers.model):
        return plan_weights(layers, precision, keep=keep, given=known, progress=progress)
    chosen = [one for one in layers.without({*keep, *known}).linears if one.rows >= LEAST_INPUTS]
    wanted = {one.label: [precision_of(one, precision)] for one in chosen}
    tables = {table.weight for table in layers.tables}
    say = progress or (lambda _: None)
    pieces = Pieces.to_output(layers.model, LOGITS)
    rounded = ByLayer.of(pieces, chosen, None, wanted, tables=tables, say=say).rounded(recorded_seconds)
    made = {label: own[0].planned for label, own in rounded.roundings.items()}
    known |= {label: one.blocks for label, one in made.items() if one.blocks is not None}
    rest = plan_weights(layers, precision, keep=keep, given=known)
    return _together(rest, made)


def _together(rest: Plan, chosen: Mapping[str, PlannedLinear]) -> Plan:
    """Return a plan of layers that were chosen and of the rest; tables give the reason of the layer they share.

    Args:
        rest: with the codes of the chosen as what was given.
        chosen: by label.
    """
    twins = {f"{label}{TABLE}": one for label, one in chosen.items()}
    tables = {
        label: replace(one, reason=twins[label].reason)
        for label, one in rest
        if label in twins and one.blocks is not None and one.blocks is twins[label].blocks
    }
    return Plan({**rest.linears, **tables, **chosen})


_Known = tuple[dict[str, list[Rounding]], dict[str, float], Probe]


@dataclass(frozen=True)
class _Work:
    """What takes long of a plan: roundings, harm per unit of noise, by label both, and the probe that decides.

    Attributes:
        layers: of a graph with logits of all positions.
        linears: those of them that are rounded.
        data: calibration text.
        precisions: that each may get.
        method: how weights are rounded.
        seconds: of one token for inputs, outputs and a precision.
        say: told what is done.
    """

    layers: Layers
    linears: Sequence[Linear]
    data: CalibrationData
    precisions: Sequence[Precision]
    method: WeightMethod
    seconds: Seconds
    say: Say

    def at_once(self, given: Mapping[str, Blocked]) -> _Known:
        """Hold all statistics and all codes, and run the whole model for the harm of each group of layers."""
        roundings = dict(
            all_roundings(
                self.linears,
                self._seen(),
                self.precisions,
                self.seconds,
                method=self.method,
                tables=self._tables,
                progress=self.say,
            )
        )
        self._add_exact(roundings, given)
        probe = LanguageProbe(self.layers, list(self.data.batches("choose", most=CHOOSING)))
        return roundings, harms_of(probe, roundings, progress=self.say), probe

    def by_layer(self, given: Mapping[str, Blocked]) -> _Known:
        """Hold one piece of the model at a time; harms are relative to the energy of each layer's product."""
        pieces = Pieces.to_output(self.layers.model, LOGITS)
        work = ByLayer.of(
            pieces,
            self.linears,
            self.data,
            dict.fromkeys((one.label for one in self.linears), self.precisions),
            tables=self._tables,
            most=FITTED,
            method=self.method,
            say=self.say,
        )
        rounded = work.rounded(self.seconds)
        roundings = {label: list(own) for label, own in rounded.roundings.items()}
        self._add_exact(roundings, given)
        probe = PiecewiseProbe(pieces, self.layers, list(self.data.batches("choose", most=FEWER)))
        return roundings, relative_harms(rounded), probe

    def _seen(self) -> dict[str, SeenInput]:
        """Return what calibration sees of the input of each layer, by label."""
        inputs = list(dict.fromkeys(one.x for one in self.linears))
        grams = inputs if any(one.kind == "int4-weights" for one in self.precisions) else []  # 8 bits do without

        def calibrating(step: str) -> None:
            self.say(under("calibrate", step))

        found = collect(self.layers.model, inputs, self.data, "fit", grams=grams, most=FITTED, progress=calibrating)
        seen = {
            value: SeenInput(known.moments if known.gram is None else known.gram / known.rows, known.mean)
            for value, known in found.items()
            if known.rows
        }
        return {one.label: seen[one.x] for one in self.linears if one.x in seen}

    @property
    def _tables(self) -> set[ir.Value]:
        return {table.weight for table in self.layers.tables}

    def _add_exact(self, roundings: Mapping[str, list[Rounding]], given: Mapping[str, Blocked]) -> None:
        """Add what a checkpoint has in few bits itself, one option more."""
        for one in self.linears:
            codes = given.get(one.label)
            if codes is not None and one.label in roundings:
                roundings[one.label].append(exact(one, codes, self.seconds))


def _diverged(probe: Probe, assignment: Assignment, say: Say) -> float:
    """Return the divergence of a model with all its chosen weights, in nats."""
    loss = probe.diverged({label: one.blocks for label, one in assignment.planned.items() if one.blocks is not None})
    say(f"{assignment.seconds * 1e3:.2f} ms, perplexity x{math.exp(loss):.4f}")
    return loss

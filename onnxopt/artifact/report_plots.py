"""Draw the plots of a report: latency, plans, what layers cost, errors of the proof."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxopt.artifact.drawing import AFTER, BEFORE, INK, SECOND, Rows, Scale, colour
from onnxopt.artifact.report_rows import cases_of_proof, request_text
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Latency
from onnxopt.records.numbers import ms_text
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.records.rewrites import ProofRecord
from onnxopt.spec import Budget

SHOWN_LAYERS = 30  # in the plot of what layers cost
LEAST_FRONT = 2  # plans that make a picture
SHOWN_CASES = 40  # in the plot of errors; the table has all
EXACT_ERROR = 1e-9  # where the logarithmic axis of errors ends; smaller ones are drawn here, as rings
_LARGEST_ERROR = 1e9  # where it ends on the other side, whatever an error is
_SERIES = (AFTER, SECOND, BEFORE, INK)
_MOST_REACH = 1.5  # how far the interval of a speed-up may stretch the axis of the latency
_SHIPPED = "shipped"
_WIDE, _NARROW = 44.0, 17.0  # heights of rows


def legend(outputs: Sequence[str]) -> list[str]:
    """Return the colour of each output's dots, as the style sheet calls it."""
    return [colour(_SERIES[index % len(_SERIES)]) for index in range(len(outputs))]


def latency_plot(latency: Sequence[Latency]) -> str:
    """Return two bars per shape as SVG, each as long as the request takes beside the original; empty without any."""
    if not latency:
        return ""
    shares = [100 * entry.after_ms / entry.before_ms for entry in latency]
    intervals = [_interval(entry) for entry in latency]
    ends = [high for _, high in filter(None, intervals)]
    before = [f"{ms_text(entry.before_ms)} ms" for entry in latency]
    after = [f"{ms_text(entry.after_ms)} ms, {entry.speedup:.2f}×" for entry in latency]
    plot = Rows(
        [request_text(entry) for entry in latency],
        Scale(0.0, min(max(100.0, *shares, *ends), _MOST_REACH * max(100.0, *shares))),
        _WIDE,
        "% of the original's time",
        ticks=(0, 25, 50, 75, 100),
        longest_note=max((*before, *after), key=len),
    )
    for row in range(len(latency)):
        plot.bar(row, 100.0, thick=0.34, shift=-0.19, fill=BEFORE)
        plot.note(row, 100.0, before[row], shift=-0.19)
        plot.bar(row, shares[row], thick=0.34, shift=0.19, fill=AFTER)
        interval = intervals[row]
        if interval is not None:
            plot.interval(row, *interval, shift=0.19)
        reach = max(shares[row], *(interval or ()), 0.0)
        plot.note(row, reach, after[row], shift=0.19, bold=True)
    return plot.svg()


def _interval(entry: Latency) -> tuple[float, float] | None:
    """Return what the interval of a speed-up makes of the original's time, in % of it; None where there is none."""
    if not (entry.low and entry.high and entry.low < entry.high < math.inf):
        return None
    return 100 / entry.high, 100 / entry.low


def ranking_plot(manifest: Manifest) -> str:
    """Return what each linear layer costs in accuracy as SVG; empty when that was not measured.

    A bar is as long as what quantizing the layer alone costs; a dot is where smoothing its input brings it.
    """
    found = manifest.quantization
    ranked = found.sensitivities[:SHOWN_LAYERS] if found else ()
    if not ranked:
        return ""
    losses = [value for layer in ranked for value in (layer.loss, layer.smoothed) if value is not None]
    plot = Rows(
        [f"{place + 1}" for place in range(len(ranked))],
        Scale.over([0.0, *losses]),
        _NARROW,
        "loss of the metric at the output; dots: with a smoothed input",
    )
    for row, layer in enumerate(ranked):
        plot.bar(row, layer.loss, thick=0.6, fill=BEFORE)
        if layer.smoothed is not None:
            plot.dot(row, layer.smoothed, ink=AFTER)
    return plot.svg()


def front_plot(found: QuantizationRecord | None) -> str:
    """Return the plans that were measured as SVG, accuracy against speed; empty where there were not several.

    A row is a plan, the most accurate first; a dot shows how fast its linear layers are beside those of the slowest.
    """
    if found is None or len(found.front) < LEAST_FRONT:
        return ""
    became = found.counts.items() if found.shipped else {}.items()
    plans = sorted(found.front, key=lambda plan: (plan.value, plan.seconds))
    if found.gate is None or found.gate.metric != "perplexity":  # there less is better
        plans.reverse()
    slowest = max(plan.seconds for plan in plans)
    speeds = [slowest / plan.seconds for plan in plans]
    metric = found.gate.metric if found.gate else "metric"
    plot = Rows(
        [f"{metric} {plan.value:.5f}" for plan in plans],
        Scale.over(speeds),
        _NARROW,
        "speed of the linear layers, times the slowest plan's",
        longest_note=_SHIPPED,
    )
    for row, (plan, speed) in enumerate(zip(plans, speeds, strict=True)):
        is_shipped = bool(became) and plan.counts.items() <= became
        plot.dot(row, speed, ink=AFTER if is_shipped else BEFORE)
        if is_shipped:
            plot.note(row, speed, _SHIPPED, bold=True)
    return plot.svg()


def proof_plot(proof: Sequence[ProofRecord], budget: Budget, outputs: Sequence[str]) -> str:
    """Return each comparison as a dot on a logarithmic axis that ends beyond the budget, as SVG; empty without any.

    Args:
        proof: the comparisons.
        budget: what they are held to.
        outputs: names, in the order of their colours.
    """
    if not proof:
        return ""
    cases = dict(list(cases_of_proof(proof).items())[:SHOWN_CASES])
    limit = budget.relative_error
    errors = [record.worst_relative_error for record in proof if math.isfinite(record.worst_relative_error)]
    highest = min(_LARGEST_ERROR, max(limit, *errors, 10 * EXACT_ERROR))
    plot = Rows(
        [f"{sizes}  {padding}" for sizes, padding in cases],
        Scale(0.6 * EXACT_ERROR, 4 * highest, is_logarithmic=True),
        _NARROW,
        "worst relative error; the dashed line is the budget",
    )
    if limit > 0:
        plot.limit(limit)
    for row, records in enumerate(cases.values()):
        for record in records:
            error = record.worst_relative_error
            is_seen = error > EXACT_ERROR  # of not-a-number this is false
            ink = _SERIES[outputs.index(record.output) % len(_SERIES)]
            plot.dot(row, min(error, _LARGEST_ERROR) if is_seen else EXACT_ERROR, ink=ink, filled=is_seen)
    return plot.svg()

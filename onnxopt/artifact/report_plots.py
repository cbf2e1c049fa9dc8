"""Draw the plots of a report: latency, what layers cost, errors of the proof."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onnxopt.artifact.report_rows import cases_of_proof, request_text
from onnxopt.host.quiet import without_log_lines
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Latency
from onnxopt.records.numbers import ms_text
from onnxopt.records.quantization import FrontRecord, QuantizationRecord, SensitivityRecord
from onnxopt.records.rewrites import ProofRecord
from onnxopt.spec import Budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_LAYERS = 30  # in the plot of what layers cost
LEAST_FRONT = 2  # plans that make a line
SHOWN_CASES = 40  # in the plot of errors; the table has all
EXACT_ERROR = 1e-9  # where the logarithmic axis of errors ends; smaller ones are drawn here, as hollow dots
# matplotlib writes colours as hex codes; each of these stands for a variable of the page's style sheet
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030303": "var(--line)",
    "#040404": "var(--before)",
    "#050505": "var(--after)",
    "#060606": "var(--warn)",
    "#070707": "var(--paper)",
    "#080808": "var(--second)",
}
_INK, _FAINT, _LINE, _BEFORE, _AFTER, _WARN, _PAPER, _SECOND = _COLOURS
_SERIES = (_AFTER, _SECOND, _BEFORE, _INK)
_PLOT_WIDTH = 4.6  # inches; on a phone the drawing is shown at about its own size, so its text stays readable


def ranking_plot(manifest: Manifest) -> Any:
    """Return the plot of what each linear layer costs in accuracy as SVG; empty when that was not measured."""
    found = manifest.quantization
    ranked = found.sensitivities[:SHOWN_LAYERS] if found else ()
    return drawn(_draw_ranking, ranked, seed="ranking") if ranked else ""


def front_plot(found: QuantizationRecord | None) -> Any:
    """Return the plot of the plans that were measured, accuracy against speed, as SVG; empty where there were none."""
    if found is None or len(found.front) < LEAST_FRONT:
        return ""
    became = found.counts
    shipped = next((place for place, one in enumerate(found.front) if one.counts.items() <= became.items()), None)
    metric = found.gate.metric if found.gate else "metric"
    return drawn(_draw_front, found.front, metric, shipped if found.shipped else None, seed="front")


def legend(outputs: Sequence[str]) -> list[str]:
    """Return the colour of each output's dots, as the style sheet calls it."""
    return [_COLOURS[_SERIES[index % len(_SERIES)]] for index in range(len(outputs))]


def drawn(draw: Any, *facts: Any, seed: str) -> Any:
    """Draw a figure and return it as markup for the page.

    Args:
        draw: function of a figure and `facts`.
        facts: what is drawn.
        seed: makes the ids of this drawing differ from those of another on the same page.
    """
    import markupsafe

    with _silence():
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": f"onnxopt-{seed}",
        "svg.fonttype": "none",  # text stays text: it can be searched, copied, and takes the page's font
        "text.parse_math": False,
        "font.size": 9.5,
        "text.color": _INK,
        "axes.labelcolor": _FAINT,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "ytick.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "grid.color": _LINE,
        "legend.labelcolor": _INK,
    }
    content = io.StringIO()
    with _silence(), mpl.rc_context({**mpl.rcParamsDefault, **settings}):
        figure = Figure(figsize=(_PLOT_WIDTH, 1.0), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, *facts)
        figure.savefig(
            content,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return markupsafe.Markup(_inline(content.getvalue(), seed))  # noqa: S704  # numbers and our own words only


@contextmanager
def _silence() -> Iterator[None]:
    """Keep matplotlib from telling of its font cache and of letters its own font lacks; the browser has them."""
    with without_log_lines(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inline(svg: str, seed: str) -> str:
    """Turn an SVG file into an element of the page: no prologue, no fixed size, the page's colours, ids of its own."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{seed}-", body)
    for code, variable in _COLOURS.items():
        body = body.replace(code, variable)
    return f'<svg {box.group() if box else ""} aria-hidden="true">{body}'


def _bare(axes: Axes, *, height: float, figure: Figure) -> None:
    """Take away the frame and give the figure its height in inches."""
    figure.set_size_inches(_PLOT_WIDTH, height)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x", linewidth=0.6)


def draw_latency(figure: Figure, latency: Sequence[Latency]) -> None:
    """Draw two bars per shape, each as long as the request takes relative to the original."""
    axes = figure.subplots()
    _bare(axes, figure=figure, height=0.5 + 0.62 * len(latency))
    for row, entry in enumerate(latency):
        share = 100 * entry.after_ms / entry.before_ms
        axes.barh(row - 0.19, 100, 0.34, color=_BEFORE)
        axes.barh(row + 0.19, share, 0.34, color=_AFTER)
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axes.annotate(f"{ms_text(entry.before_ms)} ms", (100, row - 0.19), (4, 0), **place)
        label = f"{ms_text(entry.after_ms)} ms, {entry.speedup:.2f}×"
        if (
            entry.low and entry.high and entry.low < entry.high < math.inf
        ):  # what the interval makes of the original's time
            axes.plot([100 / entry.high, 100 / entry.low], [row + 0.19] * 2, color=_INK, linewidth=1.2)
        axes.annotate(label, (share, row + 0.19), (4, 0), fontweight="bold", **place)
    axes.set_yticks(range(len(latency)), [request_text(entry) for entry in latency])
    axes.set_ylim(len(latency) - 0.45, -0.55)
    longest = max(100.0, *(100 * entry.after_ms / entry.before_ms for entry in latency))
    axes.set_xlim(0, 1.3 * longest)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("% of the original's time")


def _draw_ranking(figure: Figure, ranked: Sequence[SensitivityRecord]) -> None:
    """Draw a bar per layer, as long as what its quantization alone costs; a dot where smoothing brings it."""
    axes = figure.subplots()
    _bare(axes, figure=figure, height=0.5 + 0.24 * len(ranked))
    for row, layer in enumerate(ranked):
        axes.barh(row, layer.loss, 0.6, color=_BEFORE)
        if layer.smoothed is not None:
            axes.plot([layer.smoothed], [row], "o", markersize=5, color=_AFTER)
    axes.set_yticks(range(len(ranked)), [f"{place + 1}" for place in range(len(ranked))])
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.set_xlabel("loss of the metric at the output; dots: with a smoothed input")


def _draw_front(figure: Figure, front: Sequence[FrontRecord], metric: str, shipped: int | None) -> None:
    """Draw a dot per plan: how fast its linear layers are, and its metric; the one that is shipped is large."""
    axes = figure.subplots()
    _bare(axes, height=2.6, figure=figure)
    slowest = max(one.seconds for one in front)
    speeds, values = [slowest / one.seconds for one in front], [one.value for one in front]
    axes.plot(speeds, values, "-", color=_LINE, linewidth=1.0)
    axes.plot(speeds, values, "o", color=_BEFORE, markersize=5.5)
    if shipped is not None:
        axes.plot([speeds[shipped]], [values[shipped]], "o", color=_AFTER, markersize=9)
    axes.margins(0.08, 0.12)
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel("linear layers, times as fast as the slowest plan")
    axes.set_ylabel(metric)


def draw_proof(figure: Figure, proof: Sequence[ProofRecord], budget: Budget, outputs: Sequence[str]) -> None:
    """Draw each comparison as a dot on a logarithmic axis that ends beyond the budget."""
    axes = figure.subplots()
    cases = dict(list(cases_of_proof(proof).items())[:SHOWN_CASES])
    _bare(axes, figure=figure, height=0.55 + 0.24 * len(cases))
    limit = budget.relative_error
    for row, records in enumerate(cases.values()):
        for record in records:
            error = record.worst_relative_error
            shown = min(error, 1e9) if error > EXACT_ERROR else EXACT_ERROR  # not-a-number compares false
            colour = _SERIES[outputs.index(record.output) % len(_SERIES)]
            face = colour if error > EXACT_ERROR else _PAPER
            axes.plot([shown], [row], "o", markersize=5.5, markerfacecolor=face, markeredgecolor=colour)
    axes.set_xscale("log")
    if limit > 0:
        axes.axvline(limit, color=_WARN, linewidth=1.4, linestyle="--")
    errors = [record.worst_relative_error for record in proof if math.isfinite(record.worst_relative_error)]
    axes.set_xlim(0.6 * EXACT_ERROR, 4 * max(limit, *errors, 10 * EXACT_ERROR))
    axes.set_yticks(range(len(cases)), [f"{sizes}  {padding}" for sizes, padding in cases])
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.minorticks_off()
    # the usual labels are mathematics, which is not set here
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.set_xlabel("worst relative error; the dashed line is the budget")

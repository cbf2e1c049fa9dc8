"""Write `report.html`: what was done to a model and what it gained, as one file that needs no network.

The page is made of three layers: facts (plain data out of the manifest and the measurements), plots (matplotlib's SVG,
drawn inline, its colours turned into the page's own variables so that they follow light and dark), and the template
beside this module. Every name in it may come from somebody else's file: the template escapes, the plots hold numbers
and our own words only, and the page forbids the browser to load anything.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxopt.manifest import Manifest, PassRecord, ProofRecord, SensitivityRecord
from onnxopt.measurements import Latency, Measurements, Race
from onnxopt.quiet import without_log_lines
from onnxopt.savings import net_bytes
from onnxopt.speed import speed_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_NAME = "report.html"

SHOWN_NODES = 6  # per reason; the manifest lists all of them
SHOWN_REASONS = 12  # per pass
SHOWN_LAYERS = 30  # in the plot of what layers cost
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


@dataclass(frozen=True)
class Reason:
    """Why a pass left candidates alone.

    Attributes:
        text: the precondition that did not hold.
        count: how many candidates.
        nodes: some of them.
    """

    text: str
    count: int
    nodes: tuple[str, ...]

    @property
    def more(self) -> int:
        """How many candidates are not named."""
        return self.count - len(self.nodes)


@dataclass(frozen=True)
class PassRow:
    """One pass over all its runs.

    Attributes:
        name: the pass.
        stage: its stage.
        numerics: its contract.
        runs: how often it ran.
        applied: rewrites kept.
        refused: candidates left alone.
        reasons: why, the most frequent first.
        rolled_back: rewrites undone: node, reason and error.
        worst_error: over the kept rewrites; None when nothing was compared.
        nodes: nodes added (negative: removed).
        bytes_saved: bytes of the file's own weights that went; negative for new ones that stayed.
        seconds: how long it took; None when not measured.
    """

    name: str
    stage: str
    numerics: str
    runs: int
    applied: int
    refused: int
    reasons: tuple[Reason, ...]
    rolled_back: tuple[tuple[str, str, str], ...]
    worst_error: float | None
    nodes: int
    bytes_saved: int
    seconds: float | None

    @property
    def idle(self) -> bool:
        """Whether it found nothing at all."""
        return not (self.applied or self.refused or self.rolled_back)


@dataclass(frozen=True)
class OperatorRow:
    """How often an operator occurs, with the length of its bars in percent of the most frequent one's."""

    name: str
    before: int
    after: int
    before_share: float
    after_share: float


def render_report(
    manifest: Manifest,
    measurements: Measurements | None,
    before_ops: Mapping[str, int],
    after_ops: Mapping[str, int],
) -> bytes:
    """Return the report as a self-contained HTML page in UTF-8.

    The same arguments give the same bytes.

    Args:
        manifest: what the artifact says of itself.
        measurements: date, latencies and seconds; None when nothing was measured.
        before_ops: operators of the model as loaded, by name.
        after_ops: operators of the result.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxopt", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size_text,
        error=error_text,
        number=number_text,
        milliseconds=ms_text,
        breakable=_breakable,
        speed=_speed,
    )
    latency = measurements.latency if measurements else ()
    outputs = tuple(dict.fromkeys(record.output for record in manifest.proof))
    passes = pass_rows(manifest.ledger, measurements.pass_seconds if measurements else {})
    page = environment.get_template("report.html.j2").render(
        manifest=manifest,
        measurements=measurements,
        latency=[(_request_text(entry), entry) for entry in latency],
        **_decision(manifest, measurements.races if measurements else ()),
        axes=" × ".join(latency[0].shape) if latency else "",
        latency_plot=_svg(_draw_latency, latency, seed="latency") if latency else "",
        proof=_proof_rows(manifest.proof),
        proof_axes=" × ".join(manifest.proof[0].sizes) if manifest.proof else "",
        proof_plot=_svg(_draw_proof, manifest, outputs, seed="proof") if manifest.proof else "",
        ranking=manifest.quantization.sensitivities if manifest.quantization else (),
        ranking_plot=ranking_plot(manifest),
        exact_error=f"{EXACT_ERROR:g}",
        outputs=list(zip(outputs, _legend(outputs), strict=True)),
        cases_left_out=max(0, len(_cases(manifest.proof)) - SHOWN_CASES),
        operators=operator_rows(before_ops, after_ops),
        before_count=sum(before_ops.values()),
        after_count=sum(after_ops.values()),
        passes=[row for row in passes if not row.idle],
        idle=[row for row in passes if row.idle],
        fused=sum(count.fused for count in manifest.blocks.values()),
        blocks=sum(count.total for count in manifest.blocks.values()),
        origin=_flat({key: value for key, value in manifest.origin.items() if key != "versions"}),
        tools=_flat(_tools(manifest)),
        machine=_flat(manifest.machine),
    )
    return page.encode("utf-8", errors="xmlcharrefreplace")  # a name may hold half a surrogate pair


def _decision(manifest: Manifest, races: Sequence[Race]) -> dict[str, Any]:
    """Return what the page says of the forms that were tried, and of the one that is shipped."""
    return {
        "races": [(f"the {race.form} graph{f' of the {race.part}' if race.part else ''}", race) for race in races],
        "shipped": shipped_words(manifest),
        "is_original": manifest.shipped is not None and manifest.shipped.form == "original",
        "is_lossy": manifest.quantization is not None and manifest.quantization.shipped,
        "rewrites": sum(record.applied for record in manifest.ledger if record.stage != "canonicalize"),
    }


def shipped_words(manifest: Manifest) -> list[str]:
    """Say which form of a graph is shipped, and why, where that is not the optimized one without a remark."""
    parts = {name: half.shipped for name, half in manifest.parts.items()} or {"": manifest.shipped}
    return [
        f"The {found.form} graph{f' of the {part}' if part else ''} is shipped: {found.reason}."
        for part, found in parts.items()
        if found is not None and found.reason
    ]


def ranking_plot(manifest: Manifest) -> str:
    """Return the plot of what each linear layer costs in accuracy as SVG; empty when that was not measured."""
    found = manifest.quantization
    ranked = found.sensitivities[:SHOWN_LAYERS] if found else ()
    return _svg(_draw_ranking, ranked, seed="ranking") if ranked else ""


def pass_rows(ledger: Sequence[PassRecord], seconds: Mapping[str, float]) -> list[PassRow]:
    """Sum up the runs of each pass, in the order of their first runs."""
    runs: dict[tuple[str, str], list[PassRecord]] = {}
    gone: Counter[tuple[str, str]] = Counter()
    for record, count in zip(ledger, net_bytes(ledger), strict=True):
        runs.setdefault((record.stage, record.name), []).append(record)
        gone[record.stage, record.name] += count
    return [_pass_row(records, seconds.get(key[1]), gone[key]) for key, records in runs.items()]


def _pass_row(records: Sequence[PassRecord], seconds: float | None, bytes_saved: int) -> PassRow:
    refused = [refusal for record in records for refusal in record.refused]
    counts = Counter(refusal.reason for refusal in refused)
    errors = [record.max_error for record in records if record.max_error is not None]
    return PassRow(
        name=records[0].name,
        stage=records[0].stage,
        numerics=records[0].numerics,
        runs=len(records),
        applied=sum(record.applied for record in records),
        refused=len(refused),
        reasons=tuple(
            Reason(text, count, tuple(item.node for item in refused if item.reason == text)[:SHOWN_NODES])
            for text, count in counts.most_common(SHOWN_REASONS)
        ),
        rolled_back=tuple(
            (item.node, item.reason, error_text(item.error)) for record in records for item in record.rolled_back
        ),
        worst_error=max(errors, default=None),
        nodes=sum(record.nodes_after - record.nodes_before for record in records),
        bytes_saved=bytes_saved,
        seconds=seconds,
    )


def operator_rows(before: Mapping[str, int], after: Mapping[str, int]) -> list[OperatorRow]:
    """Set operators side by side, the most frequent first."""
    names = sorted({*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    most = max((*before.values(), *after.values(), 1))
    return [
        OperatorRow(
            name,
            before.get(name, 0),
            after.get(name, 0),
            round(100 * before.get(name, 0) / most, 2),
            round(100 * after.get(name, 0) / most, 2),
        )
        for name in names
    ]


def _cases(proof: Sequence[ProofRecord]) -> dict[tuple[str, str], list[ProofRecord]]:
    """Group comparisons by sizes and padding."""
    cases: dict[tuple[str, str], list[ProofRecord]] = {}
    for record in proof:
        cases.setdefault((shape_text(record.sizes), record.padding), []).append(record)
    return cases


def _proof_rows(proof: Sequence[ProofRecord]) -> list[dict[str, Any]]:
    return [
        {
            "sizes": sizes,
            "padding": padding,
            "errors": [(record.output, record.worst_relative_error, record.worst_absolute_error) for record in records],
        }
        for (sizes, padding), records in _cases(proof).items()
    ]


def _legend(outputs: Sequence[str]) -> list[str]:
    """Return the colour of each output's dots, as the style sheet calls it."""
    return [_COLOURS[_SERIES[index % len(_SERIES)]] for index in range(len(outputs))]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as pairs of words; empty ones are left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs.extend(_flat(value, f"{name}, "))
        elif isinstance(value, (list, tuple)):
            pairs.append((name, ", ".join(str(item) for item in value)))
        elif key.endswith("_bytes") and isinstance(value, int):
            pairs.append((name.removesuffix(" bytes"), size_text(value)))
        else:
            pairs.append((name, str(value)))
    return [(name, text) for name, text in pairs if text not in ("", "None")]


def _tools(manifest: Manifest) -> dict[str, str]:
    """Return the versions of the tools that took part, by the names of their packages."""
    loading = manifest.origin.get("versions")
    known = {**(loading if isinstance(loading, Mapping) else {}), **manifest.versions}
    return {str(name).replace("_", "-"): str(version) for name, version in known.items()}


def shape_text(shape: Mapping[str, int]) -> str:
    """Write sizes as `8 × 128`."""
    return " × ".join(f"{size:,}" for size in shape.values()) or "fixed"


def _request_text(entry: Latency) -> str:
    """Write the sizes of a request, and how much of it was real tokens when some was padding."""
    return shape_text(entry.shape) + (f", {entry.fill:.0%} real" if entry.fill < 1 else "")


def size_text(count: float) -> str:
    """Write a number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def error_text(error: float | None) -> str:
    """Write an error with two digits; equal bits are `0`, what cannot be compared is said so."""
    if error is None:
        return "not compared"
    if math.isnan(error) or math.isinf(error):
        return "not comparable"
    return f"{error:.1e}" if error else "0"


def number_text(count: int) -> str:
    """Write a whole number with separators and a true minus sign."""
    return f"{count:,}".replace("-", "−")


def ms_text(milliseconds: float) -> str:
    """Write milliseconds with three digits."""
    if milliseconds >= 100:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def _speed(entry: Latency | Race) -> str:
    """Write a speed-up with its interval, and what that shows."""
    return speed_text(entry.speedup, entry.low, entry.high, times="×")


def _breakable(text: str) -> Any:
    """Return escaped text that a narrow screen may break after the marks inside a name."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"(::|[_/.])", r"\1<wbr>", str(markupsafe.escape(text))))  # noqa: S704  # escaped


def _svg(draw: Any, *facts: Any, seed: str) -> Any:
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


def _draw_latency(figure: Figure, latency: Sequence[Latency]) -> None:
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
    axes.set_yticks(range(len(latency)), [_request_text(entry) for entry in latency])
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


def _draw_proof(figure: Figure, manifest: Manifest, outputs: Sequence[str]) -> None:
    """Draw each comparison as a dot on a logarithmic axis that ends beyond the budget."""
    axes = figure.subplots()
    cases = dict(list(_cases(manifest.proof).items())[:SHOWN_CASES])
    _bare(axes, figure=figure, height=0.55 + 0.24 * len(cases))
    limit = manifest.budget.relative_error
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
    errors = [record.worst_relative_error for record in manifest.proof if math.isfinite(record.worst_relative_error)]
    axes.set_xlim(0.6 * EXACT_ERROR, 4 * max(limit, *errors, 10 * EXACT_ERROR))
    axes.set_yticks(range(len(cases)), [f"{sizes}  {padding}" for sizes, padding in cases])
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.minorticks_off()
    # the usual labels are mathematics, which is not set here
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.set_xlabel("worst relative error; the dashed line is the budget")

"""Write `report.html`: what was done to a model and what it gained, as one file that needs no network.

The page is made of three layers: facts (plain data out of the manifest and the measurements), plots (SVG, drawn inline
in the page's own variables of colours, so that they follow light and dark), and the template beside this module. Every
name in it may come from somebody else's file: the template escapes, the plots hold numbers and our own words only, and
the page forbids the browser to load anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxopt.artifact.report_plots import (
    EXACT_ERROR,
    SHOWN_CASES,
    latency_plot,
    legend,
    proof_plot,
    ranking_plot,
)
from onnxopt.artifact.report_rows import (
    cases_of_proof,
    flattened,
    operator_rows,
    pass_rows,
    proof_rows,
    request_text,
    tools_of,
)
from onnxopt.host.sizes import size_text
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Latency, Measurements, Race
from onnxopt.records.numbers import error_text, ms_text, number_text
from onnxopt.records.speed import speed_text

if TYPE_CHECKING:
    pass

REPORT_NAME = "report.html"


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
        loader=jinja2.PackageLoader("onnxopt.artifact", "templates"),
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
        latency=[(request_text(entry), entry) for entry in latency],
        **_decision(manifest, measurements.races if measurements else ()),
        axes=" × ".join(latency[0].shape) if latency else "",
        latency_plot=_drawing(latency_plot(latency)),
        proof=proof_rows(manifest.proof),
        proof_axes=" × ".join(manifest.proof[0].sizes) if manifest.proof else "",
        proof_plot=_drawing(proof_plot(manifest, outputs)),
        ranking=manifest.quantization.sensitivities if manifest.quantization else (),
        ranking_plot=_drawing(ranking_plot(manifest)),
        exact_error=f"{EXACT_ERROR:g}",
        outputs=list(zip(outputs, legend(outputs), strict=True)),
        cases_left_out=max(0, len(cases_of_proof(manifest.proof)) - SHOWN_CASES),
        operators=operator_rows(before_ops, after_ops),
        before_count=sum(before_ops.values()),
        after_count=sum(after_ops.values()),
        passes=[row for row in passes if not row.idle],
        idle=[row for row in passes if row.idle],
        fused=sum(count.fused for count in manifest.blocks.values()),
        blocks=sum(count.total for count in manifest.blocks.values()),
        origin=flattened({key: value for key, value in manifest.origin.items() if key != "versions"}),
        tools=flattened(tools_of(manifest)),
        machine=flattened(manifest.machine),
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
    parts = {name: part.shipped for name, part in manifest.parts.items()} or {"": manifest.shipped}
    return [
        f"The {found.form} graph{f' of the {part}' if part else ''} is shipped: {found.reason}."
        for part, found in parts.items()
        if found is not None and found.reason
    ]


def _speed(entry: Latency | Race) -> str:
    """Write a speed-up with its interval, and what that shows."""
    return speed_text(entry.speedup, entry.low, entry.high, times="×")


def _drawing(svg: str) -> Any:
    """Return a plot as markup, which the template takes as it is: it holds numbers and our own words only."""
    import markupsafe

    return markupsafe.Markup(svg)  # noqa: S704  # what it writes is escaped


def _breakable(text: str) -> Any:
    """Return escaped text that a narrow screen may break after the marks inside a name."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"(::|[_/.])", r"\1<wbr>", str(markupsafe.escape(text))))  # noqa: S704  # escaped

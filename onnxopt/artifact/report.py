"""Write `report.html`: what was done to a model and what it gained, as one file that needs no network.

The page is made of three layers: facts (plain data out of the manifest and the measurements), plots (SVG, drawn inline
in the page's own variables of colours, so that they follow light and dark), and the template beside this module. Every
name in it may come from somebody else's file: the template escapes, the plots hold numbers and our own words only, and
the page forbids the browser to load anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.artifact.golden import Golden
from onnxopt.artifact.report_block import drawn_block
from onnxopt.artifact.report_plots import (
    EXACT_ERROR,
    SHOWN_CASES,
    front_plot,
    latency_plot,
    legend,
    proof_plot,
    ranking_plot,
)
from onnxopt.artifact.report_rows import (
    cases_of_proof,
    flattened,
    grouped,
    operator_rows,
    pass_rows,
    proof_rows,
    request_text,
    tools_of,
)
from onnxopt.artifact.report_use import commands_of, sample_of
from onnxopt.graph.outline import Block
from onnxopt.host.sizes import size_text
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Latency, Measurements, Race
from onnxopt.records.numbers import error_text, ms_text, number_text
from onnxopt.records.speed import speed_text

REPORT_NAME = "report.html"


@dataclass(frozen=True)
class Graphs:
    """What a report shows of the graphs themselves.

    Attributes:
        before: operators of the model as loaded, by name.
        after: operators of the result.
        block: the part that lost most nodes; None where there is none to show.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    block: Block | None = None


def render_report(
    manifest: Manifest,
    measurements: Measurements | None,
    graphs: Graphs,
    *,
    golden: Sequence[Golden] = (),
    folder: str = "",
) -> bytes:
    """Return the report as a self-contained HTML page in UTF-8.

    The same arguments give the same bytes.

    Args:
        manifest: what the artifact says of itself.
        measurements: date, latencies and seconds; None when nothing was measured.
        graphs: what became of the operators.
        golden: cases with their answers, of which the first is shown.
        folder: name of the artifact's folder; the model's name when empty.
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
    races = measurements.races if measurements else ()
    compared = grouped(manifest.proof)
    outputs = tuple(dict.fromkeys(record.output for record in compared))
    passes = pass_rows(manifest.ledger, measurements.pass_seconds if measurements else {})
    page = environment.get_template("report.html.j2").render(
        manifest=manifest,
        measurements=measurements,
        latency=[(request_text(entry), entry) for entry in latency],
        has_p99=any(entry.after_p99_ms for entry in latency),
        folder=folder or manifest.name,
        **_decision(manifest, races),
        **_block(graphs.block),
        headline=headline(manifest, races),
        commands=commands_of(manifest, folder or manifest.name),
        sample=sample_of(golden),
        axes=" × ".join(latency[0].shape) if latency else "",
        latency_plot=_drawing(latency_plot(latency)),
        proof=proof_rows(compared),
        proof_axes=" × ".join(manifest.proof[0].sizes) if manifest.proof else "",
        proof_plot=_drawing(proof_plot(compared, manifest.budget, outputs)),
        ranking=manifest.quantization.sensitivities if manifest.quantization else (),
        ranking_plot=_drawing(ranking_plot(manifest)),
        front_plot=_drawing(front_plot(manifest.quantization)),
        exact_error=f"{EXACT_ERROR:g}",
        outputs=list(zip(outputs, legend(outputs), strict=True)),
        cases_left_out=max(0, len(cases_of_proof(compared)) - SHOWN_CASES),
        operators=operator_rows(graphs.before, graphs.after),
        before_count=sum(graphs.before.values()),
        after_count=sum(graphs.after.values()),
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


def _block(block: Block | None) -> dict[str, Any]:
    """Return the drawings of a block before and after."""
    return {"block": block, "block_drawings": drawn_block(block) if block else ()}


def headline(manifest: Manifest, races: Sequence[Race]) -> list[tuple[str, str]]:
    """Return in pairs of words what is shipped: its precision, and where it is known speed, size, memory, accuracy."""
    found = manifest.quantization
    lossy = found is not None and found.shipped
    form = manifest.shipped.form if manifest.shipped else "optimized"
    said = [("shipped", f"{found.asked}, quantized" if found and lossy else f"the {form} graph, not quantized")]
    for race in (race for race in races if race.form == form):
        part = f" of the {race.part}" if race.part else ""
        trouble = f"; the machine was not quiet: {race.trouble}" if race.trouble else ""
        said.append((f"speed{part}", f"{_speed(race)} the original's over the workload{trouble}"))
        if race.before_bytes and race.after_bytes:
            said.append(
                (
                    f"memory{part}",
                    f"{size_text(race.after_bytes)} at its highest, {size_text(race.before_bytes)} before",
                )
            )
        if race.after_session:
            session = race.after_session
            words = f"{session.open_ms / 1000:.1f} s, and it holds {size_text(session.held_bytes)}"
            said.append((f"opening{part}", words))
    if manifest.bytes_before:
        share = manifest.bytes_after / manifest.bytes_before
        said.append(("size", f"{size_text(manifest.bytes_after)}, {share:.0%} of {size_text(manifest.bytes_before)}"))
    if found and lossy and found.gate:
        said.append(("accuracy", str(found.gate)))
    elif manifest.proof:
        worst = error_text(manifest.worst_relative_error)
        said.append(
            (
                "accuracy",
                f"equal to the original: worst error {worst} of a budget of {manifest.budget.relative_error:g}",
            )
        )
    tools = tools_of(manifest)
    machine = [
        str(manifest.machine.get("cpu", "")),
        f"{manifest.target.threads} threads" if manifest.target.threads != 1 else "1 thread",
    ]
    machine += [f"onnxruntime {tools['onnxruntime']}"] if "onnxruntime" in tools else []
    said.append(("machine", ", ".join(word for word in machine if word)))
    return said


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

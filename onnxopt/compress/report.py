"""What compressing did, step by step: size, speed, accuracy."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from pydantic import Field

from onnxopt.artifact.drawing import AFTER, BEFORE, COLOURS, curve
from onnxopt.host.sizes import size_text
from onnxopt.records.record import Record


class Step(Record):
    """The model after one step, as an artifact.

    Attributes:
        name: `original`, `prune`, `distill` or `quantize`.
        what: what was done.
        size_bytes: of the graph and its weights.
        value: of the metric, on text that no step has seen.
        latency_ms: median by request shape.
        seconds: that the step took.
        details: what the step recorded itself.
    """

    name: str
    what: str
    size_bytes: int = Field(ge=0)
    value: float
    latency_ms: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0
    details: dict[str, Any] = Field(default_factory=dict)


class Compression(Record):
    """`<artifact>.compression.json`.

    Attributes:
        source: what was compressed.
        metric: what the steps are judged by.
        better: whether more of it is better.
        steps: the original first.
        machine: where the latencies were taken.
        versions: of the tools.
    """

    source: str
    metric: str
    better: str
    steps: tuple[Step, ...]
    machine: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def table(self) -> list[list[str]]:
        """Return header and rows, all as text."""
        first = self.steps[0]
        shapes = list(first.latency_ms)
        rows = [["step", "size", self.metric, *shapes]]
        for step in self.steps:
            size = f"{size_text(step.size_bytes)} ({step.size_bytes / first.size_bytes:.0%})"
            times = [
                f"{step.latency_ms[shape]:.2f} ms ({first.latency_ms[shape] / step.latency_ms[shape]:.2f}×)"
                for shape in shapes
            ]
            rows.append([f"{step.name}: {step.what}", size, f"{step.value:.4f}", *times])
        return rows

    def to_html(self) -> str:
        """Return the report as one page that needs no network."""
        header, *rows = self.table()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        curves = "".join(_curves(step) for step in self.steps if step.details.get("curve"))
        colours = "".join(f"--{name}:{code};" for name, code in COLOURS.items())
        style = f":root{{{colours}}}"
        style += "body{font-family:sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left}svg{max-width:40em}"
        title = html.escape(f"{self.source} compressed")
        return (
            f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>"
            f"<table><tr>{head}</tr>{body}</table>{curves}\n"
        )


def record_of(out: Path) -> Path:
    """Return where the record of an artifact lies: beside it, so that the artifact can be replaced as any other."""
    return out.with_name(f"{out.name}.compression.json")


def _curves(step: Step) -> str:
    """Draw the loss and the metric of a distillation over its steps, each where it was taken more than once."""
    drawn = []
    for key, name, ink in (("loss", "loss", BEFORE), ("metric", str(step.details.get("metric", "metric")), AFTER)):
        points = [(float(one["step"]), float(one[key])) for one in step.details["curve"] if one.get(key) is not None]
        if sum(math.isfinite(value) for _, value in points) > 1:
            drawn.append(curve(points, across="step", up=name, ink=ink))
    return "".join(drawn)

"""Write the benchmark's results as markdown between two marks of a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- bench -->", "<!-- /bench -->"
WRONG = 0.2  # relative error; int8 stays below it, a mask that was misread does not
WRONG_COSINE = 0.9
_QUALITY_CAPTION = (
    "Worst relative error of any real token against torch, by the place of the padding, and the lowest cosine of a "
    "sentence embedding (the mean over the real tokens). What makes an answer useless is bold:"
)
_ERROR_CHARACTERS = 110


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give the command of a benchmark `--table FILE`."""
    parser.add_argument("--table", type=Path, help="write the tables of the last results into this file and stop")


def put_last(
    path: Path, marks: tuple[str, str], results: Path, rendered: Callable[[dict[str, Any]], str] | None = None
) -> int:
    """Put the tables of the last results between two marks of a file, and return the exit status.

    Args:
        path: the file.
        marks: where.
        results: JSON that a benchmark wrote.
        rendered: writes the tables; `render` without it.
    """
    if not results.is_file():
        raise SystemExit(f"{results}: no results yet; run the benchmark without --table first")
    put(path, marks, (rendered or render)(json.loads(results.read_text(encoding="utf-8"))))
    print(f"tables written to {path}")
    return 0


def put(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a file, which must have them once each, in this order.

    Raises:
        ValueError: when it has not.
    """
    start, end = marks
    old = path.read_text(encoding="utf-8")
    if old.count(start) != 1 or old.count(end) != 1 or old.index(end) < old.index(start):
        raise ValueError(f"{path}: expected one {start} and after it one {end}")
    before, rest = old.split(start)
    _, after = rest.split(end)
    path.write_text(f"{before}{start}\n\n{text}\n{end}{after}", encoding="utf-8")


def render(result: Mapping[str, Any]) -> str:
    """Return the tables: milliseconds by shape, then how right and how heavy each model is, then what failed."""
    done = [peer for peer in result["peers"] if not peer["error"]]
    failed = [peer for peer in result["peers"] if peer["error"]]
    shapes = list(result["shapes"])
    best = {
        (precision, shape): min(_ms(peer, shape) for peer in done if peer["precision"] == precision)
        for precision in {peer["precision"] for peer in done}
        for shape in shapes
    }
    parts = [
        _caption(result),
        lines(
            ["model", "", *(_shape(shape, result) for shape in shapes)],
            [
                [_title(peer), peer["precision"], *(_latency(peer, shape, best) for shape in shapes)]
                for peer in sorted(done, key=lambda peer: str(peer["precision"]))
            ],
        ),
        _QUALITY_CAPTION,
        lines(
            ["model", "", "right", "left", "holes", "cosine", "file", "peak memory", "made in"],
            [_quality(peer) for peer in sorted(done, key=lambda peer: str(peer["precision"]))],
        ),
    ]
    if failed:
        parts.append("Could not be made or run here:")
        parts.append(lines(["model", "", "error"], [[_title(p), p["precision"], _error(p)] for p in failed]))
    return "\n\n".join(parts) + "\n"


def _caption(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    isa = ", ".join(machine.get("isa") or ())
    tools = ", ".join(f"{name} {versions[name]}" for name in ("onnxopt", "onnxruntime", "torch") if name in versions)
    return (
        f"{escape(str(result['model']))}, median ms of one request (times faster than the default export), "
        f"{result['threads']} threads of {escape(str(machine.get('cpu', 'an unknown processor')))}"
        f"{f' ({isa})' if isa else ''}, {tools}, {result['rounds']} starts of each model in turns, "
        f"{str(result['created'])[:10]}, `make bench`. The fastest of each precision is bold."
    )


def _shape(shape: str, result: Mapping[str, Any]) -> str:
    fill = result.get("fill", {}).get(shape, 1.0)
    return shape.replace("x", " × ") + (f", {fill:.0%} filled" if fill < 1 else "")


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first two columns are words."""
    rule = ["---", "---"] + ["---" if name == "error" else "---:" for name in head[2:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _title(peer: Mapping[str, Any]) -> str:
    other = "" if peer["runtime"] == "onnxruntime" or "OpenVINO" in peer["title"] else f" ({peer['runtime']})"
    note = f" ({escape(str(peer['note']))})" if peer.get("note") else ""
    return f"{escape(str(peer['title']))}{other}{note}"


def _ms(peer: Mapping[str, Any], shape: str) -> float:
    return float(peer["latency"][shape]["p50_ms"])


def _latency(peer: Mapping[str, Any], shape: str, best: Mapping[tuple[str, str], float]) -> str:
    ms, speedup = _ms(peer, shape), float(peer["latency"][shape]["speedup"])
    text = f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
    text = f"**{text}**" if ms == best[peer["precision"], shape] else text
    return f"{text} ({speedup:.2f}×)"


def _quality(peer: Mapping[str, Any]) -> list[str]:
    errors = peer["errors"]
    return [
        _title(peer),
        peer["precision"],
        *(_wrong(errors[place]) for place in ("right", "left", "holes")),
        f"{peer['cosine']:.6f}" if peer["cosine"] >= WRONG_COSINE else f"**{peer['cosine']:.6f}**",
        f"{peer['size_bytes'] / 2**20:.0f} MiB",
        f"{peer['peak_bytes'] / 2**20:.0f} MiB",
        f"{peer['make_seconds']:.1f} s",
    ]


def _wrong(error: float | str) -> str:
    """Write an error; one that makes the answer useless is marked."""
    if isinstance(error, str):
        return f"**{error}**"
    return f"**{error:.2g}**" if error >= WRONG else f"{error:.1e}"


def _error(peer: Mapping[str, Any]) -> str:
    text = " ".join(str(peer["error"]).split())
    return escape(text if len(text) <= _ERROR_CHARACTERS else text[: _ERROR_CHARACTERS - 1] + "…")


def escape(text: str) -> str:
    """Keep a text from ending its cell or the marks around the tables."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

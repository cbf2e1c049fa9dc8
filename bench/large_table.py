"""The tables of `bench.large`: what each case took under its limit, memory by layers, sessions beside the peers'."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bench import table
from bench.large_worker import PROMPT
from bench.limited import WORDS

GB = 10**9
WAYS = {"mapped": ", weights not packed", "packed": ", in a file that holds them packed"}
_FLAT = "layers-"
_LONGEST = 3  # stages that are named


def rendered(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of the cases that were run.

    Args:
        cases: their records, by name.
    """
    flat = {name: case for name, case in cases.items() if name.startswith(_FLAT)}
    peers = {name: case for name, case in cases.items() if case.get("peer")}
    ours = {name: case for name, case in cases.items() if name not in flat and name not in peers}
    parts = [_caption(cases)]
    if ours or peers:
        head = ["model", "", "limit", "peak", "without files", "time", "goal", "longest stages"]
        parts.append(table.lines(head, [_row(case) for case in (*ours.values(), *peers.values())]))
    seen = [case for case in (*ours.values(), *peers.values()) if "running" in case]
    sessions = [_session(one) for case in seen for one in (case, *_ways(case))]
    if sessions:
        parts.append(
            "A session of the result: how long it takes to open, what it holds beyond an empty process once it has "
            f"written a token, and how fast it reads a prompt of {PROMPT} tokens and writes behind it. Weights that "
            "are not packed for their kernels stay mapped (`session.disable_prepacking`); a file that holds them "
            "packed (`session.save_external_prepacked_constant_initializers`) is for one kind of processor alone."
        )
        head = ["model", "", "file", "opening", "held", "of the file", "without files", "prompt, tokens/s", "tokens/s"]
        parts.append(table.lines(head, sessions))
    if flat:
        parts.append("Models of one width, by their number of layers:")
        head = ["layers", "", "weights as float32", "peak", "without files", "time", "s per layer"]
        parts.append(table.lines(head, [_by_layers(case) for case in flat.values()]))
    return "\n\n".join(parts) + "\n"


def _caption(cases: Mapping[str, Mapping[str, Any]]) -> str:
    machines = {f"{case['machine']['cores']} cores of {case['machine']['cpu']}" for case in cases.values()}
    runtimes = {case["versions"]["onnxruntime"] for case in cases.values()}
    held = {WORDS[case["how"]] for case in cases.values()}
    days = sorted({str(case["created"])[:10] for case in cases.values()})
    busy = [name for name, case in cases.items() if case["load_before"] > case["machine"]["cores"] / 2]
    text = (
        "Random weights in the shapes of known models, `onnxopt optimize --no-measure` in a process of its own with an "
        f"empty cache, {table.escape(_any(machines))}, onnxruntime {_any(runtimes)}, {' to '.join(_ends(days))}, "
        f"`make bench-large`. The limit is held by {_any(held)}. The peak counts cached pages of files, which the "
        "system drops when they are in the way, so it comes near any limit."
    )
    return text + (f" Other work went on on the machine during {', '.join(busy)}." if busy else "")


def _row(case: Mapping[str, Any]) -> list[str]:
    goal = case.get("goal_seconds")
    limit = case["limit_bytes"]
    stages = sorted(case.get("stages", {}).items(), key=lambda one: -one[1].get("seconds", 0.0))
    longest = ", ".join(f"{name} {_time(one['seconds'])}" for name, one in stages[:_LONGEST] if "seconds" in one)
    killed = case.get("killed_after_seconds")
    time = _time(case["seconds"]) + (f", killed after {_time(killed)} and started again" if killed else "")
    return [
        *_names(case),
        "none" if limit is None else _gb(limit),
        _gb(case["peak_bytes"]),
        _gb(case["anonymous_bytes"]),
        f"**{table.escape(case['error'])}** after {time}" if case["error"] else time,
        "" if goal is None else _time(goal),
        longest,
    ]


def _session(case: Mapping[str, Any]) -> list[str]:
    run, size = case["running"], case["artifact_bytes"]
    if "error" in run:
        return [*_names(case), _gb(size), f"**{table.escape(run['error'])}**", "", "", "", "", ""]
    resident, anonymous = (run["after_token"][key] - run["base"][key] for key in ("resident", "anonymous"))
    return [
        *_names(case),
        _gb(size),
        f"{run['open_seconds']:.1f} s",
        _gb(resident),
        f"{resident / size:.2f}×",
        _gb(anonymous),
        f"{PROMPT / run['prompt_seconds']:,.1f}",
        f"{1 / run['token_seconds']:,.1f}",
    ]


def _ways(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the other ways in which a result was opened, each as a case of its own."""
    return [{**case, **way, "way": name} for name, way in case.get("ways", {}).items()]


def _by_layers(case: Mapping[str, Any]) -> list[str]:
    layers = case["shape"]["layers"]
    return [
        str(layers),
        "" if not case["error"] else f"**{table.escape(case['error'])}**",
        _gb(case["float_bytes"]),
        _gb(case["peak_bytes"]),
        _gb(case["anonymous_bytes"]),
        _time(case["seconds"]),
        f"{case['seconds'] / layers:.1f}",
    ]


def _names(case: Mapping[str, Any]) -> list[str]:
    options = case.get("options", ())
    what = next((after for option, after in itertools.pairwise(options) if option == "--precision"), "fp32")
    dtype = case["shape"].get("dtype")
    name = f"{case['shape']['like']}{f', {dtype}' if dtype else ''}"
    way = WAYS.get(case.get("way", ""), "")
    return [table.escape(name), table.escape(case.get("peer") or f"onnxopt {what}{way}")]


def _gb(size: float) -> str:
    return f"{size / GB:.2f} GB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _any(words: set[str]) -> str:
    return " or ".join(sorted(words))


def _ends(days: Sequence[str]) -> list[str]:
    return list(dict.fromkeys((days[0], days[-1])))

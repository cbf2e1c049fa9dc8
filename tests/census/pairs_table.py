"""The tables of pairs: what became of them by task and by model type, and why the rest is not right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

OUTCOMES = ("right", "wrong", "refused", "crashed", "too slow", "not compared")  # of what could be made
_SHOWN = 4  # names behind a reason; the record has them all
_LONGEST = 220  # letters of a reason

Row = Mapping[str, Any]  # a record as JSON has it


def render(content: Mapping[str, Any]) -> str:
    """Return the tables in Markdown, from what the record holds."""
    rows = [row for row in content["records"] if row["outcome"] != "not made"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lost = len(content["records"]) - len(rows)
    unmade = f" Of {lost} more no small checkpoint could be made by rule." if lost else ""
    lines = [
        (
            f"{len(rows)} pairs of model type and head: {_counted(rows)}.{unmade} Attention that is one operator: "
            f"{_fused(rows)}. Random weights; right is where no output is further from torch's than 1e-4 of its "
            f"largest number, at {_SIZES}. {versions}; {content['date']}."
        ),
        "",
        *_by_task(rows),
        "",
        *_by_model(rows),
    ]
    reasons = _reasons(rows)
    if reasons:
        lines += ["", '<details markdown="1">', "<summary>What is not right, and why</summary>", "", *reasons]
        lines += ["", "</details>"]
    return "\n".join(lines)


_SIZES = "1, 2 and 3 rows of 5, 17 and 40 tokens, of pictures and of sound"


def _counted(rows: Iterable[Row]) -> str:
    counts = Counter(row["outcome"] for row in rows)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])


def _fused(rows: Iterable[Row]) -> str:
    compared = [row for row in rows if row["worst"] is not None]
    total = sum(max(row["total"], row["fused"]) for row in compared)
    return f"{sum(row['fused'] for row in compared)} of {total}"


def _by_task(rows: list[Row]) -> list[str]:
    lines = ["| task | pairs | " + " | ".join(OUTCOMES) + " | attention fused |"]
    lines.append("|---" * (len(OUTCOMES) + 3) + "|")
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task]
        counts = Counter(row["outcome"] for row in own)
        cells = " | ".join(str(counts[outcome] or "–") for outcome in OUTCOMES)
        lines.append(f"| {task} | {len(own)} | {cells} | {_fused(own)} |")
    return lines


def _by_model(rows: list[Row]) -> list[str]:
    lines = ["| model type | heads that are right | others |", "|---|---|---|"]
    for model_type in sorted({row["name"].split("/")[0] for row in rows}):
        own = [row for row in rows if row["name"].split("/")[0] == model_type]
        right = ", ".join(_head_of(row) for row in own if row["outcome"] == "right")
        others = ", ".join(f"{_head_of(row)} ({row['outcome']})" for row in own if row["outcome"] != "right")
        lines.append(f"| {model_type} | {right or '–'} | {others or '–'} |")
    return lines


def _head_of(row: Row) -> str:
    return str(row["name"]).split("/")[1]


def kind_of(reason: str) -> str:
    """Return a reason without what differs from pair to pair: class names, numbers, names in quotes."""
    kind = re.sub(r"\(seconds|after \d+ s", "", reason)
    kind = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", kind)
    kind = re.sub(r"\b[A-Z]\w*(For\w+|Model|Encoder|Decoder)\b", "CLASS", kind)
    return re.sub(r"\d[\d,.e+-]*", "N", kind)


def _reasons(rows: list[Row]) -> list[str]:
    """Return a line for each kind of reason, those of most pairs first, wrong numbers and crashes before all."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["outcome"] != "right":
            groups.setdefault((row["outcome"], kind_of(row["reason"])), []).append(row)
    order = ("wrong", "crashed", "not compared", "too slow", "refused")
    keys = sorted(groups, key=lambda key: (order.index(key[0]), -len(groups[key]), key[1]))
    lines = []
    for key in keys:
        group = groups[key]
        names = ", ".join(str(row["name"]) for row in group[:_SHOWN])
        more = f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
        reason = str(group[0]["reason"]).replace("|", "\\|").replace("<", "&lt;")
        reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"
        lines.append(f"- {key[0]}, {len(group)}: {names}{more}: {reason}")
    return lines

"""Give hundreds of hostile inputs to the commands that they concern, and write what came of them.

python -m tests.exam.hostile                        # all, into tests/exam/results/hostile.json
python -m tests.exam.hostile --only tokenizer       # those whose title holds it; nothing is recorded
python -m tests.exam.hostile --resume               # go on where an interrupted run stopped
python -m tests.exam.hostile --table docs/reference/robustness.md    # write the table of the record there
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import table
from tests.exam.hostile import artifacts, checkpoints, data, graphs
from tests.exam.hostile.cases import Case
from tests.exam.hostile.run import MEMORY_BYTES, SECONDS, Outcome, judged, preload

ROOT = Path(__file__).resolve().parents[3]
MARKS = "<!-- hostile -->", "<!-- /hostile -->"  # in the page
RESULT = ROOT / "tests" / "exam" / "results" / "hostile.json"
VERSIONS = ("onnxopt", "onnx", "onnxruntime", "tokenizers", "torch")
JOURNAL = ROOT / "build" / "hostile" / "journal.jsonl"


def all_cases() -> list[Case]:
    """Every input, each with a title of its own."""
    found = [case for part in (graphs, checkpoints, artifacts, data) for case in part.cases()]
    titles = Counter(case.title for case in found)
    twice = [title for title, count in titles.items() if count > 1]
    if twice:
        raise ValueError(f"two cases are called {twice[0]}")
    return found


def recorded(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the record of a run: counts by group, what took most, and every fault."""
    groups = {}
    for group in dict.fromkeys(one.group for one in outcomes):
        own = [one for one in outcomes if one.group == group]
        groups[group] = {
            "inputs": len(own),
            "refused": sum(one.code == 2 for one in own),
            "accepted": sum(one.code == 0 for one in own),
            "faults": sum(bool(one.faults) for one in own),
            "seconds": max(one.seconds for one in own),
            "memory_mib": max(one.memory for one in own) >> 20,
        }
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, {platform.system()}",
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "inputs": len(outcomes),
        "limits": {"seconds": SECONDS, "memory_mib": MEMORY_BYTES >> 20},
        "groups": groups,
        "faults": [asdict(one) for one in outcomes if one.faults],
    }


def render(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    limits, versions = record["limits"], record["versions"]
    lines = [
        (
            f"{record['inputs']} inputs of strangers, each given to the command that it concerns in a process of its "
            "own: exit code 0 or 2, one line, no traceback, no name of a temporary file, nothing left behind, nothing "
            f"half written, at most {limits['seconds']:.0f} s of processor time, and {limits['memory_mib']} MiB beyond "
            f"what the imports take (a dash where it was less than those). {record['machine']}, "
            f"ONNX Runtime {versions['onnxruntime']}, {record['date']}."
        ),
        "",
        "| what | inputs | refused in words | accepted | faults | most seconds | most MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {one['inputs']} | {one['refused']} | {one['accepted']} | {one['faults']} | "
            f"{one['seconds']:.1f} | {one['memory_mib'] or '–'} |"
            for name, one in record["groups"].items()
        ),
    ]
    if record["faults"]:
        lines += ["", "Faults:", ""]
        lines += [f"* {one['group']}, {one['name']}: {', '.join(one['faults'])}" for one in record["faults"]]
    return "\n".join(lines)


def run(cases: Sequence[Case], journal: Path | None = None, *, resume: bool = False) -> list[Outcome]:
    """Judge cases one after the other; what is in the journal already is not judged again."""
    known = {}
    if journal is not None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        known = {(one.group, one.name): one for one in _read(journal)} if resume else {}
        if not resume:
            journal.unlink(missing_ok=True)
    preload()
    outcomes = []
    with tempfile.TemporaryDirectory() as room:
        for case in cases:
            found = known.get((case.group, case.name)) or judged(case, Path(room))
            outcomes.append(found)
            if journal is not None and (case.group, case.name) not in known:
                with journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
            if found.faults:
                _print(f"{case.title}: {', '.join(found.faults)} [{found.line[:300]}]")
    return outcomes


def _read(journal: Path) -> list[Outcome]:
    """Return what an interrupted run has judged; a last line that was cut off is left out."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; 1 when something was at fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.exam.hostile", description="Try hostile inputs.")
    parser.add_argument("--only", default="", help="those whose title holds this; nothing is recorded")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    table.add_option(parser)
    asked = parser.parse_args(arguments)
    if asked.table:
        return table.put_last(asked.table, MARKS, RESULT, render)
    cases = [case for case in all_cases() if asked.only in case.title]
    outcomes = run(cases, None if asked.only else JOURNAL, resume=asked.resume)
    if not asked.only:
        RESULT.write_text(json.dumps(recorded(outcomes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    at_fault = sum(bool(one.faults) for one in outcomes)
    _print(f"{len(outcomes)} inputs, {at_fault} at fault")
    return int(bool(at_fault))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201  it talks to the person who started it


if __name__ == "__main__":
    sys.exit(main())

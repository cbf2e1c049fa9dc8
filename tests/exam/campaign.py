"""Optimize thousands of random graphs, compare each at sizes drawn afterwards, and write what became of them.

python -m tests.exam.campaign --graphs 10000 --seed 0 --jobs 2     # into bench/results/campaign.json
python -m tests.exam.campaign --graphs 10000 --seed 0 --resume     # go on where an interrupted one stopped
python -m tests.exam.campaign --table docs/reference/robustness.md    # write the table of the record there

Each graph is drawn from a number of its own, so a run is repeated, or one graph looked at, by its seed. What goes wrong
is shrunk and written to `build/campaign/<kind>/<seed>`, with a script that shows it. Each graph that is done is a line
in `build/campaign/journal.jsonl`, so that a campaign of hours may be interrupted and go on later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import table
from tests.exam.children import DIED, TIME_OUT, Child
from tests.property.generate import MOST_PIECES, draw

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "bench" / "results" / "campaign.json"
MARKS = "<!-- campaign -->", "<!-- /campaign -->"  # in the page
FAULTS = ROOT / "build" / "campaign"
JOURNAL = "journal.jsonl"  # in the folder of faults
SECONDS = 60  # a graph
SHRINK_SECONDS = 30
SHRUNK_PER_KIND = 3
ORDER = ("right", "refused", "unproved", "wrong", "internal", TIME_OUT, DIED, "unusable")
SAID = {
    "right": "the same at every size and value that was tried",
    "refused": "one line, nothing written",
    "unproved": "refused by the last proof",
    "wrong": "other numbers, another shape, or a size declared that it does not have",
    "internal": "an error that is not the user's",
    TIME_OUT: f"not done in {SECONDS} s",
    DIED: "took the process with it",
    "unusable": "not a graph that ONNX Runtime runs; not counted",
}


@dataclass
class Entry:
    """What became of one graph.

    Attributes:
        seed: draws it again.
        outcome: of `tests.property.judge`, or `time-out`, `died`.
        kind: what it is counted with.
        reason: in words.
        pieces: that it was made of.
        rolled_back: passes whose proof turned something down.
        compared: sizes at which both were run.
        nodes: before and after.
        seconds: optimizing and comparing.
    """

    seed: int
    outcome: str
    kind: str
    reason: str = ""
    pieces: tuple[str, ...] = ()
    rolled_back: list[tuple[str, str]] = field(default_factory=list)
    compared: int = 0
    nodes: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def judged(seed: int, most: int = MOST_PIECES) -> Entry:
    """Draw a graph of some pieces, optimize and compare it."""
    from tests.property.judge import judge

    drawn = draw(seed, most=most)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as room:
        verdict = judge(drawn.model, seed, Path(room), square=drawn.square)
    return Entry(
        seed,
        verdict.outcome,
        verdict.kind,
        verdict.reason,
        drawn.pieces,
        verdict.rolled_back,
        verdict.compared,
        verdict.nodes,
        round(time.perf_counter() - started, 2),
    )


def shrink_to(folder: Path, seed: int, most: int, seconds: float) -> str:
    """Shrink what goes wrong with a seed and write it; return the operators that are left."""
    from tests.property.judge import judge
    from tests.property.repro import smaller, write_repro

    drawn = draw(seed, most=most)
    with tempfile.TemporaryDirectory() as room:
        verdict = judge(drawn.model, seed, Path(room), square=drawn.square)
    small = smaller(drawn.model, verdict, seed, square=drawn.square, seconds=seconds)
    with tempfile.TemporaryDirectory() as room:
        again = judge(small, seed, Path(room), square=drawn.square, case=None)
    write_repro(folder, small, again if again.kind == verdict.kind else verdict)
    return " ".join(node.op_type for node in small.graph.node)


def campaign(
    seeds: Sequence[int],
    *,
    jobs: int,
    most: int = MOST_PIECES,
    folder: Path | None = FAULTS,
    each: int = SHRUNK_PER_KIND,
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[Entry], None] = lambda _: None,
) -> list[Entry]:
    """Judge the graph of each seed, shrink the first few of each kind of fault, and return what became of all.

    Args:
        seeds: one graph each.
        jobs: children at a time.
        most: pieces of a graph.
        folder: where faults are written, by kind; nothing is shrunk without.
        each: how many of a kind are shrunk.
        say: told a line for each that someone should look at.
        note: given each entry as soon as it is known.
    """
    shrunk: Counter[str] = Counter()

    def run(child: Child, mine: Sequence[int]) -> Iterator[Entry]:
        for seed in mine:
            answer = child.ask(judged, seed, most, seconds=SECONDS)
            entry = answer if isinstance(answer, Entry) else Entry(seed, answer, answer, seconds=SECONDS)
            yield entry
            note(entry)
            if entry.kind in ("right", "refused", "unusable"):
                continue
            small = ""
            if folder is not None and isinstance(answer, Entry) and shrunk[entry.kind] < each:
                shrunk[entry.kind] += 1
                where = folder / "".join(c if c.isalnum() else "-" for c in entry.kind) / str(seed)
                small = str(child.ask(shrink_to, where, seed, most, SHRINK_SECONDS, seconds=4 * SHRINK_SECONDS))
            say(f"{entry.seed} {entry.kind}: {(entry.reason or str(entry.rolled_back))[:200]} [{small[:200]}]")

    def all_of(mine: Sequence[int]) -> list[Entry]:
        child = Child()
        try:
            return list(run(child, mine))
        finally:
            child.stop()

    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(all_of, [seeds[index::jobs] for index in range(jobs)])
        return sorted((entry for part in parts for entry in part), key=lambda entry: entry.seed)


def recorded(entries: Sequence[Entry], seconds: float) -> dict[str, Any]:
    """Return the record of a campaign: counts of all, and every graph that was not right."""
    counted = [entry for entry in entries if entry.outcome != "unusable"]
    turned_down = Counter(name for entry in entries for name in {name for name, _ in entry.rolled_back})
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: metadata.version(name) for name in ("onnxopt", "onnx", "onnxruntime", "numpy")},
        "graphs": len(counted),
        "seeds": [min(entry.seed for entry in entries), max(entry.seed for entry in entries)] if entries else [],
        "comparisons": sum(entry.compared for entry in entries),
        "seconds": round(seconds),
        "outcomes": dict(Counter(entry.outcome for entry in entries)),
        "kinds": dict(Counter(entry.kind for entry in entries).most_common()),
        "rolled_back": dict(turned_down.most_common()),
        "refusals": dict(Counter(_general(e.reason) for e in entries if e.outcome == "refused").most_common(40)),
        "pieces": dict(Counter(name for entry in counted for name in set(entry.pieces)).most_common()),
        "nodes": [sum(entry.nodes[index] for entry in entries) for index in (0, 1)],
        "faults": [asdict(e) for e in entries if e.kind not in ("right", "unusable")],
    }


def _commit() -> str:
    """Return which state of the code was tried; nothing where git does not say it."""
    with contextlib.suppress(OSError):
        asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def read_journal(path: Path) -> list[Entry]:
    """Return what became of the graphs of an interrupted campaign; a last line that was cut off is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            known = json.loads(line)
        except ValueError:
            continue
        pairs = {key: [tuple(one) for one in known[key]] for key in ("rolled_back",)}
        entries.append(Entry(**{**known, **pairs, "pieces": tuple(known["pieces"]), "nodes": tuple(known["nodes"])}))
    return entries


def _general(reason: str) -> str:
    """Leave out the numbers of a refusal, so that equal ones are counted together."""
    return " ".join("".join("#" if c.isdigit() else c for c in reason).split())[:160]


def render(record: dict[str, Any]) -> str:
    """Return a record as a table in Markdown."""
    outcomes = record["outcomes"]
    turned_down = [one for one in record["faults"] if one["rolled_back"]]
    first, last = record["seeds"]
    lines = [
        (
            f"{record['graphs']:,} random graphs (seeds {first} to {last}), compared at {record['comparisons']:,} "
            f"sizes drawn after optimizing; {record['nodes'][0]:,} nodes before, {record['nodes'][1]:,} after; "
            f"{record['machine']}, ONNX Runtime {record['versions']['onnxruntime']}, "
            f"{record['seconds'] / 60:.0f} minutes of work, {record['date']}, commit {record['commit']}."
        ),
        "",
        "| outcome | graphs | what it means |",
        "|---|---|---|",
        *(f"| {name} | {outcomes[name]:,} | {SAID[name]} |" for name in ORDER if outcomes.get(name)),
        f"| rolled back | {len(turned_down):,} | a pass proposed what is not equal; counted above, too |",
    ]
    if record["rolled_back"]:
        lines += [
            "",
            "Rolled back, graphs per pass: " + ", ".join(f"{k} {v}" for k, v in record["rolled_back"].items()) + ".",
        ]
    wrong = {kind: count for kind, count in record["kinds"].items() if kind.startswith("wrong")}
    if wrong:
        lines += [
            "",
            "Wrong: " + "; ".join(f"{kind.removeprefix('wrong: ')} {count}" for kind, count in wrong.items()) + ".",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.exam.campaign", description="Optimize random graphs.")
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph; the others follow")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--faults", type=Path, default=FAULTS, help="folder for shrunk graphs, emptied first")
    parser.add_argument("--shrink", type=int, default=SHRUNK_PER_KIND, help="graphs of each kind of fault")
    parser.add_argument("--resume", action="store_true", help="go on where the journal ends; the record has all")
    table.add_option(parser)
    asked = parser.parse_args(arguments)
    if asked.table:
        return table.put_last(asked.table, MARKS, asked.results, render)
    if not asked.resume:
        shutil.rmtree(asked.faults, ignore_errors=True)
    asked.faults.mkdir(parents=True, exist_ok=True)
    seeds = range(asked.seed, asked.seed + asked.graphs)
    entries = [entry for entry in read_journal(asked.faults / JOURNAL) if entry.seed in seeds]
    known = {entry.seed for entry in entries}
    left = [seed for seed in seeds if seed not in known]
    with (asked.faults / JOURNAL).open("a", encoding="utf-8") as journal:
        if journal.tell():
            journal.write("\n")  # behind a line that may have been cut off

        def note(entry: Entry) -> None:
            journal.write(json.dumps(asdict(entry)) + "\n")
            journal.flush()

        entries += campaign(left, jobs=asked.jobs, folder=asked.faults, each=asked.shrink, say=_print, note=note)
    record = recorded(entries, sum(entry.seconds for entry in entries))
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(render(record))
    return int(any(record["outcomes"].get(name) for name in ("wrong", "internal", TIME_OUT, DIED)))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201  it talks to the person who started it


if __name__ == "__main__":
    sys.exit(main())

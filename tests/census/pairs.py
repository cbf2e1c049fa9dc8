"""Try every pair of model type and head: make a tiny checkpoint, optimize it, compare the artifact with torch.

python -m tests.census.pairs --list                     # all pairs of transformers' tables
python -m tests.census.pairs --make DIR 'bert/*'        # checkpoints only
python -m tests.census.pairs --run '*/masked-lm'        # into bench/results/pairs.json; done ones are skipped
python -m tests.census.pairs --table docs/census.md     # write the table from the record
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.table import put_last
from tests.census.heads import Pair, in_turns, named
from tests.census.pairs_table import render

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "bench" / "results" / "pairs.json"
MARKS = ("<!-- pairs -->", "<!-- /pairs -->")
HEAVY = "tests.census.heavy"  # what every child needs, loaded once by the server that they are forked from
MAKE_SECONDS, SECONDS, JUDGE_SECONDS = 60, 120, 90  # of the processor, so that a busy machine refuses nothing
PATIENCE = 5  # times as long by the clock, for what waits without computing
BYTES = int(2.5 * 2**30)  # of data; code and files that are mapped do not count
BUG = 70  # the exit code of a bug
BUDGET = 1e-4  # of the worst output, relative to its largest number


@dataclass
class Record:
    """What became of a pair.

    Attributes:
        name: `model type/head`.
        task: as it was given to onnxopt.
        outcome: `right`, `wrong`, `refused`, `crashed`, `too slow`, `not compared` or `not made`.
        reason: one line, empty for what is right.
        code: the exit code of optimizing; negative for a signal.
        worst: the worst relative error of any output at any size.
        where: the output and the size of it.
        compared: outputs that were compared.
        attention: attentions that torch computes.
        fused: attentions of the artifact that are one operator.
        total: those and the ones still spelled out.
        parameters: of the checkpoint.
        way: how its config was made small.
        seconds: of optimizing.
    """

    name: str
    task: str
    outcome: str = "not made"
    reason: str = ""
    code: int | None = None
    worst: float | None = None
    where: str = ""
    compared: list[str] = field(default_factory=list)
    attention: int = 0
    fused: int = 0
    total: int = 0
    parameters: int = 0
    way: str = ""
    seconds: float = 0.0


# Children: what a model does to memory, time or the interpreter stays its own.


def _bounded(room: Path, seconds: int) -> None:
    """Bound this process and those it starts, and write what it says into a file."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    said = os.open(room / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)


def _made(pipe: Connection, room: Path, pair: Pair) -> None:
    _bounded(room, MAKE_SECONDS)
    from tests.census.checkpoint import make

    try:
        pipe.send(asdict(make(pair, room / "checkpoint")))
    except Exception as error:  # noqa: BLE001  the record says why
        pipe.send(str(error))


def _optimized(pipe: Connection, room: Path, task: str) -> None:
    _bounded(room, SECONDS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from onnxopt.cli.main import main

    out = ["--out", str(room / "artifact"), "--progress", "none"]
    pipe.send(main(["optimize", str(room / "checkpoint"), "--task", task, "--no-measure", *out]))


def _judged(pipe: Connection, room: Path, pair: Pair, shapes: dict[str, list[int]]) -> None:
    _bounded(room, JUDGE_SECONDS)
    from tests.census.judge import NotComparedError, judge

    try:
        pipe.send(asdict(judge(pair, room / "checkpoint", room / "artifact", shapes)))
    except NotComparedError as error:
        pipe.send(str(error))
    except Exception as error:  # noqa: BLE001  the record says why
        traceback.print_exc()
        pipe.send(f"comparing: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        answer: what it sent; None where it sent nothing.
        code: its exit code; None where it was stopped for its time.
        said: what it printed.
        seconds: how long it took.
    """

    answer: Any
    code: int | None
    said: str
    seconds: float


def in_child(work: Callable[..., None], room: Path, seconds: float, *arguments: Any) -> Ended:
    """Do some work in a process of its own, with whatever that starts, and stop all of it when its time is over.

    Args:
        work: called with a pipe for its answer, the room and the arguments.
        room: a folder of its own.
        seconds: by the clock.
        arguments: of the work.
    """
    context = multiprocessing.get_context("forkserver")  # a fork of this process would take over what others left here
    context.set_forkserver_preload([HEAVY])
    here, there = context.Pipe(duplex=False)
    started = time.perf_counter()
    child = context.Process(target=work, args=(there, room, *arguments))
    child.start()
    there.close()
    answer = None
    with contextlib.suppress(EOFError):
        answer = here.recv() if here.poll(seconds) else None
    child.join(max(0.0, seconds - (time.perf_counter() - started)) if answer is None else 5)
    is_late = answer is None and child.is_alive()
    if child.pid and child.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.join()
    said = (room / "said").read_text(encoding="utf-8", errors="replace") if (room / "said").exists() else ""
    return Ended(answer, None if is_late else child.exitcode, said, time.perf_counter() - started)


def try_pair(pair: Pair, room: Path) -> Record:
    """Make, optimize and compare one pair in an empty folder; whatever fails is in the record."""
    record = Record(pair.name, pair.head.task)
    made = in_child(_made, room, PATIENCE * MAKE_SECONDS, pair)
    if not isinstance(made.answer, dict):
        record.reason = _line(made.answer or "it took too long or died", room)
        return record
    record.parameters, record.way, record.task = (made.answer[key] for key in ("parameters", "way", "task"))
    done = in_child(_optimized, room, PATIENCE * SECONDS, record.task)
    record.seconds = round(done.seconds, 1)
    record.code = done.answer if done.answer is not None else done.code
    record.outcome, record.reason = outcome_of(record.code, done.said, room)
    if record.outcome != "right":
        return record
    judged = in_child(_judged, room, PATIENCE * JUDGE_SECONDS, pair, made.answer["inputs"])
    if not isinstance(judged.answer, dict):
        record.outcome = "not compared"
        record.reason = _line(judged.answer or "it took too long or died", room)
        return record
    for name, value in judged.answer.items():
        setattr(record, name, list(value) if isinstance(value, tuple) else value)
    if not (record.worst or 0.0) <= BUDGET:
        record.outcome, record.reason = "wrong", f"off by {record.worst:.1e}: {record.where}"
    return record


def outcome_of(code: int | None, said: str, room: Path) -> tuple[str, str]:
    """Return what became of optimizing, and its one-line reason, from its exit code and what it printed."""
    if code is None or code == -signal.SIGXCPU:
        return "too slow", f"more than {SECONDS} s"
    if "Traceback (most recent call last)" in said or code < 0 or code == BUG:
        return "crashed", f"exit {code}: {_line(_last(said), room)}"
    if code:
        return "refused", _line(_last(said), room)
    return "right", ""


def _last(said: str) -> str:
    """Return the line that says why: the one with the error, or else the last."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lstrip().lower().startswith("error")]
    return errors[-1] if errors else lines[-1] if lines else ""


def _line(text: str, room: Path) -> str:
    """Return a message in one line, without where this checkout and the checkpoint lie."""
    text = text.replace(str(room / "checkpoint"), "CHECKPOINT").replace(f"{room}/", "").replace(f"{ROOT}/", "")
    text = re.sub(r"/tmp/[^\s:'\"]*", "…", text)  # noqa: S108  what is hidden, not what is written
    return " ".join(text.split())[:400]


# The record


def read_records(path: Path) -> dict[str, Record]:
    """Return what is on record by the names of pairs; nothing where there is no record."""
    if not path.exists():
        return {}
    return {item["name"]: Record(**item) for item in json.loads(path.read_text(encoding="utf-8"))["records"]}


def write_records(records: dict[str, Record], path: Path) -> None:
    """Write the record whole, in the order of the names."""
    content = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime")},
        "records": [asdict(records[name]) for name in sorted(records)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def run(every: Sequence[Pair], path: Path, *, again: bool = False, say: Callable[[str], None] = print) -> None:
    """Try pairs one after the other and keep the record up to date; those on record are skipped, `again` tries them."""
    records = read_records(path)
    for pair in every:
        if pair.name in records and not again:
            continue
        room = Path(tempfile.mkdtemp(prefix="pair-"))
        try:
            record = records[pair.name] = try_pair(pair, room)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        write_records(records, path)
        error = "" if record.worst is None else f" {record.worst:.0e} attention {record.fused}/{record.total}"
        say(f"{record.name:45} {record.outcome}{error} {record.seconds} s {record.reason}")


def make_all(every: Sequence[Pair], folder: Path, say: Callable[[str], None] = print) -> int:
    """Make checkpoints side by side; return how many could be made."""
    count = 0
    for pair in every:
        room = folder / pair.name.replace("/", "--")
        room.mkdir(parents=True, exist_ok=True)
        made = in_child(_made, room, PATIENCE * MAKE_SECONDS, pair)
        count += isinstance(made.answer, dict)
        say(f"{pair.name:45} {'made' if isinstance(made.answer, dict) else _line(made.answer or 'died', room)}")
        (room / "said").unlink(missing_ok=True)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.census.pairs", description="Try model types with heads.")
    parser.add_argument("names", nargs="*", help="pairs or patterns such as bert/* and */ctc; all when none is named")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="print the names")
    what.add_argument("--make", type=Path, metavar="DIR", help="write checkpoints")
    what.add_argument("--run", action="store_true", help="make, optimize, compare")
    what.add_argument("--table", type=Path, help="write the table into this file")
    parser.add_argument("--out", type=Path, default=RESULT, help="the record")
    parser.add_argument("--again", action="store_true", help="also those on record")
    parser.add_argument("--only", metavar="OUTCOME", help="of those on record only these, again: refused, wrong, ...")
    parser.add_argument("--every", type=int, default=1, help="every so many of them only")
    options = parser.parse_args(arguments)
    if options.table:
        return put_last(options.table, MARKS, options.out, render)
    try:
        chosen = in_turns(named(options.names))[:: options.every]
    except ValueError as error:
        parser.error(str(error))
    if options.only:
        records = read_records(options.out)
        chosen = [pair for pair in chosen if pair.name in records and records[pair.name].outcome == options.only]
    if options.list:
        print(*(f"{pair.name:45} {pair.head.task}" for pair in chosen), sep="\n")
    elif options.make:
        print(f"{make_all(chosen, options.make)} of {len(chosen)} made")
    else:
        run(chosen, options.out, again=options.again or bool(options.only), say=lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())

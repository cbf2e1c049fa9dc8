"""Stop commands at random moments and fill their disks, and write what was left behind and whether they work again.

python -m tests.exam.kills --trials 130 --seed 0              # into tests/exam/results/kills.json
python -m tests.exam.kills --trials 130 --seed 0 --resume     # go on where an interrupted one stopped
python -m tests.exam.kills --only package --room build/kills-2 --seed 1000   # beside it; its journal goes in by --also
python -m tests.exam.kills --table docs/reference/robustness.md

Each trial is drawn from a number of its own: a command, and either a moment over the time that it takes and a signal
(kill -9, SIGINT, SIGTERM), or a disk of a few kilobytes in the place of its output, its cache or its temporary files
(a tmpfs, which takes root; without, a limit on the size of files). Half of the commands find an older result in their
place, half a warm cache. Afterwards the result is the old one, a whole new one, or not there; the same command works,
gives the bytes of one that nobody stopped, and nothing of the stopped one is left anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.exam.stopped_jobs import JOBS, Inputs, Job, content, half
from tools.docs.blocks import fill

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "kills.json"
ROOM = ROOT / "build" / "kills"
JOURNAL = "journal.jsonl"
MARKS = "<!-- interrupts -->", "<!-- /interrupts -->"  # in the page
MOST_SECONDS = 600  # for one command
MOST_END_SECONDS = 20  # of the processor, from a signal to the end
STOPS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}  # and the exit code of each
PLACES = ("output", "cache", "temporary files")
DISK_SHARE = 0.2  # of the trials
LATE, LATE_SHARE = 0.85, 0.4  # of a command's time, and of the moments
POLL_SECONDS = 0.005


@dataclass
class Trial:
    """One command and what became of it.

    Attributes:
        seed: draws it again.
        job: the command.
        how: `SIGKILL`, `SIGINT`, `SIGTERM`, or the place that was full.
        at: seconds of the processor after its first line, which other load does not stretch, or kilobytes of the disk.
        older: a result lay in its place before.
        warm: the cache was filled before.
        code: exit code.
        said: the last line on standard error.
        ended: seconds of the processor from the signal to the end.
        left: what lay there afterwards: `nothing`, `the older`, `a new one`.
        seconds: the trial took.
        faults: what must not be; empty when all was right.
    """

    seed: int
    job: str
    how: str
    at: float
    older: bool
    warm: bool
    code: int = 0
    said: str = ""
    ended: float = 0.0
    left: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """A run that nobody stopped.

    Attributes:
        seconds: of the processor that it took after its first line.
        content: of its result.
    """

    seconds: float
    content: dict[str, str]


class Exam:
    """Runs trials in a folder.

    Args:
        room: the folder; inputs lie in it, and a folder per trial while it runs.
    """

    def __init__(self, room: Path) -> None:
        # a process in the background of a shell is deaf to interrupts, and so is what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.room = room
        self.inputs = Inputs.make(room / "inputs")
        self.warm_cache.mkdir(exist_ok=True)
        self._known: dict[str, Whole] = {}

    def whole(self, job: Job) -> Whole:
        """Run a command to its end, once; it fills the cache that warm trials begin with."""
        if job.name not in self._known:
            out = self.room / "whole" / job.name
            shutil.rmtree(out, ignore_errors=True)
            job.prepare(self.inputs, out)
            running = self._start(job, out, self.warm_cache, self.room)
            self._heard(running)
            began, before = _work_of(running.pid), _work_of_ended()
            error = running.communicate(timeout=MOST_SECONDS)[1]
            if running.returncode:
                raise RuntimeError(f"{job.name} ends with {running.returncode}: {error}")
            self._known[job.name] = Whole(_work_of_ended() - before - began, content(out))
        return self._known[job.name]

    @property
    def warm_cache(self) -> Path:
        """The cache that runs to the end have filled."""
        return self.room / "cache"

    def drawn(self, seed: int, jobs: Sequence[Job] = JOBS) -> Trial:
        """Draw a trial."""
        rng = random.Random(seed)  # noqa: S311  # trials, no secrets
        job = rng.choices(jobs, [one.share for one in jobs])[0]
        older, warm = rng.random() < 0.5, rng.random() < 0.5
        if rng.random() < DISK_SHARE:
            return Trial(seed, job.name, rng.choice(PLACES), float(round(2 ** rng.uniform(2, 12))), older, warm)
        # results are written near the end, which many moments shall meet
        moment = self.whole(job).seconds * rng.uniform(LATE if rng.random() < LATE_SHARE else 0.0, 1.0)
        return Trial(seed, job.name, rng.choice(tuple(STOPS)), round(moment, 3), older, warm)

    def run(self, trial: Trial) -> Trial:
        """Run a trial and look at what it left."""
        began = time.perf_counter()
        job = next(one for one in JOBS if one.name == trial.job)
        with tempfile.TemporaryDirectory(dir=self.room, prefix="trial-") as name:
            place = Path(name)
            out, cache, temporary = place / "results" / "out", place / "cache", place / "temporary"
            temporary.mkdir()
            if trial.older or job.packages:
                shutil.copytree(self.inputs.artifact if job.packages else self._older(job), out)
            if trial.warm:
                self.whole(job)
                shutil.copytree(self.warm_cache, cache)
            before = content(out)
            if trial.how in STOPS:
                self._stop(trial, job, out, cache, temporary)
            else:
                self._fill(trial, job, out, cache, temporary)
            trial.left = self._left(trial, job, out, before)
            self._again(trial, job, out, cache, temporary)
        trial.seconds = round(time.perf_counter() - began, 1)
        return trial

    def _older(self, job: Job) -> Path:
        """Return an older result that a command may replace."""
        self.whole(job)
        return self.room / "whole" / job.name

    def _start(self, job: Job, out: Path, cache: Path, temporary: Path) -> subprocess.Popen[str]:
        env = os.environ | {"ONNXOPT_CACHE": str(cache), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "onnxopt", *map(str, job.arguments(self.inputs, out)), "--json"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)

    def _heard(self, running: subprocess.Popen[str]) -> None:
        """Wait until a command hears signals: before, it is the interpreter that starts."""
        status, bit = Path(f"/proc/{running.pid}/status"), 1 << (signal.SIGTERM - 1)
        while running.poll() is None:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read_text(encoding="ascii"), re.MULTILINE)
            if caught is None or int(caught[1], 16) & bit:
                break
            time.sleep(POLL_SECONDS)

    def _stop(self, trial: Trial, job: Job, out: Path, cache: Path, temporary: Path) -> None:
        running = self._start(job, out, cache, temporary)
        self._heard(running)
        began, before = _work_of(running.pid), _work_of_ended()
        while running.poll() is None and _work_of(running.pid) - began < trial.at:
            time.sleep(POLL_SECONDS)
        asked = _work_of(running.pid)
        if running.poll() is None:
            running.send_signal(getattr(signal, trial.how))
        try:
            error = running.communicate(timeout=MOST_SECONDS)[1]
        except subprocess.TimeoutExpired:
            running.kill()
            error = running.communicate()[1]
            trial.faults.append("went on")
        trial.code = running.returncode
        if trial.code > 0:
            trial.ended = round(max(0.0, _work_of_ended() - before - asked), 2)
        self._judge_end(trial, error)

    def _judge_end(self, trial: Trial, error: str) -> None:
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        trial.said = lines[-1] if lines else ""
        if trial.code not in (0, STOPS[trial.how]):
            trial.faults.append(f"exit code {trial.code}: {error[-300:]}")
        if trial.code == STOPS[trial.how] > 0:
            if len(lines) != 1 or not ("nothing was written" in trial.said or "kept: " in trial.said):
                trial.faults.append(f"said {error[-300:]!r}")
            if trial.ended > MOST_END_SECONDS:
                trial.faults.append(f"ended after {trial.ended:.0f} s")
        if "Traceback" in error:
            trial.faults.append("a traceback")

    def _fill(self, trial: Trial, job: Job, out: Path, cache: Path, temporary: Path) -> None:
        full = {"output": out.parent, "cache": cache, "temporary files": temporary}[trial.how]
        with tempfile.TemporaryDirectory(dir=self.room, prefix="aside-") as name:
            aside = Path(name) / "all"
            full.mkdir(parents=True, exist_ok=True)
            shutil.copytree(full, aside)
            used = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file()) // 1024
            room = used + int(trial.at) + 64 + 8 * sum(1 for _ in aside.rglob("*"))  # in pages, and a little to begin
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "none", full], check=True)  # noqa: S607
            try:
                shutil.copytree(aside, full, dirs_exist_ok=True)
                running = self._start(job, out, cache, temporary)
                error = running.communicate(timeout=MOST_SECONDS)[1]
                trial.code = running.returncode
                lines = [line for line in error.splitlines() if line.startswith(("error: ", "note: "))]
                trial.said = lines[-1] if lines else ""
                self._judge_full(trial, error, lines)
                shutil.rmtree(aside)
                shutil.copytree(full, aside)
            finally:
                subprocess.run(["umount", full], check=True)  # noqa: S607
            shutil.copytree(aside, full, dirs_exist_ok=True)

    def _judge_full(self, trial: Trial, error: str, lines: Sequence[str]) -> None:
        if trial.code not in (0, 2) or "Traceback" in error or "internal error" in error:
            trial.faults.append(f"exit code {trial.code}: {error[-300:]}")
        last = lines[-1] if lines else ""  # what is full is seen ahead, or when it is written to
        is_told = ("No space left" in last or "has no room for the result" in last) and "onnxopt-" not in last
        if trial.code == 2 and not is_told:
            trial.faults.append(f"said {error[-300:]!r}")
        if trial.code == 2 and trial.how == "cache":
            trial.faults.append("a full cache ended it")

    def _left(self, trial: Trial, job: Job, out: Path, before: dict[str, str]) -> str:
        now = content(out)
        wrong = half(out)
        if wrong:
            trial.faults.append(f"half: {wrong}")
        if now == before:
            return "the older" if before else "nothing"
        if now != self.whole(job).content and not (job.packages and not wrong):  # of two clients, one
            trial.faults.append(f"neither old nor new: {_difference(now, self.whole(job).content)}")
        return "a new one"

    def _again(self, trial: Trial, job: Job, out: Path, cache: Path, temporary: Path) -> None:
        running = self._start(job, out, cache, temporary)
        error = running.communicate(timeout=MOST_SECONDS)[1]
        if running.returncode:
            trial.faults.append(f"the second run: {error[-300:]}")
        if (different := _difference(content(out), self.whole(job).content)) != "":
            trial.faults.append(f"other bytes the second time: {different}")
        for folder in (out.parent, cache, temporary):
            left = [str(path.relative_to(folder.parent)) for path in folder.rglob("*onnxopt-*")]
            if left:
                trial.faults.append(f"left behind: {', '.join(left)}")


def _work_of(process: int) -> float:
    """Return the seconds of the processor that a process and its children have had; 0 for one that has ended.

    The work of a command is done in a child. Source: proc(5), `stat`, fields 14 to 17, and `task/*/children`.
    """
    place = Path("/proc") / str(process)
    try:
        fields = (place / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        children = (place / "task" / str(process) / "children").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(_work_of, map(int, children)))


def _work_of_ended() -> float:
    """Return the seconds of the processor that all children that have ended had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _difference(one: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def recorded(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the record of a campaign."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: metadata.version(name) for name in ("onnxopt", "onnxruntime", "torch")},
        "trials": len(trials),
        "stopped": sum(trial.how in STOPS and trial.code != 0 for trial in trials),
        "ways": {
            how: {
                "trials": sum(trial.how == how for trial in trials),
                "codes": dict(Counter(str(trial.code) for trial in trials if trial.how == how)),
                "left": dict(Counter(trial.left for trial in trials if trial.how == how)),
                "longest_end": max((trial.ended for trial in trials if trial.how == how and trial.code), default=0.0),
            }
            for how in (*STOPS, *PLACES)
        },
        "jobs": dict(Counter(trial.job for trial in trials)),
        "seconds": round(sum(trial.seconds for trial in trials)),
        "faults": [asdict(trial) for trial in trials if trial.faults],
    }


def render(record: dict[str, Any]) -> str:
    """Return a record as a table in Markdown."""
    jobs = ", ".join(f"{name} {count}" for name, count in sorted(record["jobs"].items()))
    lines = [
        (
            f"{record['trials']} trials ({jobs}), {record['stopped']} of them stopped before their end, "
            f"{len(record['faults'])} with a fault; {record['machine']}, {record['date']}."
        ),
        "",
        "| what happened | trials | exit codes | in its place afterwards | most work after the signal |",
        "|---|---|---|---|---|",
    ]
    for how, found in record["ways"].items():
        if not found["trials"]:
            continue
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(found["codes"].items()))
        left = ", ".join(f"{what} {count}" for what, count in sorted(found["left"].items()))
        what = how if how in STOPS else f"full: {how}"
        end = f"{found['longest_end']:.1f} s" if how in STOPS else ""
        lines.append(f"| {what} | {found['trials']} | {codes} | {left} | {end} |")
    return "\n".join(lines)


def read_journal(path: Path) -> list[Trial]:
    """Return the trials of an interrupted campaign; a last line that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
    return [Trial(**json.loads(line)) for line in lines if line.startswith("{") and line.endswith("}")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; 1 when something was left half done."""
    parser = argparse.ArgumentParser(prog="python -m tests.exam.kills", description="Stop commands at random moments.")
    parser.add_argument("--trials", type=int, default=130)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the others follow")
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--room", type=Path, default=ROOM, help="folder for inputs and trials")
    parser.add_argument("--resume", action="store_true", help="go on where the journal ends; the record has all")
    parser.add_argument("--only", nargs="*", default=[], help="commands to draw from, such as package; all of them")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="journals of other rooms, for the record")
    parser.add_argument("--table", type=Path, help="write the table of the record into a page and stop")
    asked = parser.parse_args(arguments)
    if asked.table:
        record = json.loads(asked.results.read_text(encoding="utf-8"))
        page = asked.table.read_text(encoding="utf-8")
        asked.table.write_text(fill(page, "interrupts", render(record)), encoding="utf-8")
        return 0
    if not asked.resume:
        shutil.rmtree(asked.room, ignore_errors=True)
    asked.room.mkdir(parents=True, exist_ok=True)
    seeds = range(asked.seed, asked.seed + asked.trials)
    trials = [trial for trial in read_journal(asked.room / JOURNAL) if trial.seed in seeds]
    jobs = [job for job in JOBS if not asked.only or job.name in asked.only]
    known, exam = {trial.seed for trial in trials}, Exam(asked.room)
    with (asked.room / JOURNAL).open("a", encoding="utf-8") as journal:
        if journal.tell():
            journal.write("\n")  # behind a line that may have been cut off
        for seed in seeds:
            if seed in known:
                continue
            trials.append(exam.run(exam.drawn(seed, jobs)))
            journal.write(json.dumps(asdict(trials[-1])) + "\n")
            journal.flush()
            _print(" ".join(map(str, asdict(trials[-1]).values())))
    trials += [trial for journal in asked.also for trial in read_journal(journal)]
    record = recorded(sorted(trials, key=lambda trial: trial.seed))
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(render(record))
    return int(bool(record["faults"]))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201  it talks to the person who started it


if __name__ == "__main__":
    sys.exit(main())

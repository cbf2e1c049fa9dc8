"""Measure latency honestly: each model in its own process, in turns, several shapes, with the noise made visible.

Every model is started anew in every round, rounds go through all models before the next begins, and every second round
goes backwards, so that a machine that slows down or warms up does so for all of them. The interval of a speed-up comes
from resampling whole rounds (the paired bootstrap, Efron 1979): what changes from one start to the next is in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.bench_inputs import Candidate, Request, make_requests, read_candidate
from onnxopt.errors import InputError
from onnxopt.machine import describe_machine, versions
from onnxopt.manifest import Record
from onnxopt.model import Array
from onnxopt.session import MODEL_NAME
from onnxopt.spec import Target, Workload

Progress = Callable[[str], None]

DEFAULT_ROUNDS = 5
DEFAULT_SECONDS = 20.0
_LEAST_SLICE_SECONDS = 0.02
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval


class ShapeStats(Record):
    """One model on one request shape, over all rounds.

    Attributes:
        sizes: size of each dynamic axis.
        runs: how many were measured.
        p50_ms: median.
        p90_ms: nine of ten runs were faster.
        p99_ms: 99 of 100 runs were faster; with fewer runs, about the slowest.
        round_low_ms: smallest median of a round.
        round_high_ms: largest median of a round.
        speedup: median of the first model / median of this one.
        speedup_low: lower end of its 95 % interval over rounds.
        speedup_high: upper end.
    """

    sizes: dict[str, int]
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    round_low_ms: float
    round_high_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def is_clear(self) -> bool:
        """Whether the speed-up differs from 1 by more than the noise."""
        return self.speedup_low > 1.0 or self.speedup_high < 1.0


class CandidateStats(Record):
    """One model.

    Attributes:
        name: short name, unique in the benchmark.
        path: as the user gave it.
        size_bytes: of the graph and its weights.
        load_ms: median time to open it.
        base_bytes: memory of the process before it was opened (interpreter, runtime, inputs).
        peak_bytes: memory of the process at its highest, over all shapes and rounds.
        shapes: its latency.
    """

    name: str
    path: str
    size_bytes: int
    load_ms: float
    base_bytes: int
    peak_bytes: int
    shapes: tuple[ShapeStats, ...]


class BenchResult(Record):
    """A benchmark; the first candidate is what the others are compared with.

    Attributes:
        schema_version: version of this schema.
        created: ISO 8601 date and time in UTC.
        machine: where it ran.
        versions: of the tools.
        provider: execution provider.
        threads: threads of one operator.
        rounds: how often each model was started.
        seconds: how long it all took.
        candidates: one per model.
    """

    schema_version: Literal[1] = 1
    created: str
    machine: dict[str, Any]
    versions: dict[str, str]
    provider: str
    threads: int
    rounds: int
    seconds: float
    candidates: tuple[CandidateStats, ...]


@dataclass(frozen=True)
class _Start:
    """What one start of one model gave."""

    load_ms: float
    base_bytes: int
    peak_bytes: int
    times_ms: list[list[float]]


def bench(
    paths: Sequence[Path],
    *,
    shapes: Sequence[Mapping[str, int]] | None = None,
    target: Target | None = None,
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    seconds: float = DEFAULT_SECONDS,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure models against the first of them.

    Args:
        paths: artifact folders or .onnx files with the same inputs.
        shapes: request shapes; the default is the workload of the first artifact, or the default workload.
        target: where to run; the default is the first artifact's target, or the CPU.
        threads: threads of one operator; the default is what this process may use.
        rounds: how often each model is started and measured.
        seconds: about how long it all may take. Each shape is run at least once per round, however long that takes.
        progress: called with a word on each step.

    Returns:
        The numbers, with the machine and versions they belong to.

    Raises:
        InputError: when a model cannot be read or run, or the models take different inputs.
    """
    if not paths:
        raise InputError("nothing to measure", hint="name an artifact or an .onnx file")
    if rounds < 1 or seconds <= 0:
        raise InputError(f"{rounds} rounds in {seconds:g} seconds is no measurement", hint="both start above 0")
    begin = time.perf_counter()
    candidates = [read_candidate(Path(path)) for path in paths]
    manifest = next((candidate.manifest for candidate in candidates if candidate.manifest), None)
    target = target or Target(manifest.target.provider if manifest else "cpu")
    threads = target.threads if threads is None else threads
    default = manifest.workload if manifest else Workload()
    requests = make_requests(candidates, default.shapes if shapes is None else shapes)
    if not requests:
        raise InputError("no request shape to measure", hint="write for example --workload 1x16,8x128")
    names = _names(candidates)
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        jobs = _write_jobs(Path(folder), candidates, requests, target, threads)
        left = seconds - (time.perf_counter() - begin)
        starts = _rounds(jobs, names, rounds=rounds, seconds=left, progress=progress)
    return BenchResult(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=describe_machine(),
        versions=versions(),
        provider=target.provider,
        threads=threads,
        rounds=rounds,
        seconds=time.perf_counter() - begin,
        candidates=tuple(
            _stats(name, candidate, own, starts[0], requests)
            for name, candidate, own in zip(names, candidates, starts, strict=True)
        ),
    )


def _write_jobs(
    folder: Path, candidates: Sequence[Candidate], requests: Sequence[Request], target: Target, threads: int
) -> list[dict[str, Any]]:
    jobs = []
    for number, candidate in enumerate(candidates):
        inputs = []
        for index, request in enumerate(requests):
            path = folder / f"{number}_{index}.npz"
            np.savez(path, allow_pickle=False, **request.feeds[number])
            inputs.append(str(path))
        jobs.append(
            {
                "model": str(candidate.file.resolve()),
                "provider": target.provider,
                "threads": threads,
                "inputs": inputs,
                "seconds": 0.0,
            }
        )
    return jobs


def _rounds(
    jobs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> list[list[_Start]]:
    """Return the starts of each job. A first one, not counted, finds failures and tells what a start costs."""
    say = progress or (lambda _: None)
    begin = time.perf_counter()
    for name, job in zip(names, jobs, strict=True):
        say(f"trying {name}")
        _start(job)
    spent = time.perf_counter() - begin
    shapes = len(jobs[0]["inputs"])
    share = ((seconds - spent) / rounds - spent) / (len(jobs) * shapes)
    slice_seconds = max(_LEAST_SLICE_SECONDS, share)
    starts: list[list[_Start]] = [[] for _ in jobs]
    for number in range(rounds):
        order = range(len(jobs)) if number % 2 == 0 else reversed(range(len(jobs)))
        for index in order:
            say(f"round {number + 1} of {rounds}, {names[index]}")
            starts[index].append(_start({**jobs[index], "seconds": slice_seconds}))
    return starts


def _start(job: Mapping[str, Any]) -> _Start:
    """Run one job in a process of its own."""
    done = subprocess.run(  # our own module in our own interpreter
        [sys.executable, "-m", "onnxopt.bench_worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # no modules out of the folder the user happens to be in
    )
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise InputError(_died(done), where=job["model"]) from error
    if "error" in result:
        found = result["error"]
        raise InputError(found["what"], where=found["where"] or job["model"], hint=found["hint"])
    return _Start(**result)


def _died(done: subprocess.CompletedProcess[str]) -> str:
    """Say in words why a worker gave no result."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        killed = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{killed}"
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return f"its process ended with code {done.returncode}: {last}"


def _stats(
    name: str, candidate: Candidate, own: Sequence[_Start], first: Sequence[_Start], requests: Sequence[Request]
) -> CandidateStats:
    return CandidateStats(
        name=name,
        path=str(candidate.path),
        size_bytes=candidate.size_bytes,
        load_ms=float(np.median([start.load_ms for start in own])),
        base_bytes=int(np.median([start.base_bytes for start in own])),
        peak_bytes=max(start.peak_bytes for start in own),
        shapes=tuple(
            shape_stats(
                request.sizes,
                [start.times_ms[index] for start in own],
                [start.times_ms[index] for start in first],
            )
            for index, request in enumerate(requests)
        ),
    )


def shape_stats(
    sizes: Mapping[str, int], own: Sequence[Sequence[float]], first: Sequence[Sequence[float]]
) -> ShapeStats:
    """Sum up the runs of one model on one shape.

    Args:
        sizes: size of each dynamic axis.
        own: milliseconds of each run, a list per round.
        first: the same of the model it is compared with; the same rounds, in the same order.
    """
    pooled = np.concatenate([np.asarray(times) for times in own])
    medians = np.array([np.median(times) for times in own])
    speedup = float(np.median(np.concatenate([np.asarray(times) for times in first])) / np.median(pooled))
    low, high = _interval(np.array([np.median(times) for times in first]), medians)
    return ShapeStats(
        sizes=dict(sizes),
        runs=pooled.size,
        p50_ms=float(np.percentile(pooled, 50)),
        p90_ms=float(np.percentile(pooled, 90)),
        p99_ms=float(np.percentile(pooled, 99)),
        round_low_ms=float(medians.min()),
        round_high_ms=float(medians.max()),
        speedup=speedup,
        speedup_low=min(speedup, low),
        speedup_high=max(speedup, high),
    )


def _interval(first: Array, own: Array) -> tuple[float, float]:
    """Return the 95 % interval of median(first) / median(own) when rounds, taken in pairs, are drawn again."""
    picks = np.random.default_rng(0).integers(0, own.size, (_RESAMPLES, own.size))
    ratios = np.median(first[picks], axis=1) / np.median(own[picks], axis=1)
    low, high = np.percentile(ratios, _INTERVAL)
    return float(low), float(high)


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Return a short name for each candidate, its folder's for a `model.onnx`; equal ones are numbered."""
    plain = []
    for candidate in candidates:
        path = candidate.path.resolve()
        plain.append(path.parent.name if path.name == MODEL_NAME else path.name.removesuffix(".onnx"))
    seen: dict[str, int] = {}
    names = []
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names

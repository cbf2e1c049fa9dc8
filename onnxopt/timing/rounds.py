"""Time models in turns, each in a process of its own, and sum up what was seen."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.records.events import Step
from onnxopt.records.record import Record
from onnxopt.spec import Array, Feeds, Target

MOST_SPREAD = 0.25  # between the quartiles of one form's rounds; above, the machine is too busy to tell

Progress = Callable[[str], None]

_LEAST_SLICE_SECONDS = 0.02
_RESAMPLES = 2000
CONFIDENCE = 0.95
_INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval


@dataclass(frozen=True)
class Start:
    """What one start of one model gave."""

    load_ms: float
    base_bytes: int
    peak_bytes: int
    times_ms: list[list[float]]
    held_bytes: int = 0
    own_bytes: int | None = None


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


def write_job(model: Path, requests: Sequence[Feeds], target: Target, folder: Path) -> dict[str, Any]:
    """Write the inputs of a model for the worker and return its job.

    Args:
        model: the file.
        requests: inputs per shape.
        target: provider and threads.
        folder: where the inputs go; made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, feeds in enumerate(requests):
        path = folder / f"{model.stem}_{index}.npz"
        np.savez(path, allow_pickle=False, **feeds)
        files.append(str(path))
    return {
        "model": str(model.resolve()),
        "provider": target.provider,
        "threads": target.threads,
        "inputs": files,
        "seconds": 0.0,
    }


def run_rounds(
    jobs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> list[list[Start]]:
    """Return the starts of each job. A first one, not counted, finds failures and tells what a start costs."""
    say = progress or (lambda _: None)
    begin = time.perf_counter()
    for name, job in zip(names, jobs, strict=True):
        say(f"trying {name}")
        start(job)
    spent = time.perf_counter() - begin
    shapes = len(jobs[0]["inputs"])
    share = ((seconds - spent) / rounds - spent) / (len(jobs) * shapes)
    slice_seconds = max(_LEAST_SLICE_SECONDS, share)
    starts: list[list[Start]] = [[] for _ in jobs]
    for number in range(rounds):
        order = range(len(jobs)) if number % 2 == 0 else reversed(range(len(jobs)))
        for turn, index in enumerate(order):
            words = f"round {number + 1} of {rounds}, {names[index]}"
            say(Step(words, work="round", done=number * len(jobs) + turn, total=rounds * len(jobs)))
            starts[index].append(start({**jobs[index], "seconds": slice_seconds}))
    return starts


def start(job: Mapping[str, Any]) -> Start:
    """Run one job in a process of its own."""
    done = subprocess.run(  # our own module in our own interpreter
        [sys.executable, "-m", "onnxopt.timing.worker"],
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
    return Start(**result)


def median_told(counts: Sequence[int | None]) -> int | None:
    """Return the median of what is told; None where nothing is."""
    told = [count for count in counts if count is not None]
    return int(np.median(told)) if told else None


def _died(done: subprocess.CompletedProcess[str]) -> str:
    """Say in words why a worker gave no result."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        killed = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{killed}"
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return f"its process ended with code {done.returncode}: {last}"


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


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return an interval that holds the median of what the values were drawn from, whatever its distribution is.

    Between the k-th smallest and the k-th largest of n values it lies with a chance of 1 - 2 P(B < k), B being the
    heads of n tosses of a coin; the largest such k is taken. Fewer than six values tell nothing at 95 %.

    Args:
        values: independent ones, such as a ratio per turn.
        confidence: the least chance.

    Returns:
        Both ends; 0 and infinity where there are too few values.

    Source: order statistics, David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    ordered, count = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(count, heads) / 2**count for heads in range(count // 2))
    ranks = sum(1 - 2 * tail >= confidence for tail in tails)
    return (ordered[ranks - 1], ordered[count - ranks]) if ranks else (0.0, math.inf)


def _interval(first: Array, own: Array) -> tuple[float, float]:
    """Return the 95 % interval of median(first) / median(own) when rounds, taken in pairs, are drawn again."""
    picks = np.random.default_rng(0).integers(0, own.size, (_RESAMPLES, own.size))
    ratios = np.median(first[picks], axis=1) / np.median(own[picks], axis=1)
    low, high = np.percentile(ratios, _INTERVAL)
    return float(low), float(high)


def is_noisy(rounds: Sequence[Sequence[float]]) -> bool:
    """Tell whether the times of one model differ so much from round to round that nothing can be told from them."""
    quartiles = np.percentile(np.asarray(rounds), (25, 50, 75), axis=0)
    return bool(np.median((quartiles[2] - quartiles[0]) / quartiles[1]) > MOST_SPREAD)

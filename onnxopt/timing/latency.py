"""Time a model as it was loaded beside what became of it, on the requests of a workload.

The two are started in turns, each in a process of its own. What is compared are neighbours: both starts of one turn saw
about the same machine. The interval of a speed-up is that of the median over turns; as long as it does not tell the two
apart as sharply as one can hope for, more turns are run, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.probe.observe import Observation
from onnxopt.records.manifest import FormName
from onnxopt.records.measurements import Latency, Race, SessionCost
from onnxopt.spec import Array, Feeds, Say, Signature, Target, Workload
from onnxopt.timing.busy import Watch
from onnxopt.timing.rounds import Start, is_noisy, median_interval, median_told, run_rounds, write_job

TRIAL_SECONDS = 12.0

TURNS, SECONDS = 6, 20.0  # of one batch; six is the least that has an interval of 95 %
MOST_BATCHES = 3
SHARP = 0.04  # width of an interval: equal within two percent is equal


def typed(feeds: Mapping[str, Array], signature: Signature) -> Feeds:
    """Return inputs in the types of a signature, which may hand a cache over in 16 bits."""
    return {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in signature.inputs}


def race(
    original: Path,
    candidate: Path,
    requests: Sequence[Observation],
    *,
    form: FormName,
    signature: Signature,
    target: Target,
    workload: Workload,
    say: Callable[[str], None],
) -> Race:
    """Time both in turns until they are told apart, or are seen to be alike, or the time is over.

    Args:
        original: the model as loaded.
        candidate: the result.
        requests: inputs of the original, one per shape.
        form: which form the candidate is.
        signature: of the result.
        target: where both run.
        workload: what the requests were made of; its weights decide what a shape counts.
        say: told what is done.
    """
    say(f"original and {form}, in turns")
    feeds = [request.feeds for request in requests]
    jobs = [
        write_job(original, feeds, target, original.parent / "feeds"),
        write_job(candidate, [typed(one, signature) for one in feeds], target, candidate.parent / "feeds"),
    ]
    before: list[Start] = []
    after: list[Start] = []
    watch = Watch(target.threads)
    for batch in range(1, MOST_BATCHES + 1):
        slow, fast = in_turns(jobs, ["original", form], seconds=SECONDS, say=say)
        before, after = before + slow, after + fast
        found = summed_up(before, after, requests, form=form, workload=workload)
        if batch == MOST_BATCHES or is_settled(found, batch):
            break
        say(f"{found}: measuring on")
    return found.model_copy(update={"trouble": trouble_of(watch, before)})


def in_turns(
    jobs: Sequence[Mapping[str, Any]], names: Sequence[str], *, seconds: float, say: Callable[[str], None]
) -> list[list[Start]]:
    """Run one batch of turns.

    Args:
        jobs: one per graph, as `write_job` makes them.
        names: what the graphs are called; their files are ours and mean nothing to anyone.
        seconds: about how long it may take.
        say: told what is done.

    Raises:
        InputError: a graph does not run on a request.
    """
    try:
        return run_rounds(jobs, names, rounds=TURNS, seconds=seconds, progress=say)
    except InputError as error:
        failed = (name for name, job in zip(names, jobs, strict=True) if error.where == job["model"])
        raise InputError(
            error.what,
            where=f"timing the {next(failed, 'model')} graph",
            hint=error.hint
            or "name request shapes that it takes with --workload, or leave times out with --no-measure",
        ) from error


def is_settled(found: Race, batches: int) -> bool:
    """Tell whether more turns would tell more: a graph is called slower only by two batches."""
    if found.verdict == "slower":
        return batches > 1
    return found.verdict == "faster" or found.high - found.low <= SHARP


def trouble_of(watch: Watch, starts: Sequence[Start]) -> str:
    """Say what makes times worth little: other work on the machine, or a model that is never equally fast twice."""
    load = watch.load()
    if load is not None and load.is_busy:
        return str(load)
    medians = [[float(np.median(times)) for times in start.times_ms] for start in starts]
    return "the times of the same graph differ by a quarter and more" if is_noisy(medians) else ""


def summed_up(
    before: Sequence[Start],
    after: Sequence[Start],
    requests: Sequence[Observation],
    *,
    form: FormName,
    workload: Workload,
) -> Race:
    """Sum up the turns: each shape by itself, and all by their weights.

    Args:
        before: starts of the original.
        after: those of the other, turn by turn.
        requests: one per shape.
        form: which form the other is.
        workload: fills and weights of the shapes.
    """
    slow, fast = (
        np.array([[np.median(times) for times in start.times_ms] for start in own]) for own in (before, after)
    )
    ratios = slow / fast  # [turns, shapes]
    shapes = [
        _latency(
            request.sizes,
            workload.fill(index),
            slow[:, index],
            fast[:, index],
            (_slowest(before, index), _slowest(after, index)),
        )
        for index, request in enumerate(requests)
    ]
    whole = np.exp(np.average(np.log(ratios), axis=1, weights=workload.weights or None))
    low, high = median_interval(whole.tolist())
    return Race(
        form=form,
        speedup=float(np.median(whole)),
        low=low,
        high=high,
        turns=len(before),
        shapes=tuple(shapes),
        before_bytes=_memory(before),
        after_bytes=_memory(after),
        before_session=_session(before),
        after_session=_session(after),
    )


def _slowest(starts: Sequence[Start], shape: int) -> float:
    """Return the 99th percentile of all runs of one shape, ms."""
    return float(np.percentile([time for start in starts for time in start.times_ms[shape]], 99))


def _memory(starts: Sequence[Start]) -> int:
    """Return what a model took at its highest beyond a process without one, bytes; the median over turns."""
    return int(np.median([start.peak_bytes - start.base_bytes for start in starts]))


def _session(starts: Sequence[Start]) -> SessionCost:
    """Return what a session takes, the medians over turns."""
    return SessionCost(
        open_ms=float(np.median([start.load_ms for start in starts])),
        held_bytes=int(np.median([start.held_bytes for start in starts])),
        own_bytes=median_told([start.own_bytes for start in starts]),
    )


def _latency(sizes: Mapping[str, int], fill: float, slow: Array, fast: Array, p99: tuple[float, float]) -> Latency:
    """Return one shape: medians over turns, and the interval of the ratio, which holds that of the medians too."""
    low, high = median_interval((slow / fast).tolist())
    before_ms, after_ms = float(np.median(slow)), float(np.median(fast))
    ratio = before_ms / after_ms
    return Latency(
        shape=dict(sizes),
        fill=fill,
        before_ms=before_ms,
        after_ms=after_ms,
        low=min(low, ratio),
        high=max(high, ratio),
        before_p99_ms=p99[0],
        after_p99_ms=p99[1],
    )


def speedup_of(
    slow: Path,
    fast: Path,
    requests: Sequence[Observation],
    target: Target,
    say: Say,
    *,
    workload: Workload | None = None,
) -> Race:
    """Time a graph beside another, in turns, and sum it up over the workload.

    Args:
        slow: file of the one graph.
        fast: file of the other, whose speed-up it is.
        requests: the workload, made.
        target: how they are run.
        say: told what is done.
        workload: weighs the requests; they all count the same without.
    """
    feeds = [request.feeds for request in requests]
    jobs = [write_job(path, feeds, target, path.parent / "speed") for path in (slow, fast)]
    first, second = in_turns(jobs, ["before", "after"], seconds=TRIAL_SECONDS, say=say)
    return summed_up(first, second, requests, form="optimized", workload=workload or Workload())

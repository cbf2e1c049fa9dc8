"""Time a model as it was loaded beside what became of it, on the requests of a workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxopt.measurements import Latency
from onnxopt.model import Array, Feeds
from onnxopt.observe import Observation
from onnxopt.spec import Signature, Target, Workload
from onnxopt.timing import run_rounds, shape_stats, write_job

ROUNDS, SECONDS = 5, 20.0


def typed(feeds: Mapping[str, Array], signature: Signature) -> Feeds:
    """Return inputs in the types of a signature, which may hand a cache over in 16 bits."""
    return {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in signature.inputs}


def measure_latency(
    original: Path,
    candidate: Path,
    requests: Sequence[Observation],
    *,
    signature: Signature,
    target: Target,
    workload: Workload,
    say: Callable[[str], None],
) -> tuple[Latency, ...]:
    """Time both in turns.

    Args:
        original: the model as loaded.
        candidate: the result.
        requests: inputs of the original, one per shape.
        signature: of the result.
        target: where both run.
        workload: what the requests were made of.
        say: told what is done.
    """
    say("before and after, in turns")
    feeds = [request.feeds for request in requests]
    jobs = [
        write_job(original, feeds, target, original.parent / "feeds"),
        write_job(candidate, [typed(one, signature) for one in feeds], target, candidate.parent / "feeds"),
    ]
    before, after = run_rounds(jobs, ["before", "after"], rounds=ROUNDS, seconds=SECONDS, progress=say)
    found = []
    for index, request in enumerate(requests):
        slow, fast = ([start.times_ms[index] for start in own] for own in (before, after))
        stats = [shape_stats(request.sizes, own, slow) for own in (slow, fast)]
        shape, fill = dict(request.sizes), workload.fill(index)
        found.append(Latency(shape=shape, fill=fill, before_ms=stats[0].p50_ms, after_ms=stats[1].p50_ms))
    return tuple(found)

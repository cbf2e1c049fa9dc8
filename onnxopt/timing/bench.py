"""Measure latency honestly: each model in its own process, in turns, several shapes, with the noise made visible.

Every model is started anew in every round, rounds go through all models before the next begins, and every second round
goes backwards, so that a machine that slows down or warms up does so for all of them. The interval of a speed-up comes
from resampling whole rounds (the paired bootstrap, Efron 1979): what changes from one start to the next is in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.machine import describe_machine, versions
from onnxopt.host.scratch import scratch_folder
from onnxopt.records.notebook import steps_shown
from onnxopt.records.record import Record
from onnxopt.run.there import MODEL_NAME
from onnxopt.spec import Target, Workload
from onnxopt.timing.candidates import Candidate, Request, make_requests, read_candidate
from onnxopt.timing.rounds import Progress, ShapeStats, Start, median_told, run_rounds, shape_stats, write_job

DEFAULT_ROUNDS = 5
DEFAULT_SECONDS = 20.0


class CandidateStats(Record):
    """One model.

    Attributes:
        name: short name, unique in the benchmark.
        path: as the user gave it.
        size_bytes: of the graph and its weights.
        load_ms: median time to open it.
        base_bytes: memory of the process before it was opened (interpreter, runtime, inputs).
        peak_bytes: memory of the process at its highest, over all shapes and rounds.
        held_bytes: memory beyond the base once it has answered requests of the first shape; the median.
        own_bytes: of that, what is no page of a file, which can go and be read again; None where it is not told.
        shapes: its latency.
    """

    name: str
    path: str
    size_bytes: int
    load_ms: float
    base_bytes: int
    peak_bytes: int
    held_bytes: int = 0
    own_bytes: int | None = None
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
        progress: called with a word on each step; in a notebook a line below the cell when None.

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
    with scratch_folder() as folder, steps_shown("measure", progress) as say:
        jobs = [
            write_job(
                candidate.file,
                [request.feeds[number] for request in requests],
                Target(target.provider, threads),
                folder / str(number),
            )
            for number, candidate in enumerate(candidates)
        ]
        left = seconds - (time.perf_counter() - begin)
        starts = run_rounds(jobs, names, rounds=rounds, seconds=left, progress=say)
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


def _stats(
    name: str, candidate: Candidate, own: Sequence[Start], first: Sequence[Start], requests: Sequence[Request]
) -> CandidateStats:
    return CandidateStats(
        name=name,
        path=str(candidate.path),
        size_bytes=candidate.size_bytes,
        load_ms=float(np.median([start.load_ms for start in own])),
        base_bytes=int(np.median([start.base_bytes for start in own])),
        peak_bytes=max(start.peak_bytes for start in own),
        held_bytes=int(np.median([start.held_bytes for start in own])),
        own_bytes=median_told([start.own_bytes for start in own]),
        shapes=tuple(
            shape_stats(
                request.sizes,
                [start.times_ms[index] for start in own],
                [start.times_ms[index] for start in first],
            )
            for index, request in enumerate(requests)
        ),
    )


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

"""Measure one model in a process of its own: `python -m onnxopt.timing.worker`, a job on stdin, its result on stdout.

A process per measurement keeps what one model leaves behind (memory, threads, the runtime's caches) away from the next
and makes the peak of its memory its own.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.errors import OnnxoptError
from onnxopt.host.memory import own_bytes, peak_bytes, resident_bytes
from onnxopt.spec import Target

_WARM_UP_SHARE = 0.2
_MIN_RUNS = 3
_MAX_RUNS = 20_000


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model and time it.

    Args:
        job: `model`: file; `provider`; `threads`; `inputs`: .npz file per shape; `seconds`: time for each shape.

    Returns:
        `load_ms`; `base_bytes`: memory of the process before the model; `held_bytes`: what it holds beyond that once it
        has answered requests of the first shape; `own_bytes`: of that, what is no page of a file, where the system
        tells; `peak_bytes`: at its highest; `times_ms`: a list per shape.
    """
    import numpy as np
    import onnxruntime

    from onnxopt.host.bounds import bounds
    from onnxopt.host.files import bytes_beside
    from onnxopt.probe.apart.worker import limit_memory
    from onnxopt.run.session import open_session

    del onnxruntime  # imported to leave its start out of the load time
    requests = []
    for path in job["inputs"]:
        with np.load(path, allow_pickle=False) as archive:
            requests.append({name: archive[name] for name in archive.files})
    base_bytes, base_own = resident_bytes(), own_bytes()
    start = time.perf_counter()
    session = open_session(Path(job["model"]), target=Target(job["provider"], job["threads"]))
    load_ms = 1000 * (time.perf_counter() - start)
    gc.disable()
    size = bytes_beside(Path(job["model"])) if job["provider"] in ("cpu", "portable") else None
    if size is not None:
        elements = max(sum(array.size for array in feeds.values()) for feeds in requests)
        limit_memory(bounds().memory_for(size, elements))
    seconds = float(job["seconds"])
    times = [_time(session, feeds, seconds, size) for feeds in requests[:1]]
    held_bytes, own = resident_bytes() - base_bytes, own_bytes()
    times += [_time(session, feeds, seconds, size) for feeds in requests[1:]]
    return {
        "load_ms": load_ms,
        "base_bytes": base_bytes,
        "peak_bytes": peak_bytes(),
        "times_ms": times,
        "held_bytes": max(0, held_bytes),
        "own_bytes": None if own is None or base_own is None else max(0, own - base_own),
    }


def _time(session: Any, feeds: Mapping[str, Any], seconds: float, size: int | None) -> list[float]:
    """Return the time of each run in milliseconds, after runs that are not counted.

    A model that takes longer than `seconds` for one run is run once to warm up and once to be measured. The first run
    is ended where it takes too long for a model of so many bytes; None waits, since devices build their engines there.
    """
    begin = time.perf_counter()
    _run_first(session, feeds, size)
    least = 1 if time.perf_counter() - begin > seconds else _MIN_RUNS
    while time.perf_counter() - begin < _WARM_UP_SHARE * seconds:
        session.run(None, feeds)
    times: list[float] = []
    while len(times) < least or (time.perf_counter() - begin < seconds and len(times) < _MAX_RUNS):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _run_first(session: Any, feeds: Mapping[str, Any], size: int | None) -> None:
    import onnxruntime

    from onnxopt.errors import InputError
    from onnxopt.host.bounds import allow, bounds
    from onnxopt.host.runtime_errors import runtime_errors, runtime_line
    from onnxopt.host.watch import watched

    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    elements = sum(array.size for array in feeds.values())
    limit = None if size is None else bounds().seconds_for(size, elements)
    options = onnxruntime.RunOptions()
    with watched(options, limit) as run:
        try:
            session.run(None, feeds, options)
        except runtime_errors() as error:
            if run.ended:
                what = f"does not end within {limit:.0f} s on {shapes}"
                raise InputError(what, hint=allow("seconds", f"{6 * (limit or 0):.0f}")) from error
            raise InputError(f"onnxruntime failed on {shapes}: {runtime_line(error)}") from error


def main() -> int:
    """Read a job from stdin and write its result, or the error, to stdout as one line of JSON."""
    try:
        result = measure(json.load(sys.stdin))
    except OnnxoptError as error:
        result = {"error": {"what": error.what, "where": error.where, "hint": error.hint}}
    except MemoryError:
        result = {"error": {"what": "the memory does not suffice", "where": "", "hint": "ask smaller shapes"}}
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

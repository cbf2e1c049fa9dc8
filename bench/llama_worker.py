"""Time one start of llama.cpp: `llama_worker.py '{"model": file, "sizes": {...}, "windows": file.npy}'` prints JSON.

Runs in the peer's own environment. The same measures as `decode_worker.py`, a batch left out: seconds of a prompt, and
of one token behind it. With windows, int64 [windows, tokens], also the mean negative log likelihood of their tokens.
With `held`, all that `large_worker.py` tells: how long the model takes to open, and what the process holds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama

THREADS = 2
WARM, SECONDS, MOST = 2, 3.0, 60


def main() -> None:
    """Measure what is asked for."""
    job = json.loads(sys.argv[1])
    result: dict[str, Any] = {}
    if job.get("held"):
        result["running"] = running(job["model"], job["sizes"])
    elif job.get("sizes"):
        result["seconds"] = {name: measure(job["model"], *size) for name, size in job["sizes"].items() if size[0] == 1}
    if job.get("windows"):
        result["loss"] = loss(job["model"], np.load(job["windows"]))
    print(json.dumps(result))


def opened(model: str, context: int, *, every: bool = False) -> Llama:
    """Open the model with room for a context."""
    return Llama(
        model,
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        logits_all=every,
        verbose=False,
    )


def running(model: str, sizes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return seconds to open the model, what the process holds then and later, and the measures."""
    base = held()
    begin = time.perf_counter()
    result: dict[str, Any] = {"base": base}
    for name, size in sizes.items():
        llama = opened(model, size[3])
        result.setdefault("open_seconds", time.perf_counter() - begin)
        result.setdefault("opened", held())
        result[f"{name}_seconds"] = timed(llama, size[1], size[2])
        result[f"after_{name}"] = held()
        llama.close()
    return result


def held() -> dict[str, int]:
    """Return the bytes of memory that this process holds, and those of them that are no pages of files; on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    words = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"resident": int(words["VmRSS"]) * 1024, "anonymous": int(words["RssAnon"]) * 1024}


def measure(model: str, batch: int, new: int, past: int, capacity: int) -> float:
    """Return the median seconds of reading `new` tokens behind `past`."""
    del batch
    return timed(opened(model, capacity), new, past)


def timed(llama: Llama, new: int, past: int) -> float:
    """Return the median seconds of reading `new` tokens behind `past`."""
    ids = np.random.default_rng(0).integers(10, 1000, past + new).tolist()
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < WARM + 3 or (time.perf_counter() - start < SECONDS and len(taken) < MOST):
        llama.n_tokens = past
        if past and not taken:
            llama.reset()
            llama.eval(ids[:past])
        begin = time.perf_counter()
        llama.eval(ids[past:])
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[WARM:])


def loss(model: str, windows: np.ndarray[Any, Any]) -> float:
    """Return the mean negative log likelihood of every token but the first of each window."""
    llama = opened(model, windows.shape[1], every=True)
    total, count = 0.0, 0
    for ids in windows:
        llama.reset()
        llama.eval(ids.tolist())
        rows = np.asarray(llama.scores[: len(ids) - 1], np.float64)
        peak = rows.max(-1)
        sums = peak + np.log(np.exp(rows - peak[:, None]).sum(-1))
        total += float((sums - rows[np.arange(len(rows)), ids[1:]]).sum())
        count += len(rows)
    return total / count


if __name__ == "__main__":
    main()

"""Measure one model in OpenVINO: a job on stdin, its result on stdout, in the words of `onnxopt.timing.worker`.

It runs in OpenVINO's own environment and so imports nothing of onnxopt. Jobs may name `answers`, one .npy file per
input, where the first output is stored.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import psutil

_WARM_UP_SHARE = 0.2
_MIN_RUNS = 3
_MAX_RUNS = 20_000


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Load a model and time it, as `onnxopt.timing.worker.measure` does."""
    requests = []
    for path in job["inputs"]:
        with np.load(path, allow_pickle=False) as archive:
            requests.append({name: archive[name] for name in archive.files})
    base_bytes = psutil.Process().memory_info().rss
    start = time.perf_counter()
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = openvino.Core().compile_model(job["model"], "CPU", settings)
    request = model.create_infer_request()
    names = {name for value in model.inputs for name in value.names}
    load_ms = 1000 * (time.perf_counter() - start)
    feeds = [{name: array for name, array in one.items() if name in names} for one in requests]
    for one, path in zip(feeds, job.get("answers", ()), strict=False):
        np.save(path, np.array(request.infer(one)[0]), allow_pickle=False)
    gc.disable()
    times = [] if "answers" in job else [_time(request, one, float(job["seconds"])) for one in feeds]
    return {"load_ms": load_ms, "base_bytes": base_bytes, "peak_bytes": _peak_bytes(), "times_ms": times}


def _time(request: Any, feeds: dict[str, Any], seconds: float) -> list[float]:
    begin = time.perf_counter()
    request.infer(feeds)
    least = 1 if time.perf_counter() - begin > seconds else _MIN_RUNS
    while time.perf_counter() - begin < _WARM_UP_SHARE * seconds:
        request.infer(feeds)
    times: list[float] = []
    while len(times) < least or (time.perf_counter() - begin < seconds and len(times) < _MAX_RUNS):
        start = time.perf_counter_ns()
        request.infer(feeds)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    try:
        result = measure(json.load(sys.stdin))
    except RuntimeError as error:
        result = {"error": {"what": str(error).strip().splitlines()[0], "where": "", "hint": ""}}
    sys.stdout.write("\n" + json.dumps(result) + "\n")

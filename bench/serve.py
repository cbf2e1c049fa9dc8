"""Requests per second of `onnxopt serve`, with batching and one at a time: `python -m bench.serve`.

64 clients of this machine ask for embeddings of texts of 8 to 256 tokens, each one request after another. The same is
asked of a server that runs one request at a time on all cores; since its throughput hardly depends on how many wait, it
is asked by fewer clients too, and counts where its 99th percentile is within that of the batching server. Then 10 % of
the requests are malformed, too long or given up. Every answer is compared with the model's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bench import table
from bench.load import EXPECTED, Load, mixed_texts, run_load
from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "serve.json"
FOLDER = ROOT / "build" / "bench-serve"
MARKS = ("<!-- serve -->", "<!-- /serve -->")
CLIENTS = 64
FEWER = (1, 4, 16, CLIENTS)
LOW, HIGH, TEXTS = 8, 256, 128
NEAR = 1e-4  # of an embedding of length 1; static int8 does not depend on what else is in the batch
WORKLOAD = "32x256@0.52"  # batches of such texts, padded: the graph takes the padding out

ONE = ("--workers", "1", "--max-batch", "1", "--max-wait-ms", "0")
SETTINGS: Mapping[str, tuple[str, ...]] = {"batching": (), "one at a time": (*ONE, "--threads", "0")}


def main() -> int:
    """Run the loads, write the results."""
    parser = argparse.ArgumentParser(description="Load a server of this machine with many clients.")
    parser.add_argument("--artifact", type=Path, help="an encoder; minilm is made when not given")
    parser.add_argument("--requests", type=int, default=600, help="per load (default: %(default)s)")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    result = measure(arguments.artifact or made(), arguments.requests)
    print(render(result))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def made() -> Path:
    """Return the artifact of the sample, made when it is not there."""
    import onnxopt

    out = FOLDER / "minilm-int8"
    if (out / "manifest.json").is_file():
        return out
    return onnxopt.optimize("minilm", out=out, precision="int8", workload=WORKLOAD, measure=False).path


def measure(artifact: Path, requests: int) -> dict[str, Any]:
    """Return what each server did under each load.

    Args:
        artifact: an encoder.
        requests: per load.
    """
    from onnxopt.host.machine import describe_machine, versions
    from onnxopt.host.threads import available_threads
    from onnxopt.run.inputs.text import TextModel
    from onnxopt.run.session import Session

    model = TextModel.open(artifact, Session(artifact))
    texts = mixed_texts(lambda text: model.tokenizer.encode(text).ids, TEXTS, LOW, HIGH)
    offline = np.stack([model.run(model.encode([text])).outputs["sentence_embedding"][0] for text in texts])
    runs: list[dict[str, Any]] = []
    for name, options in SETTINGS.items():
        fixed = [str(available_threads()) if option == "0" and name != "batching" else option for option in options]
        fixed = ["0" if before == "--max-wait-ms" else one for before, one in zip(["", *fixed], fixed, strict=False)]
        process, port = started(artifact, fixed)
        try:
            load(port, texts, clients=8, requests=64)  # warm
            for clients in (CLIENTS,) if name == "batching" else FEWER:
                count = requests if clients >= 16 else requests // 4
                runs.append(summary(name, clients, 0.0, load(port, texts, clients=clients, requests=count), offline))
                print(runs[-1])
            if name == "batching":
                mixed = load(port, texts, clients=CLIENTS, requests=requests, wrong=0.1)
                runs.append(summary(name, CLIENTS, 0.1, mixed, offline))
                print(runs[-1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "artifact": artifact.name,
        "tokens": [LOW, HIGH],
        "requests": requests,
        "runs": runs,
    }


def started(artifact: Path, options: Sequence[str]) -> tuple[subprocess.Popen[str], int]:
    """Start a server and return it with its port."""
    command = [sys.executable, "-m", "onnxopt", "serve", f"model={artifact}", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr or ():
        found = re.search(r"serving at http://127\.0\.0\.1:(\d+)", line)
        if found:
            return process, int(found[1])
    raise SystemExit(f"the server did not start: {' '.join(command)}")


def load(port: int, texts: Sequence[str], *, clients: int, requests: int, wrong: float = 0.0) -> Load:
    """Run one load."""
    return asyncio.run(run_load(port, "model", texts, clients=clients, requests=requests, wrong=wrong))


def summary(name: str, clients: int, wrong: float, done: Load, offline: Any) -> dict[str, Any]:
    """Return the numbers of a load, after comparing every answer."""
    worst = 0.0
    for one in done.outcomes:
        if one.kind != "cancelled" and one.status != EXPECTED[one.kind]:
            raise SystemExit(f"a {one.kind} request got {one.status}, expected {EXPECTED[one.kind]}")
        if one.vector is not None:
            worst = max(worst, float(np.abs(one.vector - offline[one.number]).max()))
    if worst > NEAR:
        raise SystemExit(f"an answer is off by {worst:.1e}")
    return {
        "server": name,
        "clients": clients,
        "wrong": wrong,
        "per_second": round(done.per_second, 2),
        "p50_ms": round(done.percentile(0.5), 1),
        "p99_ms": round(done.percentile(0.99), 1),
        "answered": len(done.good),
        "worst_error": worst,
    }


def gain(result: Mapping[str, Any]) -> float:
    """Return how many times more the batching server answers at the same limit of the 99th percentile."""
    best, runs = _batching(result), _others(result)
    # where not even one client alone stays below the limit, all count for what they do
    others = [run for run in runs if run["p99_ms"] <= best["p99_ms"]] or runs
    return float(best["per_second"] / max(run["per_second"] for run in others))


def gain_with_all(result: Mapping[str, Any]) -> float:
    """Return how many times more the batching server answers when both are asked by all clients."""
    alike = [run for run in _others(result) if run["clients"] == CLIENTS]
    return float(_batching(result)["per_second"] / max(run["per_second"] for run in alike))


def _batching(result: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(r for r in result["runs"] if r["server"] == "batching" and not r["wrong"])
    return found


def _others(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for run in result["runs"] if run["server"] != "batching"]


def render(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    machine = result["machine"]
    head = ["server", "clients", "wrong requests", "answers/s", "p50 ms", "p99 ms", "worst error"]
    rows = [
        [
            run["server"],
            str(run["clients"]),
            f"{run['wrong']:.0%}",
            f"{run['per_second']:.1f}",
            f"{run['p50_ms']:,.0f}",
            f"{run['p99_ms']:,.0f}",
            f"{run['worst_error']:.0e}",
        ]
        for run in result["runs"]
    ]
    low, high = result["tokens"]
    caption = (
        f"{result['artifact']}, texts of {low} to {high} tokens, {result['requests']} requests per load, "
        f"server and clients on {machine['cores']} cores of {machine['cpu']}, "
        f"onnxruntime {result['versions']['onnxruntime']}, "
        f"{result['created'][:10]}, `make bench-serve`. At the same limit of p99, batching answers "
        f"{gain(result):.2f} times as much, with {CLIENTS} clients each {gain_with_all(result):.2f} times. A text "
        "alone keeps these cores busy already; what a batch saves is what is done once for each run."
    )
    return f"{caption}\n\n{table.lines(head, rows)}"


if __name__ == "__main__":
    sys.exit(main())

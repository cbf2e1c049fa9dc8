"""Speed of a language model, ours beside onnxruntime-genai's own builder: `python -m bench.decode`.

SmolLM2-135M in float32, two threads, past and present in one shared buffer through IO binding: a prompt, then single
tokens behind it, alone and in a batch. Each start of a model is a process of its own; models take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.peers import ROOT, error_line

RESULT = ROOT / "bench" / "results" / "smollm2.json"
FOLDER = ROOT / "build" / "decode"
WORKER = ROOT / "bench" / "decode_worker.py"
MARKS = ("<!-- decode -->", "<!-- /decode -->")

SAMPLE = "smollm2-135m"
PROMPT, BATCH, CAPACITY = 256, 8, 512
MODELS = {"onnxopt": "onnxopt", "genai": "onnxruntime-genai's model builder"}
MEASURES = {
    "prompt": f"prompt of {PROMPT}, tokens/s",
    "alone": f"one token behind {PROMPT}, tokens/s",
    "batch": f"batch of {BATCH}, tokens/s",
}
ROUNDS = 9
LIMIT_SECONDS = 1800


def main() -> int:
    """Build both models, measure them in turns, write the results."""
    parser = argparse.ArgumentParser(description="Measure a decoder beside onnxruntime-genai's builder.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="starts of each model (default: %(default)s)")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    result = measure(arguments.rounds)
    print(render(result))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(rounds: int) -> dict[str, Any]:
    """Return seconds per start, for both models and all measures."""
    from importlib.metadata import version

    from onnxopt.host.machine import describe_machine, versions

    files = {"onnxopt": ours(), "genai": builders()}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in MEASURES} for name in files}
    for turn in range(rounds):
        for name in files if turn % 2 == 0 else reversed(files):
            print(f"round {turn + 1} of {rounds}, {name}", flush=True)
            taken = json.loads(_run([sys.executable, str(WORKER), str(files[name]), json.dumps(sizes())]))
            for key in MEASURES:
                found[name][key].append(taken[key])
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {**versions(), "onnxruntime-genai": version("onnxruntime-genai")},
        "load_before": load,
        "seconds": found,
    }


def sizes() -> dict[str, list[int]]:
    """Return batch, new tokens, tokens seen and room in the cache of each measure."""
    return {
        "prompt": [1, PROMPT, 0, CAPACITY],
        "alone": [1, 1, PROMPT, CAPACITY],
        "batch": [BATCH, 1, PROMPT, CAPACITY],
    }


def ours() -> Path:
    """Return our model, made on first use."""
    folder = FOLDER / "onnxopt"
    if not (folder / "model.onnx").is_file():
        _run([sys.executable, "-m", "onnxopt", "optimize", SAMPLE, "--no-measure", "--quiet", "--out", str(folder)])
    return folder / "model.onnx"


def builders() -> Path:
    """Return the model of onnxruntime-genai's builder, made on first use from the same weights."""
    folder = FOLDER / "genai"
    if not (folder / "model.onnx").is_file():
        from onnxopt.load.checkpoint.folder import read_checkpoint
        from onnxopt.load.source.source import resolve

        weights = read_checkpoint(resolve(SAMPLE)).folder
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
        _run([*builder, "-i", str(weights), "-o", str(folder), "-c", str(FOLDER / "cache")])
    return folder / "model.onnx"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {error_line(done.stderr)}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def render(result: Mapping[str, Any]) -> str:
    """Return the table and what it was measured on."""
    rows = []
    for name, title in MODELS.items():
        rows.append([title, *(cell(result, name, key, "genai") for key in MEASURES)])
    machine, versions = result["machine"], result["versions"]
    caption = (
        f"SmolLM2-135M, float32, {machine['cores']} threads of {table.escape(str(machine['cpu']))}, onnxruntime "
        f"{versions['onnxruntime']}, onnxruntime-genai {versions['onnxruntime-genai']}, cache in a shared buffer; "
        f"medians of {len(result['seconds']['genai']['alone'])} starts and half the distance between their quartiles, "
        "times the builder's by the median over rounds, "
        f"{str(result['created'])[:10]}, `make bench-decode`. Ours answers for the last position of a prompt, the "
        "builder's graph, as it makes it by default, for all."
    )
    return f"{caption}\n\n{table.lines(['model', *MEASURES.values()], rows)}\n"


def rate(result: Mapping[str, Any], name: str, key: str) -> tuple[float, float]:
    """Return the median of tokens a second over starts, and half the distance between the quartiles."""
    batch, new, _, _ = sizes()[key]
    rates = [batch * new / seconds for seconds in result["seconds"][name][key]]
    low, _, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else (rates[0],) * 3
    return statistics.median(rates), (high - low) / 2


def faster(result: Mapping[str, Any], name: str, other: str, key: str) -> float:
    """Return how many times faster a model is than another: the median over rounds, in which they ran close together.

    The machine is faster in one minute than in the next; within a round that is the same for both.
    """
    seconds = result["seconds"]
    ratios: list[float] = [slow / own for own, slow in zip(seconds[name][key], seconds[other][key], strict=True)]
    return statistics.median(ratios)


def cell(result: Mapping[str, Any], name: str, key: str, other: str) -> str:
    """Write tokens a second, and how many times another model's that is."""
    middle, spread = rate(result, name, key)
    times = f" ({faster(result, name, other, key):.2f}×)" if name != other else ""
    return f"{middle:,.0f} ± {spread:,.0f}{times}"


if __name__ == "__main__":
    sys.exit(main())

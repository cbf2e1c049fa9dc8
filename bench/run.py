"""Run everything side by side: `python -m bench.run` makes the models, measures, checks and writes results and tables.

Each model runs in processes of its own, in turns, as `onnxopt bench` does it: every round starts every model anew, and
every second round goes backwards. Answers are compared with torch on three batches: padded right, left, and with holes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bench import peers, table
from bench.inputs import bench_feeds, calibration_feeds, check_feeds
from bench.peers import MODELS, PEERS, ROOT, Made, Peer
from onnxopt.host.machine import describe_machine, versions
from onnxopt.host.runtime_errors import runtime_errors, runtime_line
from onnxopt.host.threads import available_threads
from onnxopt.run.session import open_session
from onnxopt.spec import Array, Feeds, Target
from onnxopt.timing.rounds import shape_stats

RESULTS = ROOT / "bench" / "results"
RESULT = RESULTS / "minilm.json"

START_SECONDS = 300
DEFAULT_SECONDS = 420.0
DEFAULT_ROUNDS = 5
_LEAST_SLICE_SECONDS = 0.05
_OUTPUT = "last_hidden_state"


@dataclass
class Entry:
    """What is known of a peer during a run."""

    peer: Peer
    made: Made
    error: str = ""
    errors: Mapping[str, float] | None = None
    cosine: float | None = None


def main() -> int:
    """Make, measure, check, write."""
    parser = argparse.ArgumentParser(description="Run the peers side by side with onnxopt on MiniLM.")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="about how long to measure")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="how often each model is started")
    parser.add_argument(
        "--only", default="", help="names of peers, separated by commas; the default export always runs"
    )
    parser.add_argument("--retry", action="store_true", help="make again what failed before")
    parser.add_argument("--fresh", default="", help="names of peers to make again")
    parser.add_argument("--make-only", action="store_true", help="make the models and stop")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, (table.START, table.END), RESULT)
    only = {name for name in arguments.only.split(",") if name}
    if unknown := (only | {name for name in arguments.fresh.split(",") if name}) - set(peers.BY_NAME):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(peers.BY_NAME)}")
    entries = make_all(only, retry=arguments.retry, fresh=set(arguments.fresh.split(",")))
    if arguments.make_only:
        return 0
    result = measure(entries, seconds=arguments.seconds, rounds=arguments.rounds)
    RESULTS.mkdir(exist_ok=True)
    target = RESULT if not only else MODELS / "partial.json"  # a run of some is no result to publish
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{table.render(result)}\nwritten to {target.relative_to(ROOT)}")
    return 0


def make_all(only: set[str], *, retry: bool, fresh: set[str]) -> list[Entry]:
    """Make the model of every peer that is wanted, and of those they start from."""
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    MODELS.mkdir(parents=True, exist_ok=True)
    calibration = MODELS / "calibration.npz"
    np.savez(calibration, allow_pickle=False, **calibration_feeds(folder))
    facts = {
        "checkpoint": str(folder),
        "calibration": str(calibration),
        "heads": config["num_attention_heads"],
        "hidden": config["hidden_size"],
    }
    wanted = wanted_peers(only)
    entries = []
    for peer in PEERS:
        if peer.name not in wanted:
            continue
        print(f"make {peer.name} ...", end=" ", flush=True)
        made = peers.make(peer, facts, retry=retry, fresh=peer.name in fresh)
        print(made.error or f"{made.seconds:.1f} s {made.note}".rstrip())
        if peer.measured and (not only or peer.name in only or peer is PEERS[0]):
            entries.append(Entry(peer, made, made.error))
    return entries


def wanted_peers(only: set[str]) -> set[str]:
    """Return the names of the peers to make: those asked for, the first, and all they start from."""
    wanted = (only | {PEERS[0].name}) if only else {peer.name for peer in PEERS}
    queue = list(wanted)
    while queue:
        source = peers.BY_NAME[queue.pop()].source
        if source and source not in wanted:
            wanted.add(source)
            queue.append(source)
    return wanted


def checkpoint() -> Path:
    """Return the folder with MiniLM's real weights."""
    from onnxopt.load.source.recipe import all_recipes
    from onnxopt.load.source.samples import fetch_sample

    return fetch_sample(all_recipes()["minilm"], progress=print)


def measure(entries: list[Entry], *, seconds: float, rounds: int) -> dict[str, Any]:
    """Check and time every model that could be made.

    Args:
        entries: the peers; the first is what the others are compared with.
        seconds: about how long to measure.
        rounds: how often each model is started.

    Returns:
        The result as plain data for JSON.
    """
    begin = time.perf_counter()
    folder = checkpoint()
    requests = bench_feeds(folder)
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as scratch:
        check_answers(entries, folder, Path(scratch))
        times = _time(entries, requests, Path(scratch), seconds=seconds, rounds=rounds)
    first = entries[0].peer.name
    return {
        "model": "all-MiniLM-L6-v2",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "threads": available_threads(),
        "rounds": rounds,
        "seconds": round(time.perf_counter() - begin, 1),
        "shapes": list(requests),
        "fill": {name: round(float(feeds["attention_mask"].mean()), 3) for name, feeds in requests.items()},
        "peers": [_summary(entry, requests, times.get(entry.peer.name), times[first]) for entry in entries],
    }


def check_answers(entries: list[Entry], folder: Path, scratch: Path) -> None:
    """Compare each model's answers with torch; an error of a model stops that model only."""
    cases = check_feeds(folder)
    expected = _reference(folder, cases)
    for entry in entries:
        if entry.error:
            continue
        print(f"check {entry.peer.name} ...", end=" ", flush=True)
        try:
            found = _answers(entry.peer, cases, scratch)
        except RuntimeError as error:
            entry.error = str(error)
            print(entry.error)
            continue
        entry.errors = {name: worst_error(found[name], expected[name], cases[name]) for name in cases}
        entry.cosine = min(lowest_cosine(found[name], expected[name], cases[name]) for name in cases)
        print("  ".join(f"{name} {error:.2g}" for name, error in entry.errors.items()))


def worst_error(found: Array, expected: Array, feeds: Feeds) -> float:
    """Return max|found - expected| / max|expected| over the real tokens of [batch, length, hidden]."""
    real = feeds["attention_mask"] != 0
    if found.shape != expected.shape or not np.isfinite(found[real]).all():
        return float("inf")
    return float(np.abs(found[real] - expected[real]).max() / np.abs(expected[real]).max())


def lowest_cosine(found: Array, expected: Array, feeds: Feeds) -> float:
    """Return the lowest cosine between two sentence embeddings: the means over the real tokens of each row."""
    if found.shape != expected.shape:
        return 0.0
    weights = feeds["attention_mask"][..., None].astype(np.float64)
    first, second = ((array * weights).sum(axis=1) for array in (found, expected))
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return float(((first * second).sum(axis=-1) / norms).min())


def _reference(folder: Path, cases: Mapping[str, Feeds]) -> dict[str, Array]:
    """Return what torch answers."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    with torch.no_grad():
        return {
            name: model(**{key: torch.from_numpy(array) for key, array in feeds.items()}).last_hidden_state.numpy()
            for name, feeds in cases.items()
        }


def _answers(peer: Peer, cases: Mapping[str, Feeds], scratch: Path) -> dict[str, Array]:
    """Run a model once per case.

    Raises:
        RuntimeError: with the runtime's word, when it fails.
    """
    if peer.runtime == "openvino":
        answers = {name: scratch / f"answer_{name}.npy" for name in cases}
        job = _job(peer, [_store(scratch, feeds) for feeds in cases.values()], 0.0)
        _start(peer, {**job, "answers": [str(path) for path in answers.values()]})
        return {name: np.load(path, allow_pickle=False) for name, path in answers.items()}
    try:
        session = open_session(peer.file, target=Target("cpu"))
        names = [value.name for value in session.get_outputs()]
        output = _OUTPUT if _OUTPUT in names else names[0]
        taken = {value.name for value in session.get_inputs()}
        return {
            name: session.run([output], {key: array for key, array in feeds.items() if key in taken})[0]
            for name, feeds in cases.items()
        }
    except runtime_errors() as error:
        raise RuntimeError(runtime_line(error)) from error


def _inputs_of(peer: Peer) -> set[str]:
    """Return the names of a model's inputs; OpenVINO's worker picks them by itself."""
    if peer.runtime == "openvino":
        return {"input_ids", "attention_mask", "token_type_ids"}
    return {value.name for value in open_session(peer.file, target=Target("cpu")).get_inputs()}


def _store(scratch: Path, feeds: Feeds) -> str:
    handle, path = tempfile.mkstemp(suffix=".npz", dir=scratch)
    with os.fdopen(handle, "wb") as file:
        np.savez(file, allow_pickle=False, **feeds)
    return path


def _job(peer: Peer, inputs: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return the job of a worker, in the words of `onnxopt.timing.worker`."""
    return {
        "model": str(peer.file),
        "provider": "cpu",
        "threads": available_threads(),
        "inputs": list(inputs),
        "seconds": seconds,
    }


def _start(peer: Peer, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own.

    Raises:
        RuntimeError: in words, when it gave no result.
    """
    ours = peer.runtime == "onnxruntime"
    program = [sys.executable, "-m", "onnxopt.timing.worker"]
    worker = [str(peers.python_of("openvino")), str(ROOT / "bench" / "openvino_worker.py")]
    try:
        done = subprocess.run(
            program if ours else worker,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=START_SECONDS,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it ran longer than {START_SECONDS} s") from error
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise RuntimeError(peers.error_line(done.stderr) or f"it ended with code {done.returncode}") from error
    if "error" in result:
        raise RuntimeError(result["error"]["what"])
    return result


def _time(
    entries: list[Entry], requests: Mapping[str, Feeds], scratch: Path, *, seconds: float, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the starts of each model; a first one, not counted, finds failures and tells what a start costs."""
    jobs: dict[str, dict[str, Any]] = {}
    begin = time.perf_counter()
    for entry in entries:
        if entry.error:
            continue
        taken = _inputs_of(entry.peer)
        stored = [
            _store(scratch, {name: array for name, array in feeds.items() if name in taken})
            for feeds in requests.values()
        ]
        job = _job(entry.peer, stored, 0.0)
        try:
            _start(entry.peer, job)
        except RuntimeError as error:
            entry.error = str(error)
            continue
        jobs[entry.peer.name] = job
    if entries[0].peer.name not in jobs:
        raise SystemExit(f"the default export cannot be measured: {entries[0].error}")
    once = time.perf_counter() - begin
    share = ((seconds - once) / rounds - once) / (len(jobs) * len(requests))
    slice_seconds = max(_LEAST_SLICE_SECONDS, share)
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for number in range(rounds):
        order = list(jobs) if number % 2 == 0 else list(reversed(jobs))
        for name in order:
            print(f"round {number + 1} of {rounds}, {name}")
            starts[name].append(_start(peers.BY_NAME[name], {**jobs[name], "seconds": slice_seconds}))
    return starts


def _summary(
    entry: Entry,
    requests: Mapping[str, Feeds],
    own: Sequence[Mapping[str, Any]] | None,
    first: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what stands in the result for one peer."""
    peer, made = entry.peer, entry.made
    facts: dict[str, Any] = {
        "name": peer.name,
        "title": peer.title,
        "runtime": peer.runtime,
        "precision": peer.precision,
        "error": entry.error,
        "note": made.note,
        "versions": dict(made.versions),
        "make_seconds": round(made.seconds, 2),
    }
    if entry.errors is not None:
        facts["errors"] = {name: round_figures(error) for name, error in entry.errors.items()}
        facts["cosine"] = entry.cosine
    if own:
        size = sum(file.stat().st_size for file in peer.file.parent.glob("model.*") if file.is_file())
        facts["size_bytes"] = size
        facts["load_ms"] = round(float(np.median([start["load_ms"] for start in own])), 1)
        facts["peak_bytes"] = max(start["peak_bytes"] for start in own)
        facts["latency"] = {
            name: shape_stats(
                {}, [start["times_ms"][index] for start in own], [start["times_ms"][index] for start in first]
            ).model_dump(exclude={"sizes"})
            for index, name in enumerate(requests)
        }
    return facts


def round_figures(value: float) -> float | str:
    """Return a number with three figures; what JSON cannot spell becomes a word."""
    return float(f"{value:.3g}") if np.isfinite(value) else "infinite"


if __name__ == "__main__":
    sys.exit(main())

"""What large models cost: `python -m bench.large --case 0.5b-float`, each under a limit of its memory.

Checkpoints of random weights in the shapes of known models are optimized in a process of their own, whose memory,
cached pages of files included, may not grow beyond a limit. Seconds by stage, memory and what a session of the result
takes are written into one record, case by case, since the largest take an hour each. One case is killed half way and
started again. `layers-…` differ in their number of layers alone: memory should stay flat, and time grow with them. The
peers' cases run onnxruntime-genai's model builder and llama.cpp on the same checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.checkpoints import SHAPES, Shape, count_of, write_checkpoint
from bench.large_table import rendered
from bench.limited import Outcome, forget, run_limited
from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "large.json"
FOLDER = ROOT / "build" / "bench" / "large"
MARKS = ("<!-- large -->", "<!-- /large -->")
GB = 10**9
INT4 = ("--precision", "int4-weights")
WEIGHTS_ALONE = ("--calibration", "none")
KILLED_AT = 0.5  # of the layers
WORKER_SECONDS = 1800


@dataclass(frozen=True)
class Case:
    """One road under a limit.

    Attributes:
        shape: of `bench.checkpoints.SHAPES`; empty for a model with real weights.
        source: the model, where it is none of ours.
        options: of `onnxopt optimize`, behind `--no-measure`.
        limit_bytes: of memory.
        goal_seconds: for the whole command; None where none is set.
        killed: whether it is killed half way through its layers and started again.
        in_ways: whether its result is opened in other ways, too.
        most_seconds: after which it is given up.
    """

    shape: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    limit_bytes: int = 4 * GB
    goal_seconds: float | None = None
    killed: bool = False
    in_ways: bool = False
    most_seconds: float = 3 * 3600.0


CASES: Mapping[str, Case] = {
    "100m-float": Case("100m", limit_bytes=2 * GB, in_ways=True),
    "100m-int4": Case("100m", options=INT4, limit_bytes=2 * GB, in_ways=True),
    "0.5b-float": Case("0.5b", limit_bytes=3 * GB, goal_seconds=90),
    "1.1b-int4": Case("1.1b", options=INT4, limit_bytes=4 * GB, goal_seconds=1800, in_ways=True),
    "3b-int4": Case("3b", options=INT4, limit_bytes=8 * GB, goal_seconds=5400, killed=True),
    "7b-int4": Case("7b", options=(*INT4, *WEIGHTS_ALONE), limit_bytes=10 * GB, most_seconds=6 * 3600.0),
    "smollm2-float": Case(source="smollm2-135m", limit_bytes=GB),
    "smollm2-int4": Case(source="smollm2-135m", options=INT4, limit_bytes=GB),
    **{f"layers-{count}": Case(f"layers-{count}", limit_bytes=2 * GB) for count in (4, 8, 16, 32)},
}


def main() -> int:
    """Run the cases that are asked for, and merge what was seen into the record."""
    parser = argparse.ArgumentParser(description="Optimize large models under limits of memory.")
    parser.add_argument("--case", action="append", choices=[*CASES, *_peers()], help="may be given more than once")
    parser.add_argument("--limit-gb", type=float, help="another limit than the case's, in 10^9 bytes; 0 for none")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint, cache and artifact where they are")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the record goes (default: %(default)s)")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    failed = 0
    for name in arguments.case or CASES:
        print(f"{name} ...", flush=True)
        limit = None if arguments.limit_gb is None else int(arguments.limit_gb * GB)
        record = measured(name, limit=limit, keep=arguments.keep)
        _merge(arguments.out, name, record)
        failed += bool(record["error"])
        print(record["error"] or f"{record['seconds']:,.0f} s, {record['peak_bytes'] / GB:.2f} GB", flush=True)
    return 1 if failed else 0


def _peers() -> list[str]:
    from bench.large_peers import PEERS

    return list(PEERS)


def measured(name: str, *, limit: int | None = None, keep: bool = False) -> dict[str, Any]:
    """Return what a case, of ours or of a peer, took on this machine.

    Args:
        name: of `CASES`, or of `bench.large_peers.PEERS`.
        limit: another limit than the case's, in bytes; 0 for none, None for the case's own.
        keep: leave what was made.
    """
    from bench.large_peers import PEERS, run_peer
    from onnxopt.host.machine import describe_machine, versions

    load = os.getloadavg()[0]
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if name in PEERS:
            found = run_peer(PEERS[name], checkpoint(SHAPES[PEERS[name].shape]), folder, limit=limit)
        else:
            case = CASES[name]
            bound = case.limit_bytes if limit is None else limit
            found = run_case(case, _source(case), folder, limit_bytes=bound or None)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "load_before": round(load, 1),
        **found,
    }


def checkpoint(shape: Shape) -> Path:
    """Return the folder of a checkpoint, made on first use; its shape names it."""
    name = next(name for name, one in SHAPES.items() if one == shape)
    return write_checkpoint(shape, FOLDER / "checkpoints" / name)


def _source(case: Case) -> str:
    from onnxopt.load.source.source import resolve

    if case.shape:
        return str(checkpoint(SHAPES[case.shape]))
    resolve(case.source)  # fetched and converted beforehand, so that it does not count
    return case.source


def run_case(case: Case, source: str, folder: Path, *, limit_bytes: int | None) -> dict[str, Any]:
    """Optimize a source under a limit and return what it took, and what a session of the result takes.

    Args:
        case: how.
        source: checkpoint folder, or the name of a sample.
        folder: for the cache and the artifact; both begin empty.
        limit_bytes: of memory; None for none.
    """
    shape = SHAPES.get(case.shape)
    out = folder / "artifact"
    command = [sys.executable, "-m", "onnxopt", "optimize", source, "--out", str(out), "--no-measure", *case.options]
    command += ["--progress", "json"]
    # the cache holds what was fetched of a sample; a checkpoint begins with an empty one
    environment = {"HF_HUB_OFFLINE": "1"} | ({"ONNXOPT_CACHE": str(folder / "cache")} if shape else {})
    runs: list[Outcome] = []
    layers = shape.layers if shape else 0
    for killed in (True, False) if case.killed else (False,):
        if shape:
            forget(Path(source))
        runs.append(
            run_limited(
                command,
                limit_bytes,
                stop=(lambda told: is_half_way(told, layers)) if killed else None,
                most_seconds=case.most_seconds,
                environment=environment,
            )
        )
        if runs[-1].error and not runs[-1].stopped:
            break
    last = runs[-1]
    error = last.error or ("" if not case.killed or runs[0].stopped else "it was over before half of its layers were")
    parameters = count_of(shape) if shape else 0
    found: dict[str, Any] = {
        "shape": asdict(shape) if shape else {"like": case.source},
        "options": list(case.options),
        "goal_seconds": case.goal_seconds,
        "error": error,
        "how": last.how,
        "limit_bytes": limit_bytes,
        "seconds": sum(run.seconds for run in runs),
        "killed_after_seconds": runs[0].seconds if case.killed and runs[0].stopped else None,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "anonymous_bytes": max(run.anonymous_bytes for run in runs),
        "stages": last.stages,
        "parameters": parameters,
        "float_bytes": 4 * parameters,
    }
    if not last.error:
        found["artifact_bytes"] = bytes_of(out)
        found["running"] = running(out / "model.onnx")
        found["ways"] = ways(out / "model.onnx", folder / "packed") if case.in_ways else {}
    return found


def is_half_way(told: Mapping[str, Any], layers: int) -> bool:
    """Tell from a line of progress whether half of what is done layer by layer is done.

    Args:
        told: what `--progress json` says.
        layers: of the model; what is counted in fewer pieces is another thing.
    """
    in_layers = told.get("stage") == "quantize" and (told.get("total") or 0) >= layers
    return in_layers and (told.get("fraction") or 0.0) >= KILLED_AT


def bytes_of(artifact: Path) -> int:
    """Return the bytes of the graph and its weights."""
    files = [artifact / "model.onnx", *artifact.glob("*.onnx_data"), *artifact.glob("*.onnx.data")]
    return sum(file.stat().st_size for file in files if file.is_file())


def running(model: Path, how: str = "onnxopt") -> dict[str, Any]:
    """Return what a session of a model takes, see `bench.large_worker`; empty with an `error` where it does not run.

    Args:
        model: the file.
        how: `onnxopt`, opened as our sessions are, or `onnxruntime`, as the runtime does by default.
    """
    command = [sys.executable, "-m", "bench.large_worker", str(model), how]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=WORKER_SECONDS)
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, subprocess.TimeoutExpired):
        return {"error": "it does not run"}


def ways(model: Path, folder: Path) -> dict[str, Any]:
    """Return what a session takes that packs no weights, and one of a file that holds them packed.

    Args:
        model: the file.
        folder: for the second file; made here.
    """
    folder.mkdir()
    packed = folder / model.name
    subprocess.run([sys.executable, "-m", "bench.large_worker", str(model), "pack", str(packed)], cwd=ROOT, check=False)
    found = {"mapped": (model, "mapped"), "packed": (packed, "onnxruntime")}
    return {
        name: {"artifact_bytes": bytes_of(path.parent), "running": running(path, how)}
        for name, (path, how) in found.items()
    }


def _merge(path: Path, name: str, record: Mapping[str, Any]) -> None:
    """Put the record of a case in the place of its last one."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}
    known["cases"][name] = record
    order = [*CASES, *_peers()]
    known["cases"] = dict(sorted(known["cases"].items(), key=lambda one: order.index(one[0])))
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def render(result: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    return rendered(result["cases"])


if __name__ == "__main__":
    sys.exit(main())

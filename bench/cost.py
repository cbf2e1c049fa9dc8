"""What optimizing costs: `python -m bench.cost` runs each tool on each model in a process of its own.

The models are the default export of SmolLM2-135M and encoders of 2,500 to 20,000 nodes with a few channels, where the
work of the tool is all there is. Every tool gets the same file, with its weights beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.peers import ROOT, error_line, python_of, tool_versions

RESULT = ROOT / "bench" / "results" / "cost.json"
MODELS = ROOT / "build" / "cost"
WORKER = ROOT / "bench" / "cost_worker.py"
MARKS = ("<!-- cost -->", "<!-- /cost -->")

SAMPLE = "smollm2-135m"
SIZES = (2_500, 5_000, 10_000, 20_000)
TOOLS = {"onnxopt": ("onnxopt, every rewrite proved", ""), "onnxslim": ("OnnxSlim", "simplifiers")}
TOOLS |= {"onnxsim": ("onnxsim", "simplifiers")}
LIMIT_SECONDS = 1200


def main() -> int:
    """Make the models, run the tools, write the results."""
    parser = argparse.ArgumentParser(description="Measure what optimizing costs, beside OnnxSlim and onnxsim.")
    parser.add_argument("--only", default="", help="names of models, separated by commas; their results are not kept")
    parser.add_argument("--tools", default=",".join(TOOLS), help="which tools")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    only = {name for name in arguments.only.split(",") if name}
    result = measure(only, arguments.tools.split(","))
    print(render(result))
    if not only and set(arguments.tools.split(",")) == set(TOOLS):
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written to {RESULT.relative_to(ROOT)}")
    return 0


def measure(only: set[str], tools: Sequence[str]) -> dict[str, Any]:
    """Run every tool on every model.

    Args:
        only: names of models; all when empty.
        tools: keys of `TOOLS`.
    """
    from onnxopt.host.machine import describe_machine, versions

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found = []
    for name, path in _models(only):
        facts: dict[str, Any] = {"name": name, "nodes": _nodes(path), "bytes": _bytes(path), "runs": {}}
        for tool in tools:
            print(f"{name}, {tool} ...", end=" ", flush=True)
            run = facts["runs"][tool] = run_tool(tool, path)
            print(run.get("error") or f"{run['seconds']:.1f} s", flush=True)
        found.append(facts)
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {**versions(), **tool_versions("simplifiers")},
        "load_before": load,
        "models": found,
    }


def run_tool(tool: str, path: Path) -> dict[str, Any]:
    """Run one tool on one model in a process of its own; `error` says why it gave nothing."""
    python = python_of(TOOLS[tool][1])
    if not python.exists():
        return {"error": "not installed; run make peers"}
    try:
        done = subprocess.run(
            [str(python), str(WORKER), tool, str(path)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {LIMIT_SECONDS} s"}
    try:
        taken: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": error_line(done.stderr) or f"it ended with code {done.returncode}"}
    return taken


def _models(only: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the models by name, written on first use."""
    MODELS.mkdir(parents=True, exist_ok=True)
    if not only or SAMPLE in only:
        yield SAMPLE, _written(MODELS / SAMPLE)
    for size in SIZES:
        if not only or str(size) in only:
            yield f"encoder, {size:,} nodes", _written(MODELS / f"encoder-{size}", size)


def _written(folder: Path, nodes: int = 0) -> Path:
    """Return the file of a model, with its weights beside it: an encoder of a size, or the sample's export."""
    import onnx_ir as ir

    path = folder / "model.onnx"
    if path.is_file():
        return path
    folder.mkdir(exist_ok=True)
    if nodes:
        from tests.support.synthetic import encoder_of

        model = encoder_of(nodes)
    else:
        from onnxopt.load.export.export import export
        from onnxopt.load.source.source import resolve

        model = export(resolve(SAMPLE), progress=print).model
    ir.save(model, path, external_data="model.onnx.data")
    return path


def _nodes(path: Path) -> int:
    import onnx_ir as ir

    return int(ir.load(path).graph.num_nodes())


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


def render(result: Mapping[str, Any]) -> str:
    """Return the table and what it was measured on."""
    rows = []
    for model in result["models"]:
        for tool, run in model["runs"].items():
            rows.append([*_title(model), TOOLS[tool][0], *_figures(run, model)])
    head = ["model", "tool", "opening", "time", "CPU time", "peak memory", "of the model's bytes", "nodes after"]
    return f"{_caption(result)}\n\n{table.lines(head, rows)}\n"


def _title(model: Mapping[str, Any]) -> list[str]:
    counted = "" if "nodes" in model["name"] else f", {model['nodes']:,} nodes, {model['bytes'] / 2**20:.0f} MiB"
    return [table.escape(f"{model['name']}{counted}")]


def _figures(run: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    if "error" in run:
        return [table.escape(str(run["error"])), "", "", "", "", ""]
    share = f"{run['peak_bytes'] / model['bytes']:.2f}×" if model["name"] == SAMPLE else ""
    memory = f"{run['peak_bytes'] / 2**20:,.0f} MiB"
    times = [f"{run[key]:.1f} s" for key in ("open_seconds", "seconds", "cpu_seconds")]
    return [*times, memory, share, f"{run['nodes']:,}"]


def _caption(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    tools = ", ".join(f"{name} {versions[name]}" for name in ("onnxopt", "onnxslim", "onnxsim") if name in versions)
    growth = "; ".join(
        f"{TOOLS[tool][0].split(',')[0]} n^{power:.2f}"
        for tool in TOOLS
        if (power := exponent(result, tool)) is not None
    )
    return (
        f"From the opened file to the optimized model in memory, each in its own process, {machine['cores']} cores of "
        f"{table.escape(str(machine['cpu']))}, {tools}, {str(result['created'])[:10]}, `make cost`. Peak memory is "
        "what was resident at the worst moment of that, pages mapped of the model's file included, above the process "
        f"with its libraries imported.{f' CPU time of the encoders grows as: {growth}.' if growth else ''}"
    )


def exponent(result: Mapping[str, Any], tool: str) -> float | None:
    """Return x where CPU time grows as nodes^x from the smallest encoder to the largest; None without both."""
    done = [
        (model["nodes"], model["runs"][tool]["cpu_seconds"])
        for model in result["models"]
        if model["name"] != SAMPLE and "error" not in model["runs"].get(tool, {"error": ""})
    ]
    if len(done) < 2:
        return None
    (few, short), (many, long) = min(done), max(done)
    return math.log(long / short) / math.log(many / few)


if __name__ == "__main__":
    sys.exit(main())

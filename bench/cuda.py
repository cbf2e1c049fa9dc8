"""BERT-base and a decode step of SmolLM2 in fp16 on a GPU, ours beside the peers: `python -m bench.cuda`.

Graphs are made first, without their weights (`--make DIR`, here, on a CPU), then timed (`--graphs DIR`), which needs
onnxruntime with its CUDA provider, torch and transformers, but neither onnxopt nor the tools of the peers: the folder
and `bench/cuda_worker.py` are all that a machine with a GPU must be given. The same random weights are written there
for every graph, so times compare and answers do not; that ours answers right is proved when it is made.

* ours: `onnxopt.optimize(target="cuda", precision="fp16:io")` of the modern export, and the same in other forms;
  outputs are in fp16, as the peers have them;
* exporters: `transformers.exporters` with `ort_fusions="cuda"`;
* classic: the TorchScript export of transformers 4 and onnxruntime's optimizer, right for padding on the right alone;
* genai: onnxruntime-genai's model builder, `-p fp16 -e cuda`;
* torch: eager and `torch.compile(mode="reduce-overhead")`, for the decode step with a static cache.

`--device cpu` runs the timing without CUDA graphs, to try the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import cuda_graphs, cuda_worker, table
from bench.peers import ROOT
from bench.record import TABLE, write
from onnxopt.pipeline.profit import CLEARLY_FASTER
from onnxopt.rewrite import AS_IS

RESULT = ROOT / "bench" / "results" / "cuda.json"
GRAPHS = ROOT / "build" / "bench-cuda" / "graphs"
MARKS = ("<!-- cuda -->", "<!-- /cuda -->")
TITLES = {
    "ours": "onnxopt --target cuda --precision fp16:io",
    "ours, strict norms": "the same, norms added up in float32, as sessions of onnxopt ask for",
    "ours, float32 outputs": "onnxopt --precision fp16",
    "ours, raw mask": "onnxopt, the mask as it is",
    "ours, --padding right": "onnxopt --padding right",
    "ours, embeddings apart": "onnxopt, embeddings in single operators",
    "exporters": "transformers.exporters, ort_fusions=cuda",
    "classic": "TorchScript (transformers 4) + onnxruntime.transformers, right padding only",
    "genai": "onnxruntime-genai's model builder, fp16 cuda",
    "torch eager": "torch, eager",
    "torch compiled": "torch.compile, reduce-overhead",
}
# passes with two forms: what the first is called, and the graph that has the region as it was
FORMS = {
    "pack-rows": ("lengths", "ours, raw mask"),
    "lower-embed-norm": ("EmbedLayerNormalization", "ours, embeddings apart"),
}
OWN_GRAPHS = ("torch compiled",)  # what captures CUDA graphs by itself


def main() -> int:
    """Make graphs, time them, or write the table."""
    parser = argparse.ArgumentParser(description="Time BERT-base and a decode step on a GPU beside their peers.")
    parser.add_argument("--make", type=Path, metavar="DIR", help="make the graphs, without weights, and stop")
    parser.add_argument("--only", default="", help="make those whose name contains this")
    parser.add_argument("--graphs", type=Path, default=GRAPHS, metavar="DIR", help="time these (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=cuda_worker.ROUNDS, help="turns of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the results go (default: %(default)s)")
    table.add_option(parser)
    parser.add_argument("--record", action="store_true", help="write which forms won into the package's table and stop")
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    if arguments.record:
        write([profits(json.loads(RESULT.read_text(encoding="utf-8")))], TABLE)
        print(f"forms written to {TABLE}")
        return 0
    if arguments.make:
        return 1 if cuda_graphs.make(arguments.make, arguments.only) else 0
    if not arguments.graphs.is_dir():
        cuda_graphs.make(arguments.graphs)
    options = ["--graphs", str(arguments.graphs), "--device", arguments.device, "--rounds", str(arguments.rounds)]
    sys.argv[1:] = [*options, "--out", str(arguments.out)]
    return cuda_worker.main()


def profits(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last results say of passes with several forms, as an entry of the package's table.

    Times are those of CUDA graphs, in which a form costs what its kernels cost.
    """
    rows = result["ms"]["bert"]
    shapes = list(rows["ours graph"])
    choices = []
    for name, (own, other) in FORMS.items():
        times = {own: [rows["ours graph"][s] for s in shapes], AS_IS: [rows[f"{other} graph"][s] for s in shapes]}
        ratios = [a / b for a, b in zip(times[own], times[AS_IS], strict=True)]
        form = own if statistics.geometric_mean(ratios) <= 1 else AS_IS
        worse = [ratio if form == own else 1 / ratio for ratio in ratios]
        choice = {"pass": name, "kind": "", "form": form, "disagree": max(worse) > 1 / CLEARLY_FASTER}
        choices.append(choice | {"times_ms": {key: [round(ms, 4) for ms in own] for key, own in times.items()}})
    sizes = [[["batch", int(b)], ["sequence", int(n)]] for b, n in (shape.split("x") for shape in shapes)]
    return {
        "digest": "",
        "model": "BERT-base, fp16",
        "provider": "cuda",
        "cpu": result["device"],
        "isa": [],
        "threads": 1,
        "onnxruntime": result["versions"]["onnxruntime"],
        "date": str(result["created"])[:10],
        "shapes": sizes,
        "fills": [1.0] * len(shapes),
        "weights": [],
        "choices": choices,
    }


def render(result: Mapping[str, Any]) -> str:
    """Return the tables and what they were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    caption = (
        f"Median ms of one request in fp16 on one {result['device']}, {versions}, bound buffers, plain / as a CUDA "
        f"graph, {str(result['created'])[:10]}, `python -m bench.cuda`. Weights are made up. The fastest of each "
        "column is bold."
    )
    parts = [caption]
    for model, title in (("bert", "BERT-base, batch × length"), ("smollm2", "SmolLM2-135M, one token")):
        rows = result["ms"].get(model, {})
        if rows:
            parts += [f"{title}:", _table(rows)]
    failed = result.get("failed", {})
    parts += [f"- {table.escape(name)} failed: {table.escape(error[:160])}" for name, error in sorted(failed.items())]
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    shapes = list(dict.fromkeys(shape for found in rows.values() for shape in found))
    names = [name for name in TITLES if name in rows or f"{name} graph" in rows]
    plain = {name: {} if name in OWN_GRAPHS else rows.get(name, {}) for name in names}
    graph = {name: rows.get(name if name in OWN_GRAPHS else f"{name} graph", {}) for name in names}
    lines = []
    for name in names:
        cells = [f"{_cell(shape, name, plain)} / {_cell(shape, name, graph)}" for shape in shapes]
        lines.append([TITLES[name], *cells])
    return table.lines(["model", *(shape.replace("x", " × ").replace("+", " behind ") for shape in shapes)], lines)


def _cell(shape: str, name: str, found: Mapping[str, Mapping[str, float]]) -> str:
    own = found[name].get(shape)
    if own is None:
        return "–"
    fastest = min(one[shape] for one in found.values() if shape in one)
    return f"**{own:.2f}**" if own <= fastest else f"{own:.2f}"


if __name__ == "__main__":
    sys.exit(main())

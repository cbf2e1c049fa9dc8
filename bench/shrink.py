"""What pruning costs and gives: `python -m bench.shrink` writes bench/results/shrink.json.

MiniLM loses a third of its feed-forward channels in four ways, each judged by the cosine of its embeddings on text that
nothing was fitted to, and the artifacts are timed in turns. SmolLM2 loses layers chosen in three ways, each judged by
its perplexity. `--only minilm` or `--only smollm2` runs one; what another run found stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "shrink.json"
MODELS = ROOT / "build" / "shrink"
PRECISIONS = ("fp32", "int8")
MARKS = ("<!-- shrink -->", "<!-- /shrink -->")
SHAPES = ({"batch": 1, "sequence": 128}, {"batch": 8, "sequence": 128})
WAYS = {
    "by the error left, refitted": {"importance": "error"},
    "by activations, refitted": {"importance": "activation"},
    "by magnitude, refitted": {"importance": "magnitude"},
    "by magnitude alone": {"importance": "magnitude", "compensate": False},
}
LAYERS = 6
ORDERS = {
    "least change of the residual stream": ("", 0),
    "last": (":last", 0),
    "drawn, seed 0": (":random", 0),
    "drawn, seed 1": (":random", 1),
}


def main() -> int:
    """Prune, judge, time, write."""
    parser = argparse.ArgumentParser(description="Measure what pruning costs and gives.")
    parser.add_argument("--only", choices=("minilm", "smollm2"), help="one of the models")
    parser.add_argument("--time", action="store_true", help="only time the artifacts that an earlier run made")
    parser.add_argument("--table", type=Path, help="write the tables of the last results into this file and stop")
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    if arguments.table:
        table.put(arguments.table, MARKS, render(known))
        print(f"table written to {arguments.table}")
        return 0
    parts: dict[str, Callable[[], dict[str, Any]]] = {"minilm": measure_minilm, "smollm2": measure_smollm2}
    for name, measure in parts.items():
        if arguments.only in (None, name) and not arguments.time:
            keep(known, name, measure())
    if arguments.only in (None, "minilm"):
        keep(known, "minilm", time_minilm())
    print(render(known))
    return 0


def keep(known: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Write what was found beside what is known."""
    known[name] = known.get(name, {}) | found | {"date": datetime.now(timezone.utc).date().isoformat()}
    RESULT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def measure_minilm() -> dict[str, Any]:
    """Prune a third of the feed-forward channels in every way; make artifacts of the original and the best."""
    from onnxopt.prune.run import prune
    from onnxopt.prune.spec import PruneSpec
    from onnxopt.road import optimize

    rows = []
    for number, (name, options) in enumerate(WAYS.items()):
        record = prune("minilm", PruneSpec.parse("ffn=33%", **options), MODELS / f"way-{number}")  # type: ignore[arg-type]  # as named
        print(f"{name}: cosine {record.value:.4f}", flush=True)
        rows.append({"way": name, "cosine": record.value, "bytes": record.bytes_after})
    for kind in PRECISIONS:
        for name, source in (("original", "minilm"), ("pruned", str(MODELS / "way-0"))):
            optimize(source, out=MODELS / f"{name}-{kind}", measure=False, precision=kind)
    return {"ways": rows}


def time_minilm() -> dict[str, Any]:
    """Time the artifacts in turns."""
    from onnxopt.bench import bench

    names = [(name, kind) for kind in PRECISIONS for name in ("original", "pruned")]
    paths = [MODELS / f"{name}-{kind}" for name, kind in names]
    found = bench(paths, shapes=SHAPES, rounds=5, seconds=25.0 * len(paths))
    times = {
        ", ".join(name): {" × ".join(map(str, shape.sizes.values())): shape.p50_ms for shape in one.shapes}
        for name, one in zip(names, found.candidates, strict=True)
    }
    sizes = {", ".join(name): one.size_bytes for name, one in zip(names, found.candidates, strict=True)}
    return {"times": times, "sizes": sizes, "machine": found.machine, "versions": found.versions}


def measure_smollm2() -> dict[str, Any]:
    """Take six of thirty layers out in every order and judge by perplexity."""
    from onnxopt.distill.models import open_checkpoint
    from onnxopt.prune.judging import ask, read_samples
    from onnxopt.prune.network import choose_layers, keep_layers
    from onnxopt.prune.spec import PruneSpec

    opened = open_checkpoint("smollm2-135m")
    samples = read_samples(opened)
    judged = samples.judge[:2]
    rows: list[dict[str, Any]] = [{"order": "none", "gone": [], "perplexity": ask(opened, judged).level}]
    print(rows[0], flush=True)
    count = int(opened.config.num_hidden_layers)
    for name, (order, seed) in ORDERS.items():
        again = open_checkpoint("smollm2-135m")
        spec = PruneSpec.parse(f"layers={LAYERS}{order}", seed=seed)
        kept, _ = choose_layers(again.network, again.config, LAYERS, spec, samples.fit[:2])
        keep_layers(again.network, again.config, kept)
        gone = [index for index in range(count) if index not in kept]
        rows.append({"order": name, "gone": gone, "perplexity": ask(again, judged).level})
        print(rows[-1], flush=True)
        del again
    return {"rows": rows, "tokens": sum(int(one["attention_mask"].sum()) for one in judged)}


def render(known: dict[str, Any]) -> str:
    """Return the tables as markdown."""
    parts = []
    if found := known.get("minilm"):
        parts.append(
            "MiniLM without a third of its feed-forward channels (1,536 to 1,024 in each layer), nothing trained: "
            f"mean cosine with the original's embeddings on held-out text, {found['date']}, `make bench-shrink`.\n"
        )
        parts.append("| channels chosen | cosine |\n| --- | ---: |")
        parts += [f"| {row['way']} | {row['cosine']:.4f} |" for row in found["ways"]]
    if found and "times" in found:
        machine, shapes = found["machine"], list(next(iter(found["times"].values())))
        where = f"{machine.get('cpu', machine.get('model', 'CPU'))}"
        parts.append(f"\nMedian ms of one request and size; {where}.\n")
        parts.append(f"| model | {' | '.join(shapes)} | size |\n| --- |{' ---: |' * (len(shapes) + 1)}")
        for name, times in found["times"].items():
            base = found["times"]["original, " + name.split(", ")[1]]
            cells = [f"{times[shape]:.1f} ({base[shape] / times[shape]:.2f}×)" for shape in shapes]
            parts.append(f"| {name} | {' | '.join(cells)} | {found['sizes'][name] / 2**20:.0f} MiB |")
    if found := known.get("smollm2"):
        parts.append(
            f"\nSmolLM2-135M with {LAYERS} of its 30 layers taken out, nothing trained: perplexity on "
            f"{found['tokens']:,} held-out tokens, {found['date']}.\n"
        )
        parts.append("| layers chosen | gone | perplexity |\n| --- | --- | ---: |")
        for row in found["rows"]:
            parts.append(f"| {row['order']} | {', '.join(map(str, row['gone'])) or '–'} | {row['perplexity']:,.1f} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

"""What pruning costs and gives: `python -m bench.shrink` writes bench/results/shrink.json.

MiniLM loses a third of its feed-forward channels in four ways, each judged by the cosine of its embeddings on text that
nothing was fitted to. SmolLM2 loses layers chosen in three ways, each judged by its perplexity. Two networks of
convolutions lose channels through their residuals. Originals and what is left are timed in turns.

`--only PART` does one of them, `--make` only makes and judges, `--time` only times what an earlier run made; what
another run found stays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import distill, shrink_images, table
from bench.decode import MEASURES, WORKER, sizes
from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "shrink.json"
MODELS = ROOT / "build" / "shrink"
MARKS = ("<!-- shrink -->", "<!-- /shrink -->")

PRECISIONS = ("fp32", "int8")
SHAPES = ({"batch": 1, "sequence": 128}, {"batch": 8, "sequence": 128})
WAYS: dict[str, dict[str, Any]] = {  # options of `PruneSpec.parse`
    "by the error left, refitted": {"importance": "error"},
    "by activations, refitted": {"importance": "activation"},
    "by magnitude, refitted": {"importance": "magnitude"},
    "by magnitude alone": {"importance": "magnitude", "compensate": False},
}
HELD_OUT = slice(640, 896)  # of the built-in texts: behind those that pruning and int8 are calibrated with
LAYERS, JUDGED = 6, 2  # layers that go; batches that judge
ORDERS = {
    "least change of the residual stream": ("", 0),
    "last": (":last", 0),
    "drawn, seed 0": (":random", 0),
    "drawn, seed 1": (":random", 1),
}
ROUNDS, SECONDS = 5, 25.0  # of each artifact
STARTS = 3  # of each decoder


def main() -> int:
    """Prune, judge, time, write."""
    parser = argparse.ArgumentParser(description="Measure what pruning costs and gives.")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    parser.add_argument("--make", action="store_true", help="only make and judge")
    parser.add_argument("--time", action="store_true", help="only time what an earlier run made")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    known = read(RESULT)
    chosen = [name for name in PARTS if arguments.only in (None, name)]
    for step, skipped in ((0, arguments.time), (1, arguments.make)):
        for name in () if skipped else chosen:
            keep(known, name, PARTS[name][step]())
    print(render(known))
    return 0


def read(path: Path) -> dict[str, Any]:
    """Return what an earlier run found, or nothing."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def keep(known: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Write what was found beside what is known by now."""
    known |= read(RESULT)
    known[name] = known.get(name, {}) | found | {"date": datetime.now(timezone.utc).date().isoformat()}
    RESULT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def make_minilm() -> dict[str, Any]:
    """Prune a third of the feed-forward channels in every way; make artifacts of the original and the best."""
    from onnxopt.prune.run import prune
    from onnxopt.prune.spec import PruneSpec
    from onnxopt.road.optimize import optimize

    rows = []
    for number, (name, options) in enumerate(WAYS.items()):
        record = prune("minilm", PruneSpec.parse("ffn=33%", **options), MODELS / f"way-{number}")
        print(f"{name}: cosine {record.value:.4f}", flush=True)
        rows.append({"way": name, "cosine": record.value, "bytes": record.bytes_after})
    answers = {}
    for kind in PRECISIONS:
        for name, source in (("original", "minilm"), ("pruned", str(MODELS / "way-0"))):
            out = MODELS / f"{name}-{kind}"
            optimize(source, out=out, measure=False, precision=kind)
            answers[f"{name}, {kind}"] = embed(out)
            print(f"{name}, {kind} made", flush=True)
    from onnxopt.judge.metrics import cosine

    first = answers["original, fp32"]
    return {"ways": rows, "cosines": {name: float(cosine(one, first).mean()) for name, one in answers.items()}}


def embed(folder: Path) -> Any:
    """Return float32 [texts, width], the embeddings of the held-out texts."""
    import numpy as np

    from onnxopt.run.inputs.text import TextModel
    from onnxopt.run.session import Session
    from onnxopt.texts.builtin import builtin_texts

    model = TextModel.open(folder, Session(folder))
    texts = builtin_texts()[HELD_OUT]
    return np.concatenate([model.run([one]).outputs["sentence_embedding"] for one in model.encode(texts)])


def time_minilm() -> dict[str, Any]:
    """Time the artifacts in turns."""
    names = [(name, kind) for kind in PRECISIONS for name in ("original", "pruned")]
    return time_artifacts([", ".join(one) for one in names], [MODELS / "-".join(one) for one in names], SHAPES)


def time_artifacts(names: Sequence[str], paths: Sequence[Path], shapes: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Return milliseconds by name and shape (the median of the best start), sizes, machine and versions."""
    from onnxopt.timing.bench import bench

    found = bench(paths, shapes=shapes, rounds=ROUNDS, seconds=SECONDS * len(paths))
    times = {
        name: {" × ".join(map(str, shape.sizes.values())): shape.round_low_ms for shape in one.shapes}
        for name, one in zip(names, found.candidates, strict=True)
    }
    weights = {name: one.size_bytes for name, one in zip(names, found.candidates, strict=True)}
    return {"times": times, "sizes": weights, "machine": found.machine, "versions": found.versions}


def make_smollm2() -> dict[str, Any]:
    """Take six of thirty layers out in every order and judge by perplexity; make artifacts of the original and one."""
    from onnxopt.load.checkpoint.opened import open_checkpoint
    from onnxopt.prune.checkpoint.network import choose_layers, keep_layers
    from onnxopt.prune.checkpoint.student import write_opened
    from onnxopt.prune.judging import ask, read_samples
    from onnxopt.prune.spec import PruneSpec
    from onnxopt.road.optimize import optimize

    opened = open_checkpoint("smollm2-135m")
    samples = read_samples(opened)
    judged = samples.judge[:JUDGED]
    rows: list[dict[str, Any]] = [{"order": "none", "gone": [], "perplexity": ask(opened, judged).level}]
    print(rows[0], flush=True)
    count = int(opened.config.num_hidden_layers)
    del opened
    student = MODELS / "smollm2-student"
    for number, (name, (order, seed)) in enumerate(ORDERS.items()):
        again = open_checkpoint("smollm2-135m")
        spec = PruneSpec.parse(f"layers={LAYERS}{order}", seed=seed)
        kept, _ = choose_layers(again.network, again.config, LAYERS, spec, samples.fit[:2])
        keep_layers(again.network, again.config, kept)
        gone = [index for index in range(count) if index not in kept]
        rows.append({"order": name, "gone": gone, "perplexity": ask(again, judged).level})
        print(rows[-1], flush=True)
        if number == 0:
            write_opened(again, student)
        del again
    for name, source in (("original", "smollm2-135m"), ("student", str(student))):
        optimize(source, out=MODELS / f"smollm2-{name}-fp32", measure=False)
    return {"rows": rows, "tokens": sum(int(one["attention_mask"].sum()) for one in judged)}


def time_smollm2() -> dict[str, Any]:
    """Time prompts and single tokens, each start of a model in a process of its own, in turns."""
    from onnxopt.host.machine import describe_machine, versions

    names = ("original", "student")
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in MEASURES} for name in names}
    for turn in range(STARTS):
        for name in names if turn % 2 == 0 else reversed(names):
            file = MODELS / f"smollm2-{name}-fp32" / "model.onnx"
            command = [sys.executable, str(WORKER), str(file), json.dumps(sizes())]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, cwd=ROOT)
            taken = json.loads(done.stdout.strip().splitlines()[-1])
            for key in MEASURES:
                found[name][key].append(taken[key])
    return {"seconds": found, "machine": describe_machine(), "versions": versions()}


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "minilm": (make_minilm, time_minilm),
    "smollm2": (make_smollm2, time_smollm2),
    "images": (lambda: shrink_images.make(MODELS), lambda: shrink_images.measure(MODELS, time_artifacts)),
}


def render(known: dict[str, Any]) -> str:
    """Return the tables as markdown."""
    parts = []
    if found := known.get("minilm"):
        parts += _minilm(found)
    if found := known.get("smollm2"):
        parts += _smollm2(found)
    if found := read(distill.RESULT):
        parts += distill.render(found)
    if found := known.get("images"):
        parts += shrink_images.render(found)
    return "\n\n".join(parts) + "\n"


def _minilm(found: dict[str, Any]) -> list[str]:
    caption = (
        "MiniLM without a third of its feed-forward channels (1,536 to 1,024 in each layer), nothing trained: mean "
        f"cosine with the original's embeddings on held-out text, {found['date']}, `make bench-shrink`."
    )
    parts = [
        caption,
        table.lines(["channels chosen", "cosine"], [[row["way"], f"{row['cosine']:.4f}"] for row in found["ways"]]),
    ]
    if "times" not in found:
        return parts
    shapes = list(next(iter(found["times"].values())))
    rows = []
    for name, times in found["times"].items():
        base = found["times"]["original, " + name.split(", ")[1]]
        cells = [f"{times[shape]:.1f} ({base[shape] / times[shape]:.2f}×)" for shape in shapes]
        rows.append([name, *cells, f"{found['cosines'][name]:.4f}", f"{found['sizes'][name] / 2**20:.0f} MiB"])
    parts.append(
        f"Ms of one request (batch × tokens; the median of the best of {ROUNDS} starts in turns), and the cosine with "
        f"the original in fp32; {where(found)}."
    )
    parts.append(table.lines(["model", *shapes, "cosine", "size"], rows))
    return parts


def _smollm2(found: dict[str, Any]) -> list[str]:
    caption = (
        f"SmolLM2-135M with {LAYERS} of its 30 layers taken out, nothing trained: perplexity on {found['tokens']:,} "
        f"held-out tokens of the built-in text, {found['date']}."
    )
    parts = [
        caption,
        table.lines(
            ["layers chosen by", "gone", "perplexity"],
            [
                [row["order"], ", ".join(map(str, row["gone"])) or "–", f"{row['perplexity']:,.1f}"]
                for row in found["rows"]
            ],
        ),
    ]
    if "seconds" not in found:
        return parts
    rows = []
    for name, times in found["seconds"].items():
        cells = []
        for key in MEASURES:
            batch, new, _, _ = sizes()[key]
            own, other = (min(one[key]) for one in (times, found["seconds"]["original"]))
            cells.append(f"{batch * new / own:,.0f} ({other / own:.2f}×)")
        rows.append([{"original": "30 layers", "student": "24 layers"}[name], *cells])
    parts.append(f"The two as artifacts in fp32; the best of {STARTS} starts; {where(found)}.")
    parts.append(table.lines(["model", *MEASURES.values()], rows))
    return parts


def where(found: dict[str, Any]) -> str:
    """Return what something was measured on."""
    machine, versions = found["machine"], found["versions"]
    return (
        f"{machine['cores']} threads of {table.escape(str(machine['cpu']))}, onnxruntime {versions['onnxruntime']}, "
        f"{found['date']}"
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""Teach SmolLM2 with 24 of its 30 layers what it lost: `python -m bench.distill` writes bench/results/distill.json.

The layers that turn the residual stream least go; what is left learns the teacher's distribution over the next token
on text of yours, or on what lies beside every onnxopt. Perplexity is measured on held-out text of the same kind, and on
the built-in text, which is not taught on. With a GPU, `--seconds` measures first how many updates fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import table
from bench.peers import ROOT
from onnxopt.spec import Say

if TYPE_CHECKING:
    from onnxopt.load.checkpoint.opened import Opened
    from onnxopt.prune.checkpoint.network import Batch

RESULT = ROOT / "bench" / "results" / "distill.json"
WORK = ROOT / "build" / "distill"
TEACHER = "smollm2-135m"
LAYERS = 6
BATCH, LENGTH, RATE = 64, 256, 6e-4
LOOKS = 12
OVERHEAD_SECONDS = 45.0  # of looks, loading and writing
TRIED = 5  # updates that are timed


def main() -> int:
    """Drop layers, teach, judge, write."""
    parser = argparse.ArgumentParser(description="Distil SmolLM2 without six of its layers.")
    parser.add_argument("--data", type=Path, nargs="*", help="text to learn from; what lies beside onnxopt by default")
    parser.add_argument("--evaluate", type=Path, help="held-out text of the same kind")
    parser.add_argument("--judge", default="builtin", help="what stands for the built-in text (default: %(default)s)")
    parser.add_argument("--about", default="prose that lies beside onnxopt", help="what the text is")
    parser.add_argument("--steps", type=int, default=300, help="updates (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of an update (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="with a GPU: as many updates as fit into so many seconds in all")
    parser.add_argument("--most-rows", type=int, default=0, help="rows of text that are read; 0 for all")
    parser.add_argument("--out", type=Path, default=RESULT, help="result (default: %(default)s)")
    arguments = parser.parse_args()
    teach(arguments)
    return 0


def teach(wanted: argparse.Namespace) -> dict[str, Any]:
    """Run the whole and write what was found after each stage."""
    import torch

    from onnxopt.host.machine import describe_machine
    from onnxopt.load.checkpoint.opened import open_checkpoint
    from onnxopt.prune.judging import ask, read_samples

    began = time.perf_counter()
    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(0) if gpu else str(describe_machine()["cpu"]),
        "text": wanted.about,
        "builtin": {},
    }

    def note(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)

    def keep() -> None:
        found["seconds"] = time.perf_counter() - began
        wanted.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    WORK.mkdir(parents=True, exist_ok=True)
    data, evaluate = (wanted.data, wanted.evaluate) if wanted.data else gather(WORK)
    teacher = open_checkpoint(TEACHER)
    samples = read_samples(teacher, wanted.judge)
    found["tokens"] = sum(int(one["attention_mask"].sum()) for one in samples.judge)
    found["builtin"]["teacher"] = ask(teacher, samples.judge).level
    student, kept = pruned(samples.fit[:2])
    found["kept"] = kept
    found["builtin"]["pruned"] = ask(student, samples.judge).level
    note(f"{len(kept)} layers stay; perplexity on the built-in text: {found['builtin']}")
    keep()
    steps = wanted.steps
    if gpu and wanted.seconds:
        rate = updates_a_second(teacher.network, student.network, wanted.batch)
        left = wanted.seconds - (time.perf_counter() - began) - OVERHEAD_SECONDS
        steps = max(LOOKS, int(0.92 * rate * left))
        note(f"{rate:.2f} updates a second, so {steps}")
    del teacher, student
    found["distillation"] = distilled(wanted, steps, data, evaluate, gpu=gpu, say=note)
    keep()
    found["builtin"]["distilled"] = ask(open_checkpoint(str(WORK / "taught")), samples.judge).level
    note(f"perplexity on the built-in text: {found['builtin']}")
    keep()
    return found


def pruned(texts: Sequence[Batch]) -> tuple[Opened, list[int]]:
    """Return the teacher with the layers alone that some texts miss the most, which is also written, and their numbers.

    Args:
        texts: inputs that layers are chosen by.
    """
    from onnxopt.load.checkpoint.opened import open_checkpoint
    from onnxopt.prune.checkpoint.network import choose_layers, keep_layers
    from onnxopt.prune.checkpoint.student import write_opened
    from onnxopt.prune.spec import PruneSpec

    student = open_checkpoint(TEACHER)
    kept, _ = choose_layers(student.network, student.config, LAYERS, PruneSpec.parse(f"layers={LAYERS}"), texts)
    keep_layers(student.network, student.config, kept)
    write_opened(student, WORK / "student")
    return student, kept


def distilled(
    wanted: argparse.Namespace, steps: int, data: Sequence[Path], evaluate: Path, *, gpu: bool, say: Say
) -> dict[str, Any]:
    """Teach the written student, and return the record without the places of files.

    Args:
        wanted: the command's options.
        steps: updates.
        data: files to learn from.
        evaluate: the file to judge on.
        gpu: in bfloat16, then.
        say: told what is done.
    """
    from onnxopt.distill.run import distill

    record = distill(
        TEACHER,
        WORK / "taught",
        student=str(WORK / "student"),
        data=tuple(map(str, data)),
        evaluate=str(evaluate) if evaluate else "",
        steps=steps,
        batch=wanted.batch,
        length=LENGTH,
        learning_rate=RATE,
        losses={"logits": 1.0},
        temperature=1.0,
        mixed_precision="bf16" if gpu else "no",
        evaluate_every=max(1, steps // LOOKS),
        most_rows=wanted.most_rows,
        progress=say,
    )
    told: dict[str, Any] = json.loads(record.to_json())
    told["settings"] |= {
        "student": "student",
        "data": [Path(name).name for name in told["settings"]["data"]],
        "evaluate": Path(told["settings"]["evaluate"]).name,
    }
    return told


def gather(folder: Path) -> tuple[list[Path], Path]:
    """Write the prose beside onnxopt, without the built-in text, as files to learn from and one to judge on."""
    from training.text import documents

    taught = [one for one in documents() if not one.origin.startswith("topics/")]
    train, held = folder / "train.txt", folder / "held-out.txt"
    train.write_text("\n\n".join(one.text for one in taught if not one.held_out), encoding="utf-8")
    held.write_text("\n\n".join(one.text for one in taught if one.held_out), encoding="utf-8")
    return [train], held


def updates_a_second(teacher: Any, student: Any, batch: int) -> float:
    """Time a few updates that change nothing to speak of, on the GPU."""
    import torch

    from onnxopt.distill import losses

    teacher.to("cuda")
    student.to("cuda")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-9)
    ids = torch.randint(10, 40_000, (batch, LENGTH), device="cuda")
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    began = 0.0
    for step in range(TRIED + 3):
        if step == 3:  # the first ones choose kernels
            torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                theirs = teacher(**feeds).logits.flatten(0, 1)
            ours = student(**feeds).logits.flatten(0, 1)
            loss = losses.distribution(ours, logits=theirs, temperature=1.0) / ids.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    rate = TRIED / (time.perf_counter() - began)
    for network in (teacher, student):
        network.to("cpu")
    del optimizer, theirs, ours, loss
    torch.cuda.empty_cache()
    return rate


def render(found: dict[str, Any]) -> list[str]:
    """Return the table and the curve."""
    record = found["distillation"]
    builtin = found["builtin"]
    caption = (
        f"The 24 layers then learn the teacher's distribution over the next token: {record['steps']:,} updates of "
        f"{record['settings']['batch']} × {record['settings']['length']} tokens of {table.escape(found['text'])}, "
        f"{record['tokens_per_second']:,.0f} tokens/s on {table.escape(found['device'])}, {found['created'][:10]}, "
        f"`python -m bench.distill`. Perplexity on text that was not taught on: {record['held_out']} rows of the same "
        f"kind, and {found['tokens']:,} tokens of the built-in text."
    )
    rows = [
        ["teacher, 30 layers", f"{record['teacher_metric']:.1f}", f"{builtin['teacher']:.1f}"],
        ["24 layers", f"{record['before']:.1f}", f"{builtin['pruned']:.1f}"],
        ["24 layers, distilled", f"{record['after']:.1f}", f"{builtin['distilled']:.1f}"],
    ]
    curve = ", ".join(f"{point['step']:,}: {point['metric']:.1f}" for point in record["curve"])
    return [
        caption,
        table.lines(["model", "same kind of text", "built-in text"], rows).replace("| --- | --- |", "| --- | ---: |"),
        f"The first of them by updates made: {curve}.",
    ]


if __name__ == "__main__":
    sys.exit(main())

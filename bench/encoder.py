"""What static int8 leaves of a sentence encoder: `python -m bench.encoder`.

MiniLM in float and in int8, calibrated with the built-in English (CPython's manuals), judged on text that neither
calibration nor search has seen: docstrings of CPython's library. The cosine between both models' embeddings of 500
texts, and how often a summary line finds its own docstring among all of them. Besides, what calibrating with 2,000
texts of 8 to 512 tokens takes: its own process, its time, its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.peers import ROOT, error_line
from bench.quantized import docstrings

FOLDER = ROOT / "build" / "bench" / "encoder"
RESULT = ROOT / "bench" / "results" / "minilm-int8.json"
MARKS = ("<!-- encoder -->", "<!-- /encoder -->")
SAMPLE = "minilm"
TEXTS = 500
LONGEST = 256  # tokens of a text that is judged
CALIBRATION_TEXTS, SHORTEST_TOKENS, LONGEST_TOKENS = 2000, 8, 512
MIB = 2**20
OURS = {"float": (), "int8": ("--precision", "int8")}


def main() -> int:
    """Make both models, judge, calibrate, write the results."""
    parser = argparse.ArgumentParser(description="Judge MiniLM in int8 on text it has never seen.")
    parser.add_argument("--make", action="store_true", help="make what is missing, and stop")
    parser.add_argument("--calibrate", action="store_true", help=argparse.SUPPRESS)  # the child process
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.calibrate:
        print(json.dumps(calibrate()))
        return 0
    seconds = models()
    if arguments.make:
        return 0
    result = {**judged(), **_described(), "make_seconds": seconds, "calibration": _child()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(render(result))
    return 0


def models() -> dict[str, float]:
    """Make the models that are missing, and return the seconds that each took when it was made."""
    notes = FOLDER / "seconds.json"
    seconds: dict[str, float] = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    for name, options in OURS.items():
        if (FOLDER / name / "model.onnx").is_file() and name in seconds:
            continue
        print(f"making {name}", flush=True)
        started = time.perf_counter()
        command = [sys.executable, "-m", "onnxopt", "optimize", SAMPLE, "--quiet", *options]
        done = subprocess.run(
            [*command, "--out", str(FOLDER / name)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(error_line(done.stderr) or f"optimize ended with code {done.returncode}")
        seconds[name] = time.perf_counter() - started
        notes.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds


def documents() -> list[tuple[str, str]]:
    """Return summary lines with the text behind each."""
    found: dict[str, str] = {}
    for text in docstrings(methods=True):
        summary, _, rest = text.partition("\n\n")
        title = " ".join(summary.split())
        if 20 <= len(title) <= 120 and len(rest.split()) >= 12:
            found.setdefault(title, " ".join(rest.split()))
    return list(found.items())


def judged() -> dict[str, Any]:
    """Return the cosines of held-out texts between both models, and how well each finds what belongs together."""
    import numpy as np

    pairs = documents()
    texts = [text for pair in pairs for text in pair][:TEXTS]
    embedded = {
        name: (_embed(FOLDER / name, texts), *(_embed(FOLDER / name, list(part)) for part in zip(*pairs, strict=True)))
        for name in OURS
    }
    cosines = (embedded["float"][0] * embedded["int8"][0]).sum(axis=1)
    accuracy = {}
    for name, (_, titles, bodies) in embedded.items():
        accuracy[name] = float(np.mean((titles @ bodies.T).argmax(axis=1) == np.arange(len(titles))))
    return {
        "texts": len(texts),
        "cosine": {"mean": float(cosines.mean()), "worst": float(cosines.min())},
        "documents": len(pairs),
        "accuracy": accuracy,
        "megabytes": {name: (FOLDER / name / "model.onnx").stat().st_size / 1e6 for name in OURS},
    }


def _embed(folder: Path, texts: list[str]) -> Any:
    """Return float [texts, width], embeddings of length 1."""
    import numpy as np

    from onnxopt.run.session import Session
    from onnxopt.texts.tokenizer import open_tokenizer

    tokenizer, session = open_tokenizer(folder), Session(folder / "model.onnx")
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    rows: dict[int, Any] = {}
    for start in range(0, len(order), 16):
        places = order[start : start + 16]
        encoded = tokenizer.encode_batch([texts[place] for place in places])
        ids, mask = (np.array([getattr(one, key) for one in encoded], np.int64) for key in ("ids", "attention_mask"))
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found = session.run({spec.name: given[spec.name] for spec in session.inputs})["sentence_embedding"]
        rows.update(zip(places, found / np.linalg.norm(found, axis=1, keepdims=True), strict=True))
    return np.array([rows[place] for place in range(len(texts))])


def calibrate() -> dict[str, float]:
    """Calibrate the float model with many texts and return what it took: seconds, and bytes at the worst moment."""
    from onnxopt.calibrate.collect import collect
    from onnxopt.calibrate.data import read_calibration
    from onnxopt.graph.linears import find_linears
    from onnxopt.load.onnx_file import load_onnx
    from onnxopt.pipeline.pipeline import Pipeline
    from onnxopt.spec import Target

    texts = _many_texts()
    loaded = load_onnx(FOLDER / "float" / "model.onnx")
    pipeline = Pipeline(loaded, Target("cpu"))
    pipeline.canonicalize_and_fuse()
    before = _peak()
    started = time.perf_counter()
    data = read_calibration(loaded, texts, samples=CALIBRATION_TEXTS)
    inputs = list(dict.fromkeys(linear.x for linear in find_linears(pipeline.model)))
    fitted = collect(pipeline.model, inputs, data, "fit")
    collect(pipeline.model, inputs, data, "choose")
    return {
        "seconds": time.perf_counter() - started,
        "samples": data.record.samples,
        "shortest": data.record.shortest,
        "longest": data.record.longest,
        "tokens": data.record.tokens,
        "tensors": len(fitted),
        "model_bytes": (FOLDER / "float" / "model.onnx").stat().st_size,
        "loaded_bytes": before,
        "peak_bytes": _peak(),
    }


def _many_texts() -> Path:
    """Write prose of all lengths, log-uniform between the shortest and the longest, and return its file."""
    import numpy as np

    from onnxopt.texts.builtin import builtin_texts
    from onnxopt.texts.tokenizer import open_tokenizer

    path = FOLDER / "calibration.jsonl"
    tokenizer = open_tokenizer(FOLDER / "float")
    words = " ".join(builtin_texts()).split()
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.uniform(np.log(SHORTEST_TOKENS), np.log(LONGEST_TOKENS), CALIBRATION_TEXTS)).astype(int)
    with path.open("w", encoding="utf-8") as file:
        for length, start in zip(
            lengths, generator.integers(0, len(words) - LONGEST_TOKENS, len(lengths)), strict=True
        ):
            text = " ".join(words[start : start + length])
            offsets = tokenizer.encode(text, add_special_tokens=False).offsets
            file.write(json.dumps(text[: offsets[min(length, len(offsets)) - 3][1]]) + "\n")
    return path


def _peak() -> int:
    """Return the most bytes that were resident in this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _child() -> dict[str, float]:
    command = [sys.executable, "-m", "bench.encoder", "--calibrate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(error_line(done.stderr) or f"calibrating ended with code {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _described() -> dict[str, Any]:
    from onnxopt.host.machine import describe_machine, versions

    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"created": created, "machine": describe_machine(), "versions": versions()}


def render(result: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    machine, took = result["machine"], result["calibration"]
    accuracy, cosine = result["accuracy"], result["cosine"]
    rows = [
        ["float", f"{result['megabytes']['float']:.0f}", "1", "1", f"{accuracy['float']:.1%}"],
        [
            "int8", f"{result['megabytes']['int8']:.0f}", f"{cosine['mean']:.4f}", f"{cosine['worst']:.4f}",
            f"{accuracy['int8']:.1%} ({100 * (accuracy['int8'] - accuracy['float']):+.1f} points)",
        ],
    ]  # fmt: skip
    above = (took["peak_bytes"] - took["model_bytes"]) / MIB
    caption = (
        "all-MiniLM-L6-v2, static int8 calibrated with the built-in text, judged on docstrings of CPython's library: "
        f"the cosine to the float model over {result['texts']} texts, and how often a summary line finds its own text "
        f"among {result['documents']:,}. Made in {result['make_seconds']['int8']:.0f} s (float "
        f"{result['make_seconds']['float']:.0f} s). Calibrating with {took['samples']:,.0f} texts of "
        f"{took['shortest']:.0f} to {took['longest']:.0f} tokens ({took['tokens']:,.0f} in all): "
        f"{took['seconds']:.0f} s, "
        f"at most {above:.0f} MiB above the model's {took['model_bytes'] / MIB:.0f} MiB, the whole process counted. "
        f"{machine['cores']} threads of {table.escape(str(machine['cpu']))}, onnxruntime "
        f"{result['versions']['onnxruntime']}, {result['created'][:10]}, `make bench-encoder`."
    )
    header = ["model", "MB", "mean cosine", "worst", "summary finds its text"]
    return f"{caption}\n\n{table.lines(header, rows)}\n"


if __name__ == "__main__":
    sys.exit(main())

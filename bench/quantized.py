"""Speed and perplexity of a quantized language model beside its peers: `python -m bench.quantized`.

SmolLM2-135M, whose weights come as a Q4_1 GGUF, two threads, past and present in one shared buffer: a prompt, then
single tokens behind it. Ours in 8 and in about 4 bits; float; the int4 of onnxruntime-genai's model builder (rounded to
nearest, blocks of 32); llama.cpp on the GGUF itself. Each start is a process of its own; models take turns. Perplexity
is that of the same tokens for all: windows of English text that calibration never sees.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import peers, table
from bench.decode import FOLDER, SAMPLE, WORKER, _run, cell, sizes
from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "smollm2-quantized.json"
LLAMA_WORKER = ROOT / "bench" / "llama_worker.py"
LLAMA = "llamacpp"
MARKS = ("<!-- quantized decode -->", "<!-- /quantized decode -->")
MEASURES = {"prompt": "prompt of 256, tokens/s", "alone": "one token behind 256, tokens/s"}
OURS = {
    "float": (),
    "int8": ("--precision", "int8"),
    "int4": ("--precision", "int4-weights"),
}
TITLES = {
    "float": "onnxopt, float32",
    "int8": "onnxopt --precision int8",
    "int4": "onnxopt --precision int4-weights",
    "genai": "onnxruntime-genai's model builder, int4",
    "llama": "llama.cpp, Q4_1",
}
ROUNDS = 7
WINDOWS, WINDOW = 24, 512
DOCUMENTED = (
    "argparse",
    "asyncio",
    "bisect",
    "calendar",
    "codecs",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "email.message",
    "enum",
    "fractions",
    "functools",
    "gettext",
    "heapq",
    "html",
    "http.client",
    "inspect",
    "ipaddress",
    "itertools",
    "json",
    "locale",
    "logging",
    "mailbox",
    "math",
    "mimetypes",
    "multiprocessing",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "random",
    "re",
    "sched",
    "selectors",
    "shelve",
    "shutil",
    "smtplib",
    "socket",
    "sqlite3",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unittest",
    "urllib.request",
    "uuid",
    "weakref",
    "zipfile",
)
LEAST_TEXT = 200  # characters; shorter ones are no prose


def main() -> int:
    """Make the models, measure them in turns, write the results."""
    parser = argparse.ArgumentParser(description="Measure quantized decoders beside their peers.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="starts of each model (default: %(default)s)")
    parser.add_argument("--make", action="store_true", help="make what is missing, and stop")
    parser.add_argument("--perplexity", action="store_true", help="measure perplexities again, before the speed")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    files = models()
    if arguments.make:
        return 0
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    perplexity = known.get("perplexity")
    if perplexity is None or arguments.perplexity:
        perplexity = perplexities(files)
    result = {**measure(files, arguments.rounds), "perplexity": perplexity}
    print(render(result))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def models() -> dict[str, Path]:
    """Return the file of each model, made on first use."""
    from onnxopt.load.checkpoint.folder import read_checkpoint
    from onnxopt.load.source.samples import fetch_sample
    from onnxopt.load.source.source import resolve

    files: dict[str, Path] = {}
    for name, options in OURS.items():
        folder = FOLDER / f"onnxopt-{name}"
        if not (folder / "model.onnx").is_file():
            print(f"making {TITLES[name]}", flush=True)
            command = [sys.executable, "-m", "onnxopt", "optimize", SAMPLE, "--no-measure", "--quiet"]
            _run([*command, *options, "--out", str(folder)])
        files[name] = folder / "model.onnx"
    source = resolve(SAMPLE)
    built = FOLDER / "genai-int4"
    if not (built / "model.onnx").is_file():
        print(f"making {TITLES['genai']}", flush=True)
        weights = read_checkpoint(source).folder
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
        _run([*builder, "-i", str(weights), "-o", str(built), "-c", str(FOLDER / "cache")])
    files["genai"] = _with_sizes(built)
    error = peers.install(LLAMA)
    if error:
        raise SystemExit(f"{LLAMA}: {error}")
    if source.recipe is None:
        raise SystemExit(f"{SAMPLE} has no recipe")
    files["llama"] = next(fetch_sample(source.recipe).glob("*.gguf"))
    return files


def _with_sizes(built: Path) -> Path:
    """Return the builder's graph with the size of its heads in its inputs, where it writes a name."""
    import onnx

    path = built / "model-sized.onnx"
    if not path.is_file():
        size = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"]
        model = onnx.load(built / "model.onnx", load_external_data=False)
        for value in [*model.graph.input, *model.graph.output]:
            dims = value.type.tensor_type.shape.dim
            if len(dims) == 4:
                dims[3].dim_value = size
        onnx.save(model, path)
    return path


def held_out() -> Path:
    """Write English that nothing was calibrated with and return its file."""
    path = FOLDER / "docstrings.txt"
    path.write_text("\n\n".join(docstrings()), encoding="utf-8")
    return path


def docstrings(*, methods: bool = False) -> list[str]:
    """Return the docstrings of CPython's library, of methods too if wanted: English that nothing is calibrated with."""
    found: dict[str, None] = {}
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        members = [getattr(module, key) for key in sorted(vars(module)) if not key.startswith("_")]
        if methods:
            members += [
                inspect.getattr_static(owner, key)
                for owner in members
                if inspect.isclass(owner)
                for key in sorted(vars(owner))
                if not key.startswith("_")
            ]
        for member in [module, *members]:
            text = inspect.getdoc(member) if inspect.ismodule(member) or callable(member) else None
            if text and len(text) > LEAST_TEXT and text.isascii():
                found[text] = None
    return list(found)


def windows_of(text: Path) -> Any:
    """Return int64 [windows, tokens]: what `onnxopt perplexity` makes of the text."""
    import numpy as np

    from onnxopt.texts.tokenizer import open_tokenizer

    words = open_tokenizer(FOLDER / "onnxopt-float")
    ids = words.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return np.array(ids[: WINDOWS * WINDOW], np.int64).reshape(WINDOWS, WINDOW)


def perplexities(files: Mapping[str, Path]) -> dict[str, float]:
    """Return the perplexity of every model on the same tokens."""
    import numpy as np

    from onnxopt.judge.perplexity import measure_perplexity

    found: dict[str, float] = {}
    text = held_out()
    for name, path in files.items():
        print(f"perplexity of {TITLES[name]}", flush=True)
        if name == "llama":
            windows = FOLDER / "windows.npy"
            np.save(windows, windows_of(text))
            found[name] = math.exp(_llama({"windows": str(windows)}, path)["loss"])
            continue
        folder = FOLDER / "onnxopt-float"
        score = measure_perplexity(path, text=text, tokenizer=folder, window=WINDOW, max_windows=WINDOWS)
        found[name] = score.scores[0].perplexity
    return found


def measure(files: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Return seconds per start, for all models and measures."""
    from importlib.metadata import version

    from onnxopt.host.machine import describe_machine, versions

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    wanted = {key: size for key, size in sizes().items() if key in MEASURES}
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in MEASURES} for name in files}
    for turn in range(rounds):
        for name in list(files)[:: 1 if turn % 2 == 0 else -1]:
            print(f"round {turn + 1} of {rounds}, {name}", flush=True)
            if name == "llama":
                taken = _llama({"sizes": wanted}, files[name])["seconds"]
            else:
                taken = json.loads(_run([sys.executable, str(WORKER), str(files[name]), json.dumps(wanted)]))
            for key in MEASURES:
                found[name][key].append(taken[key])
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {
            **versions(),
            "onnxruntime-genai": version("onnxruntime-genai"),
            **peers.tool_versions(LLAMA),
        },
        "load_before": load,
        "megabytes": {name: _size(path) for name, path in files.items()},
        "seconds": found,
    }


def _llama(job: Mapping[str, Any], model: Path) -> Any:
    return json.loads(_run([str(peers.python_of(LLAMA)), str(LLAMA_WORKER), json.dumps({"model": str(model), **job})]))


def _size(path: Path) -> float:
    beside = [one for one in path.parent.glob("*.data") if one.is_file()]
    return sum(one.stat().st_size for one in (path, *beside)) / 1e6


def render(result: Mapping[str, Any]) -> str:
    """Return the table and what it was measured on."""
    rows = []
    perplexity = result["perplexity"]
    for name, title in TITLES.items():
        if name not in result["seconds"]:
            continue
        cells = [cell(result, name, key, "llama") for key in MEASURES]
        more = perplexity[name] / perplexity["float"] - 1
        cells.append(f"{perplexity[name]:.2f} ({more:+.1%})")
        rows.append([title, f"{result['megabytes'][name]:,.0f}", *cells])
    machine, versions = result["machine"], result["versions"]
    caption = (
        f"SmolLM2-135M, {machine['cores']} threads of {table.escape(str(machine['cpu']))}, onnxruntime "
        f"{versions['onnxruntime']}, onnxruntime-genai {versions['onnxruntime-genai']}, llama-cpp-python "
        f"{versions['llama-cpp-python']}; medians of {len(result['seconds']['llama']['alone'])} starts and half the "
        "distance between their quartiles, times llama.cpp's by the median over rounds; perplexity of "
        f"{WINDOWS} windows of {WINDOW} tokens of docstrings, beside float32; "
        f"{str(result['created'])[:10]}, `make bench-quantized`. Ours and llama.cpp answer for the last position of a "
        "prompt, the builder's graph, as it makes it by default, for all."
    )
    return f"{caption}\n\n{table.lines(['model', 'MB', *MEASURES.values(), 'perplexity'], rows)}\n"


if __name__ == "__main__":
    sys.exit(main())

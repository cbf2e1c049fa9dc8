"""Write what goes wrong so that it can be run again: the graph, its text, the inputs, and a script."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.printer

from tests.property.judge import Verdict, judge
from tests.property.shrink import shrunk
from tests.property.sizes import Case, real_inputs

SCRIPT = '''"""{reason}

Run it with the Python of onnxopt's virtual environment; it exits 1 while the fault is there.
"""
import pathlib
import sys
import tempfile

import numpy as np
import onnxruntime as ort

import onnxopt

HERE = pathlib.Path(__file__).parent
with tempfile.TemporaryDirectory() as room:
    made = onnxopt.optimize(HERE / "drawn.onnx", out=pathlib.Path(room) / "out", measure=False)
    turned_down = [(entry.name, item.reason) for entry in made.manifest.ledger for item in entry.rolled_back]
    print("rolled back:", turned_down)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    before = ort.InferenceSession(HERE / "drawn.onnx", options)
    after = ort.InferenceSession(made.model_path, options)
    bad = bool(turned_down)
    if (HERE / "feeds.npz").exists():
        feeds = dict(np.load(HERE / "feeds.npz"))
        print({{name: array.shape for name, array in feeds.items()}})
        for output, old, new in zip(after.get_outputs(), before.run(None, feeds), after.run(None, feeds)):
            same = old.shape == new.shape and np.allclose(old, new, rtol=1e-4, atol=1e-5, equal_nan=True)
            said = "same" if same else f"expected {{old}}, got {{new}}"
            print(output.name, "declared", output.shape, "has", new.shape, said)
            bad |= not same or any(isinstance(d, int) and d != size for d, size in zip(output.shape or (), new.shape))
sys.exit(bad)
'''


def smaller(model: onnx.ModelProto, verdict: Verdict, seed: int, *, square: bool, seconds: float) -> onnx.ModelProto:
    """Shrink a graph for as long as it is bad in the same way."""

    def still_bad(proposal: onnx.ModelProto) -> bool:
        with tempfile.TemporaryDirectory() as room:
            case = _feeds_of(proposal, verdict.case)
            return judge(proposal, seed, Path(room), square=square, case=case).kind == verdict.kind

    return shrunk(model, still_bad, seconds=seconds)


def _feeds_of(model: onnx.ModelProto, case: Case | None) -> Case | None:
    """Keep the feeds of the inputs that are left."""
    if case is None:
        return None
    names = {value.name for value in real_inputs(model)}
    return Case(case.sizes, {name: array for name, array in case.feeds.items() if name in names}, case.odd)


def write_repro(folder: Path, model: onnx.ModelProto, verdict: Verdict) -> None:
    """Write a graph and what is wrong with it.

    Args:
        folder: made; `drawn.onnx`, `drawn.txt`, `feeds.npz` when inputs matter, `repro.py`.
        model: the graph.
        verdict: on this graph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "drawn.onnx")
    said = f"{verdict.kind}: {verdict.reason or verdict.rolled_back}"
    text = onnx.printer.to_text(model)
    (folder / "drawn.txt").write_text(f"# {said}\n{text}\n{verdict.trace}", encoding="utf-8")
    if verdict.case is not None:
        np.savez_compressed(folder / "feeds.npz", **verdict.case.feeds)  # type: ignore[arg-type]  # no input is called so
    safe = said.replace("\\", "/").replace('"""', "'''")
    (folder / "repro.py").write_text(SCRIPT.format(reason=safe), encoding="utf-8")

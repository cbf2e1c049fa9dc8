"""Graphs with branches and loops, taken through the passes and run beside what they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxopt.load.given import Given
from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.records.ledger import Ledger
from onnxopt.spec import Array, Feeds, Target

YES, NO = np.ones((), bool), np.zeros((), bool)


@dataclass
class Taken:
    """A file, and what the passes made of it.

    Attributes:
        before: the file.
        after: the result, written beside it.
        model: the result.
        ledger: of the passes.
    """

    before: Path
    after: Path
    model: ir.Model
    ledger: Ledger

    def ops(self, label: str) -> list[str]:
        """Operators of a body, by what the ledger calls it: `then of choice`, and `else of inner` inside of it."""
        return [node.op_type for node in self.body(label)]

    def body(self, label: str) -> ir.Graph:
        """The graph of a body; the last word of its label names the node."""
        word, _, name = label.partition(" of ")
        attribute = {"then": "then_branch", "else": "else_branch", "body": "body"}[word]
        node = next(node for node in self.model.graph.all_nodes() if node.name == name)
        return node.attributes[attribute].as_graph()

    def weights(self, label: str) -> list[ir.TensorProtocol]:
        """The weights that lie in a body."""
        found = (value.const_value for value in self.body(label).initializers.values())
        return [tensor for tensor in found if tensor is not None]

    def applied(self, where: str) -> dict[str, int]:
        """How often each pass was applied in a body."""
        found: dict[str, int] = {}
        for entry in self.ledger.entries:
            if entry.where == where and entry.applied:
                found[entry.name] = found.get(entry.name, 0) + entry.applied
        return found

    def worst_error(self, **feeds: Array) -> float:
        """Worst absolute difference of the outputs, in the runtime as users run it; shapes must be equal."""
        old, new = (_run(path, feeds) for path in (self.before, self.after))
        assert [array.shape for array in old] == [array.shape for array in new]
        return max((float(np.abs(a - b).max()) for a, b in zip(old, new, strict=True) if a.size), default=0.0)


def _run(path: Path, feeds: Feeds) -> list[Array]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def write(folder: Path, text: str, *, opset: int = 17, **weights: Array) -> Path:
    """Write a graph in ONNX text with its weights, and return the file."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def take(
    folder: Path,
    text: str,
    given: Given | None = None,
    *,
    target: Literal["cpu", "portable"] = "portable",
    opset: int = 17,
    **weights: Array,
) -> Taken:
    """Write a graph in ONNX text, load it as a user's file, and run the passes of a target over it."""
    path = write(folder, text, opset=opset, **weights)
    loaded = load_onnx(path, given=given)
    ledger = run_pipeline(loaded, Target(target, 1))
    ir.save(loaded.model, folder / "after.onnx")
    return Taken(path, folder / "after.onnx", loaded.model, ledger)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Return float32 of a shape, a standard normal times a scale."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)

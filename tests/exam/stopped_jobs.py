"""Commands that write for a while, to be stopped at any moment: their inputs, and what a whole result of them is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.artifact.package import Artifact, check_golden
from onnxopt.errors import InputError
from onnxopt.host.folders import sha256_of
from tests.support.tiny import tiny_checkpoint

WIDTH = 192
VARYING = ("measurements.json", "report.html", "distillation.json")  # dates and seconds
RECIPE = """
source = "{bert}"
[prune]
what = "ffn=50%"
[package]
workload = "1x16"
"""


@dataclass(frozen=True)
class Inputs:
    """What commands are given, made once.

    Attributes:
        graph: an .onnx file with weights of a few megabytes.
        feeds: an .npz of rows for it.
        bert: a tiny checkpoint of an encoder.
        recipe: of `onnxopt compress`.
        artifact: of `graph`.
    """

    graph: Path
    feeds: Path
    bert: Path
    recipe: Path
    artifact: Path

    @classmethod
    def make(cls, folder: Path) -> Inputs:
        """Write them into a folder, where they are not there yet."""
        inputs = cls(*(folder / name for name in ("graph.onnx", "feeds", "bert", "recipe.toml", "artifact")))
        if not inputs.artifact.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            onnx.save(two_layers(), inputs.graph)
            inputs.feeds.mkdir(exist_ok=True)
            rng = np.random.default_rng(1)
            for number in range(12):
                rows = rng.normal(size=(2, WIDTH)).astype(np.float32)
                np.savez(inputs.feeds / f"{number}.npz", x=rows)
            tiny_checkpoint("bert", inputs.bert, layers=2)
            inputs.recipe.write_text(RECIPE.format(bert=inputs.bert), encoding="utf-8")
            from onnxopt import optimize

            optimize(inputs.graph, out=inputs.artifact, measure=False)
        return inputs


def two_layers() -> onnx.ModelProto:
    """A feed-forward block with a weight of 0.6 MB in each of two layers."""
    rng, tensors = np.random.default_rng(0), []
    for name, shape in (("w1", (WIDTH, 4 * WIDTH)), ("b1", (4 * WIDTH,)), ("w2", (4 * WIDTH, WIDTH))):
        tensors.append(numpy_helper.from_array((rng.normal(size=shape) / 16).astype(np.float32), name))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["first"]),
        helper.make_node("Add", ["first", "b1"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "two_layers", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: which.
        share: how often it is drawn beside the others: long ones less often.
        arguments: of the command, given the inputs and where to write.
        packages: it adds to an artifact that is there before.
    """

    name: str
    share: int
    arguments: Callable[[Inputs, Path], Sequence[object]]
    packages: bool = False

    def prepare(self, inputs: Inputs, out: Path) -> None:
        """Lay out what must be there before."""
        if self.packages:
            shutil.copytree(inputs.artifact, out)


JOBS = (
    Job("optimize", 9, lambda i, out: ("optimize", i.graph, "--no-measure", "-o", out)),
    Job(
        "calibrate",
        6,
        lambda i, out: (
            *("optimize", i.graph, "--no-measure", "-p", "int8", "--calibration", i.feeds),
            *("--budget", "cosine>=0.9", "-o", out),
        ),
    ),
    Job("package", 8, lambda _, out: ("package", out, "--for", "node", "--for", "triton"), packages=True),
    Job("prune graph", 6, lambda i, out: ("prune", i.graph, "zeros=2:4", "--data", i.feeds, "-o", out)),
    Job("optimize checkpoint", 1, lambda i, out: ("optimize", i.bert, "--no-measure", "-o", out)),
    Job("prune", 1, lambda i, out: ("prune", i.bert, "ffn=50%", "-o", out)),
    Job(
        "distill",
        1,
        lambda i, out: ("distill", i.bert, "--student", "layers=1", "--steps", "3", "--length", "16", "-o", out),
    ),
    Job("compress", 1, lambda i, out: ("compress", i.recipe, "--no-measure", "-o", out)),
)


def content(out: Path) -> dict[str, str]:
    """The SHA-256 of every file of a result that must be the same each time; nothing for a folder that is not there."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in VARYING:
            found[path.relative_to(out).as_posix()] = sha256_of(path)
    return found


def half(out: Path) -> str:
    """What is wrong with a result that is there; empty for a whole one, and for none."""
    if not out.exists():
        return ""
    if (out / "manifest.json").exists():
        try:
            changed = Artifact.open(out).changed_files()
            return f"changed: {', '.join(changed)}" if changed else f"answers: {found}" if (found := _off(out)) else ""
        except InputError as error:
            return str(error)
    for name in ("pruning.json", "distillation.json"):
        if (out / name).is_file():
            json.loads((out / name).read_text(encoding="utf-8"))
            return "" if any((out / file).is_file() for file in ("model.onnx", "model.safetensors")) else "no weights"
    return "a folder without any record"


def _off(out: Path) -> str:
    return "; ".join(map(str, check_golden(out)))

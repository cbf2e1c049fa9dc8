"""The same inputs give the same model.onnx: in any process, with any hash seed, threads, order of files, and forms."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxopt
from onnxopt.artifact.package import Artifact, check_golden
from onnxopt.host.folders import content_of
from onnxopt.quantize import workplace
from onnxopt.records.manifest import FormName
from onnxopt.records.measurements import Latency, Race
from onnxopt.road import forms
from onnxopt.road.shipping import Form
from tests.support.command import onnxopt as run
from tests.support.tiny import tiny_checkpoint

WIDTH = 72
CAREFUL = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
OTHERWISE = {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three feed-forward layers with a norm between them, and feeds beside the file."""
    folder = tmp_path_factory.mktemp("blocks")
    rng, nodes, tensors, last = np.random.default_rng(3), [], [], "x"
    for number in range(3):
        for name, shape in (("w", (WIDTH, WIDTH)), ("b", (WIDTH,)), ("g", (WIDTH,))):
            array = (rng.normal(size=shape) / 6).astype(np.float32)
            tensors.append(numpy_helper.from_array(array, f"{name}{number}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]),
            helper.make_node("Add", [f"m{number}", f"b{number}"], [f"a{number}"]),
            helper.make_node("Relu", [f"a{number}"], [f"r{number}"]),
            helper.make_node("LayerNormalization", [f"r{number}", f"g{number}"], [f"n{number}"]),
        ]
        last = f"n{number}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "blocks", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    (folder / "feeds").mkdir()
    for number in range(10):
        np.savez(folder / "feeds" / f"{number}.npz", x=rng.normal(size=(3, WIDTH)).astype(np.float32))
    return folder


def weights_of(out: Path) -> dict[str, str]:
    """The digests of the files that hold a model."""
    return {name: digest for name, digest in content_of(out).items() if name.endswith((".onnx", "_data", "tensors"))}


def built(out: Path, arguments: Sequence[object], environment: dict[str, str], cache: Path) -> dict[str, str]:
    done = run(*arguments, "-o", out, "--quiet", cwd=None, **environment, ONNXOPT_CACHE=str(cache))
    assert done.code == 0, done.err
    return weights_of(out)


GRAPHS: dict[str, Callable[[Path], Sequence[object]]] = {
    "float": lambda at: ("optimize", at / "m.onnx", "--no-measure"),
    "int8": lambda at: (
        *("optimize", at / "m.onnx", "--no-measure", "-p", "int8", "--calibration", at / "feeds"),
        *("--budget", "cosine>=0.9"),
    ),
    "int8 weights": lambda at: (
        "optimize",
        at / "m.onnx",
        "--no-measure",
        "-p",
        "int8-weights:32",
        "--calibration",
        at / "feeds",
    ),
    "pruned": lambda at: ("prune", at / "m.onnx", "zeros=2:4", "--data", at / "feeds"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_file_gives_the_same_bytes_in_any_process(kind: str, blocks: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"  # whose files were made in another order
    (moved / "feeds").mkdir(parents=True)
    for path in sorted((blocks / "feeds").iterdir(), reverse=True):
        shutil.copyfile(path, moved / "feeds" / path.name)
    shutil.copyfile(blocks / "m.onnx", moved / "m.onnx")
    first = built(tmp_path / "first", GRAPHS[kind](blocks), CAREFUL, tmp_path / "one")
    again = built(tmp_path / "again", GRAPHS[kind](moved), OTHERWISE, tmp_path / "two")
    assert first
    assert first == again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("bert", ("optimize", "--no-measure")),
        ("bert", ("optimize", "--no-measure", "-p", "int8", "--budget", "cosine>=0.5")),
        ("bert", ("prune", "ffn=50%")),
        ("gpt2", ("optimize", "--no-measure", "-p", "int4-weights", "--budget", "perplexity<=+300%")),
        ("vit", ("optimize", "--no-measure")),
    ],
    ids=["bert", "bert int8", "bert pruned", "gpt2 int4", "vit"],
)
def test_a_checkpoint_gives_the_same_bytes_with_cold_caches(
    kind: str, arguments: Sequence[str], tmp_path: Path
) -> None:
    first = tiny_checkpoint(kind, tmp_path / "first" / "model")
    moved = tmp_path / "again" / "model"
    moved.mkdir(parents=True)
    for path in sorted(first.iterdir(), reverse=True):
        shutil.copyfile(path, moved / path.name)
    command, *more = arguments
    one = built(tmp_path / "a", (command, first, *more), CAREFUL, tmp_path / "one")
    two = built(tmp_path / "b", (command, moved, *more), OTHERWISE, tmp_path / "two")
    assert one
    assert one == two


def slower(one: Form) -> Race:
    """Times by which whatever the passes made is slower than the original."""
    shape = Latency(shape={"batch": 1}, before_ms=1.0, after_ms=2.0, low=0.5, high=0.5)
    return Race(form=one.name, speedup=0.5, low=0.5, high=0.5, turns=6, shapes=(shape,))


def never(*_: Any, **__: Any) -> Race:
    raise AssertionError("nothing is measured to choose")


@pytest.mark.parametrize("wins", ["optimized", "fused", "original"])
def test_what_another_build_shipped_is_shipped(
    wins: FormName, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(_: object, form: Form) -> Race:
        found = slower(form)
        return found if form.name != wins else found.model_copy(update={"speedup": 2.0, "low": 1.9, "high": 2.1})

    source = blocks / "m.onnx"
    with monkeypatch.context() as measured:
        measured.setattr(forms.Workbench, "_raced", raced)
        first = onnxopt.optimize(source, out=tmp_path / "first", tune=False)
    assert first.manifest.shipped is not None
    assert first.manifest.shipped.form == wins
    monkeypatch.setattr(forms.Workbench, "_raced", never)
    again = onnxopt.optimize(source, out=tmp_path / "again", measure=False, forms_from=tmp_path / "first")
    assert again.manifest.shipped == first.manifest.shipped
    assert again.manifest.forms == first.manifest.forms
    assert weights_of(again.path) == weights_of(first.path)
    assert check_golden(again.path) == []


@pytest.mark.parametrize("pays", [True, False])
def test_a_graph_in_fewer_bits_is_shipped_where_it_paid_in_another_build(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, pays: bool
) -> None:
    def timed(*_: object, **__: object) -> Race:
        speed = 2.0 if pays else 0.5
        return Race(form="optimized", speedup=speed, low=speed, high=speed, turns=6, shapes=())

    options: dict[str, Any] = {
        "precision": "int8",
        "calibration": str(blocks / "feeds"),
        "budget": "cosine>=0.9",
        "tune": False,
    }
    monkeypatch.setattr(forms.Workbench, "_raced", lambda _, form: slower(form))
    with monkeypatch.context() as measured:
        measured.setattr(workplace, "speedup_of", timed)
        first = onnxopt.optimize(blocks / "m.onnx", out=tmp_path / "first", **options)
    assert first.manifest.quantization is not None
    assert first.manifest.quantization.shipped == pays
    monkeypatch.setattr(workplace, "speedup_of", never)
    pinned = tmp_path / "first" / "manifest.json"
    again = onnxopt.optimize(blocks / "m.onnx", out=tmp_path / "again", forms_from=pinned, **options)
    assert again.manifest.quantization is not None
    assert again.manifest.quantization.shipped == pays
    assert again.manifest.quantization.reason == first.manifest.quantization.reason
    assert weights_of(again.path) == weights_of(first.path)


def test_forms_of_another_target_end_the_command_in_one_line(blocks: Path, tmp_path: Path) -> None:
    first = onnxopt.optimize(blocks / "m.onnx", out=tmp_path / "first", target="portable", measure=False)
    done = run("optimize", blocks / "m.onnx", "--forms-from", first.path, "-o", tmp_path / "again", "--quiet")
    assert done.code == 2
    assert len(done.error_lines) == 1
    assert "it was made for portable, this build is for cpu; add --target portable" in done.error_lines[0]
    assert not (tmp_path / "again").exists()
    assert Artifact.open(first.path).manifest.forms is not None

"""Quantization on the whole road: real MiniLM in int8, tiny models in everything, bad options in one line.

Covers: cli/quantize.py, judge/gate.py, quantize/columns.py, records/quantization.py
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.qmath.precision import Scheme
from onnxopt.road.optimize import optimize
from onnxopt.run.answers import run_text
from onnxopt.spec import Target
from onnxopt.texts.builtin import builtin_texts
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("int8") / "minilm"
    return optimize("minilm", out=out, precision="int8", measure=False, calibration_samples=96, calibrator="mse")


def kernels(artifact: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(artifact.path / "model.onnx", load_external_data=False).graph.node]


def test_every_linear_of_a_fused_graph_is_an_integer_kernel(int8: Artifact) -> None:
    ops = kernels(int8)
    assert ops.count("MatMulIntegerToFloat") == 24
    assert {"MatMul", "Gemm"} & set(ops) == set()
    record = int8.manifest.quantization
    assert record is not None
    assert record.shipped
    tables = {label: layer for label, layer in record.layers.items() if label.endswith("#table")}
    assert {layer.precision for label, layer in record.layers.items() if label not in tables} == {"int8"}
    assert [label for label, layer in tables.items() if layer.precision == "int8-weights:64"] == [
        "embeddings.word_embeddings#table"
    ]
    assert ops.count("GatherBlockQuantized") == 1
    assert (int8.path / "model.onnx").stat().st_size < 25 * 2**20


def test_the_answer_stays_within_its_budget_on_texts_that_were_never_seen(int8: Artifact) -> None:
    record = int8.manifest.quantization
    assert record is not None
    assert record.gate is not None
    assert record.gate.holds
    assert record.gate.value >= 0.995
    assert record.gate.low <= record.gate.value <= record.gate.high
    assert record.calibration is not None
    assert (record.calibration.source, record.calibration.samples) == ("builtin", 96)


def test_answers_are_the_same_bits_alone_and_in_a_padded_batch(int8: Artifact) -> None:
    texts = ["a cat", "the quick brown fox jumps over the lazy dog again and again", builtin_texts()[7]]
    together = run_text(int8.path, texts)
    assert int8.manifest.quantization is not None
    assert int8.manifest.quantization.invariant
    assert together.to_json() == run_text(int8.path, texts).to_json()


def test_layers_that_cost_more_are_ranked_first_and_explained(int8: Artifact) -> None:
    record = int8.manifest.quantization
    assert record is not None
    losses = [one.loss for one in record.sensitivities]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 24
    assert all(one.reason for one in record.sensitivities)
    assert record.front


def test_the_ranking_can_be_read_and_plotted(
    int8: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "ranking.svg"
    assert main(["sensitivity", str(int8.path), "--limit", "3", "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    record = int8.manifest.quantization
    assert record is not None
    assert record.sensitivities[0].label in text
    assert record.sensitivities[5].label not in text
    assert "<svg" in plot.read_text(encoding="utf-8")
    report = (int8.path / "report.html").read_text(encoding="utf-8")
    assert "Precision" in report
    counts = Counter("int8 smoothed" if one.smoothed else one.precision for one in record.layers.values())
    assert set(counts) >= {"int8"}
    assert all(f"{count} {name}" in report for name, count in counts.items())


def test_an_artifact_in_float_ranks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", str(tmp_path)]) == 2
    assert "not an artifact" in capsys.readouterr().err


def test_layers_that_the_user_keeps_stay_in_float(tmp_path: Path) -> None:
    artifact = optimize(
        "minilm",
        out=tmp_path / "out",
        precision="int8-dynamic",
        keep="layer.0|last",
        measure=False,
        calibration_samples=32,
        budget="cosine>=0.98",
    )
    record = artifact.manifest.quantization
    assert record is not None
    kept = [label for label, layer in record.layers.items() if layer.precision == "fp32"]
    assert len(kept) == 5
    assert all(record.layers[label].reason == "kept by the user" for label in kept)
    assert kernels(artifact).count("DynamicQuantizeMatMul") == 19


def test_what_is_beyond_its_budget_is_not_shipped(tmp_path: Path) -> None:
    artifact = optimize(
        "minilm",
        out=tmp_path / "out",
        precision="int8-dynamic",
        measure=False,
        calibration_samples=32,
        budget="cosine>=0.9999",
    )
    record = artifact.manifest.quantization
    assert record is not None
    assert not record.shipped
    assert "beyond its budget" in record.reason
    assert "DynamicQuantizeMatMul" not in kernels(artifact)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int8-weights:32"])
def test_made_up_weights_and_data_are_marked(precision: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "bert", tokenizer=False)
    artifact = optimize(
        str(folder), out=tmp_path / "out", weights="random", precision=precision, measure=False, budget="cosine>=0.9"
    )
    record = artifact.manifest.quantization
    assert record is not None
    assert record.shipped
    assert record.gate is not None
    assert record.gate.meaningless
    assert record.calibration is not None
    assert (record.calibration.source, record.calibration.meaningless) == ("random", True)


def test_tensorrt_gets_standard_operators_and_symmetric_grids(tmp_path: Path) -> None:
    artifact = optimize(
        str(tiny_checkpoint("bert", tmp_path / "bert")),
        out=tmp_path / "out",
        target="tensorrt",
        precision="int8",
        measure=False,
        calibration_samples=32,
        calibrator="min-max",
        budget="cosine>=0.9",
    )
    assert artifact.manifest.quantization is not None
    assert artifact.manifest.quantization.shipped
    graph = onnx.load(artifact.path / "model.onnx").graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    points = [arrays[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


@pytest.mark.parametrize(
    ("target", "isa", "expected"),
    [
        ("cpu", ["avx2", "avx512f", "avx512_vnni"], Scheme()),
        ("cpu", ["avx2"], Scheme(weight_bits=7)),
        ("tensorrt", ["avx2"], Scheme(symmetric=True)),
    ],
)
def test_the_scheme_follows_the_target(
    target: str, isa: list[str], expected: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxopt.quantize import options

    monkeypatch.setattr(options, "describe_machine", lambda: {"architecture": "x86_64", "isa": isa})
    assert options.scheme_of(Target.parse(target)) == expected


REFUSED = {
    "unknown precision": (["--precision", "int3"], "unknown precision"),
    "block of a wrong size": (["--precision", "int4-weights:33"], "cannot read '33'"),
    "cuda has none": (["--precision", "int8", "--target", "cuda"], "CUDA provider has no int8"),
    "fp16 on a CPU": (["--precision", "fp16"], "fp16"),
    "budget of another kind": (["--precision", "int8", "--budget", "perplexity<=+2%"], "is judged by cosine"),
    "budget without precision": (["--budget", "cosine>=0.99"], "the precision is fp32"),
    "unreadable budget": (["--precision", "int8", "--budget", "good"], "cannot read the budget"),
    "selector of nothing": (["--precision", "int8", "--keep", "nonsense"], "matches no linear"),
    "unknown calibrator": (["--precision", "int8", "--calibrator", "median"], "'median' is not one of"),
    "no calibration file": (["--precision", "int8", "--calibration", "missing.txt"], "no such calibration"),
    "no samples": (["--precision", "int8", "--calibration-samples", "0"], "number of calibration samples"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["optimize", "minilm", "--out", str(out), "--no-measure", "--quiet", *options]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text
    assert len(text.splitlines()) == 1
    assert not out.exists()


def test_a_data_set_needs_its_package_or_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="data set"):
        optimize("minilm", precision="int8", calibration="hf:nobody/nothing", measure=False)

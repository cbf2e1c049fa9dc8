"""fp16 and bf16 for GPU targets, the whole road: real weights, proved tensor by tensor, run on a CPU.

Covers: quantize/sixteen_bits.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.errors import InputError
from onnxopt.graph import STANDARD_DOMAINS
from onnxopt.load.entry import load
from onnxopt.load.source.source import resolve
from onnxopt.road.optimize import optimize
from onnxopt.run.session import Session
from onnxopt.spec import Padding
from tests.support.seq2seq import save_pair
from tests.support.tiny import tiny_checkpoint


def make(source: str | Path, out: Path, **options: Any) -> Artifact:
    return optimize(source, out=out, measure=False, **{"target": "cuda", "precision": "fp16", **options})


def graph_of(artifact: Artifact) -> onnx.GraphProto:
    return onnx.load(artifact.model_path).graph


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make("minilm", tmp_path_factory.mktemp("half") / "minilm", precision="auto")


def test_a_real_encoder_is_half_the_size_and_every_tensor_is_proved(minilm: Artifact) -> None:
    record = minilm.manifest.quantization
    assert record is not None
    assert record.half is not None
    assert (record.asked, record.shipped, record.half.kind) == ("auto", True, "fp16")
    assert record.half.compared >= 60
    assert record.half.worst_error < 0.005
    assert minilm.model_path.stat().st_size < 0.52 * 90e6
    entry = next(one for one in minilm.manifest.ledger if one.name == "half-precision")
    assert entry.applied == record.half.nodes
    assert "half-precision" in (minilm.path / "report.html").read_text(encoding="utf-8")


def test_a_real_encoder_has_the_kernels_of_the_target(minilm: Artifact) -> None:
    graph = graph_of(minilm)
    own = [node.op_type for node in graph.node if node.domain == "com.microsoft"]
    counts = {name: own.count(name) for name in set(own)}
    assert counts == {"Attention": 6, "SkipLayerNormalization": 12, "BiasGelu": 6, "EmbedLayerNormalization": 1}
    lengths = {node.input[3] for node in graph.node if node.op_type == "Attention"}
    assert len(lengths) == 1, "every attention is told the same lengths"
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
def test_a_real_encoder_answers_as_torch_does(minilm: Artifact, padding: Padding) -> None:
    loaded = load(resolve("minilm"))
    feeds = loaded.feeder.make({"batch": 3, "sequence": 41}, padding, seed=9)
    expected = loaded.reference.run(feeds)["sentence_embedding"]
    found = Session(minilm.model_path).run(feeds)["sentence_embedding"]
    assert (expected * found).sum(axis=-1).min() > 0.99998


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make("gpt2-mini", tmp_path_factory.mktemp("half") / "gpt2", budget="perplexity<=+1%", logits="all")


def test_a_real_decoder_hands_its_cache_over_in_half(gpt2: Artifact) -> None:
    graph = graph_of(gpt2)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    caches = {kind for name, kind in kinds.items() if name.startswith(("past_key_values", "present"))}
    assert caches == {onnx.TensorProto.FLOAT16}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    inputs = {spec.name: spec.dtype for spec in gpt2.manifest.signature.inputs}
    assert inputs["past_key_values.0.key"] == "float16"
    record = gpt2.manifest.quantization
    assert record is not None
    assert record.gate is not None
    assert record.gate.holds
    assert record.gate.value < 1.01


def test_a_real_decoder_keeps_its_tokens(gpt2: Artifact) -> None:
    loaded = load(resolve("gpt2-mini"), logits="all")
    feeds = loaded.feeder.make({"batch": 2, "sequence": 24, "past_sequence": 0, "total_sequence": 24}, "left", seed=1)
    expected = loaded.reference.run(feeds)["logits"]
    narrow = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feeds.items()}
    found = Session(gpt2.model_path).run(narrow)["logits"]
    real = feeds["attention_mask"] != 0
    expected, found = expected[real], found[real]
    assert np.mean(expected.argmax(axis=-1) == found.argmax(axis=-1)) > 0.97  # two may be as likely
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_bf16_of_an_encoder(tmp_path: Path) -> None:
    artifact = make(tiny_checkpoint("bert", tmp_path / "bert"), tmp_path / "out", precision="bf16")
    record = artifact.manifest.quantization
    assert record is not None
    assert record.shipped, record.reason
    kinds = {tensor.data_type for tensor in graph_of(artifact).initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.BFLOAT16 in kinds


def test_a_promise_of_right_padding_is_kept_to_and_told(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "bert")
    artifact = make(source, tmp_path / "out", padding="right", precision="fp32")
    assert "TopK" not in [node.op_type for node in graph_of(artifact).node]
    assert {record.padding for record in artifact.manifest.proof} == {"none", "right"}
    assert any("padding on the right alone" in note for note in artifact.manifest.notes)
    for options in ({"target": "cpu"}, {"target": "tensorrt"}):
        with pytest.raises(InputError, match="on CUDA, gains"):
            make(source, tmp_path / "no", padding="right", precision="fp32", **options)
    assert not (tmp_path / "no").exists()


def test_outputs_in_half_when_asked(tmp_path: Path) -> None:
    artifact = make(tiny_checkpoint("bert", tmp_path / "bert"), tmp_path / "out", precision="fp16:io")
    assert {value.type.tensor_type.elem_type for value in graph_of(artifact).output} == {onnx.TensorProto.FLOAT16}
    assert {spec.dtype for spec in artifact.manifest.signature.outputs} == {"float16"}


def test_bf16_of_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bf16 is not made for models with a cache"):
        make("gpt2-mini", tmp_path / "out", precision="bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [{"keep": "layer.0"}, {"calibrator": "mse"}])
def test_options_of_int8_are_refused(option: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are for int8, not for fp16"):
        make("minilm", tmp_path / "out", **option)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    source = save_pair("t5", tmp_path / "t5")
    with pytest.raises(InputError, match="not converted to 16 bits yet"):
        make(source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_tensorrt_gets_standard_operators_in_one_piece(kind: str, tmp_path: Path) -> None:
    artifact = make(tiny_checkpoint(kind, tmp_path / "model"), tmp_path / "out", target="tensorrt")
    record = artifact.manifest.quantization
    assert record is not None
    assert record.shipped, record.reason
    graph = graph_of(artifact)
    assert {node.domain for node in graph.node} <= set(STANDARD_DOMAINS)
    assert not [node for node in graph.node if any(attribute.HasField("g") for attribute in node.attribute)]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) >= 2}
    assert weights & floats == {onnx.TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}


def test_where_the_device_is_there_the_answers_of_its_own_kernels_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxopt.road import forms, work

    told: list[bool] = []

    class OnCpu(Session):
        """Stands for a session on a GPU."""

        def __init__(self, path: str | Path, *, exact: bool = False, **_: object) -> None:
            told.append(exact)
            super().__init__(path)

    monkeypatch.setattr(forms, "Session", OnCpu)
    monkeypatch.setattr(work, "_runnable", lambda target, ledger: target)
    source, steps = tiny_checkpoint("gpt2", tmp_path / "gpt2"), []
    artifact = make(source, tmp_path / "out", progress=lambda event: steps.append(event.stage))
    assert artifact.manifest.quantization is not None
    assert artifact.manifest.quantization.shipped, artifact.manifest.quantization.reason
    assert told == [True, False], "the float graph is multiplied in float32, the half graph as users run it"
    assert "verify" in steps[steps.index("quantize") :]


def test_a_budget_of_the_task_is_judged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="perplexity"):
        make("minilm", tmp_path / "out", budget="perplexity<=+1%")

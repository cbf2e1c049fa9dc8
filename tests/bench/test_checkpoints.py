"""Checkpoints of random weights are the same wherever they are made, whole for transformers, written in shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import checkpoints
from bench.checkpoints import SHAPES, Shape, count_of, cut_down, drawn, weights_of, write_checkpoint
from bench.gguf_q4 import named, write_gguf

TINY = replace(SHAPES["100m"], hidden=64, inner=96, layers=3, heads=4, shared=2, words=500)
QWEN = replace(SHAPES["3b"], hidden=48, inner=80, layers=2, heads=4, shared=1, words=700, tokenizer="gpt2-mini")


@pytest.mark.parametrize(
    ("name", "millions"), [("100m", 88), ("0.5b", 494), ("1.1b", 1170), ("3b", 3086), ("7b", 6738)]
)
def test_shapes_are_as_large_as_those_they_are_named_for(name: str, millions: int) -> None:
    assert round(count_of(SHAPES[name]) / 1e6) == millions


def test_shapes_of_one_width_differ_in_their_layers_alone() -> None:
    counts = [count_of(SHAPES[f"layers-{count}"]) for count in (4, 8, 16, 32)]
    layer = (counts[1] - counts[0]) // 4
    assert counts == [counts[0] + layer * (count - 4) for count in (4, 8, 16, 32)]


@pytest.mark.parametrize("shape", [TINY, QWEN, replace(TINY, tied=False, dtype="float32")])
def test_a_checkpoint_is_a_whole_model(shape: Shape, tmp_path: Path) -> None:
    folder = write_checkpoint(shape, tmp_path / "made", shard_bytes=60_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, shape.dtype))
    ids = AutoTokenizer.from_pretrained(folder)("a text of some words", return_tensors="pt").input_ids
    assert int(ids.max()) < shape.words
    logits = model(ids).logits.float()
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.01
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert found == weights_of(shape)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(model.get_parameter(name), drawn(name, found[name], shape.dtype, 0))


def test_a_weight_hangs_on_its_name_and_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn("a.weight", (40, 30), "float32", 0)
    assert torch.equal(whole, drawn("a.weight", (40, 30), "float32", 0))
    assert not torch.equal(whole, drawn("b.weight", (40, 30), "float32", 0))
    assert not torch.equal(whole, drawn("a.weight", (40, 30), "float32", 1))
    assert abs(float(whole.std()) - 30**-0.5) < 0.02
    monkeypatch.setattr(checkpoints, "_AT_ONCE", 160)
    assert drawn("a.weight", (40, 30), "float32", 0).shape == (40, 30)
    gain = drawn("norm.weight", (500,), "float32", 0)
    assert abs(float(gain.mean()) - 1) < 0.01
    assert abs(float(drawn("proj.bias", (500,), "float32", 0).mean())) < 0.01


def test_a_checkpoint_that_is_there_stays_and_one_of_another_shape_goes(tmp_path: Path) -> None:
    folder = write_checkpoint(TINY, tmp_path / "made")
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    write_checkpoint(TINY, folder)
    assert weights.stat().st_mtime_ns == written
    write_checkpoint(replace(TINY, layers=1), folder)
    with safe_open(weights, framework="pt") as file:
        assert not [name for name in file.keys() if "layers.1." in name]  # noqa: SIM118  # it is no mapping
    (folder / checkpoints.MADE_NAME).unlink()  # as if it had been stopped before its end
    write_checkpoint(TINY, folder)
    with safe_open(weights, framework="pt") as file:
        assert "model.layers.2.mlp.up_proj.weight" in file.keys()  # noqa: SIM118


def test_a_tokenizer_is_cut_down_to_the_words_that_are_there() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aab": 3, "abb": 4}, "merges": []}
    merges = ["a b", ["a", "ab"], ["ab", "b"]]
    whole = {"version": "1", "model": {**model, "merges": merges}}
    assert cut_down(whole, 5) == whole
    assert cut_down(whole, 4)["model"]["merges"] == ["a b", ["a", "ab"]]
    least = cut_down(whole, 2)
    assert (least["version"], least["model"]["vocab"], least["model"]["merges"]) == ("1", {"a": 0, "b": 1}, [])


def test_a_checkpoint_is_written_as_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    shape = replace(TINY, tied=False)
    folder = write_checkpoint(shape, tmp_path / "made", shard_bytes=50_000)
    write_gguf(folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {named(name) for name in weights_of(shape)}
    name = "model.layers.2.mlp.gate_proj.weight"
    tensor = tensors[named(name)]
    assert tensor.tensor_type.name == "Q4_0"
    assert tuple(tensor.shape)[::-1] == (96, 64)
    wanted = drawn(name, (96, 64), "bfloat16", 0).float().numpy()
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert abs(found - wanted).max() < abs(wanted).max() / 7
    assert tensors["output.weight"].tensor_type.name == "Q8_0"
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == shape.words

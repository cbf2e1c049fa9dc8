"""Large checkpoints keep their weights in their files, from torch to the cache, and become the same graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.graph.weight_files import in_file
from onnxopt.load.checkpoint.mapped import stored_type
from onnxopt.load.export import export as export_module
from onnxopt.load.export.export import export
from onnxopt.load.export.torch_model import TorchModel
from onnxopt.load.export.trace import trace
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer, write_pooling

LEAST = 1024  # bytes as float32; smaller weights are held
SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 3,
}
T5: dict[str, Any] = {
    "vocab_size": 200,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 3,
}
EXPERTS: dict[str, Any] = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2 tied": ("Qwen2ForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "llama untied": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "experts": ("MixtralForCausalLM", EXPERTS),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_files, "LEAST_BYTES", LEAST)


def saved(folder: Path, name: str, settings: dict[str, Any], dtype: str = "float32", shard: str = "1GB") -> Path:
    """Write a checkpoint of an architecture of transformers, with weights wide enough to be felt."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(11)
        network = kind(kind.config_class(**settings))
        for parameter in network.parameters():
            parameter.normal_(0.1, 0.2)
    network.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return tiny_tokenizer(folder, gpt2="CausalLM" in name)


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Loaded, Loaded]:
    """Export a checkpoint with its weights in memory, and with them in its files."""
    held = export(resolve(str(folder)), use_cache=False, **options)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    return held, export(resolve(str(folder)), use_cache=False, **options)


def weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {name: one.const_value for name, one in model.graph.initializers.items() if one.const_value is not None}


def agree(held: Loaded, lying: Loaded) -> None:
    """Check that two exports are one graph with the same numbers, and torch says the same to the bit."""
    first, second = weights(held.model), weights(lying.model)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype, name
        assert np.array_equal(second[name].numpy(), tensor.numpy()), name
        assert lying.model.graph.initializers[name].dtype == held.model.graph.initializers[name].dtype
    assert [(node.op_type, node.name) for node in held.model.graph] == [
        (node.op_type, node.name) for node in lying.model.graph
    ]
    assert held.signature == lying.signature
    assert held.notes == lying.notes
    for axis in {"batch", "sequence", "past_sequence"} & set(held.signature.axes):  # in fewer runs, the same sizes
        assert {sizes[axis] for sizes in lying.proved_sizes} == {sizes[axis] for sizes in held.proved_sizes}
    sizes = {"batch": 2, "sequence": 7, "past_sequence": 3, "encoder_sequence": 5}
    feeds = held.feeder.make({axis: size for axis, size in sizes.items() if axis in held.signature.axes}, "right")
    expected, found = held.reference.run(feeds), lying.reference.run(feeds)
    assert list(expected) == list(found)
    for name, array in expected.items():
        assert np.array_equal(array, found[name]), name


def refers(lying: Loaded, files: Sequence[Path]) -> None:
    """Check that every large weight of a graph lies in a file, and most bytes of them in those of the checkpoint."""
    large = {name: one for name, one in weights(lying.model).items() if one.nbytes >= LEAST and one.dtype == 1}
    assert len(large) > 8
    assert [name for name, one in large.items() if in_file(one) is None] == []
    where = {str(path.resolve()) for path in files}
    assert any(str(one.path) in where for one in map(in_file, large.values()) if one is not None)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qwen2 tied", "float32"), ("qwen2 tied", "bfloat16"), ("llama untied", "float16"), ("experts", "bfloat16")],
)
def test_decoders_refer_to_their_checkpoint(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", *DECODERS[name], dtype=dtype, shard="20KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    held, lying = both(folder, monkeypatch)
    agree(held, lying)
    refers(lying, files)
    again = export(resolve(str(folder)))
    agree(lying, again)
    refers(again, files)


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_other_architectures_refer_too(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(kind, tmp_path / "model")
    if kind == "bert":
        write_pooling(folder, {"pooling_mode_mean_tokens": True})
    held, lying = both(folder, monkeypatch)
    agree(held, lying)
    refers(lying, [folder / "model.safetensors"])


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_both_parts_of_a_pair_refer(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model", "T5ForConditionalGeneration", T5, "bfloat16")
    held, lying = both(folder, monkeypatch, part=part)
    agree(held, lying)
    refers(lying, [folder / "model.safetensors"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_torchscript_gets_the_numbers_themselves(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model", *DECODERS["llama untied"], dtype=dtype)
    held, lying = both(folder, monkeypatch, exporter="torchscript")
    agree(held, lying)
    assert [name for name, one in weights(lying.model).items() if in_file(one) is not None] == []


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint in bfloat16 and a cache that has its export by reference.

    Its weights are a link, as those are that come from the Hub.
    """
    room = tmp_path_factory.mktemp("once")
    folder = saved(room / "model", *DECODERS["qwen2 tied"], dtype="bfloat16")
    (folder / "model.safetensors").rename(room / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXOPT_CACHE", str(room / "cache"))
        patch.setattr(weight_files, "LEAST_BYTES", LEAST)
        patch.setattr(weight_files, "LARGE_BYTES", 0)
        export(resolve(str(folder)))
    return room


@pytest.fixture
def made(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Loaded]:
    """Return copies of a checkpoint and of its export by reference, which nothing makes again."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    monkeypatch.setattr(export_module, "_make", refuse)
    shutil.copytree(once, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path / "model", export(resolve(str(tmp_path / "model")))


def test_the_cache_holds_no_copy_of_the_weights(made: tuple[Path, Loaded]) -> None:
    folder, loaded = made
    entry = loaded.assets[0].parent.parent
    size = sum(path.stat().st_size for path in entry.glob("model.onnx*"))
    assert [path.name for path in entry.glob("model.onnx*")] == ["model.onnx"]
    held = sum(one.nbytes for one in weights(loaded.model).values() if in_file(one) is None)
    assert size < held + 150_000  # the graph itself
    assert str(folder).encode() not in (entry / "model.onnx").read_bytes()


def test_a_moved_checkpoint_is_found_in_the_cache(made: tuple[Path, Loaded], tmp_path: Path) -> None:
    folder, loaded = made
    feeds = loaded.feeder.make({"batch": 2, "sequence": 5, "past_sequence": 0})
    expected = loaded.reference.run(feeds)
    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)  # the file itself in place of the link
    shutil.rmtree(folder)
    found = export(resolve(str(moved)))
    refers(found, [moved / "model.safetensors"])
    for name, array in found.reference.run(feeds).items():
        assert np.array_equal(array, expected[name])


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_checkpoint_that_is_gone_or_cut_meanwhile_is_one_line(damage: str, made: tuple[Path, Loaded]) -> None:
    from onnxopt.load.export.references import read_graph

    folder, loaded = made
    weights_file = folder / "model.safetensors"
    if damage == "gone":
        weights_file.unlink()
    else:
        weights_file.write_bytes(weights_file.read_bytes()[:30_000])
    with pytest.raises(InputError, match=r"model\.safetensors: (the weights cannot be read|ends before)") as error:
        read_graph(loaded.assets[0].parent.parent / "model.onnx", folder)
    assert "\n" not in str(error.value)


def test_weights_stand_aside_for_the_trace_alone(
    made: tuple[Path, Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = made[1]
    loaded.reference.run(loaded.feeder.make({"batch": 1, "sequence": 4, "past_sequence": 0}))
    model: TorchModel = loaded.reference._model  # type: ignore[attr-defined]  # of torch's reference
    before = [parameter for parameter in model.flat.parameters() if isinstance(parameter, stored_type())]
    assert len(before) > 8
    trace(model, "dynamo", tmp_path / "once.onnx")
    assert [id(one) for one in before] == [
        id(parameter) for parameter in model.flat.parameters() if isinstance(parameter, stored_type())
    ]

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("onnxopt.load.export.trace._dynamo", fail)
    with pytest.raises(Exception, match="no"):
        trace(model, "dynamo", tmp_path / "twice.onnx")
    assert [id(one) for one in before] == [
        id(parameter) for parameter in model.flat.parameters() if isinstance(parameter, stored_type())
    ]


def test_made_up_weights_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    folder = tiny_checkpoint("distilbert", tmp_path / "model")
    loaded = export(resolve(str(folder), weights="random"), exporter="torchscript")
    assert [name for name, one in weights(loaded.model).items() if in_file(one) is not None] == []


def test_a_checkpoint_without_its_head_is_refused_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    folder = tiny_checkpoint("distilbert", tmp_path / "model", task="feature-extraction")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["DistilBertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has no weights for .*classifier"):
        export(resolve(str(folder)), task="text-classification")

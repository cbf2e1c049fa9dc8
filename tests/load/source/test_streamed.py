"""Weights go to a file as transformers loads them, and are there what they would be in memory."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from onnxopt.graph import weight_files
from onnxopt.load.checkpoint.stored import places_in
from onnxopt.load.source.streamed import WeightStream

TAKEN_BYTES = 32 * 64 * 4  # what a weight must have in these tests to be written as it comes


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LEAST_BYTES", TAKEN_BYTES)


def checkpoint(folder: Path, *, tied: bool, halves: tuple[str, ...] = ()) -> Path:
    """Write a tiny Llama of random weights, some of them numbers of 16 bits."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    network = LlamaForCausalLM(config)
    for name, parameter in network.named_parameters():
        if name.endswith(halves) and halves:
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    network.save_pretrained(folder)
    return folder


def streamed(folder: Path, path: Path) -> Any:
    """Load a checkpoint with its weights written to a file."""
    stream = WeightStream(path)
    with stream.taking():
        network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream.finish(network)
    return network


@pytest.mark.parametrize("tied", [False, True])
def test_the_file_holds_what_the_network_would(*, tied: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", tied=tied, halves=("up_proj.weight", "q_proj.weight"))
    expected = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    made = streamed(folder, tmp_path / "weights.safetensors")
    table = made.model.embed_tokens.weight
    assert table.untyped_storage().nbytes() == 4  # a stand-in of one number
    assert (made.lm_head.weight is table) == tied
    places = places_in(tmp_path / "weights.safetensors")
    assert {place.dtype for name, place in places.items() if "up_proj" in name} == {"BF16"}
    assert {place.dtype for name, place in places.items() if "q_proj" in name} == {"F32"}  # too small to be looked at
    assert all(place.offset % 4 == 0 for place in places.values())
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        shared = {name: kept for name, kept in file.metadata().items() if name != "format"}
        assert shared == ({"model.embed_tokens.weight": "lm_head.weight"} if tied else {})
        assert {*file.keys(), *shared} == set(expected)
        for name in expected:
            found = file.get_tensor(shared.get(name, name)).to(torch.float32)
            assert torch.equal(found.view(torch.int32), expected[name].view(torch.int32)), name


def test_what_was_written_is_loaded_as_a_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", tied=True)
    before = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    streamed(folder, tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").replace(folder / "model.safetensors")
    after = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_small_weights_alone_are_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 1 << 20)
    folder = checkpoint(tmp_path / "checkpoint", tied=False)
    made = streamed(folder, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), one) for name, one in made.state_dict().items())


def test_a_stand_in_is_not_written_to(tmp_path: Path) -> None:
    made = streamed(checkpoint(tmp_path / "checkpoint", tied=False), tmp_path / "weights.safetensors")
    with pytest.raises(RuntimeError, match="single memory location"):
        made.lm_head.weight.data.add_(1)


def test_modules_of_other_threads_and_new_ones_keep_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    found: list[torch.nn.Parameter] = []

    def marked() -> None:
        linear, weight = torch.nn.Linear(64, 64), torch.nn.Parameter(torch.ones(64, 64))
        weight._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks them
        linear.weight = weight
        found.append(linear.weight)

    with WeightStream(tmp_path / "weights").taking():
        assert os.environ["HF_DEACTIVATE_ASYNC_LOAD"] == "1"
        thread = threading.Thread(target=marked)
        thread.start()
        thread.join()
        fresh = torch.nn.Linear(64, 64)
        assert not (tmp_path / "weights").exists()
        marked()
        assert (tmp_path / "weights").exists()
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    sizes = [weight.untyped_storage().nbytes() for weight in (found[0], fresh.weight, found[1])]
    assert sizes == [4 * 64 * 64, 4 * 64 * 64, 4]


def test_a_weight_that_no_name_tells_of_is_refused(tmp_path: Path) -> None:
    folder, stream = checkpoint(tmp_path / "checkpoint", tied=False), WeightStream(tmp_path / "weights")
    with stream.taking():
        network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.lm_head.weight = torch.nn.Parameter(torch.zeros(90, 32))
    with pytest.raises(RuntimeError, match="none of the network's"):
        stream.finish(network)


def test_more_names_than_the_header_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.load.source.streamed._HEADER_BYTES", 512)
    with pytest.raises(ValueError, match="more than a header of 512 bytes has room for"):
        streamed(checkpoint(tmp_path / "checkpoint", tied=False), tmp_path / "weights")


def test_the_header_is_padded_with_spaces(tmp_path: Path) -> None:
    streamed(checkpoint(tmp_path / "checkpoint", tied=False), tmp_path / "weights")
    written = (tmp_path / "weights").read_bytes()
    (length,) = struct.unpack("<Q", written[:8])
    text = written[8 : 8 + length]
    header = json.loads(text)
    assert text == text.rstrip(b" ").ljust(length)
    stops = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert stops[0][0] == 0
    assert np.array_equal([start for start, _ in stops[1:]], [stop for _, stop in stops[:-1]])
    assert stops[-1][1] == len(written) - 8 - length

"""What a decoder's face gives is what the network gives for the text whole, wherever its positions begin.

Covers: load/export/torch_decoder.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import ExportError
from onnxopt.load.checkpoint.classes import infer_task
from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
from onnxopt.load.export.torch_model import TorchModel, TorchReference, load_torch
from onnxopt.load.export.whole_text import text_for
from onnxopt.load.source.source import resolve

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 60,
    "initializer_range": 0.4,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
ROBERTA: dict[str, Any] = {**SIZES, "type_vocab_size": 1, "is_decoder": True}
FSMT: dict[str, Any] = {
    "langs": ["en", "de"],
    "src_vocab_size": 90,
    "tgt_vocab_size": 90,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "init_std": 0.4,
}


def made(kind: str, config: dict[str, Any]) -> Any:
    """Return a network with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    network = getattr(transformers, kind)
    return network(network.config_class(**config)).eval()


def opened(network: Any, folder: Path, **options: Any) -> TorchModel:
    network.save_pretrained(folder)
    checkpoint = read_checkpoint(resolve(str(folder)))
    config = load_config(checkpoint)
    return load_torch(checkpoint, config, infer_task(config), None, **options)


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize(
    ("kind", "config", "first"),
    [
        ("RobertaForCausalLM", {**ROBERTA, "pad_token_id": 1}, 2),
        ("XLMRobertaForCausalLM", {**ROBERTA, "pad_token_id": 4}, 5),
        ("BertLMHeadModel", {**SIZES, "is_decoder": True, "pad_token_id": 3}, 0),
        ("GPT2LMHeadModel", {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 60}, 0),
        ("LlamaForCausalLM", {**SIZES, "num_key_value_heads": 2, "pad_token_id": 1}, 0),
    ],
)
def test_positions_begin_where_the_network_has_them(
    kind: str, config: dict[str, Any], first: int, *, with_cache: bool, tmp_path: Path
) -> None:
    import torch

    network = made(kind, config)
    model = opened(network, tmp_path, with_cache=with_cache)
    assert (model.first, model.cache is not None) == (first, with_cache)
    ids = text_for(network)[:, :5]
    with torch.inference_mode():
        whole = network(ids).logits
    sizes = {"batch": 2, "sequence": 5, "past_sequence": 0, "total_sequence": 5}
    feeds = {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in model.inputs}
    logits = model.run({**feeds, "input_ids": ids.numpy(), "attention_mask": np.ones((2, 5), np.int64)})["logits"]
    np.testing.assert_allclose(logits, whole[:, -logits.shape[1] :].numpy(), atol=1e-4)
    again = opened(network, tmp_path, with_cache=with_cache, first=first)  # as an export in the cache is opened
    assert (again.first, again.cache == model.cache) == (first, True)


def test_rows_that_are_padded_on_the_left_are_what_they_are_alone(tmp_path: Path) -> None:
    import torch

    network = made("RobertaForCausalLM", {**ROBERTA, "pad_token_id": 1})
    model = opened(network, tmp_path)
    ids = text_for(network)[:1]
    padded = torch.cat([torch.ones(1, 3, dtype=torch.int64), ids], 1)
    mask = (padded != 1).long()
    seen = {spec.name: np.zeros((1, 4, 0, 8), np.float32) for spec in model.inputs if spec.name.startswith("past")}
    found = model.run({"input_ids": padded.numpy(), "attention_mask": mask.numpy(), **seen})["logits"]
    with torch.inference_mode():
        np.testing.assert_allclose(found, network(ids).logits[:, -1:].numpy(), atol=1e-4)


def test_a_decoder_that_takes_one_token_behind_its_past_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="written for one token at a time"):
        opened(made("FSMTForConditionalGeneration", FSMT), tmp_path, part="decoder")


def test_a_decoder_that_does_not_go_on_from_its_cache_is_exported_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2LMHeadModel

    network = made("GPT2LMHeadModel", {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 60})
    plain = GPT2LMHeadModel.forward

    def forward(self: Any, *given: Any, past_key_values: Any = None, **named: Any) -> Any:
        found = plain(self, *given, past_key_values=past_key_values, **named)
        if past_key_values is not None and past_key_values.get_seq_length() > found.logits.shape[1]:
            found.logits = found.logits + 1.0  # another answer behind a past
        return found

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    assert opened(network, tmp_path).cache is None


def test_a_network_that_does_not_run_on_a_size_is_one_line(tmp_path: Path) -> None:
    model = opened(made("GPT2LMHeadModel", {"vocab_size": 90, "n_embd": 32, "n_head": 4, "n_positions": 8}), tmp_path)
    sizes = {"batch": 1, "sequence": 9, "past_sequence": 0, "total_sequence": 9}
    feeds = {spec.name: np.ones(spec.shape(sizes), spec.dtype) for spec in model.inputs}
    with pytest.raises(
        ExportError, match=r"gpt2 does not run on input_ids \[1, 9\], attention_mask \[1, 9\]: index out of range"
    ):
        TorchReference("gpt2", lambda: model).run(feeds)

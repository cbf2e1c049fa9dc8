"""Decoders of many architectures: exported with a cache, fused, proved, and generated from as transformers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.artifact.package import decoding_of
from onnxopt.graph import op_counts
from onnxopt.graph.blocks import count_blocks
from onnxopt.graph.cache import Cache
from onnxopt.load.export.export import export
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.proof.cases import cases_of
from onnxopt.proof.whole import is_packed, prove
from onnxopt.run.generate.decoder import Decoder
from onnxopt.run.session import Session
from onnxopt.spec import Array, Budget, Target
from tests.support.decoders import CONFIGS, save_decoder

NEW_TOKENS = 20
LENGTHS = (9, 4, 1, 13)  # of the prompts of a batch

# What keeps an attention from the kernel with the cache inside, or from being one node at all.
NOT_LOWERED = {
    "mpt": "only TorchScript exports it, with the cache joined in a way of its own",
    "gpt_oss": "attention sinks become a key of their own, which the kernel's cache has no room for",
}
SHARED_KEYS = "layers that share the keys of others have no cache of their own"
NOT_LOWERED |= {"gemma3n_text": SHARED_KEYS, "gemma4_text": SHARED_KEYS}
LAYERS = {"gemma3n_text": 4, "gemma4_text": 4}
TWO_LAYERS = 2

QUICK = ("gpt2", "llama", "gemma2", "qwen3", "mixtral", "bloom", "gpt_neox")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_answers_like_the_original(name: str, tmp_path: Path) -> None:
    """Equal logits at all sizes and paddings, and the same greedy tokens for a batch of prompts padded on the left."""
    folder = save_decoder(name, tmp_path / name)
    loaded = export(resolve(str(folder)), use_cache=False)
    ledger = run_pipeline(loaded, Target("cpu"))
    assert [item.reason for entry in ledger.entries for item in entry.rolled_back] == []
    ir.save(loaded.model, tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", target=Target("cpu"))
    worst = prove(session.run, loaded, Budget(), cases_of(loaded), packed=is_packed(loaded))
    assert max(record.worst_relative_error for record in worst) < 1e-5
    kernels = op_counts(loaded.model)["com.microsoft::GroupQueryAttention"]
    assert kernels == (0 if name in NOT_LOWERED else TWO_LAYERS)
    layers = LAYERS.get(name, TWO_LAYERS)
    assert str(count_blocks(loaded.model)["attention"]) == f"{layers} of {layers}"
    prompts = _prompts(loaded)
    expected = _continue_in_torch(folder, prompts)
    assert _continue(loaded, session, prompts) == expected
    assert _continue_in_pieces(loaded, session, prompts) == expected


def _continue_in_pieces(loaded: Loaded, session: Session, prompts: list[list[int]]) -> list[list[int]]:
    """Read the prompts five columns at a time, past and present in one buffer where the graph allows it."""
    batch = Decoder.of(session, decoding_of(loaded.model, loaded)).prefill(prompts, new_tokens=NEW_TOKENS, chunk=5)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in range(NEW_TOKENS):
        for row, token in zip(rows, batch.logits.argmax(axis=-1).tolist(), strict=True):
            row.append(token)
        if step < NEW_TOKENS - 1:
            batch.step([row[-1] for row in rows])
    return rows


def _prompts(loaded: Loaded) -> list[list[int]]:
    ids = loaded.feeder.make({"batch": len(LENGTHS), "sequence": max(LENGTHS), "past_sequence": 0})["input_ids"]
    return [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]


def _padded(prompts: list[list[int]]) -> tuple[Array, Array]:
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(row)) + row for row in prompts])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


def _continue(loaded: Loaded, session: Session, prompts: list[list[int]]) -> list[list[int]]:
    """Take the most likely token, again and again, for all prompts at once."""
    cache = Cache.of(loaded.signature)
    assert cache is not None
    ids, mask = _padded(prompts)
    sizes = {"batch": len(prompts), "past_sequence": 0}
    past = {spec.name: np.zeros(spec.shape(sizes), np.float32) for spec in cache.inputs}
    rows: list[list[int]] = [[] for _ in prompts]
    for _ in range(NEW_TOKENS):
        found = session.run({"input_ids": ids, "attention_mask": mask, **past})
        ids = found["logits"][:, -1:].argmax(axis=-1)
        for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
            row.append(token)
        mask = np.concatenate([mask, np.ones((len(prompts), 1), mask.dtype)], axis=1)
        past = {before.name: found[now.name] for before, now in zip(cache.inputs, cache.outputs, strict=True)}
    return rows


def _continue_in_torch(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    import transformers

    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None
    ids, mask = (torch.from_numpy(array) for array in _padded(prompts))
    with torch.inference_mode():
        found = network.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None
        )
    return found[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]  # torch types it so

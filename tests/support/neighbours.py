"""Hold a decoder to the answers that it gives to each prompt alone, beside others of any length and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.artifact.package import decoding_of
from onnxopt.graph.cache import Cache
from onnxopt.load.export.export import export
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.run.generate.decoder import Batch, Decoder
from onnxopt.run.session import Session
from onnxopt.spec import Array, Target
from tests.support.tiny import spread_weights, tiny_tokenizer

Side = Literal["left", "right", "mixed"]
SIDES: tuple[Side, ...] = ("left", "right", "mixed")
TOLERANCE = 2e-5  # of the largest logit: sums in another order


@dataclass(frozen=True)
class Opened:
    """A decoder on its way of an artifact.

    Attributes:
        loaded: the graph as lowered.
        session: runs it.
        decoder: steps it.
        folder: its checkpoint.
    """

    loaded: Loaded
    session: Session
    decoder: Decoder
    folder: Path


def save_checkpoint(kind: str, settings: Mapping[str, Any], folder: Path) -> Path:
    """Write config, wide random weights and tokenizer of a tiny decoder."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    spread_weights(model)
    model.save_pretrained(folder)
    return tiny_tokenizer(folder, gpt2=True)


def opened(kind: str, settings: Mapping[str, Any], folder: Path, *, target: Target | None = None) -> Opened:
    """Take a tiny decoder the road of an artifact: export, passes, session."""
    checkpoint = save_checkpoint(kind, settings, folder / "checkpoint")
    chosen = target or Target("cpu")
    loaded = export(resolve(str(checkpoint)), use_cache=False)
    ledger = run_pipeline(loaded, chosen)
    assert [item.reason for entry in ledger.entries for item in entry.rolled_back] == []
    ir.save(loaded.model, folder / "model.onnx")
    session = Session(folder / "model.onnx", target=chosen)
    return Opened(loaded, session, Decoder.of(session, decoding_of(loaded.model, loaded)), checkpoint)


def prompts_of(loaded: Loaded, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return a row of ids for each length."""
    sizes = {"batch": len(lengths), "sequence": max(lengths), "past_sequence": 0}
    ids = loaded.feeder.make(sizes, seed=seed)["input_ids"]
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


def padded(prompts: Sequence[Sequence[int]], side: Side, width: int) -> tuple[Array, Array]:
    """Return ids and mask, int64 [rows, width]."""
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        room = width - len(prompt)
        start = {"left": room, "right": 0, "mixed": room // 2}[side]
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = 1
    return ids, mask


def first_logits(one: Opened, ids: Array, mask: Array) -> Array:
    """Return what the graph itself answers for prompts, float [rows, vocabulary], by a plain run of the session."""
    cache = Cache.of(one.loaded.signature)
    assert cache is not None
    sizes = {"batch": len(ids), "past_sequence": 0}
    past = {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in cache.inputs}
    found: Array = one.session.run({"input_ids": ids, "attention_mask": mask, **past})["logits"]
    return found[:, -1]


def apart(found: Array, expected: Array) -> float:
    """Return the worst difference relative to the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def steps(batch: Batch, count: int) -> tuple[list[list[int]], list[Array]]:
    """Return the greedy tokens of each row, and the logits [rows, vocabulary] before each of them."""
    rows: list[list[int]] = [[] for _ in range(len(batch))]
    seen = []
    for number in range(count):
        seen.append(batch.logits.copy())
        for row, token in zip(rows, batch.logits.argmax(axis=-1).tolist(), strict=True):
            row.append(token)
        if number < count - 1:
            batch.step([row[-1] for row in rows])
    return rows, seen


def check_padding(one: Opened, prompts: Sequence[Sequence[int]], extra: int = 2) -> None:
    """Hold the first logits of prompts in a batch, padded on any side, to those of each alone without padding."""
    alone = np.concatenate([first_logits(one, *padded([prompt], "left", len(prompt))) for prompt in prompts])
    width = max(map(len, prompts)) + extra
    for side in SIDES:
        assert apart(first_logits(one, *padded(prompts, side, width)), alone) < TOLERANCE, side


def check_neighbours(one: Opened, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Hold tokens and logits of prompts in one batch to those of each alone; return the tokens."""
    together, logits = steps(one.decoder.prefill(prompts, new_tokens=count), count)
    for row, prompt in enumerate(prompts):
        alone, expected = steps(one.decoder.prefill([prompt], new_tokens=count), count)
        assert together[row] == alone[0], f"prompt of {len(prompt)} tokens"
        for found, wanted in zip(logits, expected, strict=True):
            assert apart(found[row], wanted[0]) < TOLERANCE, f"prompt of {len(prompt)} tokens"
    return together

"""Rotary tables that hang on the length, against transformers' own `generate`: on both sides of a crossing, across."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from tests.support.decoders import GROUPED, POSITIONS, TEXT
from tests.support.neighbours import Opened, check_neighbours, opened, prompts_of, steps

NEW = 12


def longrope(limit: int, pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * index for index in range(pairs)],
        "long_factor": [1.5 + 0.7 * index for index in range(pairs)],
        "original_max_position_embeddings": limit,
    }


def phi3(limit: int) -> dict[str, Any]:
    """Phi-3 drops the cache of a text that grows across."""
    own = {"num_key_value_heads": 2, "original_max_position_embeddings": limit}
    return {**TEXT, **own, "rope_parameters": longrope(limit, 8)}


CONFIGS: dict[str, tuple[str, Mapping[str, Any], int, str]] = {
    "phi3-40": ("phi3", phi3(40), 40, "reread"),
    "phi3-101": ("phi3", phi3(101), 101, "reread"),
    # with the same tables, but transformers goes on from the keys as they are
    "llama-27": ("llama", {**TEXT, **GROUPED, "rope_parameters": longrope(27, 8)}, 27, "continue"),
    "mistral-33": (
        "mistral",
        {**TEXT, **GROUPED, "sliding_window": 12, "rope_parameters": longrope(33, 8)},
        33,
        "continue",
    ),
}
QUICK = ("phi3-40",)
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def in_torch(one: Opened, prompt: list[int]) -> list[int]:
    """Return transformers' greedy tokens; a fresh model each time, since some of its tables remember longer texts."""
    import torch
    import transformers

    network: Any = transformers.AutoModelForCausalLM.from_pretrained(one.folder, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
    network.generation_config.eos_token_id = None
    with torch.inference_mode():
        found = network.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found[0, len(prompt) :].tolist()  # type: ignore[no-any-return]  # torch types it so


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_those_of_transformers_on_both_sides_and_across(name: str, tmp_path: Path) -> None:
    kind, settings, limit, crossing = CONFIGS[name]
    one = opened(kind, settings, tmp_path)
    assert one.decoder.crossings == (limit,)
    assert one.decoder.rereads == (crossing == "reread")
    assert any(f"change beyond {limit} tokens" in note for note in one.loaded.notes)
    lengths = (3, limit - 5, limit - 1, limit, limit + 1, limit + 40)
    prompts = prompts_of(one.loaded, lengths)
    expected = [in_torch(one, prompt) for prompt in prompts]
    assert check_neighbours(one, prompts, NEW) == expected


@pytest.mark.slow
def test_tables_that_grow_with_every_token_end_where_they_begin_to(tmp_path: Path) -> None:
    """Dynamic NTK: what transformers does beyond could be proved at no one length, so the artifact ends there."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    one = opened("llama", {**TEXT, **GROUPED, "rope_parameters": rope}, tmp_path)
    assert one.decoder.crossings == ()
    assert (one.decoder.endless_from, one.decoder.context_length) == (POSITIONS, POSITIONS)
    assert any(f"change with every token beyond {POSITIONS}" in note for note in one.loaded.notes)
    prompts = prompts_of(one.loaded, (5, POSITIONS - NEW, 77))
    assert check_neighbours(one, prompts, NEW) == [in_torch(one, prompt) for prompt in prompts]
    with pytest.raises(InputError, match=f"the model takes {POSITIONS}: its rotary tables change"):
        one.decoder.prefill([[1] * (POSITIONS + 1)])


@pytest.mark.slow
def test_a_batch_is_stepped_as_its_rows_are(tmp_path: Path) -> None:
    kind, settings, limit, _ = CONFIGS["phi3-40"]
    one = opened(kind, settings, tmp_path)
    prompts = prompts_of(one.loaded, (limit - 3, 9, limit + 2), seed=3)
    batch = one.decoder.prefill(prompts[:2], new_tokens=NEW)
    batch.join(one.decoder.prefill(prompts[2:], new_tokens=NEW))
    rows, _ = steps(batch, NEW)
    assert rows == [steps(one.decoder.prefill([prompt], new_tokens=NEW), NEW)[0][0] for prompt in prompts]

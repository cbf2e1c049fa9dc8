"""Rules of a checkpoint beside its logits: equal to transformers' processors of the same names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.run.generate.token_rules import TokenRules

VOCABULARY, MOST = 12, 6
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
    "suppressed": {"suppress_tokens": [1, 3, 11], "begin_suppress_tokens": [5, 2]},
    "ngrams": {"no_repeat_ngram_size": 2},
    "shortest": {"min_length": 4},
    "shortest_new": {"min_new_tokens": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens_stay_as_in_transformers(name: str) -> None:
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    settings = SETTINGS[name]
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=32)
    how = GenerationConfig(**settings, eos_token_id=2, pad_token_id=0, do_sample=False, max_length=1 + MOST)
    how._eos_token_tensor = torch.tensor([2])
    rules = TokenRules.of(settings, [2])
    generator, start = np.random.default_rng(0), [4]
    processors = GPT2LMHeadModel(config)._get_logits_processor(
        generation_config=how, input_ids_seq_length=1, encoder_input_ids=torch.tensor([start]), device="cpu"
    )
    written: list[int] = []
    for _ in range(MOST):
        logits = generator.standard_normal(VOCABULARY).astype(np.float32)
        expected = processors(torch.tensor([start + written]), torch.from_numpy(logits.copy())[None])[0].numpy()
        found = rules.apply(logits, start, written, MOST)
        assert np.array_equal(np.isfinite(found), np.isfinite(expected))
        assert found.argmax() == expected.argmax()
        written.append(int(found.argmax()) if name != "ngrams" else int(generator.integers(3, 5)))


def test_logits_are_left_as_they_are() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    assert TokenRules.of({}, [2]).apply(logits, [1], [], MOST) is logits
    TokenRules.of({"suppress_tokens": [3]}).apply(logits, [1], [], MOST)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("settings", [{"forced_bos_token_id": 8}, {"forced_eos_token_id": [2**31 - 1]}])
def test_a_forced_token_that_the_model_does_not_have_is_said(settings: dict[str, object]) -> None:
    rules = TokenRules.of(settings)
    with pytest.raises(InputError, match=r"generation_config\.json: it forces the token \d+, and the model has 8"):
        rules.apply(np.zeros(8, np.float32), [1], [], 1)

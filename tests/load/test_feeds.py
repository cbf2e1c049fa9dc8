"""Inputs look as users send them, and are the same for the same seed.

Covers: texts/builtin.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.load.feeds import ImageFeeder, TextFeeder, Tokens, read_tokens
from onnxopt.spec import PADDINGS, Padding, TensorSpec
from onnxopt.texts.builtin import english_text
from tests.support.tiny import tiny_tokenizer

AXES = ("batch", "sequence")
INPUTS = tuple(TensorSpec(name, "int64", AXES) for name in ("input_ids", "attention_mask", "token_type_ids"))
TOKENS = Tokens(vocabulary=50, pad=7, stream=tuple(range(10, 40)), prefix=(1,), suffix=(2,), types=2, longest=64)


@given(
    batch=st.integers(1, 5),
    sequence=st.integers(1, 64),
    padding=st.sampled_from(PADDINGS),
    seed=st.integers(0, 2**31),
    stream=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_text_is_well_formed(batch: int, sequence: int, padding: Padding, seed: int, *, stream: bool) -> None:
    tokens = TOKENS if stream else Tokens(vocabulary=50, pad=7, special=(1, 2), types=2)
    made = TextFeeder(INPUTS, tokens).make({"batch": batch, "sequence": sequence}, padding, seed)
    ids, mask, types = (made[spec.name] for spec in INPUTS)
    for array in (ids, mask, types):
        assert array.shape == (batch, sequence)
        assert array.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < 50
    assert np.all(mask[0] == 1)
    assert np.all(ids[mask == 0] == 7)
    assert np.all(ids[mask == 1] != 7)
    assert not (set(types.ravel().tolist()) - {0, 1})
    assert np.all(types[mask == 0] == 0)
    for row in mask[1:]:
        assert row.any()
        assert row.all() == (padding == "none" or sequence == 1)
        falls, rises = (np.diff(row) == -1).any(), (np.diff(row) == 1).any()
        assert not (padding == "right" and rises)
        assert not (padding == "left" and falls)
    again = TextFeeder(INPUTS, tokens).make({"batch": batch, "sequence": sequence}, padding, seed)
    assert all(np.array_equal(made[name], again[name]) for name in made)


def test_rows_of_a_mixed_batch_have_each_kind_in_turn() -> None:
    mask = TextFeeder(INPUTS, TOKENS).make({"batch": 7, "sequence": 20}, "mixed", seed=5)["attention_mask"]
    falls, rises = (np.diff(mask, axis=1) == -1).any(1), (np.diff(mask, axis=1) == 1).any(1)
    assert falls.tolist() == [False, True, False, False, True, False, False]
    assert rises.tolist() == [False, False, True, False, False, True, False]


def test_rows_stand_between_the_tokenizers_marks() -> None:
    made = TextFeeder(INPUTS[:2], TOKENS).make({"batch": 4, "sequence": 12}, "right", seed=3)
    assert set(made) == {"input_ids", "attention_mask"}
    for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True):
        text = ids[mask == 1]
        if len(text) > 2:
            assert (text[0], text[-1]) == (1, 2)
            assert np.all((text[1:-1] >= 10) & (text[1:-1] < 40))


def test_some_rows_have_a_second_sentence() -> None:
    made = TextFeeder(INPUTS, TOKENS).make({"batch": 8, "sequence": 12})
    assert {0, 1} == {int(row.any()) for row in made["token_type_ids"]}


def test_sequence_past_the_models_positions_is_refused() -> None:
    with pytest.raises(InputError, match="sequence 65 is longer than the model's 64 positions"):
        TextFeeder(INPUTS, TOKENS).make({"sequence": 65})


def test_axes_that_are_not_named_take_a_default() -> None:
    assert TextFeeder(INPUTS, TOKENS).make({})["input_ids"].shape == (1, 16)
    pixels = TensorSpec("pixel_values", "float32", ("batch", 3, "height", 8))
    made = ImageFeeder((pixels,), {"height": 6}).make({"batch": 2})["pixel_values"]
    assert made.shape == (2, 3, 6, 8)
    assert made.dtype == np.float32
    assert abs(float(made.mean())) < 0.3


def test_tokens_survive_json() -> None:
    import json

    assert Tokens.from_json(json.loads(json.dumps(TOKENS.to_json()))) == TOKENS


def test_english_text_is_prose_of_the_asked_length() -> None:
    text = english_text(5000)
    assert len(text) == 5000
    assert text == english_text(5000)
    assert " the " in text


def test_tokenizer_gives_text_and_marks(tmp_path: Path) -> None:
    from transformers import BertConfig

    tokens = read_tokens(tiny_tokenizer(tmp_path), BertConfig(vocab_size=200, pad_token_id=0), longest=99)
    assert (tokens.prefix, tokens.suffix, tokens.pad, tokens.types, tokens.longest) == ((2,), (3,), 0, 2, 99)
    assert len(tokens.stream) > 1000
    assert max(tokens.stream) < 200


def test_tokenizer_without_its_own_fast_file_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = BertConfig(vocab_size=8, pad_token_id=0)
    (tmp_path / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    tokens = read_tokens(tmp_path, config)
    assert (tokens.prefix, tokens.suffix) == ((2,), (3,))
    assert 5 in tokens.stream


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig

    with pytest.raises(InputError, match="the model takes ids below 20; the tokenizer belongs to another model"):
        read_tokens(tiny_tokenizer(tmp_path), BertConfig(vocab_size=20))


def test_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    from transformers import BertConfig

    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read") as caught:
        read_tokens(tmp_path, BertConfig())
    assert "\n" not in str(caught.value)


def test_without_a_tokenizer_ids_avoid_special_ones() -> None:
    from transformers import BertConfig

    tokens = read_tokens(None, BertConfig(vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=[2, 3]))
    ids = TextFeeder(INPUTS[:1], tokens).make({"batch": 4, "sequence": 64})["input_ids"]
    assert {4, 5, 6, 7, 8} == set(ids.ravel().tolist())


CACHED = (
    TensorSpec("input_ids", "int64", AXES),
    TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
    TensorSpec("past_key_values.0.key", "float32", ("batch", 2, "past_sequence", 8)),
    TensorSpec("past_key_values.0.value", "float16", ("batch", 2, "past_sequence", 4)),
    TensorSpec("bias", "float32", ("batch", 1, "sequence", "total_sequence")),
)


@given(
    batch=st.integers(1, 4),
    sequence=st.integers(1, 20),
    past=st.integers(0, 20),
    padding=st.sampled_from(PADDINGS),
)
@settings(max_examples=60, deadline=None)
def test_padding_lies_among_the_new_tokens_behind_a_past(
    batch: int, sequence: int, past: int, padding: Padding
) -> None:
    feeder = TextFeeder(CACHED, TOKENS)
    made = feeder.make({"batch": batch, "sequence": sequence, "past_sequence": past}, padding, seed=5)
    assert list(made) == [spec.name for spec in CACHED]
    mask = made["attention_mask"]
    assert mask.shape == (batch, past + sequence)
    assert np.all(mask[:, :past] == 1)
    assert np.all(made["input_ids"][mask[:, past:] == 0] == 7)
    alone = feeder.make({"batch": batch, "sequence": sequence, "past_sequence": 0}, padding, seed=5)
    assert np.array_equal(mask[:, past:], alone["attention_mask"])
    assert np.array_equal(made["input_ids"], alone["input_ids"])
    assert made["past_key_values.0.key"].shape == (batch, 2, past, 8)
    assert made["past_key_values.0.value"].shape == (batch, 2, past, 4)
    assert made["past_key_values.0.value"].dtype == np.float16
    assert made["bias"].shape == (batch, 1, sequence, past + sequence)


def test_keys_and_values_are_any_numbers_and_no_zeros() -> None:
    made = TextFeeder(CACHED, TOKENS).make({"batch": 2, "sequence": 3, "past_sequence": 30})
    for name in ("past_key_values.0.key", "past_key_values.0.value"):
        assert abs(float(made[name].std()) - 1) < 0.2
    assert not np.array_equal(made["past_key_values.0.key"][..., :4], made["past_key_values.0.value"])


def test_a_past_that_nobody_names_is_empty() -> None:
    made = TextFeeder(CACHED, TOKENS).make({"batch": 2, "sequence": 3})
    assert made["attention_mask"].shape == (2, 3)
    assert made["past_key_values.0.key"].shape == (2, 2, 0, 8)


def test_a_past_and_a_sequence_together_past_the_models_positions_are_refused() -> None:
    with pytest.raises(InputError, match="sequence 65 is longer than the model's 64 positions"):
        TextFeeder(CACHED, TOKENS).make({"sequence": 1, "past_sequence": 64})
    assert TextFeeder(CACHED, TOKENS).make({"sequence": 1, "past_sequence": 63})["attention_mask"].shape == (1, 64)

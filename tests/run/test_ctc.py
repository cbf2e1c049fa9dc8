"""The likeliest path of a CTC network is spelled as transformers spells it.

Covers: run/ctc.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.run.ctc import collapsed, open_spelling
from tests.support.sounds import LETTERS
from tests.support.tiny import tiny_tokenizer


def _frames(ids: list[int], width: int) -> np.ndarray[Any, Any]:
    return np.eye(width, dtype=np.float32)[ids]


def test_a_token_counts_once_until_a_blank_lies_between() -> None:
    assert collapsed(_frames([0, 3, 3, 0, 3, 2, 2, 0], 4), 0) == [3, 3, 2]
    assert collapsed(_frames([1, 1, 3], 4), 1) == [3]
    assert collapsed(_frames([2, 2], 4), 2) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}, {"word_delimiter_token": "'", "pad_token": "<s>"}])
def test_letters_are_spelled_as_transformers_spells_them(settings: dict[str, Any], seed: int, tmp_path: Path) -> None:
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", **settings)
    tokenizer.save_pretrained(tmp_path)
    rng = np.random.default_rng(seed)
    ids = np.repeat(rng.integers(0, len(LETTERS), 80), rng.integers(1, 4, 80)).tolist()
    spell = open_spelling(tmp_path, {"pad_token_id": tokenizer.pad_token_id})
    assert spell(_frames(ids, len(LETTERS))) == tokenizer.decode(ids)


def test_a_vocabulary_for_each_language_is_read_by_the_one_that_is_set(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"<pad>": 0, "A": 1}, "fra": {"<pad>": 0, "É": 1}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": "fra"}))
    assert open_spelling(tmp_path, {})(_frames([1, 0, 1], 2)) == "ÉÉ"


def test_pieces_of_words_are_joined_by_their_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("the object is a class", add_special_tokens=False).ids
    frames = _frames([one for index in ids for one in (index, index, 0)], tokenizer.get_vocab_size())
    assert open_spelling(tmp_path, {"pad_token_id": 0})(frames) == tokenizer.decode(ids)


def test_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no vocab\.json and no tokenizer\.json"):
        open_spelling(tmp_path, {})
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match="holds no ids of letters"):
        open_spelling(tmp_path, {})

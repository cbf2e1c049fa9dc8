"""Make text of the logits of a network that was trained with CTC: the likeliest path, and what it spells.

Graves et al. 2006, "Connectionist Temporal Classification": every frame says a token or the blank; a token that is said
again without a blank between is the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.spec import Array
from onnxopt.texts.tokenizer import TOKENIZER_NAME, open_tokenizer, read_settings

_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_PAD, _DELIMITER = "<pad>", "|"  # transformers' Wav2Vec2CTCTokenizer without a word


def collapsed(frames: Array, blank: int) -> list[int]:
    """Return the tokens that frames spell.

    Args:
        frames: float [frames, tokens], any score of each.
        blank: the token that stands for none.
    """
    return [token for token, _ in groupby(int(one) for one in frames.argmax(axis=-1)) if token != blank]


def open_spelling(folder: Path, config: Mapping[str, Any]) -> Callable[[Array], str]:
    """Return a function from the logits of one sound, float [frames, tokens], to its text.

    Args:
        folder: with the tokenizer: a `vocab.json` of letters, or a `tokenizer.json`.
        config: content of config.json.

    Raises:
        InputError: there is no tokenizer, or none that letters can be read of.
    """
    if (folder / _VOCABULARY).is_file() and not (folder / _MERGES).is_file():
        return _letters(folder, config)
    if not (folder / TOKENIZER_NAME).is_file():
        raise InputError(
            f"no {_VOCABULARY} and no {TOKENIZER_NAME}: nothing says what its tokens spell",
            where=str(folder),
            hint="copy it from the checkpoint",
        )
    tokenizer, blank = open_tokenizer(folder), _blank(config)
    return lambda frames: str(tokenizer.decode(collapsed(frames, blank), skip_special_tokens=True)).strip()


def _letters(folder: Path, config: Mapping[str, Any]) -> Callable[[Array], str]:
    settings = read_settings(folder, "tokenizer_config.json")
    listed = read_settings(folder, _VOCABULARY)
    language = settings.get("target_lang")
    if language is not None and isinstance(listed.get(language), dict):  # a vocabulary for each language
        listed = listed[language]
    added = settings.get("added_tokens_decoder") or {}
    spelled = {index: letter for letter, index in listed.items() if type(index) is int}
    spelled |= {int(index): str(one.get("content")) for index, one in added.items() if isinstance(one, dict)}
    if not spelled:
        raise InputError("holds no ids of letters", where=str(folder / _VOCABULARY), hint="copy it from the checkpoint")
    ids = {letter: index for index, letter in spelled.items()}
    blank = ids.get(_text_of(settings.get("pad_token"), _PAD), _blank(config))
    delimiter = _text_of(settings.get("word_delimiter_token"), _DELIMITER)
    space = _text_of(settings.get("replace_word_delimiter_char"), " ")
    lower = bool(settings.get("do_lower_case", False))

    def spell(frames: Array) -> str:
        letters = (spelled.get(one, "") for one in collapsed(frames, blank))
        text = "".join(space if letter == delimiter else letter for letter in letters).strip()
        return text.lower() if lower else text

    return spell


def _text_of(value: object, otherwise: str) -> str:
    """Return a token of tokenizer_config.json, which may be an object around its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else otherwise


def _blank(config: Mapping[str, Any]) -> int:
    """Return the token that CTC's loss was told to be the blank."""
    found = config.get("pad_token_id")
    return found if isinstance(found, int) else 0

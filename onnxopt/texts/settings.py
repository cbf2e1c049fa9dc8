"""What the settings of a checkpoint may hold: each entry that is read, and what it has to be.

The files are written by people and by programs of many versions. An entry that is read and holds something else is
named in one line here, before it is an exception of whoever counts with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from onnxopt.errors import InputError, word

MAX_ID = 2**31 - 1  # no vocabulary has half as many
MAX_LAYERS = 1024  # each is built before anything is known of its weights; no network has a quarter
MAX_SIDE = 1 << 14  # pixels
PREPROCESSOR = "preprocessor_config.json"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _is_depth(value: object) -> bool:
    return _is_count(value) and isinstance(value, int) and value <= MAX_LAYERS


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= MAX_ID


def _is_ids(value: object) -> bool:
    return _is_id(value) or (isinstance(value, list) and all(map(_is_id, value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or _is_texts(value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_object, value))


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _is_size(value: object) -> bool:
    sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(map(_is_side, sides))


def _is_channels(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    return len(listed) in (1, 3) and all(map(_is_number, listed))


def _is_deviation(value: object) -> bool:
    return _is_channels(value) and 0 not in (value if isinstance(value, list) else [value])


def _is_filter(value: object) -> bool:
    return _is_count(value) and value in range(6)


_Kind = tuple[Callable[[object], bool], str]
_COUNT: _Kind = (_is_count, "a whole number from 0 on")
_IDS: _Kind = (_is_ids, "the id of a token, or a list of ids")
_NUMBER: _Kind = (_is_number, "a finite number")
_TEXT: _Kind = (_is_text, "a text")
_OBJECT: _Kind = (_is_object, "an object")
_SIZE: _Kind = (_is_size, f"pixels from 1 to {MAX_SIDE}, or an object or a list of them")

KINDS: Mapping[str, _Kind] = {
    "architectures": (_is_texts, "a list of names"),
    "pooling_mode": (_is_text_or_texts, "a name, or a list of names"),
    **dict.fromkeys(("model_type", "problem_type", "padding_side", "activation_function"), _TEXT),
    **dict.fromkeys(("id2label", "label2id", "text_config", "auto_map", "added_tokens_decoder"), _OBJECT),
    **dict.fromkeys(
        (
            *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens"),
            *("forced_bos_token_id", "forced_eos_token_id", "begin_suppress_tokens"),
        ),
        _IDS,
    ),
    **dict.fromkeys(
        (
            *("max_position_embeddings", "n_positions", "max_seq_length", "no_repeat_ngram_size", "min_length"),
            *("min_new_tokens", "vocab_size"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"),
        (_is_depth, f"a count of layers up to {MAX_LAYERS}"),
    ),
    **dict.fromkeys(
        ("model_max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "rescale_factor"), _NUMBER
    ),
}
OF_IMAGES: Mapping[str, _Kind] = {
    **dict.fromkeys(("size", "crop_size"), _SIZE),
    "resample": (_is_filter, "the number of a filter from 0 to 5"),
    "rescale_factor": _NUMBER,
    "image_mean": (_is_channels, "a finite number, or three of them"),
    "image_std": (_is_deviation, "a number that is not 0, or three of them"),
}


def check_settings(content: Mapping[str, Any], where: str, *, of_images: bool = False) -> None:
    """Refuse settings in which an entry that is read holds something else than it must.

    Args:
        content: of the file; entries that nobody reads may hold anything, and every other one may hold nothing (null).
        where: the file.
        of_images: it tells how images are prepared.

    Raises:
        InputError: names the first such entry.
    """
    for name, (fits, wanted) in (OF_IMAGES if of_images else KINDS).items():
        value = content.get(name)
        if value is not None and not fits(value):
            what = f"'{name}' is {word(repr(value), 60)}, expected {wanted}"
            raise InputError(what, where=where, hint="mend it, or copy the file from the checkpoint again")

"""Open a tokenizer, and what is known beside it: padding, limit, marks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxopt.errors import InputError, said
from onnxopt.host.bounds import allow, bounds
from onnxopt.host.doing import doing
from onnxopt.host.extras import require
from onnxopt.host.files import regular_size
from onnxopt.spec import Array
from onnxopt.texts.settings import PREPROCESSOR, check_settings

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKENIZER_NAME = "tokenizer.json"
MASKS = ("[MASK]", "<mask>")  # how the two families of tokenizers, and people, spell a hidden word
_CHARACTERS_PER_SECOND = 50_000  # a tenth of what a slow tokenizer of one thread does
_BYTES_PER_CHARACTER = 1000  # an encoding keeps its tokens' text, places and masks
_AS_FILE = ("the text cannot be tokenized", "cannot be read")
_NO_LIMIT = 1_000_000  # transformers writes 1e30 for "no limit"
_MAX_SETTINGS_BYTES = 64 << 20


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], *, marks: bool = True, pair: str | None = None
) -> list[Encoding]:
    """Return the encodings of texts, within the time and memory that a stranger's tokenizer may take.

    Args:
        tokenizer: a fast one.
        texts: one sequence each.
        marks: with the marks around each.
        pair: a second sequence for each of them.

    Raises:
        InputError: it fails on them.
    """
    with tokenizing(sum(map(len, texts)) + len(pair or "") * len(texts)):
        if len(texts) == 1:  # threads are of no use to it
            return [tokenizer.encode(texts[0], pair, add_special_tokens=marks)]
        given = [text if pair is None else (text, pair) for text in texts]
        return list(tokenizer.encode_batch(given, add_special_tokens=marks))


def tokens_of(tokenizer: Tokenizer, text: str) -> Array:
    """Return the ids of a text without marks around it, int64 [tokens]."""
    return np.array(encoded(tokenizer, [text], marks=False)[0].ids, np.int64)


@contextmanager
def tokenizing(characters: int) -> Iterator[None]:
    """Bound what the tokenizer of a stranger may take, which may hold patterns and rules without end.

    Args:
        characters: how many it is given.

    Raises:
        InputError: it fails, or its native code does, whose panics are no `Exception`.
    """
    limits = bounds()
    words = f"tokenizing; use another {TOKENIZER_NAME}, or {allow('seconds', '300')},memory=4GiB"
    seconds = limits.seconds + characters / _CHARACTERS_PER_SECOND
    try:
        with doing(words, seconds, limits.memory + _BYTES_PER_CHARACTER * characters):
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"the text cannot be tokenized ({said(error, 200)})", hint=f"use another {TOKENIZER_NAME}"
        ) from error


def prefix_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that the tokenizer puts before every text: what stands before the ids of a text without marks."""
    bare, marked = (encoded(tokenizer, ["a"], marks=marks)[0].ids for marks in (False, True))
    return marks_around(bare, marked)[0]


def marks_around(bare: list[int], marked: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and behind those of a text; none where its own do not stand among them.

    Args:
        bare: ids of a text without marks.
        marked: ids of the same text with them.
    """
    at = next((place for place in range(len(marked)) if marked[place : place + len(bare)] == bare), None)
    return ((), ()) if at is None else (tuple(marked[:at]), tuple(marked[at + len(bare) :]))


def token_ids(value: Any) -> list[int]:
    """Return token ids of a config entry, which is one id, several, or none."""
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, (list, tuple)) else [int(value)]


class Encode(Protocol):
    """A function from text to ids."""

    def __call__(self, text: str, *, marks: bool) -> list[int]:
        """Return the ids of a text, with or without the marks around it."""


def open_encoder(folder: Path) -> Encode:
    """Return a function from text to ids; the fast tokenizer's own file is enough, other kinds need transformers.

    Raises:
        InputError: when there is none, it cannot be read, or what reads it is not installed.
    """
    if (folder / TOKENIZER_NAME).is_file():
        fast = open_tokenizer(folder)
        return lambda text, *, marks: list(encoded(fast, [text], marks=marks)[0].ids)
    task, other = f"a tokenizer without {TOKENIZER_NAME}", f"add the {TOKENIZER_NAME} of the checkpoint"
    require("hf", task, where=str(folder), instead=other)
    try:
        import transformers

        slow = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises whatever its readers do
        raise InputError(f"the tokenizer cannot be read: {error}", where=str(folder)) from error
    return lambda text, *, marks: list(slow(text, add_special_tokens=marks)["input_ids"])


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of an artifact; an empty one when there is no such file.

    Raises:
        InputError: when the file is not a JSON object, or an entry of it has a wrong type.
    """
    path = folder / name
    try:
        if regular_size(path) > _MAX_SETTINGS_BYTES:
            raise InputError(f"is larger than {_MAX_SETTINGS_BYTES} bytes", where=str(path))
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), hint="copy it from the checkpoint") from error
    if not isinstance(data, dict):
        raise InputError("holds no JSON object", where=str(path), hint="copy it from the checkpoint")
    check_settings(data, str(path), of_images=name == PREPROCESSOR)
    return data


def tokenizer_file(folder: Path) -> Path:
    """Return the file of a tokenizer in a folder; raises InputError where there is none."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise InputError(
            f"no {TOKENIZER_NAME}, so text cannot be turned into tokens",
            where=str(folder),
            hint="copy it from the checkpoint; tokenizer.save_pretrained(...) of transformers writes it",
        )
    return path


def open_tokenizer(folder: Path, *, as_saved: bool = False) -> Tokenizer:
    """Open the tokenizer of a checkpoint or artifact: it gives every text whole, and as long as it is.

    Args:
        folder: has tokenizer.json.
        as_saved: keep the padding and the cut to a length that some checkpoints store.

    Raises:
        InputError: when there is none or it cannot be read.
    """
    path = tokenizer_file(folder)
    import tokenizers

    try:
        with tokenizing(path.stat().st_size):
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except InputError as error:
        raise InputError(error.what.replace(*_AS_FILE), where=str(path), hint=error.hint) from error
    if not as_saved:
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def token_text(entry: object) -> str:
    """Return the text of a special token in tokenizer_config.json: a string, or an object that has it as `content`."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else ""


def placed_in_row(row: Array, width: int, fill: int, *, left: bool) -> Array:
    """Return a row padded to a width, on the left or on the right."""
    placed = np.full(width, fill, row.dtype)
    placed[slice(width - len(row), None) if left else slice(0, len(row))] = row
    return placed


def tokenizer_pad(folder: Path) -> int:
    """Return the id at padded positions.

    Raises:
        InputError: when the tokenizer cannot be read.
    """
    settings = read_settings(folder, "tokenizer_config.json")
    return pad_of(open_tokenizer(folder, as_saved=True), settings, read_settings(folder, "config.json"))


def token_limit(folder: Path) -> int:
    """Return the longest sequence that the files of a model allow, or 0 when nothing says."""
    names = ("config.json", "tokenizer_config.json", "sentence_bert_config.json")
    config, settings, sentence = (read_settings(folder, name) for name in names)
    return limit_of(config, settings, sentence)


def known_mask(tokenizer: Tokenizer) -> str:
    """Return how the tokenizer spells a hidden word, empty where it has no such token."""
    return next((token for token in MASKS if tokenizer.token_to_id(token) is not None), "")


def pad_of(tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the id that fills padded positions: the named token, the configuration's, the stored one, else 0."""
    padding = tokenizer.padding
    named = tokenizer.token_to_id(token_text(settings.get("pad_token")))
    stored = padding.get("pad_id") if padding else None
    for found in (named, config.get("pad_token_id"), stored):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def limit_of(config: Mapping[str, Any], settings: Mapping[str, Any], sentence: Mapping[str, Any]) -> int:
    """Return the longest sequence the model takes, or 0 when nothing says; a size that its graph fixes comes before.

    What sentence-transformers was told comes first; then the smaller of the tokenizer's limit and the model's table of
    positions, whose first rows RoBERTa and its kin leave unused.
    """
    positions = config.get("max_position_embeddings") or config.get("n_positions") or 0
    if "roberta" in str(config.get("model_type", "")) or config.get("model_type") in {
        "camembert",
        "mpnet",
        "longformer",
    }:
        positions = max(0, int(positions) - int(config.get("pad_token_id") or 0) - 1)
    told = sentence.get("max_seq_length")
    limits = [told] if told else [settings.get("model_max_length")]
    sane = [int(limit) for limit in (*limits, positions) if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    return min(sane, default=0)

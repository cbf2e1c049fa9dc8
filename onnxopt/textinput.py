"""Turn text into a model's inputs with the tokenizer that lies in its artifact: no torch, no transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.model import Array, Feeds
from onnxopt.session import Session
from onnxopt.spec import TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKENIZER_NAME = "tokenizer.json"
MASKS = ("[MASK]", "<mask>")  # how the two families of tokenizers, and people, spell a hidden word
_NO_LIMIT = 1_000_000  # transformers writes 1e30 for "no limit"
_MAX_SETTINGS_BYTES = 64 << 20


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of an artifact; an empty one when there is no such file.

    Raises:
        InputError: when the file is not a JSON object.
    """
    path = folder / name
    try:
        if path.stat().st_size > _MAX_SETTINGS_BYTES:
            raise InputError(f"is larger than {_MAX_SETTINGS_BYTES} bytes", where=str(path))
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), hint="copy it from the checkpoint") from error
    if not isinstance(data, dict):
        raise InputError("holds no JSON object", where=str(path), hint="copy it from the checkpoint")
    return data


@dataclass(frozen=True)
class Answered:
    """Outputs for a list of encodings.

    Attributes:
        outputs: by name, rows in the order of the encodings.
        mask: bool [rows, width]: where each row has tokens.
    """

    outputs: Feeds
    mask: Array


@dataclass
class TextModel:
    """A session with the tokenizer of its artifact.

    Attributes:
        folder: the artifact.
        session: its model.
        tokenizer: without padding, which is done here.
        config: content of `config.json`.
        limit: the longest sequence the model takes; 0 when nothing says.
        pad: id at padded positions.
        pads_left: whether padding goes before the text.
        lowers: whether text is lowered before it is tokenized, as some sentence-transformers checkpoints ask.
        mask_token: what stands for a hidden word; empty when the tokenizer has none.
        notes: sentences about what was done to the texts.
    """

    folder: Path
    session: Session
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    limit: int
    pad: int
    pads_left: bool
    lowers: bool
    mask_token: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, session: Session) -> TextModel:
        """Read the tokenizer and configs of an artifact.

        Raises:
            InputError: when it has no tokenizer or one that cannot be read.
        """
        tokenizer = open_tokenizer(folder)
        config = read_settings(folder, "config.json")
        settings = read_settings(folder, "tokenizer_config.json")
        sentence = read_settings(folder, "sentence_bert_config.json")
        pad = _pad_id(tokenizer, settings, config)
        tokenizer.no_padding()  # some checkpoints store a fixed length
        tokenizer.no_truncation()
        return cls(
            folder=folder,
            session=session,
            tokenizer=tokenizer,
            config=config,
            limit=_limit(session.inputs, config, settings, sentence),
            pad=pad,
            pads_left=settings.get("padding_side") == "left",
            lowers=bool(sentence.get("do_lower_case", False)),
            mask_token=token_text(settings.get("mask_token")) or _known_mask(tokenizer),
        )

    def encode(self, texts: Sequence[str], pair: str | None = None) -> list[Encoding]:
        """Tokenize texts, cut to what the model takes; a cut is noted.

        Args:
            texts: one sequence each.
            pair: a second sequence for each of them, which alone is cut when both are too long.
        """
        if self.limit:
            strategy = "longest_first" if pair is None else "only_second"
            self.tokenizer.enable_truncation(self.limit, strategy=strategy)
        encodings = []
        for number, text in enumerate(texts, start=1):
            plain = text.lower() if self.lowers else text
            try:
                encoding = self.tokenizer.encode(plain) if pair is None else self.tokenizer.encode(plain, pair)
            except Exception as error:  # as above
                raise InputError(f"text {number} cannot be tokenized ({error})", where=str(self.folder)) from error
            if not encoding.ids:
                raise InputError(f"text {number} gives no tokens", hint="write at least one word")
            if encoding.overflowing:
                self.notes.append(f"text {number} was cut to the {self.limit} tokens that the model takes")
            encodings.append(encoding)
        return encodings

    def feeds(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Feeds:
        """Return the inputs of one row of tokens, without padding.

        Args:
            ids: its tokens.
            types: segment of each; all the first without it.

        Raises:
            InputError: when the model has an input that is not made from text.
        """
        return self._feeds([ids], [[0] * len(ids) if types is None else types], len(ids))

    def run(self, encodings: Sequence[Encoding]) -> Answered:
        """Run the model on tokenized texts."""
        return self.run_ids([encoding.ids for encoding in encodings], [encoding.type_ids for encoding in encodings])

    def run_ids(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Answered:
        """Run the model on token ids: all rows at once when it has a mask, each for itself when not."""
        fixed_rows, fixed_width = self._fixed()
        has_mask = any(input_meaning(spec.name) == "mask" for spec in self.session.inputs)
        together = fixed_rows or (len(ids) if has_mask or fixed_width else 1)
        longest = max(map(len, ids))
        parts: list[Feeds] = []
        for start in range(0, len(ids), together):
            rows = list(range(start, min(start + together, len(ids))))
            filled = rows + [rows[-1]] * (fixed_rows - len(rows))
            width = fixed_width or (longest if has_mask else len(ids[start]))
            feeds = self._feeds([ids[row] for row in filled], [types[row] for row in filled], width)
            parts.append({name: array[: len(rows)] for name, array in self.session.run(feeds).items()})
        outputs = {name: _stack([part[name] for part in parts]) for name in parts[0]}
        left = self.pads_left and bool(has_mask or fixed_width)  # `_stack` fills up at the end
        mask = np.stack([_placed(np.ones(len(row), np.bool_), fixed_width or longest, 0, left=left) for row in ids])
        return Answered(outputs, mask)

    def _fixed(self) -> tuple[int, int]:
        """Return the sizes of batch and sequence that the graph prescribes, or 0."""
        for spec in self.session.inputs:
            if input_meaning(spec.name) == "ids" and len(spec.axes) == 2:
                rows, width = spec.axes
                return (rows if isinstance(rows, int) else 0, width if isinstance(width, int) else 0)
        raise InputError(
            f"takes {', '.join(spec.name for spec in self.session.inputs)}, no token ids", where=str(self.session.path)
        )

    def _feeds(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]], width: int) -> Feeds:
        mask = np.stack([self._place(np.ones(len(row), np.int64), width, fill=0) for row in ids])
        made = {
            "ids": np.stack([self._place(np.array(row, np.int64), width, fill=self.pad) for row in ids]),
            "types": np.stack([self._place(np.array(row, np.int64), width, fill=0) for row in types]),
            "mask": mask,
            # transformers counts the positions of the tokens that are there
            "positions": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        }
        feeds: Feeds = {}
        for spec in self.session.inputs:
            meaning = input_meaning(spec.name)
            if meaning == "past":
                feeds[spec.name] = np.zeros(_past_shape(spec, len(ids)), spec.dtype)
            elif meaning in made and len(spec.axes) == 2:  # TAPAS has seven types of each token, which are of a table
                feeds[spec.name] = made[meaning].astype(spec.dtype)
            else:
                raise InputError(f"input {spec.name!r} is not made from text", where=str(self.session.path))
        return feeds

    def _place(self, row: Array, width: int, *, fill: int) -> Array:
        return _placed(row, width, fill, left=self.pads_left)


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokenizer of an artifact as it was saved.

    Raises:
        InputError: when there is none or it cannot be read.
    """
    import tokenizers

    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise InputError(
            f"no {TOKENIZER_NAME}, so text cannot be turned into tokens",
            where=str(folder),
            hint="copy it from the checkpoint; tokenizer.save_pretrained(...) of transformers writes it",
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise InputError(f"cannot be read ({error})", where=str(path)) from error


def token_text(entry: object) -> str:
    """Return the text of a special token in tokenizer_config.json: a string, or an object that has it as `content`."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else ""


def _placed(row: Array, width: int, fill: int, *, left: bool) -> Array:
    placed = np.full(width, fill, row.dtype)
    placed[slice(width - len(row), None) if left else slice(0, len(row))] = row
    return placed


def tokenizer_pad(folder: Path) -> int:
    """Return the id at padded positions.

    Raises:
        InputError: when the tokenizer cannot be read.
    """
    settings = read_settings(folder, "tokenizer_config.json")
    return _pad_id(open_tokenizer(folder), settings, read_settings(folder, "config.json"))


def token_limit(folder: Path, inputs: Sequence[TensorSpec]) -> int:
    """Return the longest sequence that the model of a folder takes, or 0 when nothing says."""
    names = ("config.json", "tokenizer_config.json", "sentence_bert_config.json")
    config, settings, sentence = (read_settings(folder, name) for name in names)
    return _limit(inputs, config, settings, sentence)


def input_meaning(name: str) -> str:
    """Return what transformers' name of an input stands for: ids, mask, types, positions, past, or nothing."""
    name = name.lower()
    if name.startswith("past"):
        return "past"
    for part, meaning in (("mask", "mask"), ("token_type", "types"), ("position", "positions")):
        if part in name:
            return meaning
    return "ids" if name in {"input_ids", "ids", "input", "tokens"} or name.endswith("input_ids") else ""


def _past_shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return the shape of an empty cache: its batch axis is the first, its other open axis is the past."""
    return tuple(axis if isinstance(axis, int) else rows if index == 0 else 0 for index, axis in enumerate(spec.axes))


def _known_mask(tokenizer: Tokenizer) -> str:
    return next((token for token in MASKS if tokenizer.token_to_id(token) is not None), "")


def _pad_id(tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    padding = tokenizer.padding
    named = tokenizer.token_to_id(token_text(settings.get("pad_token")))
    stored = padding.get("pad_id") if padding else None
    for found in (named, config.get("pad_token_id"), stored):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def _limit(
    inputs: Sequence[TensorSpec],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    sentence: Mapping[str, Any],
) -> int:
    """Return the longest sequence the model takes, or 0 when nothing says.

    The graph's own fixed size comes before everything; then what sentence-transformers was told; then the smaller of
    the tokenizer's limit and the model's table of positions, whose first rows RoBERTa and its kin leave unused.
    """
    for spec in inputs:
        if input_meaning(spec.name) == "ids" and len(spec.axes) == 2 and isinstance(spec.axes[1], int):
            return spec.axes[1]
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


def _stack(parts: Sequence[Array]) -> Array:
    """Join rows; where they were run one by one, shorter ones are filled up with zeros."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    joined = np.zeros((sum(len(part) for part in parts), *shape), parts[0].dtype)
    row = 0
    for part in parts:
        joined[(slice(row, row + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        row += len(part)
    return joined

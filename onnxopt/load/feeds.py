"""Make inputs as users send them: real English through the model's own tokenizer, with every kind of padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.cache import ENCODED, PAST, SEQUENCE, complete
from onnxopt.graph.roles import fixed_length
from onnxopt.load.export.forward_inputs import ExtraInput
from onnxopt.spec import Array, Feeds, Padding, TensorSpec, padding_of_row
from onnxopt.tasks.task import IMAGE_BATCH
from onnxopt.texts.builtin import english_text
from onnxopt.texts.tokenizer import marks_around, open_encoder, token_ids

DEFAULT_BATCH = 1
DEFAULT_SEQUENCE = 16
_TEXT_CHARACTERS = 60_000
_STREAM_TOKENS = 8_192
_HOLE_SHARE = 0.3


@dataclass(frozen=True)
class Tokens:
    """What is needed to write token ids without the tokenizer.

    Attributes:
        vocabulary: ids are below this.
        pad: the id at masked positions.
        stream: ids of running English text; empty when there is no tokenizer.
        prefix: ids that the tokenizer puts before a text, such as [CLS].
        suffix: ids that it puts after a text, such as [SEP].
        special: ids that made-up text avoids.
        types: size of the token type table; 1 when there is none.
        longest: the longest sequence the model takes, or 0 for no limit.
    """

    vocabulary: int
    pad: int = 0
    stream: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    types: int = 1
    longest: int = 0
    end: int | None = None

    @property
    def writes_no_end(self) -> bool:
        """Whether a tokenizer leaves out the mark that each row must have."""
        return self.end is not None and bool(self.stream) and self.end not in (*self.prefix, *self.suffix)

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tokens:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in content.items()}
        return cls(**values)


@dataclass(frozen=True)
class TextFeeder:
    """Makes `input_ids`, `attention_mask` and `token_type_ids`, and for a decoder what it has seen before.

    Padding lies among the new tokens: positions that were seen before are all real, since a cache that holds padding
    means something only to the graph that wrote it. The decoder of an encoder-decoder has padding in the encoder's text
    instead. Keys and values, and features of sound, are normal random numbers.

    Attributes:
        inputs: the model's inputs.
        tokens: where ids come from.
        extras: what is known of inputs besides these; a padded position has zeros there.
    """

    inputs: tuple[TensorSpec, ...]
    tokens: Tokens
    extras: tuple[ExtraInput, ...] = ()

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        """Return int64 [batch, sequence] for each input, float32 for the cache; the first row is never padded."""
        batch = sizes.get("batch", DEFAULT_BATCH)
        sequence = fixed_length(self.inputs) or sizes.get(SEQUENCE, self._default_sequence())
        past = sizes.get(PAST, 0)
        if self.tokens.longest and past + sequence > self.tokens.longest:
            raise InputError(f"sequence {past + sequence} is longer than the model's {self.tokens.longest} positions")
        rng = np.random.default_rng([seed, batch, sequence])
        own: Padding = padding if any(spec.name == "attention_mask" for spec in self.inputs) else "none"
        mask = np.stack([_mask(sequence, padding_of_row(own, row), rng) for row in range(batch)])
        ids = np.full((batch, sequence), self.tokens.pad, dtype=np.int64)
        types = np.zeros((batch, sequence), dtype=np.int64)
        for row in range(batch):
            # a hole keeps the text around it in its place; padding at an end shortens the text
            places = np.arange(sequence) if own == "holes" else np.flatnonzero(mask[row])
            ids[row, places] = self._text(len(places), rng)
            if self.tokens.types > 1 and rng.random() < 0.5:
                types[row, places[len(places) // 2 :]] = 1
        ids[mask == 0] = self.tokens.pad
        self._end(ids, mask)
        seen = np.concatenate([np.ones((batch, past), mask.dtype), mask], axis=1)
        made = {"input_ids": ids, "attention_mask": seen, "token_type_ids": types * mask}
        pictures = {IMAGE_BATCH: sizes.get(IMAGE_BATCH, DEFAULT_BATCH)}
        across = {ENCODED: sizes.get(ENCODED, DEFAULT_SEQUENCE)}
        full = complete({"batch": batch, SEQUENCE: sequence, PAST: past, **across, **pictures})
        made |= {one.spec.name: _where_text(one.draw(one.spec.shape(full), rng), one, mask) for one in self.extras}
        for spec in self.inputs:
            if spec.axes == ("batch", ENCODED):  # the padding mask of what a decoder looks at across
                rows = [_mask(full[ENCODED], padding_of_row(padding, row), rng) for row in range(batch)]
                made[spec.name] = np.stack(rows)
            elif spec.name not in made:
                made[spec.name] = rng.standard_normal(spec.shape(full))
        return {spec.name: made[spec.name].astype(spec.dtype) for spec in self.inputs}

    def _end(self, ids: Array, mask: Array) -> None:
        """Put the mark that a model reads at behind each text that lost it, in place."""
        if self.tokens.end is None:
            return
        for row, kept in zip(ids, mask, strict=True):
            if self.tokens.end not in row:
                row[np.flatnonzero(kept)[-1]] = self.tokens.end

    def _default_sequence(self) -> int:
        return min(DEFAULT_SEQUENCE, self.tokens.longest or DEFAULT_SEQUENCE)

    def _text(self, length: int, rng: np.random.Generator) -> Array:
        """Return `length` ids: a piece of English between the tokenizer's own marks, or random ids without one."""
        tokens = self.tokens
        if not tokens.stream:
            ordinary = np.setdiff1d(np.arange(tokens.vocabulary), (*tokens.special, tokens.pad))
            return rng.choice(ordinary if ordinary.size else np.arange(tokens.vocabulary), size=length)
        marks = len(tokens.prefix) + len(tokens.suffix)
        prefix, suffix = (tokens.prefix, tokens.suffix) if length > marks else ((), ())
        body = length - len(prefix) - len(suffix)
        start = int(rng.integers(len(tokens.stream)))
        piece = np.take(tokens.stream, np.arange(start, start + body), mode="wrap")
        return np.concatenate([np.array(prefix, np.int64), piece.astype(np.int64), np.array(suffix, np.int64)])


@dataclass(frozen=True)
class ImageFeeder:
    """Makes `pixel_values` as an image processor leaves them: about normal, mean 0, deviation 1.

    Attributes:
        inputs: the model's inputs.
        defaults: sizes of axes that a caller does not name.
        extras: what is known of inputs besides the pixels.
    """

    inputs: tuple[TensorSpec, ...]
    defaults: Mapping[str, int]
    extras: tuple[ExtraInput, ...] = ()

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:  # noqa: ARG002
        """Return float32 [batch, channels, height, width]; images have no mask, so `padding` changes nothing."""
        filled = {"batch": DEFAULT_BATCH, **self.defaults, **sizes}
        rng = np.random.default_rng([seed, *(filled[axis] for axis in sorted(filled))])
        plain = {spec.name: ExtraInput(spec) for spec in self.inputs}
        known = plain | {one.spec.name: one for one in self.extras}
        return {spec.name: known[spec.name].draw(spec.shape(filled), rng) for spec in self.inputs}


@dataclass(frozen=True)
class SoundFeeder:
    """Makes waves or features of them as a feature extractor leaves them: mean 0, deviation 1, padded at the end.

    Every kind of padding is padding at the end, as the extractors do it: networks count from the start what is left of
    a mask behind their convolutions.

    Attributes:
        inputs: the model's inputs.
        defaults: sizes of axes that a caller does not name.
        least: the shortest sound that the model answers, by open axis.
    """

    inputs: tuple[TensorSpec, ...]
    defaults: Mapping[str, int]
    least: Mapping[str, int] = field(default_factory=dict)

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        """Return float32 [batch, samples], or features, and int64 [batch, samples]; the first row is never padded."""
        filled = {"batch": DEFAULT_BATCH, **self.defaults, **sizes}
        rng = np.random.default_rng([seed, *(filled[axis] for axis in sorted(filled))])
        sound, *masks = self.inputs
        made = {sound.name: rng.standard_normal(sound.shape(filled), np.float32)}
        for spec in masks:
            mask = np.ones(spec.shape(filled), spec.dtype)
            places = mask.shape[1]
            shortest = min(places, self.least.get(str(spec.axes[1]), 1))
            for row in range(1, len(mask) if padding != "none" else 0):
                mask[row, rng.integers(shortest, places + 1) :] = 0
            made[spec.name] = mask
            kept = mask.reshape(mask.shape + (1,) * (len(sound.axes) - 2))
            made[sound.name] *= kept.astype(np.float32)
        return made


def _where_text(values: Array, extra: ExtraInput, mask: Array) -> Array:
    """Return the values of an input with zeros at padded positions, where it has a place for every token."""
    if extra.spec.axes[:2] != ("batch", SEQUENCE):
        return values
    kept = mask.reshape(mask.shape + (1,) * (values.ndim - 2)).astype(values.dtype)
    return np.asarray(values * kept)


def _mask(length: int, padding: Padding, rng: np.random.Generator) -> Array:
    """Return int64 [length]: 1 where there is text. A padded row keeps at least one position and loses at least one."""
    mask = np.ones(length, dtype=np.int64)
    if padding == "none" or length == 1:
        return mask
    if padding == "holes":
        mask[rng.random(length) < _HOLE_SHARE] = 0
        hole, kept = rng.choice(length, size=2, replace=False)
        mask[hole], mask[kept] = 0, 1
        return mask
    pads = int(rng.integers(1, length))
    if padding == "right":
        mask[length - pads :] = 0
    else:
        mask[:pads] = 0
    return mask


def read_tokens(folder: Path | None, config: Any, *, longest: int = 0, end: int | None = None) -> Tokens:
    """Learn from a checkpoint's tokenizer how its texts look.

    Args:
        folder: holds the tokenizer's files; without any, ids are made up.
        config: transformers' config object.
        longest: the longest sequence the model takes, or 0.
        end: the id that each row must have; None where there is none.

    Returns:
        The tokens.

    Raises:
        InputError: when the tokenizer cannot be read or does not belong to the model.
    """
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(text_config.vocab_size)
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    special = sorted(
        {one for name in names for one in token_ids(getattr(text_config, name, None)) if 0 <= one < vocabulary}
    )
    pad = next((one for one in token_ids(text_config.pad_token_id) if 0 <= one < vocabulary), 0)
    types = int(getattr(text_config, "type_vocab_size", 1) or 1)
    plain = Tokens(vocabulary, pad, special=tuple(special), types=types, longest=longest, end=end)
    if folder is None:
        return plain
    encode = open_encoder(folder)
    stream = encode(english_text(_TEXT_CHARACTERS), marks=False)[:_STREAM_TOKENS]
    bare, marked = encode("the", marks=False), encode("the", marks=True)
    highest = max([*stream, *marked], default=-1)
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer gives id {highest}, the model takes ids below {vocabulary}",
            where=str(folder),
            hint="the tokenizer belongs to another model",
        )
    prefix, suffix = marks_around(bare, marked)
    return Tokens(vocabulary, pad, tuple(stream), prefix, suffix, tuple(special), types, longest, end)

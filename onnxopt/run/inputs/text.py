"""Turn text into a model's inputs with the tokenizer that lies in its artifact: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.roles import fixed_length, input_meaning
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, TensorSpec
from onnxopt.texts.prompts import Prompts
from onnxopt.texts.tokenizer import (
    encoded,
    known_mask,
    limit_of,
    open_tokenizer,
    pad_of,
    placed_in_row,
    read_settings,
    token_text,
)

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


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
        prompts: what may stand in front of a text.
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
    prompts: Prompts = field(default_factory=Prompts)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, session: Session) -> TextModel:
        """Read the tokenizer and configs of an artifact.

        Raises:
            InputError: when it has no tokenizer or one that cannot be read.
        """
        tokenizer = open_tokenizer(folder, as_saved=True)
        config = read_settings(folder, "config.json")
        settings = read_settings(folder, "tokenizer_config.json")
        sentence = read_settings(folder, "sentence_bert_config.json")
        pad = pad_of(tokenizer, settings, config)
        tokenizer.no_padding()  # the id that it stores is known by now
        tokenizer.no_truncation()
        return cls(
            folder=folder,
            session=session,
            tokenizer=tokenizer,
            config=config,
            limit=fixed_length(session.inputs) or limit_of(config, settings, sentence),
            pad=pad,
            pads_left=settings.get("padding_side") == "left",
            lowers=bool(sentence.get("do_lower_case", False)),
            mask_token=token_text(settings.get("mask_token")) or known_mask(tokenizer),
            prompts=Prompts.of(folder),
        )

    def encode(self, texts: Sequence[str], pair: str | None = None) -> list[Encoding]:
        """Tokenize texts, cut to what the model takes; a cut is noted.

        Args:
            texts: one sequence each.
            pair: a second sequence for each of them, which alone is cut when both are too long.
        """
        return self._encode([(text, pair) for text in texts], "longest_first" if pair is None else "only_second")

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
        """Tokenize pairs of texts, as a cross-encoder reads them; of a pair that is too long the longer one is cut.

        Args:
            pairs: two sequences each.
        """
        return self._encode(pairs, "longest_first")

    def _encode(self, given: Sequence[tuple[str, str | None]], strategy: str) -> list[Encoding]:
        """Tokenize texts, each with a second one or None, and cut them in the library's words for how."""
        if self.limit:
            self.tokenizer.enable_truncation(self.limit, strategy=strategy)
        encodings = []
        for number, (text, pair) in enumerate(given, start=1):
            plain = text.lower() if self.lowers else text
            second = pair.lower() if self.lowers and pair is not None else pair
            try:
                (encoding,) = encoded(self.tokenizer, [plain], pair=second)
            except InputError as error:
                what = error.what.replace("the text", f"text {number}")
                raise InputError(what, where=str(self.folder), hint=error.hint) from error
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

    def batch(self, encodings: Sequence[Encoding], *, beside: Collection[str] = ()) -> Feeds:
        """Return the inputs of tokenized texts as the rows of one batch.

        Args:
            encodings: the texts.
            beside: inputs that are not made from text; whoever runs the model makes them.

        Raises:
            InputError: the texts differ in length and the model has no mask, or has another input of its own.
        """
        width, lengths = self._fixed()[1], {len(encoding.ids) for encoding in encodings}
        if (
            not width
            and len(lengths) > 1
            and not any(input_meaning(spec.name) == "mask" for spec in self.session.inputs)
        ):
            raise InputError("takes no mask, so texts of several lengths cannot be rows of one batch")
        ids, types = [one.ids for one in encodings], [one.type_ids for one in encodings]
        return self._feeds(ids, types, width or max(lengths), beside=beside)

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
        mask = np.stack(
            [placed_in_row(np.ones(len(row), np.bool_), fixed_width or longest, 0, left=left) for row in ids]
        )
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

    def _feeds(
        self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]], width: int, *, beside: Collection[str] = ()
    ) -> Feeds:
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
            if spec.name in beside:
                continue
            if meaning == "past":
                feeds[spec.name] = np.zeros(_past_shape(spec, len(ids)), spec.dtype)
            elif meaning in made and len(spec.axes) == 2:  # TAPAS has seven types of each token, which are of a table
                feeds[spec.name] = made[meaning].astype(spec.dtype)
            else:
                raise InputError(f"input {spec.name!r} is not made from text", where=str(self.session.path))
        return feeds

    def _place(self, row: Array, width: int, *, fill: int) -> Array:
        return placed_in_row(row, width, fill, left=self.pads_left)


def _past_shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return the shape of an empty cache: its batch axis is the first, its other open axis is the past."""
    return tuple(axis if isinstance(axis, int) else rows if index == 0 else 0 for index, axis in enumerate(spec.axes))


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

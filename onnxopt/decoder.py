"""Run a decoder step by step: prompts once, then a token per row, with the cache staying where the runtime put it.

Inputs and outputs are bound (onnxruntime's IOBinding), so that no step copies the cache out of the runtime and back:

* Where past and present may share a buffer (`DecodingRecord.shared_buffers`), one buffer per tensor is allocated with
  room for tokens to come, and bound as both. It grows by doubling, up to what was asked for.
* Elsewhere the present of one step is bound as the past of the next.

Rows are padded on the left, so that the newest token of every row stands in the last column. In the cache a graph may
leave them where they are, or move each row's tokens to the front (`Decoder.packed`). Rows that are finished leave when
it pays (`pays`): taking the others together copies their cache once, about what one step reads of it anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.cache import ENCODED, ENCODER_MASK, PAST, Cache, encoded_name
from onnxopt.errors import InputError
from onnxopt.model import Array
from onnxopt.session import Session
from onnxopt.spec import Signature, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

    from onnxopt.manifest import DecodingRecord

SAME_ANSWER = 0.05  # of the spread of the logits: far above what rounding or a scale per batch does to them
ROOM = 256  # tokens to come that a fresh buffer has room for, when more are asked for
LEAVING_SHARE = 0.25  # finished rows leave when they are at least this share of the rows in the batch
_IDS, _MASK, _POSITIONS, _LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
_ENCODE = "open the folder with `onnxopt.Generator`, or with `onnxopt.seq2seq.EncoderDecoder`"
_REBUILD = "build it with `onnxopt optimize` from a text-generation checkpoint"


def pays(finished: int, rows: int) -> bool:
    """Return whether taking the unfinished rows together is worth copying their cache."""
    return finished >= LEAVING_SHARE * rows


@dataclass(frozen=True)
class Decoder:
    """A model with a cache, opened.

    Attributes:
        session: the model.
        cache: names and sizes of its cache.
        shared_buffers: whether past and present may be one buffer.
        context_length: the most positions the model takes; 0 when unknown.
        across: inputs that the encoder of an encoder-decoder gives once for all steps; empty for every other model.
    """

    session: Session
    cache: Cache
    shared_buffers: bool = False
    context_length: int = 0
    across: tuple[TensorSpec, ...] = ()

    @classmethod
    def of(cls, session: Session, decoding: DecodingRecord | None = None, *, context_length: int = 0) -> Decoder:
        """Find out how a model is to be stepped.

        Args:
            session: the model.
            decoding: what its artifact says; without it the cache grows from step to step.
            context_length: what other files say, where the artifact says nothing.

        Raises:
            InputError: when the model has no cache, or inputs that a decoder does not have.
        """
        where = str(session.path)
        cache = cache_of(session)
        if cache is None:
            raise InputError("is no decoder: it takes no past_key_values", where=where, hint=_REBUILD)
        across = tuple(spec for spec in session.inputs if spec.name == ENCODER_MASK or encoded_name(spec.name))
        known = {_IDS, _MASK, _POSITIONS, *(spec.name for spec in (*cache.inputs, *across))}
        names = [spec.name for spec in session.inputs]
        unknown = [name for name in names if name not in known]
        missing = [name for name in (_IDS, *(() if across else (_MASK,))) if name not in names]
        given = {spec.name for spec in session.outputs}
        lacking = [name for name in (_LOGITS, *(spec.name for spec in cache.outputs)) if name not in given]
        if unknown or missing or lacking:
            found = (
                f"input {unknown[0]!r} is none of a decoder's"
                if unknown
                else f"no input {missing[0]!r}"
                if missing
                else f"no output {lacking[0]!r}"
            )
            raise InputError(f"is no decoder that can be run: {found}", where=where, hint=_REBUILD)
        length = decoding.context_length if decoding else 0
        shared = bool(decoding and decoding.shared_buffers)
        return cls(session, cache, shared, length or context_length, across)

    @property
    def packed(self) -> bool:
        """Whether a row's tokens lie at the front of the cache, wherever its padding was."""
        return self._behind_padding[0]

    @property
    def takes_padding(self) -> bool:
        """Whether padding before a prompt leaves the answer as it is; graphs of other tools may want it behind."""
        return self._behind_padding[1]

    @cached_property
    def _behind_padding(self) -> tuple[bool, bool]:
        """Tell where a token behind padding lies in the cache, and whether it is answered as it is alone, by trying."""
        (answer, alone), (other, padded) = self._try([1], [1]), self._try([0, 1], [0, 1])
        first, last = (np.abs(padded[:, :, place] - alone[:, :, 0]).max() for place in (0, 1))
        return bool(first < last), bool(np.abs(answer - other).max() <= SAME_ANSWER * np.ptp(answer))

    def _try(self, ids: list[int], mask: list[int]) -> tuple[Array, Array]:
        """Return the logits of the last token and the first part of the cache."""
        feeds = {_IDS: np.array([ids]), _MASK: np.array([mask]), _POSITIONS: np.zeros((1, len(ids)), np.int64)}
        sizes = {"batch": 1, "past_sequence": 0}
        feeds |= {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in self.cache.inputs}
        name = self.cache.outputs[0].name
        found = self.session.run({spec.name: feeds[spec.name] for spec in self.session.inputs}, [_LOGITS, name])
        return found[_LOGITS][:, -1].astype(np.float64), found[name]

    @cached_property
    def appends_together(self) -> bool:
        """Whether several tokens may follow a past in a batch, found by trying; some kernels want a batch of one."""
        sizes = {"batch": 2, PAST: 1, ENCODED: 1}
        feeds = {_IDS: np.ones((2, 2), np.int64), _MASK: np.ones((2, 3), np.int64)}
        feeds[_POSITIONS] = np.tile(np.array([1, 2]), (2, 1))
        feeds |= {spec.name: np.ones(spec.shape(sizes), spec.dtype) for spec in (*self.cache.inputs, *self.across)}
        try:
            self.session.run({spec.name: feeds[spec.name] for spec in self.session.inputs}, [_LOGITS])
        except InputError:
            return False
        return True

    def prefill(self, prompts: Sequence[Sequence[int]], *, new_tokens: int = ROOM, chunk: int = 0) -> Batch:
        """Give prompts to the model and return what it will continue.

        Args:
            prompts: ids of each row, at least one.
            new_tokens: how many tokens are going to follow, at most.
            chunk: how many columns of the prompts are read at once, which bounds the memory of a long one; 0 for all.

        Raises:
            InputError: when a prompt is empty or longer than the model takes, or lengths differ and the graph does not
                take the padding.
        """
        if self.across:
            raise InputError("is the decoder of an encoder-decoder", where=str(self.session.path), hint=_ENCODE)
        for number, prompt in enumerate(prompts, start=1):
            if not len(prompt):
                raise InputError(f"prompt {number} has no tokens")
            if self.context_length and len(prompt) > self.context_length:
                raise InputError(
                    f"prompt {number} has {len(prompt)} tokens, the model takes {self.context_length}",
                    hint="shorten it",
                )
        longest = max(map(len, prompts))
        if longest > min(map(len, prompts)) and not self.takes_padding:
            raise InputError(
                "takes no padding before a prompt, so prompts of different lengths cannot run together",
                where=str(self.session.path),
            )
        ids = np.zeros((len(prompts), longest), np.int64)  # id 0 exists in every vocabulary; the mask hides it
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        batch = Batch(self, len(prompts), longest + new_tokens)
        for start in range(0, longest, chunk or longest):
            columns = slice(start, start + (chunk or longest))
            batch.feed(ids[:, columns], mask[:, columns])
        return batch


def cache_of(session: Session) -> Cache | None:
    """Return the cache of a model; None for a model without one.

    Raises:
        InputError: when the sizes of its cache are open.
    """
    try:
        return Cache.of(Signature(session.inputs, session.outputs))
    except (ValueError, IndexError) as error:
        raise InputError(
            "heads and sizes of its past_key_values are not fixed", where=str(session.path), hint=_REBUILD
        ) from error


class Batch:
    """Rows that grow together, with their cache.

    Attributes:
        logits: float32 [rows, vocabulary] of the newest token of each row.
        mask: int64 [rows, width]: 1 at tokens, 0 at padding and where a row had ended.

    Args:
        decoder: the model.
        rows: how many.
        most: tokens that a row may come to have.
        across: what the encoder gave, a row for each row, by the names of the decoder's inputs.
    """

    logits: Array
    mask: Array

    def __init__(
        self,
        decoder: Decoder,
        rows: int,
        most: int,
        across: Mapping[str, onnxruntime.OrtValue] = MappingProxyType({}),
    ) -> None:
        self._decoder = decoder
        self._store: _Shared | _Growing = (
            _Shared(decoder, rows, most, across) if decoder.shared_buffers else _Growing(decoder, rows, across)
        )
        self.mask = np.zeros((rows, 0), np.int64)
        names = {spec.name for spec in decoder.session.inputs}
        self._has_positions, self._has_mask = _POSITIONS in names, _MASK in names

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Array:
        """int64 [rows]: tokens of each row."""
        return np.asarray(self.mask.sum(axis=1))

    def step(self, ids: Sequence[int], live: Sequence[bool] | None = None) -> Array:
        """Give each row its next token and return the logits after it.

        Args:
            ids: one per row.
            live: false for rows that have ended; they get no token, and their logits mean nothing.
        """
        column = np.ones(len(self), np.int64) if live is None else np.asarray(live, np.int64)
        self.feed(np.asarray(ids, np.int64)[:, None], column[:, None])
        return self.logits

    def feed(self, ids: Array, mask: Array) -> None:
        """Give each row some tokens; behind a past row by row where the graph takes no other.

        Args:
            ids: int64 [rows, sequence].
            mask: int64 [rows, sequence], 0 at padding.
        """
        seen, self.mask = self.mask, np.ascontiguousarray(np.concatenate([self.mask, mask], axis=1))
        total = self.mask.shape[1]
        if ids.shape[1] > 1 and seen.shape[1] and len(seen) > 1 and not self._decoder.appends_together:
            self._feed_rows(ids, mask, seen)
            return
        # with all logits in the graph, the last position is each row's newest token: rows are padded on the left
        self.logits = self._store.run(self._feeds(ids, self.mask), total)[:, -1].astype(np.float32, copy=False)

    def _feeds(self, ids: Array, mask: Array) -> dict[str, Array]:
        feeds = {_IDS: np.ascontiguousarray(ids)}
        if self._has_mask:
            feeds[_MASK] = np.ascontiguousarray(mask)
        if self._has_positions:
            # transformers counts the positions of the tokens that are there
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
            feeds[_POSITIONS] = np.ascontiguousarray(positions)
        return feeds

    def _feed_rows(self, ids: Array, mask: Array, seen: Array) -> None:
        """Give each row its tokens in a batch of its own; a packed cache takes the real ones alone."""
        feeds: dict[int, dict[str, Array]] = {}
        for row, own in enumerate(mask != 0):
            kept = own if self._decoder.packed else np.ones_like(own)
            if kept.any():
                whole = np.concatenate([seen[row], mask[row][kept]])
                feeds[row] = self._feeds(ids[row : row + 1, kept], whole[None])
        found = self._store.run_rows(feeds, self.mask.shape[1])
        logits = np.array(self.logits)
        for row, answer in found.items():
            logits[row] = answer[0, -1]
        self.logits = logits

    def join(self, other: Batch) -> None:
        """Take in the rows of another batch of the same decoder, behind the own ones; the other one is spent."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        places = [0 if self._decoder.packed else width - batch.mask.shape[1] for batch in (self, other)]
        self._store.join(other._store.content(), places, width, other._store.most)  # of the same class
        masks = [np.pad(batch.mask, ((0, 0), (width - batch.mask.shape[1], 0))) for batch in (self, other)]
        self.mask = np.concatenate(masks)
        self.logits = np.concatenate([self.logits, other.logits])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, and without the columns that are padding in all of them."""
        mask = self.mask[list(rows)]
        first = int(mask.any(axis=0).argmax())
        width = mask.shape[1] - first
        start = 0 if first == 0 or self._decoder.packed else first
        self._store.keep(list(rows), slice(start, start + width))
        self.mask = np.ascontiguousarray(mask[:, first:])
        self.logits = self.logits[list(rows)]


class _Growing:
    """A cache whose present of one step is the past of the next."""

    most = 0  # it is never too small

    def __init__(self, decoder: Decoder, rows: int, across: Mapping[str, onnxruntime.OrtValue]) -> None:
        self._session, self._across = decoder.session, dict(across)
        self._names = [
            (past.name, present.name) for past, present in zip(decoder.cache.inputs, decoder.cache.outputs, strict=True)
        ]
        sizes = {"batch": rows, "past_sequence": 0}
        self._past = {
            spec.name: _value(np.zeros(spec.shape(sizes), spec.dtype), decoder.session.device)
            for spec in decoder.cache.inputs
        }

    def run(self, feeds: dict[str, Array], total: int) -> Array:  # noqa: ARG002  the other store needs it
        """Return logits [rows, positions, vocabulary] after `total` columns."""
        binding = self._session.binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in self._across.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(_LOGITS, "cpu")
        for past, present in self._names:
            binding.bind_ortvalue_input(past, self._past[past])
            binding.bind_output(present, self._session.device)
        self._session.run_bound(binding)
        logits, *presents = binding.get_outputs()
        self._past = {past: value for (past, _), value in zip(self._names, presents, strict=True)}
        return np.asarray(logits.numpy())

    def run_rows(self, feeds: Mapping[int, dict[str, Array]], total: int) -> dict[int, Array]:
        """Return logits [1, positions, vocabulary] of some rows, each in a batch of its own, after `total` columns."""
        rows = len(next(iter(self._past.values())).numpy())
        found: dict[int, Array] = {}
        kept: dict[str, list[Array]] = {past: [] for past, _ in self._names}
        older, across = self._past, self._across
        for row in range(rows):
            self._past = {name: _row_of(value, row, self._session.device) for name, value in older.items()}
            self._across = {name: _row_of(value, row, self._session.device) for name, value in across.items()}
            if row in feeds:
                found[row] = self.run(feeds[row], total)
            for name, value in self._past.items():
                grown = value.numpy()
                missing = total - grown.shape[2]
                kept[name].append(np.pad(grown, ((0, 0), (0, 0), (0, missing), (0, 0))))
        self._past = {name: _value(np.concatenate(parts), self._session.device) for name, parts in kept.items()}
        self._across = across
        return found

    def keep(self, rows: list[int], columns: slice) -> None:
        """Take some rows and columns."""
        for name, value in self._past.items():
            self._past[name] = _value(np.ascontiguousarray(value.numpy()[rows, :, columns]), self._session.device)
        self._across = _rows_of(self._across, rows, self._session.device)

    def content(self) -> dict[str, Array]:
        """Return what is in it: [rows, heads, columns, size] by name."""
        return {name: value.numpy() for name, value in self._past.items()}

    def join(self, content: Mapping[str, Array], places: Sequence[int], width: int, most: int) -> None:
        """Take in the rows of another one, each part's columns from its place on."""
        del most  # it grows anyway
        for name, array in self.content().items():
            fresh = _joined([array, content[name]], places, width)
            self._past[name] = _value(fresh, self._session.device)


class _Shared:
    """A cache whose past and present are one buffer, longer than what is in it."""

    def __init__(self, decoder: Decoder, rows: int, most: int, across: Mapping[str, onnxruntime.OrtValue]) -> None:
        self._session, self._across = decoder.session, dict(across)
        self._specs = tuple(zip(decoder.cache.inputs, decoder.cache.outputs, strict=True))
        self._rows, self.most = rows, most
        self._length = self._capacity = 0
        self._buffers: dict[str, onnxruntime.OrtValue] = {}
        self._binding: onnxruntime.IOBinding | None = None

    def run(self, feeds: dict[str, Array], total: int) -> Array:
        """Return logits [rows, positions, vocabulary] after `total` columns."""
        if total > self._capacity:
            self._allocate(list(range(self._rows)), slice(0, self._length), self._room(total))
        binding = self._binding or self._bind()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(_LOGITS, "cpu")
        self._session.run_bound(binding)
        self._length = total
        return np.asarray(binding.get_outputs()[0].numpy())  # bound first, so first

    def run_rows(self, feeds: Mapping[int, dict[str, Array]], total: int) -> dict[int, Array]:
        """Return logits [1, positions, vocabulary] of some rows, each in a batch of its own, after `total` columns."""
        if self._session.device != "cpu":
            raise InputError(
                "takes several tokens behind others for one text at a time",
                where=str(self._session.path),
                hint="give the tokens of a batch one by one, or its prompts at once",
            )
        if total > self._capacity:
            self._allocate(list(range(self._rows)), slice(0, self._length), self._room(total))
        whole, across, found = self._buffers, self._across, {}
        for row, given in feeds.items():
            self._buffers = {name: _row_of(value, row, "cpu") for name, value in whole.items()}  # views, not copies
            self._across = {name: _row_of(value, row, "cpu") for name, value in across.items()}
            self._binding = None
            found[row] = self.run(given, total)
        self._buffers, self._across, self._binding = whole, across, None
        self._length = total
        return found

    def keep(self, rows: list[int], columns: slice) -> None:
        """Take some rows and columns."""
        width = columns.stop - columns.start
        self._rows = len(rows)
        self.most -= self._length - width
        self._across = _rows_of(self._across, rows, self._session.device)
        self._allocate(rows, columns, self._room(width))
        self._length = width

    def content(self) -> dict[str, Array]:
        """Return what is in it: [rows, heads, columns, size] by name."""
        return {name: value.numpy()[:, :, : self._length] for name, value in self._buffers.items()}

    def join(self, content: Mapping[str, Array], places: Sequence[int], width: int, most: int) -> None:
        """Take in the rows of another one, each part's columns from its place on."""
        self.most = max(self.most, most, width)
        capacity = max(self._room(width), self._capacity)
        for name, array in self.content().items():
            fresh = _joined([array, content[name]], places, capacity)
            self._buffers[name] = _value(fresh, self._session.device)
            self._rows = len(fresh)
        self._length, self._capacity, self._binding = width, capacity, None

    def _room(self, total: int) -> int:
        """Return for how many tokens to make room: what was asked for when it is near, else twice what is there."""
        if total <= self.most <= total + ROOM:
            return self.most
        return max(total + ROOM, min(2 * self._length, self.most))

    def _allocate(self, rows: list[int], columns: slice, capacity: int) -> None:
        sizes = {"batch": len(rows), "past_sequence": capacity}
        for spec, _ in self._specs:
            fresh = np.zeros(spec.shape(sizes), spec.dtype)
            if self._length:
                older = self._buffers[spec.name].numpy()  # on the CPU a view
                fresh[:, :, : columns.stop - columns.start] = older[rows, :, columns]
            self._buffers[spec.name] = _value(fresh, self._session.device)
        self._capacity = capacity
        self._binding = None

    def _bind(self) -> onnxruntime.IOBinding:
        binding = self._session.binding()
        binding.bind_output(_LOGITS, "cpu")
        for past, present in self._specs:
            binding.bind_ortvalue_input(past.name, self._buffers[past.name])
            binding.bind_ortvalue_output(present.name, self._buffers[past.name])
        for name, value in self._across.items():
            binding.bind_ortvalue_input(name, value)
        self._binding = binding
        return binding


def _row_of(value: onnxruntime.OrtValue, row: int, device: str) -> onnxruntime.OrtValue:
    return _value(value.numpy()[row : row + 1], device)


def _rows_of(
    values: Mapping[str, onnxruntime.OrtValue], rows: list[int], device: str
) -> dict[str, onnxruntime.OrtValue]:
    return {name: _value(np.ascontiguousarray(value.numpy()[rows]), device) for name, value in values.items()}


def _joined(parts: Sequence[Array], places: Sequence[int], columns: int) -> Array:
    """Return the rows of caches [rows, heads, columns, size] in one of `columns`, each from its place on."""
    heads, size = parts[0].shape[1], parts[0].shape[3]
    fresh = np.zeros((sum(map(len, parts)), heads, columns, size), parts[0].dtype)
    row = 0
    for part, place in zip(parts, places, strict=True):
        fresh[row : row + len(part), :, place : place + part.shape[2]] = part
        row += len(part)
    return fresh


def _value(array: Array, device: str) -> onnxruntime.OrtValue:
    """Return a tensor of the runtime; on the CPU it shares the array's memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)

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

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.cache import ENCODED, ENCODER_MASK, PAST, Cache, encoded_name
from onnxopt.graph.sides import Crossings
from onnxopt.probe.crossing import crossings_of_file
from onnxopt.run.generate.cache_buffers import LOGITS, ROOM, GrowingStore, SharedStore
from onnxopt.run.session import Session
from onnxopt.spec import Array, Signature, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

    from onnxopt.records.manifest import DecodingRecord

SAME_ANSWER = 0.05  # of the spread of the logits: far above what rounding or a scale per batch does to them
LEAVING_SHARE = 0.25  # finished rows leave when they are at least this share of the rows in the batch
_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_ENCODE = "open the folder with `onnxopt.Generator`, or with `onnxopt.run.generate.encoder_decoder.EncoderDecoder`"
_ENDLESS = ": its rotary tables change with every token beyond"
_SHORTEN = "shorten it, or take a checkpoint of another rope_type than dynamic"
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
        crossings: lengths, in order, beyond which positions are turned by other tables; see `DecodingRecord`.
        rereads: a text that grows beyond one of them is read anew; else it goes on from its keys as they are.
        endless_from: a length beyond which every token changes the tables, where texts end; 0 where none does.
    """

    session: Session
    cache: Cache
    shared_buffers: bool = False
    context_length: int = 0
    across: tuple[TensorSpec, ...] = ()
    crossings: tuple[int, ...] = ()
    rereads: bool = True
    endless_from: int = 0

    @classmethod
    def of(cls, session: Session, decoding: DecodingRecord | None = None, *, context_length: int = 0) -> Decoder:
        """Find out how a model is to be stepped.

        Args:
            session: the model.
            decoding: what its artifact says; without it the cache grows from step to step. Where it says nothing of
                crossings, as that of another tool, they are looked for in the file.
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
        lacking = [name for name in (LOGITS, *(spec.name for spec in cache.outputs)) if name not in given]
        if unknown or missing or lacking:
            found = (
                f"input {unknown[0]!r} is none of a decoder's"
                if unknown
                else f"no input {missing[0]!r}"
                if missing
                else f"no output {lacking[0]!r}"
            )
            raise InputError(f"is no decoder that can be run: {found}", where=where, hint=_REBUILD)
        length = (decoding.context_length if decoding else 0) or context_length
        changes = _crossings(session, decoding, longest=length) if not across else Crossings()
        return cls(
            session,
            cache,
            shared_buffers=decoding is not None and decoding.shared_buffers,
            context_length=min(filter(None, (length, changes.endless_from)), default=0),
            across=across,
            crossings=changes.at,
            rereads=decoding is None or decoding.crossing == "reread",
            endless_from=changes.endless_from,
        )

    def side(self, length: int) -> int:
        """Return how many crossings lie below a length: texts of one side are turned by the same tables."""
        return bisect.bisect_left(self.crossings, length)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows, as its logits have entries; 0 where the graph leaves that open."""
        entries = next((spec.axes[-1] for spec in self.session.outputs if spec.name == LOGITS and spec.axes), 0)
        return entries if isinstance(entries, int) else 0

    @property
    def limit_reason(self) -> str:
        """Why the model takes no longer texts, to be put behind how long they may be; empty where nothing is known."""
        return _ENDLESS if self.endless_from and self.context_length == self.endless_from else ""

    def too_long(self, name: str, tokens: int, most: int) -> InputError:
        """Return what is said of a text with more tokens than the model takes.

        Args:
            name: of the text, such as `prompt 3`.
            tokens: how many it has.
            most: how many the model takes.
        """
        what = f"{name} has {tokens} tokens, the model takes {most}{self.limit_reason}"
        if not self.limit_reason:
            return InputError(what, hint="shorten it")
        return InputError(what, where=str(self.session.path), hint=_SHORTEN)

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
        found = self.session.run({spec.name: feeds[spec.name] for spec in self.session.inputs}, [LOGITS, name])
        return found[LOGITS][:, -1].astype(np.float64), found[name]

    @cached_property
    def appends_together(self) -> bool:
        """Whether several tokens may follow a past in a batch, found by trying; some kernels want a batch of one."""
        sizes = {"batch": 2, PAST: 1, ENCODED: 1}
        feeds = {_IDS: np.ones((2, 2), np.int64), _MASK: np.ones((2, 3), np.int64)}
        feeds[_POSITIONS] = np.tile(np.array([1, 2]), (2, 1))
        feeds |= {spec.name: np.ones(spec.shape(sizes), spec.dtype) for spec in (*self.cache.inputs, *self.across)}
        try:
            self.session.run({spec.name: feeds[spec.name] for spec in self.session.inputs}, [LOGITS])
        except InputError:
            return False
        return True

    def prefill(self, prompts: Sequence[Sequence[int]], *, new_tokens: int = ROOM, chunk: int = 0) -> Batch:
        """Give prompts to the model and return what it will continue.

        Args:
            prompts: ids of each row, at least one.
            new_tokens: how many tokens are going to follow, at most.
            chunk: how many columns of the prompts are read at once, which bounds the memory of a long one; 0 for all.
                Beyond a crossing a prompt is read at once: its first tokens alone would get the tables of a short one.

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
                raise self.too_long(f"prompt {number}", len(prompt), self.context_length)
        if self.crossings:
            return SidedBatch(self, prompts, new_tokens=new_tokens, chunk=chunk)
        return self.read(prompts, new_tokens=new_tokens, chunk=chunk)

    def read(self, prompts: Sequence[Sequence[int]], *, new_tokens: int = ROOM, chunk: int = 0) -> Batch:
        """Read prompts of one side in one batch; arguments as in `prefill`, which says what is wrong with them.

        Raises:
            InputError: when lengths differ and the graph does not take the padding.
        """
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


def _crossings(session: Session, decoding: DecodingRecord | None, *, longest: int) -> Crossings:
    """Return where the tables of positions change: as the artifact says, else as the file says, else by looking.

    Args:
        session: the model.
        decoding: what its artifact says; one that was made before crossings were known says nothing of them.
        longest: the most tokens that the model takes; 0 when unknown.
    """
    if decoding is not None and "crossings" in decoding.model_fields_set:
        return Crossings(decoding.crossings, decoding.endless_from)
    said = session.crossings
    return said if said != Crossings() else crossings_of_file(session.path, longest=longest)


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
        where = decoder.session, decoder.cache
        self._store: SharedStore | GrowingStore = (
            SharedStore(*where, rows, most, across) if decoder.shared_buffers else GrowingStore(*where, rows, across)
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
        # a kernel that appends to one row alone counts its new tokens by the columns, padding among them
        several = len(seen) > 1 or not mask.all()
        if ids.shape[1] > 1 and seen.shape[1] and several and not self._decoder.appends_together:
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

    def taken(self, rows: Sequence[int]) -> Batch:
        """Return a batch with a copy of some of the rows, without the columns that are padding in all of them."""
        mask = self.mask[list(rows)]
        first = int(mask.any(axis=0).argmax())
        start = 0 if self._decoder.packed else first
        columns = slice(start, start + mask.shape[1] - first)
        fresh = Batch(self._decoder, len(rows), max(self._store.most - first, 0))
        fresh._store.fill({name: array[list(rows)][:, :, columns] for name, array in self._store.content().items()})
        fresh.mask, fresh.logits = np.ascontiguousarray(mask[:, first:]), self.logits[list(rows)]
        return fresh


@dataclass(eq=False)
class _Part:
    """Rows on one side of every crossing.

    Attributes:
        batch: their cache.
        rows: which of all rows they are.
        side: how many crossings lie below their lengths.
    """

    batch: Batch
    rows: list[int]
    side: int


class SidedBatch(Batch):
    """Rows of a model whose tables hang on the length: those of one side of a crossing run together, and no others.

    A row that grows beyond a crossing leaves its neighbours. Where the model rereads, its whole text is read anew with
    the other tables; else it takes its cache along. Rows that have ended stay behind before the columns of those that
    go on would reach a crossing: some graphs count columns.

    Args:
        decoder: the model.
        prompts: ids of each row.
        new_tokens: how many tokens are going to follow, at most.
        chunk: how many columns of short prompts are read at once; 0 for all.
    """

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], *, new_tokens: int, chunk: int) -> None:
        super().__init__(decoder, 0, 0)  # its own store stays empty
        self._new_tokens = new_tokens
        self._tokens = [[int(token) for token in prompt] for prompt in prompts]
        self._parts: list[_Part] = []
        sides: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            sides.setdefault(decoder.side(len(prompt)), []).append(row)
        for side, rows in sides.items():
            self._enter(self._read(rows, 0 if side else chunk), rows, side)
        self._put_together()

    def feed(self, ids: Array, mask: Array) -> None:
        """Give each row some tokens; arguments as in `Batch.feed`."""
        real, decoder = mask != 0, self._decoder
        grown = [len(own) + int(count) for own, count in zip(self._tokens, real.sum(axis=1), strict=True)]
        moving = [
            (self._leave(part, rows), rows, side)
            for part in list(self._parts)
            for side, rows in self._movers(part, grown, real).items()
        ]
        for row, own in enumerate(self._tokens):
            own.extend(ids[row, real[row]].tolist())
        for part in list(self._parts):
            live = [row for row in part.rows if real[row].any()]
            if not live:
                continue
            resting = [row for row in part.rows if row not in live]
            if resting and decoder.side(part.batch.mask.shape[1] + ids.shape[1]) != part.side:
                self._parts.append(_Part(self._leave(part, resting), resting, part.side))
            part.batch.feed(ids[part.rows], mask[part.rows])
        for batch, rows, side in moving:
            if decoder.rereads:
                self._enter(self._read(rows), rows, side)
            else:
                batch.feed(ids[rows], mask[rows])
                self._enter(batch, rows, side)
        self._put_together()

    def join(self, other: Batch) -> None:
        """Take in the rows of another batch of the same decoder, behind the own ones; the other one is spent."""
        assert isinstance(other, SidedBatch)  # noqa: S101  # a decoder makes batches of one kind
        count = len(self._tokens)
        for part in other._parts:  # noqa: SLF001  of the same class
            self._enter(part.batch, [row + count for row in part.rows], part.side)
        self._tokens += other._tokens  # noqa: SLF001
        self._put_together()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        places = {row: place for place, row in enumerate(rows)}
        for part in list(self._parts):
            own = [place for place, row in enumerate(part.rows) if row in places]
            if not own:
                self._parts.remove(part)
            elif len(own) < len(part.rows):
                part.batch.keep(own)
            part.rows = [places[row] for row in part.rows if row in places]
        self._tokens = [self._tokens[row] for row in rows]
        self._put_together()

    def taken(self, rows: Sequence[int]) -> Batch:
        """Return a batch with a copy of some of the rows, read anew."""
        return SidedBatch(self._decoder, [self._tokens[row] for row in rows], new_tokens=self._new_tokens, chunk=0)

    def _movers(self, part: _Part, grown: Sequence[int], real: Array) -> dict[int, list[int]]:
        """Return the rows of a part that get to another side, by that side."""
        found: dict[int, list[int]] = {}
        for row in part.rows:
            side = self._decoder.side(grown[row])
            if real[row].any() and side != part.side:
                found.setdefault(side, []).append(row)
        return found

    def _read(self, rows: Sequence[int], chunk: int = 0) -> Batch:
        texts = [self._tokens[row] for row in rows]
        return self._decoder.read(texts, new_tokens=self._new_tokens, chunk=chunk)

    def _leave(self, part: _Part, rows: Sequence[int]) -> Batch:
        """Take rows out of a part, and return them as a batch of their own."""
        if len(rows) == len(part.rows):
            self._parts.remove(part)
            return part.batch
        places = [part.rows.index(row) for row in rows]
        batch = part.batch.taken(places)
        rest = [place for place in range(len(part.rows)) if place not in places]
        part.batch.keep(rest)
        part.rows = [part.rows[place] for place in rest]
        return batch

    def _enter(self, batch: Batch, rows: list[int], side: int) -> None:
        """Let rows join those of their side."""
        part = next((one for one in self._parts if one.side == side), None)
        if part is None:
            self._parts.append(_Part(batch, list(rows), side))
            return
        part.batch.join(batch)
        part.rows += rows

    def _put_together(self) -> None:
        """Show logits and masks of all parts as those of one batch, padded on the left."""
        width = max((part.batch.mask.shape[1] for part in self._parts), default=0)
        self.mask = np.zeros((len(self._tokens), width), np.int64)
        entries = max((part.batch.logits.shape[-1] for part in self._parts), default=0)
        self.logits = np.zeros((len(self._tokens), entries), np.float32)
        for part in self._parts:
            self.mask[part.rows, width - part.batch.mask.shape[1] :] = part.batch.mask
            self.logits[part.rows] = part.batch.logits

"""Run requests of many callers together: a dynamic batcher for encoders, for threads and for asyncio.

Requests wait in a queue until a batch is full, or the oldest of them has waited long enough. A batch is made of
requests of similar length: lengths fall into buckets, the bucket of the oldest request comes next, and rows are padded
to the longest one in the batch only. Where the tables of positions change with the length, requests on two sides of a
crossing do not run together. A request of more rows than run together is run in parts, each behind what came meanwhile.
What can be seen to be wrong with a request is said before it is queued; when a batch fails all the same, its requests
are run one by one, so that only the wrong one fails. A request that is cancelled before its batch starts is left out.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Protocol

import numpy as np

from onnxopt.errors import InputError, OnnxoptError
from onnxopt.run.padding import Filler
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, TensorSpec, Workload

MAX_BATCH = 32
MAX_WAIT_MS = 2.0
MAX_QUEUE = 1024
# rows times longest row: where more tokens at once bring little, and every request of the batch waits for all of them
MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
# upper ends of the buckets; beyond the last one, its multiples
BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SHORTEN = "shorten it, or give the server more memory (--memory)"


class BusyError(InputError):
    """The queue is full."""


class ClosedError(InputError):
    """The batcher takes no more requests."""


class TooLargeError(InputError):
    """There is not enough memory for even the smallest part of a request."""


class Runs(Protocol):
    """What a batcher needs of a session; `Session` and `FixedShapes` have it."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model once."""


@dataclasses.dataclass
class Stats:
    """What a batcher has done so far.

    Attributes:
        requests: taken into the queue.
        batches: runs of the model.
        rows: rows in them.
        tokens: real tokens in them; rows for a model without lengths.
        places: tokens and padding together.
        failed: requests that ended with an error of the model.
        cancelled: requests that were taken back in time.
        busy_seconds: time in the model, summed over workers.
        lengths: how often each length was asked for.
    """

    requests: int = 0
    batches: int = 0
    rows: int = 0
    tokens: int = 0
    places: int = 0
    failed: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    lengths: Counter[int] = dataclasses.field(default_factory=Counter)

    @property
    def fill(self) -> float:
        """Share of places that were real tokens; 1 before the first batch."""
        return self.tokens / self.places if self.places else 1.0

    @property
    def mean_batch(self) -> float:
        """Rows per run; 0 before the first."""
        return self.rows / self.batches if self.batches else 0.0

    def workload(self, batches: Sequence[int] = (1,)) -> Workload:
        """Return the request shapes that were seen, to optimize for or to build TensorRT engines for.

        Raises:
            InputError: when nothing was seen.
        """
        return Workload.of_lengths(self.lengths, batches)


@dataclasses.dataclass(eq=False)
class _Request:
    """A request on its way."""

    feeds: Feeds
    outputs: tuple[str, ...] | None
    sizes: Mapping[str, int]
    same: tuple[tuple[int, ...], ...]
    side: int
    rows: int
    length: int
    elements: int
    bucket: int
    future: Future[Feeds]
    since: float


class Batcher:
    """Run requests together.

    Args:
        session: the model.
        max_batch: rows of one run.
        max_wait_ms: how long the oldest request waits for others.
        max_queue: how many requests may wait; more are refused with `BusyError`.
        max_tokens: rows times the longest row of one run; the default suits the device.
        buckets: upper ends of the ranges of lengths that run together.
        workers: runs at the same time; on a CPU, sessions of one thread each often do more together than one session
            of all threads.
        pad: id at padded positions.
        left: put padding before the tokens.
        longest: the most tokens a row may have; 0 for no limit.
        most_rows: told the elements of a row, all inputs together, it returns how many such rows may run at once for
            their memory; without it as many as `max_batch`.
        runner: what runs the filled batches; the session itself when not given. `FixedShapes` gives it fixed shapes.
        on_batch: told rows, real tokens, places and seconds of each run.

    Raises:
        InputError: when rows of this model cannot be joined, or a limit is out of range.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_batch: int = MAX_BATCH,
        max_wait_ms: float = MAX_WAIT_MS,
        max_queue: int = MAX_QUEUE,
        max_tokens: int | None = None,
        buckets: Sequence[int] = BUCKETS,
        workers: int = 1,
        pad: int = 0,
        left: bool = False,
        longest: int = 0,
        most_rows: Callable[[int], int] | None = None,
        runner: Runs | None = None,
        on_batch: Callable[[int, int, int, float], None] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch", max_batch, 1),
            ("wait", max_wait_ms, 0),
            ("queue", max_queue, 1),
            ("number of workers", workers, 1),
        ):
            if value < least:
                raise InputError(f"the {name} is {value}", hint=f"it must be {least} or more")
        if not buckets or sorted(set(buckets)) != list(buckets) or buckets[0] < 1:
            raise InputError(f"the buckets {list(buckets)} do not rise", hint="give for example 16, 32, 64")
        self.session = session
        self.filler = Filler(session.inputs, session.outputs, pad=pad, left=left)
        if not self.filler.batch:
            raise InputError(
                "its inputs and outputs do not all start with one open axis, so requests cannot be joined",
                where=str(session.path),
            )
        self.stats = Stats()
        self._crossings = session.crossings
        self._run = (runner or session).run
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait_ms / 1e3, max_queue
        self._max_tokens = max_tokens or MAX_TOKENS.get(session.device, max(MAX_TOKENS.values()))
        self._buckets, self._longest = tuple(buckets), longest
        self._on_batch, self._most_rows, self._workers = on_batch, most_rows or (lambda _: max_batch), workers
        self._queue: deque[_Request] = deque()
        self._state = threading.Condition()
        self._open, self._dropped = True, False
        self._threads = [
            threading.Thread(target=self._work, name=f"onnxopt-batcher-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Batcher:  # noqa: PYI034  # Self is in typing from Python 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a request brings."""
        return self.session.inputs

    def submit(
        self, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None, timeout: float = 0.0
    ) -> Future[Feeds]:
        """Queue a request.

        Args:
            feeds: one array per input; one row or several. More than run together are run in parts.
            outputs: names of the wanted outputs; all without it.
            timeout: seconds to wait for a place in the queue.

        Returns:
            The outputs to come, as `Session.run` gives them for this request alone. Cancelling works until its batch
            starts, and between two parts.

        Raises:
            InputError: when the request does not fit the model.
            TooLargeError: when not even one of its rows fits into the memory.
            BusyError: when the queue stayed full.
            ClosedError: after `close`.
        """
        request = self._request(feeds, outputs)
        most = self._together_at_most(request.elements)
        if request.rows > most:
            return _InParts(request, most, self._part, self._workers, timeout).future
        return self._enqueue(request, timeout)

    def _part(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float | None) -> Future[Feeds]:
        """Queue a part of a request that was begun."""
        return self._enqueue(self._request(feeds, outputs), timeout)

    def _enqueue(self, request: _Request, timeout: float | None) -> Future[Feeds]:
        """Put a request into the queue; without a timeout also into a full or a closed one, for what was begun."""
        with self._state:
            if timeout is None:
                if self._dropped:
                    request.future.cancel()
                else:
                    self._queue.append(request)
                self._state.notify_all()
                return request.future
            if not self._state.wait_for(lambda: len(self._queue) < self._max_queue or not self._open, timeout):
                raise BusyError(f"{self._max_queue} requests wait already", hint="try again later")
            if not self._open:
                raise ClosedError("the server is shutting down", hint="try again elsewhere")
            self._queue.append(request)
            self.stats.requests += 1
            self.stats.lengths[request.length] += 1
            self._state.notify_all()
        return request.future

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None, timeout: float = 60.0) -> Feeds:
        """Run one request and wait for its outputs; arguments and errors as in `submit`."""
        return self.submit(feeds, outputs=outputs, timeout=timeout).result()

    def map(self, requests: Sequence[Mapping[str, Array]]) -> list[Feeds | OnnxoptError]:
        """Run many requests and return one result each, in their order; a wrong one has its error as its result."""
        pending = [self._submitted(feeds) for feeds in requests]
        return [one if isinstance(one, OnnxoptError) else _settled(one) for one in pending]

    def _submitted(self, feeds: Mapping[str, Array]) -> Future[Feeds] | OnnxoptError:
        try:
            return self.submit(feeds, timeout=threading.TIMEOUT_MAX)
        except OnnxoptError as error:
            return error

    async def arun(
        self, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None, timeout: float = 0.0
    ) -> Feeds:
        """Run one request from asyncio; a cancelled task takes its request back. Arguments as in `submit`."""
        if timeout > 0:
            future = await asyncio.to_thread(self.submit, feeds, outputs=outputs, timeout=timeout)
        else:
            future = self.submit(feeds, outputs=outputs)
        return await asyncio.wrap_future(future)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and end the workers.

        Args:
            drain: answer what waits; else it is cancelled.
            timeout: seconds to wait for the workers.
        """
        with self._state:
            self._open, self._dropped = False, not drain
            if not drain:
                while self._queue:
                    self._queue.popleft().future.cancel()
            self._state.notify_all()
        for thread in self._threads:
            thread.join(timeout)

    # The queue

    def _together_at_most(self, elements: int) -> int:
        """Return how many rows of so many elements run together.

        Raises:
            TooLargeError: when it is none.
        """
        most = min(self._max_batch, self._most_rows(elements))
        if most < 1:
            raise TooLargeError(f"a row of {elements} elements takes more memory than a run may have", hint=_SHORTEN)
        return most

    def _request(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None) -> _Request:
        self.session.check(feeds)
        known = {spec.name for spec in self.session.outputs}
        unknown = [name for name in outputs or () if name not in known]
        if unknown:
            raise InputError(f"no output {unknown[0]!r}, there is {', '.join(sorted(known))}")
        sizes = self.filler.sizes(feeds)
        rows = sizes[self.filler.batch]
        length = sizes.get(self.filler.length, 1)
        if rows < 1 or length < 1:
            raise InputError(f"the request has {rows} rows of {length} tokens", hint="send at least one")
        if self._longest and length > self._longest:
            raise InputError(f"the request has {length} tokens, the model takes {self._longest}", hint="shorten it")
        return _Request(
            feeds=dict(feeds),
            outputs=None if outputs is None else tuple(outputs),
            sizes=sizes,
            same=self.filler.others(feeds),
            side=self._crossings.side(length),
            rows=rows,
            length=length,
            elements=-(-sum(array.size for array in feeds.values()) // rows),
            bucket=self._bucket(length),
            future=Future(),
            since=time.monotonic(),
        )

    def _bucket(self, length: int) -> int:
        last = self._buckets[-1]
        if length > last:
            return last * -(-length // last)
        return self._buckets[bisect.bisect_left(self._buckets, length)]

    def _pick(self) -> tuple[list[_Request], bool]:
        """Return the requests that would run with the oldest one, and whether they fill a batch."""
        oldest = self._queue[0]
        alike = [one for one in self._queue if self._alike(one, oldest)]
        # sorted, so that rows of one batch differ in length as little as they can; the oldest is always among them
        alike[1:] = sorted(alike[1:], key=lambda one: (abs(one.length - oldest.length), one.since))
        picked, rows, width, elements = [oldest], oldest.rows, oldest.length, oldest.elements
        for one in alike[1:]:
            wider, larger = max(width, one.length), max(elements, one.elements)
            most = min(self._max_batch, self._most_rows(larger))
            if rows + one.rows > most or (rows + one.rows) * wider > self._max_tokens:
                return picked, True
            picked.append(one)
            rows, width, elements = rows + one.rows, wider, larger
        most = min(self._max_batch, self._most_rows(elements))
        return picked, rows >= most or (rows + 1) * width > self._max_tokens

    @staticmethod
    def _alike(one: _Request, other: _Request) -> bool:
        """Tell whether two requests may share a batch: of similar length, and turned by the same rotary tables."""
        return one.bucket == other.bucket and one.same == other.same and one.side == other.side

    def _take(self) -> list[_Request] | None:
        """Wait for a batch and take it out of the queue; None when there will be none."""
        with self._state:
            while True:
                self._state.wait_for(lambda: bool(self._queue) or not self._open)
                if not self._queue:
                    return None
                picked, full = self._pick()
                left = picked[0].since + self._max_wait - time.monotonic()
                if full or left <= 0 or not self._open:
                    break
                self._state.wait(left)
            chosen = set(map(id, picked))
            self._queue = deque(one for one in self._queue if id(one) not in chosen)
            self._state.notify_all()
        running = [one for one in picked if one.future.set_running_or_notify_cancel()]
        self.stats.cancelled += len(picked) - len(running)
        return running

    # The model

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            if batch:
                self._answer(batch)

    def _answer(self, batch: list[_Request]) -> None:
        try:
            answers = self._together(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, it must reach the caller it belongs to
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
                return
            self.stats.failed += 1
            batch[0].future.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.future.set_result(answer)

    def _together(self, batch: list[_Request]) -> list[Feeds]:
        started = time.perf_counter()
        width = max(one.length for one in batch)
        filled = [
            self.filler.fill(one.feeds, {self.filler.length: width} if self.filler.length else {}) for one in batch
        ]
        feeds = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
        outputs = self._run(feeds, self._wanted(batch))
        answers, row = [], 0
        for one in batch:
            cut = self.filler.cut(outputs, one.sizes, row)
            names = list(cut) if one.outputs is None else one.outputs
            # a copy, or each answer would keep the whole batch in memory
            answers.append({name: cut[name] if len(batch) == 1 else cut[name].copy() for name in names})
            row += one.rows
        seconds = time.perf_counter() - started
        tokens = sum(one.rows * one.length for one in batch)
        with self._state:
            self.stats.batches += 1
            self.stats.rows += row
            self.stats.tokens += tokens
            self.stats.places += row * width
            self.stats.busy_seconds += seconds
        if self._on_batch:
            self._on_batch(row, tokens, row * width, seconds)
        return answers

    def _wanted(self, batch: Sequence[_Request]) -> list[str] | None:
        """Return the outputs that some request of the batch asks for; None for all."""
        named: set[str] = set()
        for one in batch:
            if one.outputs is None:
                return None
            named.update(one.outputs)
        return [spec.name for spec in self.session.outputs if spec.name in named]


class _InParts:
    """A request of more rows than run together: a few parts wait at a time, and each end lets the next one come.

    So others are answered between two parts, and who gives the request up gives up the parts that have not begun.

    Args:
        whole: the request, whose rows are the first axis of every input.
        most: rows of a part.
        enqueue: queues inputs for outputs of these names; without a timeout also into a full queue.
        waiting: parts that wait or run at the same time.
        timeout: seconds to wait for a place in the queue.

    Attributes:
        future: the outputs of all rows to come.

    Raises:
        BusyError: when the queue stayed full.
        ClosedError: after `close`.
    """

    def __init__(
        self,
        whole: _Request,
        most: int,
        enqueue: Callable[[Mapping[str, Array], Sequence[str] | None, float | None], Future[Feeds]],
        waiting: int,
        timeout: float,
    ) -> None:
        self.future: Future[Feeds] = Future()
        self._whole, self._most, self._enqueue = whole, most, enqueue
        self._starts = iter(range(0, whole.rows, most))
        self._parts: list[Future[Feeds]] = []
        self._found: dict[int, Feeds] = {}
        self._lock = threading.Lock()
        self.future.add_done_callback(lambda _: self._give_up())
        self._next(timeout)
        for _ in range(waiting - 1):
            self._next(None)

    def _next(self, timeout: float | None) -> None:
        """Let the next part wait for its run."""
        with self._lock:
            start = next(self._starts, None)
        if start is None:
            return
        rows = {name: array[start : start + self._most] for name, array in self._whole.feeds.items()}
        part = self._enqueue(rows, self._whole.outputs, timeout)
        self._parts.append(part)
        part.add_done_callback(lambda done: self._ended(start, done))
        if self.future.done():  # while the part was put there
            part.cancel()

    def _give_up(self) -> None:
        """Take back the parts that have not begun."""
        for part in self._parts:
            part.cancel()

    def _ended(self, start: int, part: Future[Feeds]) -> None:
        """Keep what a part gave, and go on, or end."""
        if self.future.done():  # given up, or another part has failed
            return
        error = CancelledError() if part.cancelled() else part.exception()
        if error is not None:
            self._settle(error)
            return
        with self._lock:
            self._found[start] = part.result()
            missing = len(self._found) * self._most < self._whole.rows
        if missing:
            self._next(None)
            return
        try:
            found = [self._found[place] for place in sorted(self._found)]
            whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        except ValueError as failed:  # outputs whose sizes hang on what is in the rows
            self._settle(failed)
            return
        self._settle(whole)

    def _settle(self, outcome: Feeds | BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # it was given up, or settled, at the same moment
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


def _settled(future: Future[Feeds]) -> Feeds | OnnxoptError:
    try:
        return future.result()
    except OnnxoptError as error:
        return error

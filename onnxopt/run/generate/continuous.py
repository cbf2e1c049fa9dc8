"""Write many texts at once, each from when it comes to when it ends: continuous batching for decoders.

One thread steps one batch. Between two tokens rows leave that have ended or were given up, and waiting prompts are read
and join. So a short text does not wait for a long one, and a newcomer waits for one token, not for a whole text
(Yu et al. 2022, Orca, iteration-level scheduling). Prompts are read apart from the batch that writes, at most
`prefill_tokens` of them between two tokens, so that reading does not hold up those who write.
"""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future

from onnxopt.errors import InputError
from onnxopt.run.batcher import BusyError, ClosedError, TooLargeError
from onnxopt.run.generate.cache_buffers import ROOM
from onnxopt.run.generate.decoder import Batch, pays
from onnxopt.run.generate.generator import NEW_TOKENS, Generator, Prompt
from onnxopt.run.generate.row import Row
from onnxopt.run.generate.sampling import GREEDY, Sampling
from onnxopt.run.generate.written import Generated

MAX_ROWS = 8
MAX_QUEUE = 256
PREFILL_TOKENS = 512


@dataclasses.dataclass
class DecodeStats:
    """What was done so far.

    Attributes:
        requests: taken into the queue.
        prompt_tokens: read.
        tokens: written.
        steps: runs of the model that wrote.
        rows: rows in them, also those that had ended.
        failed: texts that ended with an error.
        cancelled: texts that were given up.
    """

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    rows: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclasses.dataclass(eq=False)
class _Text:
    """A text with the one who waits for it."""

    row: Row
    prompt: Prompt
    future: Future[Generated]
    on_text: Callable[[str], None] | None
    given_up: bool = False

    def tell(self, piece: str) -> None:
        if piece and self.on_text:
            self.on_text(piece)

    def result(self) -> Generated:
        row = self.row
        return Generated(
            prompt=self.prompt if isinstance(self.prompt, str) else "",
            text=row.text,
            tokens=tuple(row.tokens),
            prompt_tokens=len(row.prompt),
            finish=row.finish or "length",
        )


class Writing:
    """A text that is being written.

    Attributes:
        future: the whole text to come.
    """

    def __init__(self, text: _Text) -> None:
        self._text = text
        self.future = text.future

    def cancel(self) -> None:
        """Give the text up; it leaves the batch before the next token."""
        self._text.given_up = True
        self.future.cancel()


class ContinuousBatcher:
    """Write texts of many callers together.

    Args:
        generator: the model with its tokenizer.
        max_rows: texts that are written at the same time.
        max_queue: prompts that may wait; more are refused with `BusyError`.
        prefill_tokens: tokens of prompts to read between two written ones, at least one prompt.
        cache_tokens: rows times columns of the cache, which bounds its memory; 0 for any number. Texts wait until there
            is room for all that they may come to be, and one that is too long for the whole of it is refused.
        chunk_tokens: how many tokens of a prompt are read at once, which bounds the memory of a long one; 0 for all.

    Raises:
        InputError: when a limit is out of range.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_rows: int = MAX_ROWS,
        max_queue: int = MAX_QUEUE,
        prefill_tokens: int = PREFILL_TOKENS,
        cache_tokens: int = 0,
        chunk_tokens: int = 0,
    ) -> None:
        if min(max_rows, max_queue, prefill_tokens) < 1:
            raise InputError("a limit of the batch is below 1", hint="rows, queue and tokens start at 1")
        if generator.pair is not None:
            raise InputError(
                "texts of an encoder-decoder do not join a batch that is on its way",
                where=str(generator.decoder.session.path),
                hint="use Generator.generate",
            )
        self.generator = generator
        self.stats = DecodeStats()
        self._max_rows, self._max_queue, self._prefill_tokens = max_rows, max_queue, prefill_tokens
        self.cache_tokens, self._chunk_tokens = cache_tokens, chunk_tokens
        self._queue: deque[_Text] = deque()
        self._state = threading.Condition()
        self._open = True
        self._active: list[_Text] = []
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._work, name="onnxopt-decoder", daemon=True)
        self._thread.start()

    def __enter__(self) -> ContinuousBatcher:  # noqa: PYI034  # Self is in typing from Python 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """How many prompts wait."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """How many texts are being written."""
        return len(self._active)

    def room_after(self, tokens: int) -> int | None:
        """Return how many new tokens there is room for in the cache after a prompt; None for any number.

        Args:
            tokens: of the prompt.
        """
        return self.cache_tokens - ROOM - tokens if self.cache_tokens else None

    def submit(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Writing:
        """Queue a prompt.

        Args:
            prompt: text or token ids.
            max_new_tokens: the most tokens to write.
            sampling: how tokens are chosen; greedy without it.
            stop: strings that end the text.
            chat: whether a text goes through the chat template; the default is to do so when there is one.
            system: what the system says first, in the chat template.
            on_text: told each piece of text as it becomes certain, on the thread that writes; it must not wait.

        Raises:
            InputError: when the prompt is empty or too long, or an option is out of range.
            TooLargeError: when the whole cache has no room for what the text may come to be.
            BusyError: when the queue is full.
            ClosedError: after `close`.
        """
        row = self.generator.row(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, chat=chat, system=system
        )
        needs = self._columns(len(row.prompt), row.most)
        if self.cache_tokens and needs > self.cache_tokens:
            raise TooLargeError(
                f"the prompt and what may be written after it are {needs} tokens, the cache has room for "
                f"{self.cache_tokens}",
                hint="ask for fewer, or give the server more memory (--memory)",
            )
        text = _Text(row, prompt, Future(), on_text)
        with self._state:
            if not self._open:
                raise ClosedError("the server is shutting down", hint="try again elsewhere")
            if len(self._queue) >= self._max_queue:
                raise BusyError(f"{self._max_queue} prompts wait already", hint="try again later")
            self._queue.append(text)
            self.stats.requests += 1
            self._state.notify_all()
        return Writing(text)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        """Yield a text in pieces; leaving the loop early gives it up. Arguments and errors as in `submit`."""
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        writing = self.submit(
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            chat=chat,
            system=system,
            on_text=pieces.put,
        )
        writing.future.add_done_callback(lambda _: pieces.put(None))
        return self._pieces(writing, pieces)

    @staticmethod
    def _pieces(writing: Writing, pieces: queue.SimpleQueue[str | None]) -> Iterator[str]:
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            writing.future.result()  # an error of the model is the caller's to know
        finally:
            writing.cancel()

    async def astream(self, writing: Writing, pieces: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        """Yield pieces that `arrive` put into a queue of asyncio; leaving the loop early gives the text up."""
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await asyncio.wrap_future(writing.future)
        finally:
            writing.cancel()

    def arrive(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
    ) -> tuple[Writing, AsyncIterator[str]]:
        """Queue a prompt from asyncio; return the text being written and its pieces. Arguments as in `submit`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        writing = self.submit(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, chat=chat, on_text=put
        )
        writing.future.add_done_callback(lambda _: put(None))
        return writing, self.astream(writing, pieces)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more prompts and end.

        Args:
            drain: write what was taken; else it is given up.
            timeout: seconds to wait.
        """
        with self._state:
            self._open = False
            if not drain:
                for text in (*self._queue, *self._active):
                    text.given_up = True
                    text.future.cancel()
                self._queue.clear()
            self._state.notify_all()
        self._thread.join(timeout)

    # The thread that writes

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: bool(self._queue or self._active) or not self._open)
                if not self._queue and not self._active:
                    return
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                self._fail(self._active, error)
                self._active, self._batch = [], None

    def _round(self) -> None:
        """Let rows leave and join, then write a token of each."""
        self._leave()
        for some in self._arrivals():
            self._enter(some)
        if self._batch is None or not self._active:
            return
        self._step(self._batch)

    def _leave(self) -> None:
        """Take rows out of the batch that have ended or were given up, as soon as it pays or others wait."""
        for text in self._active:
            if text.given_up and text.row.finish is None:
                text.row.finish = "stop"
                self.stats.cancelled += 1
                if not text.future.done():
                    text.future.set_exception(CancelledError())
        live = [place for place, text in enumerate(self._active) if text.row.finish is None]
        ended = len(self._active) - len(live)
        if self._batch is None or not ended:
            return
        context = self.generator.decoder.context_length
        full = bool(context and self._batch.mask.shape[1] >= context)
        if not live:
            self._active, self._batch = [], None
        elif self._queue or full or pays(ended, len(self._active)):
            self._batch.keep(live)
            self._active = [self._active[place] for place in live]

    def _arrivals(self) -> Iterator[list[_Text]]:
        """Yield waiting texts that are read together, as many as there is room for."""
        free, tokens = self._max_rows - len(self._active), 0
        taken: list[_Text] = []
        with self._state:
            while self._queue and len(taken) < free:
                size = len(self._queue[0].row.prompt)
                if (taken and tokens + size > self._prefill_tokens) or not self._room([*taken, self._queue[0]]):
                    break
                text = self._queue.popleft()
                if not text.future.set_running_or_notify_cancel():
                    self.stats.cancelled += 1
                    continue
                taken.append(text)
                tokens += size
        if self.generator.decoder.takes_padding:
            # together they would be padded to the longest: only lengths that differ little are worth it
            taken.sort(key=lambda text: len(text.row.prompt))
        some: list[_Text] = []
        for text in taken:
            differs = bool(some) and not self._alike(len(some[0].row.prompt), len(text.row.prompt))
            if differs:
                yield some
                some = []
            some.append(text)
        if some:
            yield some

    def _columns(self, begun: int, most: int) -> int:
        """Return how many columns of the cache a text comes to have, with the room that is made ahead."""
        context = self.generator.decoder.context_length
        return (min(begun + most, context) if context else begun + most) + ROOM

    def _room(self, new: Sequence[_Text]) -> bool:
        """Tell whether the cache has room for new texts beside those that are written, however long they all become."""
        if not self.cache_tokens or not (self._active or len(new) > 1):
            return True  # each by itself was seen to fit
        begun = max(len(text.row.prompt) for text in new)
        if self._batch is not None:
            begun = max(begun, self._batch.mask.shape[1])
        texts = [*self._active, *new]
        most = max(text.row.most - len(text.row.tokens) for text in texts)
        return len(texts) * self._columns(begun, most) <= self.cache_tokens

    def _alike(self, first: int, other: int) -> bool:
        if not self.generator.decoder.takes_padding:
            return first == other
        return other <= max(first + 8, first * 5 // 4)

    def _enter(self, some: list[_Text]) -> None:
        """Read prompts and let them join; when that fails, one by one."""
        decoder = self.generator.decoder
        context = decoder.context_length
        longest = max(len(text.row.prompt) for text in some)
        room = max(text.row.most for text in some)
        room = max(1, min(room, context - longest)) if context else room
        try:
            batch = decoder.prefill([text.row.prompt for text in some], new_tokens=room, chunk=self._chunk_tokens)
            self._choose(batch, some)
        except Exception as error:  # noqa: BLE001 - as above
            if len(some) > 1:
                for text in some:
                    self._enter([text])
            else:
                self._fail(some, error)
            return
        self.stats.prompt_tokens += sum(len(text.row.prompt) for text in some)
        live = [place for place, text in enumerate(some) if text.row.finish is None]
        if not live:
            return
        if len(live) < len(some):
            batch.keep(live)
        if self._batch is None:
            self._batch, self._active = batch, [some[place] for place in live]
        else:
            self._batch.join(batch)
            self._active += [some[place] for place in live]

    def _step(self, batch: Batch) -> None:
        """Write one token of each row."""
        live = [text.row.finish is None for text in self._active]
        if not any(live):
            return
        batch.step([text.row.tokens[-1] if text.row.tokens else 0 for text in self._active], live)
        self.stats.steps += 1
        self.stats.rows += len(batch)
        self._choose(batch, self._active)

    def _choose(self, batch: Batch, texts: Sequence[_Text]) -> None:
        """Choose the next token of each text that grows, and hand out what is certain."""
        for place, text in enumerate(texts):
            row = text.row
            if row.finish is not None:
                continue
            try:
                text.tell(row.grow(batch.logits[place])[1])
            except Exception as error:  # noqa: BLE001 - of this row alone, such as logits that are not finite
                row.finish = "stop"
                self._fail([text], error)
                continue
            self.stats.tokens += text.row.finish != "end"
            if text.row.finish is not None and not text.future.done():
                text.future.set_result(text.result())

    def _fail(self, texts: Sequence[_Text], error: Exception) -> None:
        for text in texts:
            if not text.future.done():
                self.stats.failed += 1
                text.future.set_exception(error)

"""Artifacts that are open and ready: encoders behind a dynamic batcher, decoders behind a continuous one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError, word
from onnxopt.host.sizes import size_text
from onnxopt.host.threads import available_threads
from onnxopt.records.manifest import Manifest
from onnxopt.run.answers import task_of
from onnxopt.run.batcher import Batcher, BusyError, ClosedError, TooLargeError
from onnxopt.run.cost import Cost, elements_of
from onnxopt.run.generate.beside import read_manifest
from onnxopt.run.generate.continuous import PREFILL_TOKENS, ContinuousBatcher
from onnxopt.run.generate.decoder import cache_of
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.padding import Filler
from onnxopt.run.session import Session
from onnxopt.serve.encodes import Classifies, Encodes, classifies_of, encodes_of
from onnxopt.serve.limits import Limits
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.problems import Problem
from onnxopt.serve.weighing import token_bytes, weigh_decoder, weigh_encoder
from onnxopt.spec import Array, Feeds
from onnxopt.texts.tokenizer import TOKENIZER_NAME

# a run that takes more gives its memory back: what the runtime keeps would else grow with every new shape
_SHRINKING_BYTES = 32 << 20
# of a decoder's share, for its cache; a quarter of the rest is for single runs, which KServe's protocol asks for
_CACHE_SHARE, _SINGLE_SHARE = 0.5, 0.125
_CACHE_MARGIN = 1.25  # a layer's buffer and its successor are there together when rows join or leave
_LEAST_CHUNK = 16  # tokens of a prompt that are read at once


@dataclass(frozen=True)
class Weighed:
    """A session that knows what its runs take.

    Attributes:
        session: the model.
        cost: memory of a run.
        budget: bytes that a run may take.
    """

    session: Session
    cost: Cost
    budget: int

    def most_rows(self, elements: int) -> int:
        """Return how many rows of so many elements, all inputs together, may run at once.

        Raises:
            TooLargeError: when not even one may.
        """
        most = self.cost.rows_within(self.budget, elements)
        if most < 1:
            size = size_text(self.cost.run_bytes(1, elements))
            raise TooLargeError(
                f"a row of {elements} elements takes about {size} of memory, a run may have {size_text(self.budget)}",
                hint="shorten it, or start the server with more --memory",
            )
        return most

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model; a large run keeps no memory for the next one."""
        rows = max((len(array) for array in feeds.values() if array.ndim), default=1)
        size = self.cost.run_bytes(rows, elements_of(feeds, rows))
        return self.session.run(feeds, outputs, shrink=size > _SHRINKING_BYTES)


class Single:
    """Runs of a model whose rows cannot be joined: one after another, on a thread.

    Args:
        weighed: the model.
        max_queue: how many may wait.
    """

    def __init__(self, weighed: Weighed, max_queue: int) -> None:
        self._weighed, self._max_queue = weighed, max_queue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxopt-single")
        self.waiting = 0
        self._open = True

    async def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model once; a cancelled task takes its run back until it begins.

        Raises:
            TooLargeError: when it would take more memory than a run may.
            BusyError: when too many wait.
            ClosedError: after `close`.
        """
        self._weighed.session.check(feeds)
        self._weighed.most_rows(elements_of(feeds, 1))
        if not self._open:
            raise ClosedError("the server is shutting down", hint="try again elsewhere")
        if self.waiting >= self._max_queue:
            raise BusyError(f"{self._max_queue} requests wait already", hint="try again later")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._weighed.run, feeds, outputs)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Answer what was taken and end."""
        self._open = False
        self._thread.shutdown()


@dataclass
class Served:
    """An artifact that is served.

    Attributes:
        name: what callers call it.
        session: its model.
        cost: memory of its runs.
        batcher: joins requests; None where rows cannot be joined, and for decoders.
        single: runs requests one by one where nothing joins them; else None.
        encodes: text into embeddings; None where the model has none.
        classifies: text into labels; None where that is not its task.
        writes: text after text; None but for decoders.
        created: when its file was written, in seconds since 1970; the folder may be gone by the time somebody asks.
    """

    name: str
    session: Session
    cost: Cost
    batcher: Batcher | None = None
    single: Single | None = None
    encodes: Encodes | None = None
    classifies: Classifies | None = None
    writes: ContinuousBatcher | None = None
    created: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.created = int(self.session.path.stat().st_mtime)

    @property
    def routes(self) -> list[str]:
        """Where it can be asked, each as a path."""
        chats = self.writes is not None and self.writes.generator.template is not None
        known = {
            "/v1/embeddings": self.encodes is not None,
            "/v1/classify": self.classifies is not None and self.classifies.whole,
            "/v1/rerank": self.classifies is not None and self.classifies.reranks,
            "/v1/score": self.classifies is not None and self.classifies.reranks,
            "/v1/ner": self.classifies is not None and not self.classifies.whole,
            "/v1/completions": self.writes is not None,
            "/v1/chat/completions": chats,
            f"/v2/models/{self.name}/infer": True,
        }
        return [path for path, is_there in known.items() if is_there]

    async def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model for one request, together with others where that is possible."""
        if self.batcher is not None:
            return await self.batcher.arun(feeds, outputs=outputs)
        assert self.single is not None  # noqa: S101  # one of the two is there
        return await self.single.run(feeds, outputs)

    def close(self) -> None:
        """Answer what was taken and end."""
        for worker in (self.batcher, self.single, self.writes):
            if worker is not None:
                worker.close()


@dataclass(frozen=True)
class Opening:
    """How models are opened.

    Attributes:
        device: as for `Session`.
        threads: threads of one run; on a CPU 1 when there are several workers.
        workers: runs of one encoder at the same time; on a CPU one per core when not given.
        max_rows: texts that one decoder writes at the same time.
    """

    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    max_rows: int = 8


@dataclass(frozen=True)
class Opened:
    """An artifact that is open, weighed, and not served yet: how much memory it may use is known when all are open.

    Attributes:
        name: what callers call it.
        session: its model.
        cost: memory of its runs.
        workers: runs at the same time.
        text: its tokenizer, where it is an encoder with one.
        generator: where it is a decoder.
        task: in the words of transformers; empty when nothing says.
    """

    name: str
    session: Session
    cost: Cost
    workers: int
    text: TextModel | None = None
    generator: Generator | None = None
    task: str = ""

    def serve(self, share: int, limits: Limits, metrics: Metrics, how: Opening) -> Served:
        """Begin to take requests, with a share of the memory in bytes."""
        if self.generator is not None:
            return self._decoder(self.generator, share, limits, metrics, how)
        served = Served(self.name, self.session, self.cost)
        weighed = Weighed(self.session, self.cost, share // self.workers)
        if Filler(self.session.inputs, self.session.outputs).batch:
            served.batcher = self._batcher(weighed, limits, metrics)
            metrics.watch(self.name, lambda: served.batcher.waiting if served.batcher else 0)
        else:
            served.single = self._single(dataclasses.replace(weighed, budget=share), limits, metrics)
        if self.text is not None:
            served.encodes = encodes_of(self.text)
            served.classifies = classifies_of(self.text, self.task)
        return served

    def _batcher(self, weighed: Weighed, limits: Limits, metrics: Metrics) -> Batcher:
        text = self.text
        return Batcher(
            self.session,
            max_batch=limits.max_batch,
            max_wait_ms=limits.max_wait_ms,
            max_queue=limits.max_queue,
            workers=self.workers,
            pad=text.pad if text else 0,
            left=text.pads_left if text else False,
            longest=text.limit if text else 0,
            most_rows=weighed.most_rows,
            runner=weighed,
            on_batch=metrics.on_batch(self.name),
        )

    def _single(self, weighed: Weighed, limits: Limits, metrics: Metrics) -> Single:
        single = Single(weighed, limits.max_queue)
        metrics.watch(self.name, lambda: single.waiting)
        return single

    def _decoder(self, generator: Generator, share: int, limits: Limits, metrics: Metrics, how: Opening) -> Served:
        decoder = generator.decoder
        single = Single(Weighed(self.session, self.cost, int(_SINGLE_SHARE * share)), limits.max_queue)
        reading = int((1 - _CACHE_SHARE - _SINGLE_SHARE) * share)
        inputs = len(self.session.inputs) - len(decoder.cache.inputs)  # elements of a token
        chunk = max(_LEAST_CHUNK, self.cost.elements_within(reading) // inputs)
        writes = ContinuousBatcher(
            generator,
            max_rows=how.max_rows,
            max_queue=limits.max_queue,
            prefill_tokens=min(PREFILL_TOKENS, chunk),
            cache_tokens=int(_CACHE_SHARE * share / _CACHE_MARGIN / token_bytes(decoder.cache)),
            chunk_tokens=chunk,
        )
        metrics.watch(self.name, lambda: writes.waiting + single.waiting, lambda: writes.active)
        return Served(self.name, self.session, self.cost, single=single, writes=writes)


def open_model(path: Path, name: str, how: Opening) -> Opened:
    """Open an artifact and see what its runs take.

    Raises:
        InputError: when it cannot be opened.
    """
    manifest: Manifest | None = read_manifest(path)
    if manifest is not None and manifest.decoding is not None:
        session = Session(path, device=how.device, threads=how.threads, label=name)
        generator = Generator(path, session=session)
        return Opened(name, session, weigh_decoder(generator.decoder), workers=1, generator=generator)
    workers, threads = how.workers, how.threads
    if workers is None:
        workers = available_threads() if how.device in {"auto", "cpu"} and threads is None else 1
    if threads is None and workers > 1:
        threads = max(1, available_threads() // workers)
    session = Session(path, device=how.device, threads=threads, label=name)
    plain_decoder = manifest is None and cache_of(session) is not None
    has_tokenizer = (session.path.parent / TOKENIZER_NAME).is_file() and not plain_decoder
    text = TextModel.open(session.path.parent, session) if has_tokenizer else None
    task = ""
    if text is not None:
        with contextlib.suppress(InputError):  # nothing says what its logits mean
            task = task_of(manifest.task if manifest else "onnx", text.config, session)
    return Opened(name, session, weigh_encoder(session, text), workers=workers, text=text, task=task)


class Shelf:
    """The models of a server by name."""

    def __init__(self, models: Sequence[Served]) -> None:
        self.models = {model.name: model for model in models}

    def get(self, name: str) -> Served:
        """Return a model.

        Raises:
            Problem: 404 when there is none of this name.
        """
        found = self.models.get(name)
        if found is None:
            raise Problem(
                404,
                f"no model {word(name)!r}, there is {', '.join(self.models)}",
                code="model_not_found",
                param="model",
            )
        return found

    def close(self) -> None:
        """Close all of them."""
        for model in self.models.values():
            model.close()

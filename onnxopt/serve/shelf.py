"""Artifacts that are open and ready: encoders behind a dynamic batcher, decoders behind a continuous one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt.errors import InputError, word
from onnxopt.host.threads import available_threads
from onnxopt.records.manifest import Manifest
from onnxopt.run.batcher import Batcher
from onnxopt.run.generate.beside import read_manifest
from onnxopt.run.generate.continuous import ContinuousBatcher
from onnxopt.run.generate.decoder import cache_of
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.padding import Filler
from onnxopt.run.session import Session
from onnxopt.serve.limits import Limits
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.problems import Problem
from onnxopt.spec import Array, Feeds
from onnxopt.texts.bounded import encode, read_beginning
from onnxopt.texts.tokenizer import TOKENIZER_NAME, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenRow = tuple[list[int], list[int]]  # ids and segments of a row

_EMBEDDINGS = ("sentence_embedding", "pooler_output", "image_embeds", "text_embeds")


@dataclass
class Encodes:
    """Text into an embedding.

    Attributes:
        text: the tokenizer and what the model wants of it.
        cutting: the same tokenizer, which cuts to what the model takes.
        output: name of the embedding.
        size: its numbers.
        vocabulary: tokens that the model knows; 0 when nothing says.
    """

    text: TextModel
    cutting: Tokenizer
    output: str
    size: int
    vocabulary: int = 0

    def read(self, items: Sequence[str | Sequence[int]], *, truncate: bool) -> list[TokenRow]:
        """Return tokens and segments of texts, or of rows of tokens.

        Raises:
            InputError: when one is empty, longer than the model takes, or has a token that the model does not know.
        """
        return [
            self._text(one, cut=truncate) if isinstance(one, str) else self._row(one, cut=truncate) for one in items
        ]

    def _text(self, text: str, *, cut: bool) -> TokenRow:
        if not text.strip():
            raise InputError("the text is empty", hint="write at least one word")
        begun = read_beginning(self.text.tokenizer, text.lower() if self.text.lowers else text, self.text.limit)
        if cut and self._beyond(len(begun.encoding.ids)):
            encoding = encode(self.cutting, begun.text)
            return encoding.ids, encoding.type_ids
        self._fits(len(begun.encoding.ids), begun.count)
        return begun.encoding.ids, begun.encoding.type_ids

    def _row(self, row: Sequence[int], *, cut: bool) -> TokenRow:
        check_tokens(row, self.vocabulary)
        ids = list(row[: self.text.limit] if cut and self.text.limit else row)
        self._fits(len(ids), str(len(ids)))
        return ids, [0] * len(ids)

    def _beyond(self, tokens: int) -> bool:
        return bool(self.text.limit) and tokens > self.text.limit

    def _fits(self, tokens: int, said: str) -> None:
        """Refuse what is longer than the model takes."""
        if self._beyond(tokens):
            raise InputError(
                f"the text has {said} tokens, the model takes {self.text.limit}",
                hint='shorten it, or send "truncate": true',
            )


@dataclass
class Served:
    """An artifact that is served.

    Attributes:
        name: what callers call it.
        path: its folder.
        manifest: what it says of itself; None for a plain file.
        session: its model.
        batcher: joins requests; None where rows cannot be joined, and for decoders.
        encodes: text into embeddings; None where the model has none.
        writes: text after text; None but for decoders.
        created: when its file was written, in seconds since 1970; the folder may be gone by the time somebody asks.
    """

    name: str
    path: Path
    manifest: Manifest | None
    session: Session
    batcher: Batcher | None = None
    encodes: Encodes | None = None
    writes: ContinuousBatcher | None = None
    created: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.created = int(self.session.path.stat().st_mtime)

    async def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model for one request, together with others where that is possible."""
        if self.batcher is not None:
            return await self.batcher.arun(feeds, outputs=outputs)
        return await asyncio.to_thread(self.session.run, feeds, outputs)

    def close(self) -> None:
        """Answer what was taken and end."""
        for worker in (self.batcher, self.writes):
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


def open_model(path: Path, name: str, limits: Limits, metrics: Metrics, how: Opening) -> Served:
    """Open an artifact for serving.

    Raises:
        InputError: when it cannot be opened.
    """
    manifest = read_manifest(path)
    if manifest is not None and manifest.decoding is not None:
        return _decoder(path, name, manifest, limits=limits, metrics=metrics, how=how)
    workers, threads = how.workers, how.threads
    if workers is None:
        workers = available_threads() if how.device in {"auto", "cpu"} and threads is None else 1
    if threads is None and workers > 1:
        threads = max(1, available_threads() // workers)
    session = Session(path, device=how.device, threads=threads, label=name)
    if manifest is None and cache_of(session) is not None:
        return Served(name, path, manifest, session)
    served = Served(name, path, manifest, session)
    text = TextModel.open(session.path.parent, session) if (session.path.parent / TOKENIZER_NAME).is_file() else None
    if Filler(session.inputs, session.outputs).batch:
        served.batcher = Batcher(
            session,
            max_batch=limits.max_batch,
            max_wait_ms=limits.max_wait_ms,
            max_queue=limits.max_queue,
            workers=workers,
            pad=text.pad if text else 0,
            left=text.pads_left if text else False,
            longest=text.limit if text else 0,
            on_batch=metrics.on_batch(name),
        )
        metrics.watch(name, lambda: served.batcher.waiting if served.batcher else 0)
    if text is not None:
        served.encodes = _encodes(text)
    return served


def _decoder(path: Path, name: str, manifest: Manifest, *, limits: Limits, metrics: Metrics, how: Opening) -> Served:
    session = Session(path, device=how.device, threads=how.threads, label=name)
    writes = ContinuousBatcher(Generator(path, session=session), max_rows=how.max_rows, max_queue=limits.max_queue)
    metrics.watch(name, lambda: writes.waiting, lambda: writes.active)
    return Served(name, path, manifest, session, writes=writes)


def _encodes(text: TextModel) -> Encodes | None:
    pooled = {spec.name: spec for spec in text.session.outputs if len(spec.axes) == 2 and isinstance(spec.axes[1], int)}
    output = next((name for name in _EMBEDDINGS if name in pooled), None)
    if output is None:
        return None
    cutting = open_tokenizer(text.folder)
    if text.limit:
        cutting.enable_truncation(text.limit)
    return Encodes(text, cutting, output, int(pooled[output].axes[1]), vocabulary_of(text.config))


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Return how many tokens an encoder knows, as its config.json says; 0 when it does not."""
    inner = config.get("text_config")
    said = config.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, Mapping) else 0)
    return said if isinstance(said, int) and said > 0 else 0


def check_tokens(row: Sequence[int], vocabulary: int) -> None:
    """Make sure that the model knows each token.

    Args:
        row: tokens that a caller gave.
        vocabulary: how many there are; 0 when nothing says, and then whatever an int64 can hold is let through.

    Raises:
        InputError: when the row is empty, or a token is none.
    """
    if not row:
        raise InputError("a row of tokens is empty", hint="send at least one")
    least, most = min(row), max(row)
    if least < 0 or most >= (vocabulary or 1 << 63):
        known = f"the model knows 0 to {vocabulary - 1}" if vocabulary else "tokens start at 0"
        raise InputError(f"there is no token {word(str(least if least < 0 else most))}; {known}")


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


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Read the arguments of the command line, each a folder or `name=folder`.

    Raises:
        InputError: when two models have the same name.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, mark, place = text.partition("=")
        path = Path(place) if mark and not Path(text).exists() else Path(text)
        name = name if mark and not Path(text).exists() else path.resolve().name
        if name in found:
            raise InputError(f"two models are named {name}", hint=f"write other-name={path}")
        found[name] = path
    if not found:
        raise InputError("there is no model", hint="name at least one artifact folder")
    return found

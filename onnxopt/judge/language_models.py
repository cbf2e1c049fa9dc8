"""Language models that are judged: an .onnx with or without a cache, and the original in torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError
from onnxopt.records.events import Step
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate.decoder import Decoder, cache_of
from onnxopt.run.session import Session
from onnxopt.spec import Array, Say
from onnxopt.texts.windows import WINDOW, Window

if TYPE_CHECKING:
    from onnxopt.load.checkpoint.folder import Checkpoint
    from onnxopt.load.source.source import Source, Weights

_LOGITS_BYTES = 256 << 20  # logits of the windows that run together
_CACHE_BYTES = 512 << 20  # their cache, when they are stepped
_MOST_TOGETHER = 32
_ROWS_AT_ONCE = 64  # rows of logits that are turned into float64 at once
Losses = npt.NDArray[np.float64]


class Model(Protocol):
    """A model that predicts tokens."""

    @property
    def name(self) -> str:
        """What it is, for the report."""

    def losses(self, windows: Sequence[Window], say: Say) -> Iterator[Losses]:
        """Yield the negative log likelihood of the predicted tokens of each window."""


class OnnxLanguageModel:
    """A graph that gives logits, with or without a cache.

    Args:
        session: the graph.
        manifest: of its artifact, if it has one.
        context: the most positions it takes by its config; 0 when unknown.
        batch: how many windows run together; None chooses by memory.

    Raises:
        InputError: when it is no language model.
    """

    def __init__(
        self, session: Session, manifest: Manifest | None, *, context: int = 0, batch: int | None = None
    ) -> None:
        self._session, self._batch = session, batch
        decoding = manifest.decoding if manifest else None
        cached = cache_of(session) is not None
        self._decoder = Decoder.of(session, decoding, context_length=context) if cached else None
        names = [spec.name for spec in session.inputs]
        if self._decoder is None and ("input_ids" not in names or set(names) - {"input_ids", "attention_mask"}):
            raise InputError(f"is no language model: it takes {', '.join(names)}", where=str(session.path))
        logits = next((spec for spec in session.outputs if spec.name == "logits"), None)
        if logits is None or len(logits.axes) != 3:
            raise InputError("is no language model: it gives no logits per token", where=str(session.path))
        self._context = self._decoder.context_length if self._decoder else context
        self._whole = decoding.logits == "all" if decoding else self._gives_all()

    @property
    def name(self) -> str:
        """What it is."""
        return "onnx"

    def window(self, asked: int | None) -> int:
        """Return the tokens of a window: those asked for, which the model must take, or else as many as usual."""
        if asked is None:
            return min(WINDOW, self._context or WINDOW)
        if self._context and asked > self._context:
            raise InputError(f"the window is {asked}, the model takes {self._context}", hint="choose a smaller one")
        return asked

    def _gives_all(self) -> bool:
        return bool(self._logits(np.zeros((1, 3), np.int64)).shape[1] == 3)

    def losses(self, windows: Sequence[Window], say: Say) -> Iterator[Losses]:
        """Yield the negative log likelihood of the predicted tokens of each window."""
        for some in _together(windows, self._room(max(len(one.ids) for one in windows))):
            ids = np.stack([one.ids for one in some])
            losses = token_losses(self._logits(ids), ids) if self._whole else self._stepped(ids, say)
            for row, one in zip(losses, some, strict=True):
                yield row[one.first - 1 :]

    def _room(self, width: int) -> int:
        if self._batch is not None:
            return self._batch
        if self._whole or self._decoder is None:
            vocabulary = next(spec.axes[-1] for spec in self._session.outputs if spec.name == "logits")
            row = width * (vocabulary if isinstance(vocabulary, int) else 1 << 16) * 4
            return _fitting(_LOGITS_BYTES, row)
        layers = self._decoder.cache.layers
        return _fitting(_CACHE_BYTES, sum(one.heads * (one.key_size + one.value_size) for one in layers) * width * 4)

    def _logits(self, ids: Array) -> Array:
        """Return logits of whole rows without padding: float [rows, positions, vocabulary]."""
        sizes = {"batch": len(ids), "past_sequence": 0}
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if self._decoder is not None:
            feeds["position_ids"] = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            feeds |= {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in self._decoder.cache.inputs}
        taken = {spec.name: feeds[spec.name] for spec in self._session.inputs}
        return self._session.run(taken, ["logits"])["logits"]

    def _stepped(self, ids: Array, say: Say) -> Losses:
        """Return float64 [rows, tokens - 1], each token given alone."""
        if self._decoder is None:
            raise InputError("gives the last position only and has no cache", where=str(self._session.path))
        width = ids.shape[1]
        batch = self._decoder.prefill(ids[:, :1].tolist(), new_tokens=width - 1)
        columns = [token_losses(batch.logits[:, None], ids[:, :2])]
        for place in range(1, width - 1):
            if place % 32 == 0:
                words = f"{self.name}: token {place} of {width}, {len(ids)} windows side by side"
                say(Step(words, work=f"{self.name}: token", done=place, total=width))
            logits = batch.step(ids[:, place].tolist())
            columns.append(token_losses(logits[:, None], ids[:, place : place + 2]))
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class TorchLanguageModel:
    """The original model, run by torch.

    Attributes:
        name: what it is.
        run: gives logits of all positions for `input_ids` and `attention_mask`.
        batch: how many windows run together; None chooses by memory.
    """

    name: str
    run: Callable[[Array], Array]
    batch: int | None = None

    @classmethod
    def of(cls, manifest: Manifest | None, path: Path, *, batch: int | None = None) -> TorchLanguageModel:
        """Load the model that an artifact was made from.

        Raises:
            InputError: when the artifact does not say, the source is gone, or it holds other weights now.
        """
        from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
        from onnxopt.load.export.torch_model import load_torch
        from onnxopt.tasks.table import parse_task

        source = _original(manifest, path)
        checkpoint = read_checkpoint(source)
        _check_weights(checkpoint, manifest)
        task = parse_task("text-generation")
        loaded = load_torch(checkpoint, load_config(checkpoint), task, None, with_cache=False, extras=())
        names = [spec.name for spec in loaded.inputs]

        def run(ids: Array) -> Array:
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            return loaded.run({name: feeds[name] for name in names})["logits"]

        return cls("original", run, batch)

    def losses(self, windows: Sequence[Window], _: Say) -> Iterator[Losses]:
        """Yield the negative log likelihood of the predicted tokens of each window."""
        together = self.batch or 1
        for some in _together(windows, together):
            ids = np.stack([one.ids for one in some])
            for row, one in zip(token_losses(self.run(ids), ids), some, strict=True):
                yield row[one.first - 1 :]


def _original(manifest: Manifest | None, path: Path) -> Source:
    """Find the model that an artifact was made from."""
    from onnxopt.load.source.recipe import all_recipes
    from onnxopt.load.source.source import resolve

    origin: dict[str, Any] = manifest.origin if manifest else {}
    text, kind = origin.get("source"), origin.get("kind")
    if not isinstance(text, str) or kind not in {"folder", "sample", "hub", "architecture"}:
        raise InputError(
            "nothing says which checkpoint it was made from",
            where=str(path),
            hint="leave out --original, or make the artifact from a checkpoint",
        )
    if kind in {"sample", "architecture"}:  # recorded by the Hub id, found by the recipe's name
        text = next((recipe.name for recipe in all_recipes().values() if recipe.source == text), text)
    weights: Weights = "random" if origin.get("weights") == "random" else "pretrained"
    return resolve(text, weights=weights, revision=origin.get("revision") or None)


def _check_weights(checkpoint: Checkpoint, manifest: Manifest | None) -> None:
    """Refuse a checkpoint that has changed since the artifact was made from it."""
    from onnxopt.load.checkpoint.folder import weights_digest

    recorded = manifest.origin.get("weights_sha256") if manifest else ""
    if not recorded:
        return
    files = json.dumps(weights_digest(checkpoint), sort_keys=True)  # as `onnxopt.load.export.export` writes it down
    if hashlib.sha256(files.encode()).hexdigest() != recorded:
        raise InputError(
            "the checkpoint has changed since the artifact was made from it",
            where=checkpoint.source.text,
            hint="make the artifact again",
        )


def _together(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Yield windows of equal length together, in their order."""
    some: list[Window] = []
    for window in windows:
        if some and (len(some) == most or len(window.ids) != len(some[0].ids)):
            yield some
            some = []
        some.append(window)
    yield some


def _fitting(room: int, row: int) -> int:
    return max(1, min(_MOST_TOGETHER, room // max(row, 1)))


def token_losses(logits: Array, ids: Array) -> Losses:
    """Return −log softmax at the token that follows each position.

    Args:
        logits: float [rows, positions, vocabulary]; those of the last position are not needed.
        ids: int64 [rows, positions], or one more.

    Returns:
        float64 [rows, tokens - 1].
    """
    found = np.empty((len(ids), ids.shape[1] - 1))
    for row in range(len(ids)):
        for start in range(0, found.shape[1], _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, found.shape[1])
            scores = logits[row, start:stop].astype(np.float64)
            peak = scores.max(axis=-1)
            total = peak + np.log(np.exp(scores - peak[:, None]).sum(axis=-1))
            found[row, start:stop] = total - scores[np.arange(stop - start), ids[row, start + 1 : stop + 1]]
    return found

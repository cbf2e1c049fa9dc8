"""Measure the perplexity of a language model on a text: how many tokens it hesitates between, on average.

perplexity = exp(−1/N · Σ log p(token | tokens before it in its window)), with log p in float64 (Jelinek, Mercer, Bahl &
Baker 1977). The text is tokenized once, without special tokens, and cut into windows; each window starts with the
tokens that the tokenizer puts before a text (a BOS token, mostly none). Every model is asked for the same tokens in the
same windows, so two perplexities of one run can be compared token by token.

Windows lie side by side, or a stride apart: then a token counts in the first window that has it, and what later windows
share with earlier ones is context only.

The interval is a percentile bootstrap over windows (Efron & Tibshirani 1993, chapter 13); that of a ratio draws the
same windows for both models, since what makes a window hard is common to them.

A graph that gives all positions runs whole windows. One that gives the last position only, as decoders are built for
generation, is stepped through them one token at a time, several windows side by side: as right, and slower.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.decoder import Decoder, cache_of
from onnxopt.errors import InputError
from onnxopt.generator import context_length, read_manifest, tokenizer_folder
from onnxopt.manifest import Manifest
from onnxopt.model import Array
from onnxopt.record import Record
from onnxopt.session import Session
from onnxopt.textinput import open_tokenizer, read_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onnxopt.checkpoint import Checkpoint
    from onnxopt.source import Source, Weights
    from onnxopt.spec import Target

WINDOW = 512
BUILTIN = "builtin"
BUILTIN_WINDOWS = 64  # of about two hundred; a text of the user is read whole
RESAMPLES = 1_000
LEVEL = 0.95
_SEED = 0
_LOGITS_BYTES = 256 << 20  # logits of the windows that run together
_CACHE_BYTES = 512 << 20  # their cache, when they are stepped
_MOST_TOGETHER = 32
_ROWS_AT_ONCE = 64  # rows of logits that are turned into float64 at once
_MAX_TEXT_BYTES = 1 << 30

Say = Callable[[str], None]
Losses = npt.NDArray[np.float64]


class Score(Record):
    """What one model makes of the text.

    Attributes:
        name: which model.
        perplexity: exp of the mean negative log likelihood.
        low: lower end of its interval of 95 %.
        high: upper end.
        loss: mean negative log likelihood of a token, in nats.
        seconds: how long it took.
    """

    name: str
    perplexity: float
    low: float
    high: float
    loss: float
    seconds: float


class Perplexity(Record):
    """Perplexity of one model, or of a model and its original.

    Attributes:
        text: the file, or `builtin`.
        tokens_sha256: of the token ids as little-endian int64; equal when two runs asked for the same tokens.
        window: tokens of a window.
        stride: how far apart windows begin.
        windows: how many there were.
        predicted: how many tokens were predicted.
        scores: the artifact first, then the original.
        ratio: perplexity of the artifact over that of the original; None without it.
        ratio_low: lower end of its interval of 95 %.
        ratio_high: upper end.
        notes: sentences a user should read.
    """

    text: str
    tokens_sha256: str
    window: int
    stride: int
    windows: int
    predicted: int
    scores: tuple[Score, ...]
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the result for people."""
        name = max(len(score.name) for score in self.scores)
        shown = [
            f"{score.name:<{name}}  perplexity {score.perplexity:.4f}  95 % {score.low:.4f} to {score.high:.4f}"
            f"  {score.seconds:.1f} s"
            for score in self.scores
        ]
        if self.ratio is not None:
            shown.append(f"{'ratio':<{name}}  {self.ratio:.6f}  95 % {self.ratio_low:.6f} to {self.ratio_high:.6f}")
        shown.append(
            f"{self.predicted} tokens in {self.windows} windows of {self.window}"
            + (f", {self.stride} apart" if self.stride != self.window else "")
        )
        return shown + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class Window:
    """A piece of the text.

    Attributes:
        ids: int64 [tokens].
        first: place of the first token that is predicted here; those before it are context.
    """

    ids: Array
    first: int


class Model(Protocol):
    """A model that predicts tokens."""

    @property
    def name(self) -> str:
        """What it is, for the report."""

    def losses(self, windows: Sequence[Window], say: Say) -> Iterator[Losses]:
        """Yield the negative log likelihood of the predicted tokens of each window."""


def measure_perplexity(
    path: str | Path,
    *,
    text: str | Path = BUILTIN,
    window: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    original: bool = False,
    tokenizer: str | Path | None = None,
    batch: int | None = None,
    target: Target | None = None,
    threads: int | None = None,
    progress: Say | None = None,
) -> Perplexity:
    """Measure the perplexity of an artifact, and of the model that it was made from.

    Args:
        path: an artifact folder, or an .onnx file with `input_ids`, `attention_mask` and `logits`.
        text: a text file, or `builtin` for reference prose of CPython's standard library.
        window: tokens of a window; 512 by default, or what the model takes when that is less.
        stride: how far apart windows begin; a window by default, so that they do not overlap.
        max_windows: how many windows at most, from the beginning; all of a file, 64 of the builtin text.
        original: run the original model in torch too, which takes its weights from where they came from.
        tokenizer: folder of `tokenizer.json`; beside the model when not given.
        batch: how many windows run together; by default what fits into 256 MiB of logits or 512 MiB of cache.
        target: where to run; the default is the artifact's own target.
        threads: threads of one operator.
        progress: told what is being done.

    Returns:
        The scores, and their ratio.

    Raises:
        InputError: when the model is none of language, the text cannot be read or is too short, an option is out of
            range, or the original cannot be had.
    """
    path = Path(path)
    manifest, folder = read_manifest(path), tokenizer_folder(path, tokenizer)
    say = progress or (lambda _: None)
    words = open_tokenizer(folder)
    words.no_padding()
    words.no_truncation()
    if batch is not None and batch < 1:
        raise InputError(f"the batch is {batch}", hint="it must be 1 or more")
    say("tokenizing")
    ids = _tokens(words, read_text(text))
    most = max_windows if max_windows is not None or str(text) != BUILTIN else BUILTIN_WINDOWS
    if most is not None and most < 1:
        raise InputError(f"the number of windows is {most}", hint="it must be 1 or more")
    model = OnnxLanguageModel(
        Session(path, target=target, threads=threads),
        manifest,
        context=context_length(read_settings(folder, "config.json")),
        batch=batch,
    )
    window = model.window(window)
    every = cut(ids, window, window if stride is None else stride, prefix=_prefix(words))
    windows = every[:most]
    models: list[Model] = [model]
    if original:
        say("loading the original model")
        models.append(TorchLanguageModel.of(manifest, path, batch=batch))
    losses = [_run(one, windows, say) for one in models]
    notes = [f"the first {len(windows)} of {len(every)} windows"] if len(windows) < len(every) else []
    if manifest is not None and manifest.random_weights:
        notes.append("the weights are random: only the ratio to the original says something")
    return _report(
        Perplexity(
            text=str(text),
            tokens_sha256=hashlib.sha256(
                np.concatenate([one.ids for one in windows]).astype("<i8").tobytes()
            ).hexdigest(),
            window=window,
            stride=window if stride is None else stride,
            windows=len(windows),
            predicted=sum(len(one.ids) - one.first for one in windows),
            scores=tuple(
                _score(one.name, found, seconds) for one, (found, seconds) in zip(models, losses, strict=True)
            ),
            notes=tuple(notes),
        ),
        [found for found, _ in losses],
    )


def _run(model: Model, windows: Sequence[Window], say: Say) -> tuple[list[Losses], float]:
    started = time.perf_counter()
    found: list[Losses] = []
    for number, losses in enumerate(model.losses(windows, say), start=1):
        found.append(losses)
        so_far = math.exp(min(float(np.concatenate(found).mean()), 700.0))
        say(f"{model.name}: window {number} of {len(windows)}, perplexity so far {so_far:.3f}")
    return found, time.perf_counter() - started


# The text


def read_text(text: str | Path) -> str:
    """Return the text to measure on.

    Args:
        text: a UTF-8 file, or `builtin`: the help texts of CPython's standard library, which differ by its version.

    Raises:
        InputError: when the file cannot be read or is empty.
    """
    if str(text) == BUILTIN:
        from pydoc_data.topics import topics

        return "\n\n".join(str(topics[key]) for key in sorted(topics))
    path = Path(text)
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f"is larger than {_MAX_TEXT_BYTES} bytes", where=str(path), hint="give a part of it")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), hint=f"name a text file, or {BUILTIN}"
        ) from error
    except ValueError as error:
        raise InputError("is not UTF-8 text", where=str(path)) from error
    if not content.strip():
        raise InputError("the text is empty", where=str(path))
    return content


def _tokens(tokenizer: Tokenizer, text: str) -> Array:
    try:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise InputError(f"the text cannot be tokenized ({error})") from error


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that the tokenizer puts before a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    starts = (place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return list(whole[: next(starts, 0)]) if plain else []


def cut(ids: Array, window: int, stride: int, *, prefix: Sequence[int] = ()) -> list[Window]:
    """Cut tokens into windows; the last may be shorter, and one that would predict nothing is left out.

    Args:
        ids: int64 [tokens].
        window: tokens of a window, prefix included.
        stride: how far apart windows begin, prefix not counted.
        prefix: tokens that each window starts with.

    Raises:
        InputError: when window, stride and text do not give a single token to predict.
    """
    size = window - len(prefix)
    least = 1 if prefix else 2
    if size < least:
        raise InputError(f"the window is {window}", hint=f"it must be {least + len(prefix)} or more")
    if not 1 <= stride <= size and stride != window:
        raise InputError(f"the stride is {stride}", hint=f"it must be between 1 and the window, {size}")
    stride = min(stride, size)  # a stride of a whole window means side by side, also behind a prefix
    windows, told = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        first = max(told - begin, 0 if prefix else 1)
        if first < end - begin:
            windows.append(Window(np.concatenate([np.array(prefix, np.int64), ids[begin:end]]), first + len(prefix)))
        told = end
        if end == len(ids):
            break
    if not windows:
        raise InputError(f"the text has {len(ids)} tokens", hint="give a longer one")
    return windows


# The models


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
            losses = _losses(self._logits(ids), ids) if self._whole else self._stepped(ids, say)
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
        columns = [_losses(batch.logits[:, None], ids[:, :2])]
        for place in range(1, width - 1):
            if place % 32 == 0:
                say(f"{self.name}: token {place} of {width}, {len(ids)} windows side by side")
            logits = batch.step(ids[:, place].tolist())
            columns.append(_losses(logits[:, None], ids[:, place : place + 2]))
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
        from onnxopt.checkpoint import load_config, read_checkpoint
        from onnxopt.tasks import parse_task
        from onnxopt.torch_model import load_torch

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
            for row, one in zip(_losses(self.run(ids), ids), some, strict=True):
                yield row[one.first - 1 :]


def _original(manifest: Manifest | None, path: Path) -> Source:
    """Find the model that an artifact was made from."""
    from onnxopt.recipe import all_recipes
    from onnxopt.source import resolve

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
    from onnxopt.checkpoint import weights_digest

    recorded = manifest.origin.get("weights_sha256") if manifest else ""
    if not recorded:
        return
    files = json.dumps(weights_digest(checkpoint), sort_keys=True)  # as `onnxopt.export` writes it down
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


def _losses(logits: Array, ids: Array) -> Losses:
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


# The figures


def _score(name: str, losses: Sequence[Losses], seconds: float) -> Score:
    sums, counts = _sums(losses)
    loss = float(sums.sum() / counts.sum())
    low, high = _interval(_means(sums, counts))
    return Score(name=name, perplexity=_exp(loss), low=_exp(low), high=_exp(high), loss=loss, seconds=seconds)


def _report(found: Perplexity, losses: Sequence[Sequence[Losses]]) -> Perplexity:
    """Add the ratio of artifact and original."""
    if len(losses) < 2:
        return found
    (ours, counts), (theirs, _) = (_sums(one) for one in losses)
    low, high = _interval(_means(ours - theirs, counts))
    ratio = math.exp(float((ours - theirs).sum() / counts.sum()))
    return found.model_copy(update={"ratio": ratio, "ratio_low": _exp(low), "ratio_high": _exp(high)})


def _sums(losses: Sequence[Losses]) -> tuple[Losses, Losses]:
    return np.array([one.sum() for one in losses]), np.array([float(len(one)) for one in losses])


def _means(sums: Losses, counts: Losses) -> Losses:
    """Return the mean loss of a token in each of `RESAMPLES` draws of windows with replacement."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    return np.asarray(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))


def _interval(means: Losses) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf

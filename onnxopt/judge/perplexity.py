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
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.judge.language_models import Losses, Model, OnnxLanguageModel, TorchLanguageModel
from onnxopt.records.events import Step
from onnxopt.records.record import Record
from onnxopt.run.generate.beside import context_length, read_manifest, tokenizer_folder
from onnxopt.run.session import Session
from onnxopt.spec import Say
from onnxopt.texts.files import BUILTIN, read_text, require_text
from onnxopt.texts.tokenizer import open_tokenizer, prefix_ids, read_settings, tokens_of
from onnxopt.texts.windows import Window, cut

if TYPE_CHECKING:
    from onnxopt.spec import Target

BUILTIN_WINDOWS = 64  # of about two hundred; a text of the user is read whole
RESAMPLES = 1_000
LEVEL = 0.95
_SEED = 0


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
        text: a file of text or JSON entries, or `builtin` for reference prose of CPython's standard library.
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
    require_text(text)
    say = progress or (lambda _: None)
    words = open_tokenizer(folder)
    if batch is not None and batch < 1:
        raise InputError(f"the batch is {batch}", hint="it must be 1 or more")
    say("tokenizing")
    ids = tokens_of(words, read_text(text))
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
    every = cut(ids, window, window if stride is None else stride, prefix=prefix_ids(words))
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
        words = f"{model.name}: window {number} of {len(windows)}, perplexity so far {so_far:.3f}"
        say(Step(words, work=f"{model.name}: window", done=number, total=len(windows)))
    return found, time.perf_counter() - started


# The text


# The models


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

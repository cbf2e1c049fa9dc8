"""The texts of the benchmark: request shapes, a ragged batch, batches with every kind of padding, calibration text.

All of it comes from CPython's own reference manual and seeds that do not change, so every machine measures the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from onnxopt.spec import Array, Feeds

SHAPES = ((1, 16), (1, 128), (8, 128))
RAGGED = "ragged 32x256"

_RAGGED_ROWS, _RAGGED_WIDTH, _RAGGED_SHORTEST, _RAGGED_MEAN = 32, 256, 8, 66
_SPREAD = 0.8  # standard deviation of the logarithm of a length
_CHECK_LENGTHS, _CHECK_WIDTH = (48, 31, 17, 9, 3, 1), 48
_HOLES = 0.3  # share of the positions taken out of a mask with holes
_CALIBRATION_ROWS, _CALIBRATION_WIDTH = 128, 96


def ragged_lengths(
    rows: int = _RAGGED_ROWS,
    *,
    shortest: int = _RAGGED_SHORTEST,
    longest: int = _RAGGED_WIDTH,
    mean: float = _RAGGED_MEAN,
    seed: int = 0,
) -> list[int]:
    """Return lengths that follow a log-normal distribution cut at both ends, in random order.

    The lengths are the distribution's quantiles and not draws, so that they have the mean that was asked for.

    Args:
        rows: how many.
        shortest: smallest length.
        longest: largest length.
        mean: their mean, met to within one token.
        seed: of the order.
    """
    if not shortest <= mean <= longest:
        raise ValueError(f"a mean of {mean:g} between {shortest} and {longest} is not possible")
    normal = NormalDist()
    spread = np.exp([_SPREAD * normal.inv_cdf((row + 0.5) / rows) for row in range(rows)])
    low, high = 1e-3, 1e6
    for _ in range(80):  # bisection on the median: the mean of the cut lengths grows with it
        median = math.sqrt(low * high)
        lengths = np.clip(np.rint(median * spread), shortest, longest)
        low, high = (median, high) if lengths.mean() < mean else (low, median)
    return [int(length) for length in np.random.default_rng(seed).permutation(lengths)]


def padded(stream: Sequence[int], lengths: Sequence[int], width: int, *, marks: tuple[int, int], pad: int) -> Feeds:
    """Return a batch of texts padded on the right: `input_ids`, `attention_mask`, `token_type_ids` int64 [rows, width].

    Args:
        stream: token ids of a long text, cut into rows one after the other.
        lengths: tokens of each row, marks included.
        width: the padded length.
        marks: ids of the first and last token of a text; rows of one token have only the first.
        pad: id of the padding.
    """
    ids = np.full((len(lengths), width), pad, np.int64)
    mask = np.zeros_like(ids)
    start = 0
    for row, length in enumerate(lengths):
        inner = max(0, length - 2)
        body = [stream[(start + offset) % len(stream)] for offset in range(inner)]
        start += inner
        ids[row, :length] = [marks[0], *body, marks[1]][:length]
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def moved_left(feeds: Feeds) -> Feeds:
    """Return the same texts with their padding on the left."""
    result = {name: array.copy() for name, array in feeds.items()}
    for row, length in enumerate(feeds["attention_mask"].sum(axis=1)):
        for array in result.values():
            array[row] = np.roll(array[row], array.shape[1] - int(length))
    return result


def with_holes(feeds: Feeds, *, seed: int = 0) -> Feeds:
    """Return the same texts with some positions inside them masked; each row keeps one token at least."""
    mask = feeds["attention_mask"].copy()
    taken = np.random.default_rng(seed).random(mask.shape) < _HOLES
    taken[:, 0] = False
    mask[taken] = 0
    return {**feeds, "attention_mask": mask}


def bench_feeds(checkpoint: Path) -> dict[str, Feeds]:
    """Return the measured requests by name: `1x16`, ..., and the ragged batch."""
    stream, marks, pad = _tokens(checkpoint)
    feeds = {
        f"{batch}x{length}": padded(stream, [length] * batch, length, marks=marks, pad=pad) for batch, length in SHAPES
    }
    feeds[RAGGED] = padded(stream, ragged_lengths(), _RAGGED_WIDTH, marks=marks, pad=pad)
    return feeds


def check_feeds(checkpoint: Path) -> dict[str, Feeds]:
    """Return the batches that answers are compared on, by the place of their padding."""
    stream, marks, pad = _tokens(checkpoint)
    right = padded(stream, _CHECK_LENGTHS, _CHECK_WIDTH, marks=marks, pad=pad)
    return {"right": right, "left": moved_left(right), "holes": with_holes(right)}


def calibration_feeds(checkpoint: Path) -> Feeds:
    """Return texts for static quantization, one row each, other ones than those that answers are compared on."""
    stream, marks, pad = _tokens(checkpoint)
    lengths = ragged_lengths(_CALIBRATION_ROWS, longest=_CALIBRATION_WIDTH, mean=48, seed=1)
    return padded(stream[len(stream) // 2 :], lengths, _CALIBRATION_WIDTH, marks=marks, pad=pad)


def _tokens(checkpoint: Path) -> tuple[list[int], tuple[int, int], int]:
    """Return the ids of English text, of the marks around a text, and of the padding."""
    import tokenizers

    from onnxopt.texts.builtin import english_text

    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    stream = tokenizer.encode(english_text(200_000), add_special_tokens=False).ids
    around = tokenizer.encode("", add_special_tokens=True).ids
    pad = tokenizer.token_to_id("[PAD]")
    return list(stream), (around[0], around[-1]), int(pad or 0)


def real_rows(array: Array, mask: Array) -> Array:
    """Return the rows [tokens, hidden] of an answer [batch, length, hidden] that are not padding."""
    rows: Array = array[mask != 0]
    return rows

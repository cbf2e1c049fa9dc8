"""From statistics to the range that a quantized tensor covers: five methods, and the best of them by held-out data."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxopt.calibrate.statistics import BINS, Statistics
from onnxopt.errors import InputError
from onnxopt.qmath.affine import asymmetric, rounded, symmetric
from onnxopt.qmath.precision import Affine, Scheme
from onnxopt.spec import Array

Method = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("min-max", "moving-average", "percentile", "entropy", "mse")

PERCENTILES = (99.99, 99.999)
SHARES = tuple(np.linspace(1.0, 0.3, 29))  # of both ends of the range, tried for the least squared error
LEVELS = 256
PLAIN = Scheme()


def methods_of(text: str) -> tuple[Method, ...]:
    """Read `auto` or the name of one method."""
    if text == "auto":
        return METHODS
    found = next((method for method in METHODS if method == text), None)
    if found is None:
        raise InputError(f"unknown calibrator {text!r}", hint=f"use auto, {', '.join(METHODS)}")
    return (found,)


def ranges(seen: Statistics, method: Method) -> list[tuple[float, float]]:
    """Return the ranges that a method proposes for a tensor."""
    low, high = seen.smallest, seen.largest
    if method == "min-max":
        return [(low, high)]
    if method == "moving-average":
        return [seen.average or (low, high)]
    if method == "percentile":
        return [_percentile(seen, share) for share in PERCENTILES]
    return [_entropy(seen) if method == "entropy" else _least_squares(seen)]


def _percentile(seen: Statistics, share: float) -> tuple[float, float]:
    """Return the ends between which `share` percent of the values lie, at most the extremes."""
    running = np.cumsum(seen.counts) / max(int(seen.counts.sum()), 1)
    outside = (1 - share / 100) / 2
    edges = np.linspace(-seen.reach, seen.reach, BINS + 1)
    low = float(edges[int(np.searchsorted(running, outside))])
    high = float(edges[int(np.searchsorted(running, 1 - outside)) + 1])
    return max(low, seen.smallest), min(high, seen.largest)


def _least_squares(seen: Statistics) -> tuple[float, float]:
    """Return the shares of both ends that give the least mean squared error over the histogram.

    The noise of a grid cell is scale²/12 per value inside and the squared distance to the end per value outside, in
    expectation (Widrow 1956; the clipping trade-off as in Banner et al. 2019, arXiv:1810.05723).
    """
    best = (seen.smallest, seen.largest)
    if seen.smallest >= 0 or seen.largest <= 0:
        pairs = [(share, share) for share in SHARES]
    else:
        pairs = [(a, b) for a in SHARES[::2] for b in SHARES[::2]]
    errors = [_squared_error(seen, seen.smallest * a, seen.largest * b) for a, b in pairs]
    share_low, share_high = pairs[int(np.argmin(errors))]
    return best[0] * share_low, best[1] * share_high


def _squared_error(seen: Statistics, low: float, high: float) -> float:
    scale, _ = asymmetric(low, high, LEVELS)
    centres = seen.centres
    over = np.maximum(centres - max(high, 0.0), 0.0) + np.maximum(min(low, 0.0) - centres, 0.0)
    inside = float(seen.counts[over == 0].sum())
    return float(seen.counts @ np.square(over)) + inside * scale**2 / 12


def _entropy(seen: Statistics) -> tuple[float, float]:
    """Return the range whose quantized histogram keeps the most information (least Kullback-Leibler divergence).

    Source: Migacz 2017, "8-bit inference with TensorRT": the reference P is the histogram cut to the range, with what
    lies outside added to its ends; Q is P without that addition, merged to the grid and spread evenly again.
    """
    nonzero = np.flatnonzero(seen.counts)
    first, last = int(nonzero[0]), int(nonzero[-1]) + 1
    middle = BINS // 2
    best, least = (seen.smallest, seen.largest), np.inf
    edges = np.linspace(-seen.reach, seen.reach, BINS + 1)
    for share in SHARES:
        start = middle - round((middle - first) * share) if first < middle else first
        stop = middle + round((last - middle) * share) if last > middle else last
        if stop - start < LEVELS:
            break
        divergence = _divergence(seen.counts, start, stop)
        if divergence < least:
            best, least = (float(edges[start]), float(edges[stop])), divergence
    return max(best[0], seen.smallest), min(best[1], seen.largest)


def _divergence(counts: Array, start: int, stop: int) -> float:
    inside = counts[start:stop].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    groups = (np.arange(stop - start) * LEVELS) // (stop - start)
    sums = np.bincount(groups, weights=inside, minlength=LEVELS)
    used = np.bincount(groups, weights=inside > 0, minlength=LEVELS)
    spread = np.where(inside > 0, (sums / np.maximum(used, 1))[groups], 0.0)
    p, q = reference / max(reference.sum(), 1.0), spread / max(spread.sum(), 1.0)
    told = p > 0
    return float(np.sum(p[told] * np.log(p[told] / np.maximum(q[told], 1e-9))))


def nearest(seen: Statistics, held_out: Array, methods: tuple[Method, ...], *, scheme: Scheme = PLAIN) -> Affine:
    """Return the grid of a tensor itself that is nearest to rows that no method has seen.

    Args:
        seen: statistics of the tensor on the samples for fitting.
        held_out: float32 [rows, channels] of it from other samples.
        methods: those to compare.
        scheme: what the target wants.
    """
    return choose(seen, held_out, None, methods, scheme=scheme)[0]


def choose(
    seen: Statistics, held_out: Array, weight: Array | None, methods: tuple[Method, ...], *, scheme: Scheme = PLAIN
) -> tuple[Affine, Method]:
    """Return the grid of a linear's input whose product is nearest to the exact one on rows that no method has seen.

    Args:
        seen: statistics of the input on the samples for fitting.
        held_out: float32 [rows, in], rows of the input from other samples.
        weight: float [in, out] of the linear that reads it; None to compare the tensor itself.
        methods: those to compare.
        scheme: what the target wants.

    Returns:
        The grid and the method that proposed it.
    """
    best: tuple[float, Affine, Method] | None = None
    rows = np.asarray(held_out, np.float32)
    for method in methods:
        for low, high in ranges(seen, method):
            scale, zero_point = (symmetric if scheme.symmetric else asymmetric)(low, high)
            noise = rounded(rows, scale, zero_point) - rows
            noise = noise if weight is None else noise @ weight
            error = float(np.square(noise, dtype=np.float64).sum())
            if best is None or error < best[0]:
                grid = Affine(scale, 0, "int8") if scheme.symmetric else Affine(scale, zero_point)
                best = error, grid, method
    if best is None:
        raise InputError("no calibrator was named", hint=f"use auto, {', '.join(METHODS)}")
    return best[1], best[2]

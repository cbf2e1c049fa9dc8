"""Move what is hard to quantize from activations into weights: SmoothQuant.

Outlier channels of a linear's input make its grid coarse. With x W = (x / f)(diag(f) W) a factor per channel moves them
into the weight, whose grids are per column and finer where it matters. 1 / f is a multiplication in front of the
layer: a pass over the activations, which the search weighs against what it gains. Behind a post-norm encoder's
    normalization it
cannot be folded away, since the residual reads the same tensor.

Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4: f = max|x|^α / max|w|^(1−α), with the strength α searched per tensor
for the least error of the products on held-out rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.calibrate.ranges import Method, choose
from onnxopt.calibrate.statistics import Statistics
from onnxopt.qmath.affine import columns, rounded
from onnxopt.spec import Array

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MOST_FACTOR = 1e3  # a channel that is never used has no scale of its own
GAIN = 0.97  # smoothing must lower the error by 3 %, else the graph stays as it is


@dataclass(frozen=True)
class Smoothing:
    """Factors for the channels of one tensor.

    Attributes:
        strength: α.
        factors: float32 [channels]; x is divided by them, the weights of its readers are multiplied.
    """

    strength: float
    factors: Array


def choose_smoothing(
    seen: Statistics, held_out: Array, weights: Sequence[Array], methods: tuple[Method, ...]
) -> Smoothing:
    """Return the factors whose products are nearest to the exact ones on rows that no method has seen.

    Args:
        seen: statistics of the tensor.
        held_out: float32 [rows, channels].
        weights: float [channels, out] of each reader.
        methods: calibrators for the grid.
    """
    largest = np.maximum(seen.magnitude, 1e-5)
    together = np.concatenate(weights, axis=1)
    column = np.maximum(np.abs(together).max(axis=1), 1e-5)
    best = Smoothing(0.0, np.ones(seen.channels, np.float32))
    least = _error(seen, held_out, together, best.factors, methods)
    limit = least * GAIN
    for strength in STRENGTHS[1:]:
        factors = largest**strength / column ** (1 - strength)
        factors = (factors / np.exp(np.log(factors).mean())).clip(1 / MOST_FACTOR, MOST_FACTOR).astype(np.float32)
        error = _error(seen, held_out, together, factors, methods)
        if error < min(least, limit):
            best, least = Smoothing(strength, factors), error
    return best


def _error(seen: Statistics, rows: Array, weight: Array, factors: Array, methods: tuple[Method, ...]) -> float:
    """Return the squared error of the product with the scaled tensor and weight on their grids."""
    scaled = divided(seen, factors)
    inputs = rows / factors
    turned = weight * factors[:, None]
    grid, _ = choose(scaled, inputs, turned, methods)
    codes, scales = columns(turned, clips=(1.0,))
    product = rounded(inputs, grid.scale, grid.unsigned) @ (codes * scales)
    return float(np.square(product - rows @ weight, dtype=np.float64).sum())


def divided(seen: Statistics, factors: Array) -> Statistics:
    """Return the statistics of a tensor divided by factors; the histogram is that of the sampled rows."""
    found = Statistics(seen.channels)
    found.add(seen.sample / factors)
    found.rows = seen.rows
    found.low, found.high = seen.low / factors, seen.high / factors
    found.total, found.squares = seen.total / factors, seen.squares / np.square(factors, dtype=np.float64)
    if seen.average is not None:
        found.average = found.smallest, found.largest
    return found

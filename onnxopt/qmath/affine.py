"""Uniform grids: ranges to scales, per-tensor activations, per-column weights.

real = scale · (integer − zero_point), integer = clip(round(real / scale) + zero_point), rounding half to even, as
QuantizeLinear-21 defines it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.integer[Any]]

TINY = 1e-12  # a range narrower than this is a constant zero
BIAS_REACH = 2**30  # of int32: the sum of the products is added to it
# shares of the largest magnitude that are tried as the end of a weight's grid
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)


def asymmetric(low: float, high: float, levels: int = 256) -> tuple[float, int]:
    """Return (scale, zero point) of the unsigned grid that covers a range.

    The range is widened to hold 0, which is exact on every such grid: padding, ReLU and a zero bias need that.

    Args:
        low: its lower end.
        high: its upper end.
        levels: integers of the grid, 256 for uint8.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    if scale < TINY:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, levels - 1))


def symmetric(low: float, high: float) -> tuple[float, int]:
    """Return (scale, 128): the unsigned codes of int8 without a zero point, −127 to 127, over the larger half."""
    scale = max(abs(low), abs(high)) / 127
    return (scale, 128) if scale >= TINY else (1.0, 128)


def quantize(x: Floats, scale: float | Floats, zero_point: int, low: int, high: int) -> Codes:
    """Return int32 codes clip(round(x / scale) + zero_point, low, high)."""
    codes: Codes = np.clip(np.rint(x / scale) + zero_point, low, high).astype(np.int32)
    return codes


def rounded(x: Floats, scale: float | Floats, zero_point: int, low: int = 0, high: int = 255) -> Floats:
    """Return x as the grid holds it, float of the dtype of x."""
    step = scale if isinstance(scale, np.ndarray) else np.float32(scale)  # a float64 would widen float32 activations
    found: Floats = ((np.clip(np.rint(x / step) + zero_point, low, high) - zero_point) * step).astype(x.dtype)
    return found


def columns(
    weight: Floats, *, bits: int = 8, importance: Floats | None = None, clips: tuple[float, ...] = CLIPS
) -> tuple[Codes, Floats]:
    """Quantize a weight symmetrically, one scale per output column.

    The end of each column's grid is the share of its largest magnitude that gives the least squared error, weighted by
    how large the inputs are: Σₖ E[xₖ²] (wₖ − ŵₖ)² is the expected squared error of the output where inputs are
    uncorrelated (Nagel et al. 2021, arXiv:2106.08295, section 4.2).

    Args:
        weight: float [in, out].
        bits: 8, or 7 for processors whose u8 × s8 products saturate in 16 bits.
        importance: float [in], second moments of the inputs; all 1 without it.
        clips: the shares to try.

    Returns:
        int8 [in, out] codes in ±(2^(bits−1) − 1), and float32 [out] scales.
    """
    top = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=0)
    largest = np.where(largest < TINY, 1.0, largest)
    share = np.ones(weight.shape[0]) if importance is None else importance / max(float(importance.mean()), TINY)
    best = np.full(weight.shape[1], np.inf)
    scales = (largest / top).astype(np.float32)
    for clip in clips:
        tried = (largest * clip / top).astype(np.float32)
        moved = rounded(weight, tried, 0, -top, top) - weight
        error = share @ np.square(moved, dtype=np.float64)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
    return quantize(weight, scales, 0, -top, top).astype(np.int8), scales.astype(np.float32)


def kernels(weight: Floats, *, bits: int = 8, importance: Floats | None = None) -> tuple[Codes, Floats]:
    """Quantize the weight of a convolution symmetrically, one scale per output channel.

    Args:
        weight: float [out, channels / groups, ...].
        bits: 8, or 7 for processors whose u8 × s8 products saturate in 16 bits.
        importance: float [channels], second moments of the input of an ungrouped convolution; all 1 without it.

    Returns:
        int8 codes of the shape of the weight, and float32 [out] scales.
    """
    rows = weight.reshape(len(weight), -1)
    repeated = None if importance is None else np.repeat(importance, rows.shape[1] // len(importance))
    codes, scales = columns(rows.T, bits=bits, importance=repeated)
    return np.ascontiguousarray(codes.T).reshape(weight.shape), scales


def bias_codes(bias: Floats, scale: float, weight_scales: Floats) -> tuple[Codes, Floats]:
    """Return int32 [out] codes of a bias, and their float32 [out] scales s · t: the grid of the integer products."""
    product = (np.float32(scale) * weight_scales).astype(np.float32)
    codes = np.rint(bias.astype(np.float64) / product)
    return np.clip(codes, -BIAS_REACH, BIAS_REACH).astype(np.int32), product


def wide_enough(scales: Floats, codes: Codes, bias: Floats, scale: float) -> tuple[Codes, Floats]:
    """Widen the weight scales of the channels whose bias has no int32 code.

    Where a channel's weights are next to nothing, s · t is so small that its bias would be cut off. The weights get
    a coarser grid then; what they add is far below one step of the result.

    Args:
        scales: float32 [out].
        codes: int8 [out, ...] of the weight on these scales.
        bias: float [out].
        scale: of the input.
    """
    least = (np.abs(bias) / (scale * BIAS_REACH)).astype(np.float32)
    if not (least > scales).any():
        return codes, scales
    wider = np.maximum(scales, least)
    share = (scales / wider).reshape(-1, *[1] * (codes.ndim - 1))
    return np.rint(codes * share).astype(np.int8), wider

"""Quantize a matrix in blocks along its input axis: real = scale · (code − zero point), per block and output column.

A symmetric grid has its zero point in the middle of the codes. Its scale carries the sign of the block's largest
element, so that this element lies on the grid's longer side and is hit exactly (-8 of -8..7 in 4 bits).
An asymmetric grid has an unsigned zero point of as many bits as the codes, so its range always holds 0.

Methods, from quick to careful:

* `rtn`: the range of the block, rounded to nearest.
* `mse`: the grid with the least Σ h·(w − ŵ)² among shrunken ranges, then the scale that fits its codes best
  (least squares: s = Σ h·w·q / Σ h·q², in turns with rounding). h is the second moment of each input, or 1.
* `hqq`: zero points by half-quadratic splitting of Σ |w − ŵ|^0.7 (Badri & Shaji 2023, "Half-Quadratic Quantization of
  Large Machine Learning Models"), rounded to what a kernel can hold, with the scale fitted to the codes. No data.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxopt.host.threads import side_by_side
from onnxopt.qmath.precision import Blocked

Floats = npt.NDArray[np.floating[Any]]
Method = Literal["rtn", "mse", "hqq"]
METHODS: tuple[Method, ...] = ("rtn", "mse", "hqq")

SHRINKS = np.linspace(1.0, 0.55, 19)  # of a range; below, clipping costs more than rounding does in every weight seen
REFITS = 3
HQQ_SHRINKS = (1.0, 0.9, 0.8)
HQQ_NORM, HQQ_BETA, HQQ_KAPPA, HQQ_ROUNDS = 0.7, 10.0, 1.01, 20  # the paper's own settings
_TINY = np.float32(1e-12)
_AT_ONCE = 1 << 16  # elements searched together: they stay in the cache of a core


def quantize(
    weight: Floats,
    bits: int,
    block_size: int,
    *,
    symmetric: bool = True,
    method: Method = "rtn",
    moment: Floats | None = None,
) -> Blocked:
    """Quantize a weight.

    Args:
        weight: float32 [in, out].
        bits: 4 or 8.
        block_size: inputs that share a scale, 16 to 256; the last block may be shorter.
        symmetric: without zero points.
        method: how the grid of each block is found.
        moment: float [in], mean of the square of each input, for `mse`; equal ones when not given.

    Returns:
        Codes, scales and zero points.

    Raises:
        ValueError: bits, block size or method do not exist, or the weight holds NaN or infinity.
    """
    _check(weight, bits, block_size)
    if method == "hqq" and symmetric:
        raise ValueError("hqq searches zero points; a symmetric grid has none")
    if method not in METHODS:
        raise ValueError(f"no method {method!r}")
    blocks = split(weight.T, block_size)
    importance = np.ones(blocks.shape[1:], np.float32)
    if moment is not None and method == "mse":
        importance = split(_floored(moment)[None], block_size)[0]
    scales, zeros = fit(blocks, bits, symmetric=symmetric, method=method, importance=importance)
    codes = encode(blocks, scales, zeros, bits).reshape(len(blocks), -1)[:, : weight.shape[0]]
    return Blocked(codes, scales, None if symmetric else zeros.astype(np.uint8), bits, block_size)


def _check(weight: Floats, bits: int, block_size: int) -> None:
    if bits not in (4, 8):
        raise ValueError(f"{bits} bits; 4 and 8 exist")
    if not 16 <= block_size <= 256 or block_size & (block_size - 1):
        raise ValueError(f"a block of {block_size}; 16, 32, 64, 128 and 256 exist")
    if weight.ndim != 2:
        raise ValueError(f"a weight of shape {list(weight.shape)} is no matrix")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")


def split(rows: Floats, block_size: int) -> Floats:
    """Return float32 [out, blocks, block] of [out, in]; the last block is filled up with zeros."""
    missing = -rows.shape[1] % block_size
    padded = np.pad(np.asarray(rows, np.float32), ((0, 0), (0, missing)))
    return padded.reshape(len(rows), -1, block_size)


def _floored(moment: Floats) -> Floats:
    """Give inputs that were never seen a little weight, so that their codes still mean something."""
    return np.asarray(np.maximum(moment, 1e-4 * max(float(np.mean(moment)), 1e-30)), np.float32)


def fit(
    blocks: Floats, bits: int, *, symmetric: bool, method: Method = "rtn", importance: Floats | None = None
) -> tuple[Floats, Floats]:
    """Find the grid of every block.

    Args:
        blocks: float32 [..., block].
        bits: 4 or 8.
        symmetric: without zero points.
        method: how.
        importance: float32, broadcast against `blocks` behind its first axis: the weight of each squared error.

    Returns:
        float32 [...] scales, and float32 [...] zero points, which are whole numbers.
    """
    step = max(1, _AT_ONCE // max(blocks[:1].size, 1))

    def part(start: int) -> tuple[Floats, Floats]:
        some = blocks[start : start + step]
        return _fit(some, bits, symmetric=symmetric, method=method, importance=importance)

    parts = side_by_side(part, range(0, len(blocks), step))
    return np.concatenate([scales for scales, _ in parts]), np.concatenate([zeros for _, zeros in parts])


def _fit(
    blocks: Floats, bits: int, *, symmetric: bool, method: Method, importance: Floats | None
) -> tuple[Floats, Floats]:
    scales, zeros = _range(blocks, bits, symmetric=symmetric)
    if method == "mse":
        weights = np.ones(1, np.float32) if importance is None else importance
        return _least_squares(blocks, bits, weights, symmetric=symmetric)
    if method == "hqq":
        return _half_quadratic(blocks, bits)
    return scales, zeros


def _range(blocks: Floats, bits: int, *, symmetric: bool, shrink: float = 1.0) -> tuple[Floats, Floats]:
    """Return the grid over the (shrunken) range of each block."""
    return _grid(blocks.min(-1), blocks.max(-1), bits, symmetric=symmetric, shrink=shrink)


def _grid(low: Floats, high: Floats, bits: int, *, symmetric: bool, shrink: float) -> tuple[Floats, Floats]:
    """Return the grid over a shrunken range."""
    middle, top = float(1 << (bits - 1)), float((1 << bits) - 1)
    low, high = low * np.float32(shrink), high * np.float32(shrink)
    if symmetric:
        largest = np.where(-low >= high, low, high)
        return _usable(-largest / middle), np.full(largest.shape, middle, np.float32)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = _usable((high - low) / top)
    return scales, np.clip(np.rint(-low / scales), 0, top)


def _usable(scales: Floats) -> Floats:
    """Return float32 scales; 1 for a block of zeros."""
    scales = np.asarray(scales, np.float32)
    return np.where(np.abs(scales) < _TINY, np.float32(1), scales)


def encode(blocks: Floats, scales: Floats, zeros: Floats, bits: int) -> npt.NDArray[np.uint8]:
    """Round blocks to their grids: uint8 [..., block] codes."""
    return np.asarray(_codes(blocks, scales, zeros, bits), np.uint8)


def _codes(blocks: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    return np.clip(np.rint(blocks / scales[..., None] + zeros[..., None]), 0, (1 << bits) - 1)


def _least_squares(blocks: Floats, bits: int, weights: Floats, *, symmetric: bool) -> tuple[Floats, Floats]:
    """Return the grid with the least weighted squared error."""
    best = np.full(blocks.shape[:-1], np.inf, np.float32)
    scales, zeros = np.ones_like(best), np.zeros_like(best)
    # this runs tens of times: in place, in the cache; whatever the order of the blocks, sums run along memory
    levels, error = np.empty(blocks.shape, np.float32), np.empty(blocks.shape, np.float32)
    middle, top = np.float32(1 << (bits - 1)), np.float32((1 << bits) - 1)

    def offer(scale: Floats, zero: Floats) -> None:
        step, point = scale[..., None], middle if symmetric else zero[..., None]
        np.divide(blocks, step, out=levels)
        np.add(levels, point, out=levels)
        np.rint(levels, out=levels)
        np.clip(levels, np.float32(0), top, out=levels)
        np.subtract(levels, point, out=levels)
        np.subtract(blocks, np.multiply(step, levels, out=error), out=error)
        np.square(error, out=error)
        squares = np.multiply(weights, error, out=error).sum(-1)
        better = squares < best
        best[better], scales[better], zeros[better] = squares[better], scale[better], zero[better]

    low, high = blocks.min(-1), blocks.max(-1)
    for shrink in SHRINKS if bits < 8 else SHRINKS[:5]:
        scale, zero = _grid(low, high, bits, symmetric=symmetric, shrink=float(shrink))
        offer(scale, zero)
        if symmetric:
            offer(-scale, zero)  # the longer side turned to the other sign
    for _ in range(REFITS):
        levels = _codes(blocks, scales, zeros, bits) - zeros[..., None]
        offer(_fitted(blocks, levels, weights, scales), zeros.copy())
        if not symmetric:
            for step in (-1, 1):
                offer(scales.copy(), np.clip(zeros + step, 0, (1 << bits) - 1))
    return scales, zeros


def _fitted(blocks: Floats, levels: Floats, weights: Floats, scales: Floats) -> Floats:
    """Return the scale that turns levels into the block with the least error; the old one where all levels are 0."""
    below = (weights * np.square(levels)).sum(-1)
    above = (weights * blocks * levels).sum(-1)
    found = np.where(below > 0, above / np.maximum(below, _TINY), scales)
    return np.where(np.abs(found) < _TINY, scales, found).astype(np.float32)


def _half_quadratic(blocks: Floats, bits: int) -> tuple[Floats, Floats]:
    """Move zero points towards the least Σ |error|^0.7, from several ranges; a scale fitted to the codes follows.

    Errors are counted in steps of the grid, so that weights of any size are shrunken alike.
    """
    top, ones = float((1 << bits) - 1), np.ones(1, np.float32)
    best = np.full(blocks.shape[:-1], np.inf, np.float32)
    scales, zeros = np.ones_like(best), np.zeros_like(best)

    def offer(scale: Floats, zero: Floats) -> None:
        restored = scale[..., None] * (_codes(blocks, scale, zero, bits) - zero[..., None])
        error = (np.abs(blocks - restored) ** HQQ_NORM).sum(-1)
        better = error < best
        best[better], scales[better], zeros[better] = error[better], scale[better], zero[better]

    for shrink in HQQ_SHRINKS if bits < 8 else HQQ_SHRINKS[:1]:
        scale, moving = _range(blocks, bits, symmetric=False, shrink=shrink)
        offer(scale, moving)
        beta, steps = HQQ_BETA, blocks / scale[..., None]
        for _ in range(HQQ_ROUNDS):
            codes = _codes(blocks, scale, moving, bits)
            wrong = steps - (codes - moving[..., None])
            size = np.abs(wrong)
            # proximal step of the 0.7 norm: small errors go, large ones stay (outliers are allowed)
            kept = np.sign(wrong) * np.maximum(size - (size + 1e-8) ** (HQQ_NORM - 1) / beta, 0)
            moving = (codes - (steps - kept)).mean(-1)
            beta *= HQQ_KAPPA
        whole = np.clip(np.rint(moving), 0, top)
        offer(scale, whole)
        levels = _codes(blocks, scale, whole, bits) - whole[..., None]
        offer(_fitted(blocks, levels, ones, scale), whole)
    return scales, zeros


def dequantize(blocked: Blocked) -> npt.NDArray[np.float32]:
    """Return the float32 [in, out] weight that the codes stand for."""
    return np.ascontiguousarray(restored(blocked).T)


def restored(blocked: Blocked) -> npt.NDArray[np.float32]:
    """Return what the codes stand for in their own order: float32 [out, in]."""
    rows, columns = blocked.codes.shape
    wide = np.empty((rows, blocked.scales.shape[1] * blocked.block_size), np.float32)
    wide[:, :columns] = blocked.codes
    wide[:, columns:] = 0.0
    parts = wide.reshape(rows, -1, blocked.block_size)
    points = blocked.zero_points
    parts -= np.float32(1 << (blocked.bits - 1)) if points is None else points.astype(np.float32)[..., None]
    parts *= blocked.scales[..., None]
    return wide[:, :columns]


def size_bytes(blocked: Blocked) -> int:
    """Return what the packed codes, scales and zero points take."""
    rows, blocks = blocked.scales.shape
    codes = rows * blocks * blocked.block_size * blocked.bits // 8
    points = 0 if blocked.zero_points is None else rows * -(-blocks * blocked.bits // 8)
    return int(codes + 4 * rows * blocks + points)


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Put two codes of 4 bits into each byte along the last axis, the first one low; 8 bits stay as they are."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return np.ascontiguousarray(codes[..., ::2] | (codes[..., 1::2] << 4))


def unpack(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Return the first `count` codes along the last axis of what `pack` made."""
    if bits == 8:
        return packed[..., :count]
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return np.ascontiguousarray(both.reshape(*packed.shape[:-1], -1)[..., :count])


def sqnr_db(weight: Floats, restored: Floats, moment: Floats | None = None) -> float:
    """Return 10·log10(Σ h·w² / Σ h·(w − ŵ)²), infinite for equal weights.

    With h the second moment of the inputs this is the ratio of signal to noise at the output when inputs are
    uncorrelated.

    Args:
        weight: float32 [in, out].
        restored: float32 [in, out].
        moment: float [in], or [in, in] for the whole second moment E[x xᵀ]; 1 when not given.
    """
    wide, wrong = weight.astype(np.float64), weight.astype(np.float64) - restored
    signal, noise = (_energy(one, moment) for one in (wide, wrong))
    if noise <= 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def _energy(weight: Floats, moment: Floats | None) -> float:
    if moment is None:
        return float(np.square(weight).sum())
    if moment.ndim == 1:
        return float((moment[:, None] * np.square(weight)).sum())
    return float((weight * (moment @ weight)).sum())

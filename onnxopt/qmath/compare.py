"""Compare numbers: worst error, difference, signal to noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.spec import Array, Value

PIECE = 2**18  # elements that are compared at a time
CODES = ("uint8", "int8")
FLOATS = ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1")
MASK_LIKE = 9e3  # no activation is that large in passing; -10000, which bfloat16 keeps as -9984, is what hides a key


def worst_error(candidate: Value, reference: Value, rows: Array | None = None) -> tuple[float, float]:
    """Return (relative, absolute) worst error of a candidate.

    Relative is max|candidate - reference| / max|reference|; a difference of shape, dtype kind or of where NaN lies is
    inf, and so is one of how many tensors a sequence has or of whether an optional is there.

    Args:
        candidate: a tensor of any shape, a sequence of them, or None.
        reference: the same.
        rows: bool [leading dimensions], the rows that matter; None for all.
    """
    if not isinstance(reference, np.ndarray) or not isinstance(candidate, np.ndarray):
        absolute, scale = _difference_of_parts(candidate, reference)
        return (absolute / scale if scale > 0 else absolute and math.inf), absolute
    if candidate.shape != reference.shape or candidate.dtype.kind != reference.dtype.kind:
        return math.inf, math.inf
    if rows is not None:
        candidate, reference = candidate[rows], reference[rows]
    if not reference.size:
        return 0.0, 0.0
    absolute, scale = difference(candidate, reference)
    return (absolute / scale if scale > 0 else (0.0 if absolute == 0 else math.inf)), absolute


def difference(candidate: Value, reference: Value) -> tuple[float, float]:
    """Return (worst absolute error, largest magnitude of the reference), both over what is finite.

    Of sequences and optionals, both are the largest over what they hold. A difference of shape, dtype kind or of where
    NaN and infinities lie is inf, and so is any between numbers that are no floats, but for integers of 8 bits, which
    are codes of a grid. Arrays are read in pieces, since each step in float64 needs twice their memory.
    """
    if not isinstance(reference, np.ndarray) or not isinstance(candidate, np.ndarray):
        return _difference_of_parts(candidate, reference)
    if candidate.shape != reference.shape or candidate.dtype.kind != reference.dtype.kind:
        return math.inf, 0.0
    if reference.dtype.kind != "c" and reference.dtype.name not in CODES and not is_float(reference.dtype):
        return (0.0 if np.array_equal(candidate, reference) else math.inf), 0.0
    absolute, scale = 0.0, 0.0
    flat_c, flat_r = candidate.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_r.size, PIECE):
        part = slice(start, start + PIECE)
        moved, size = _difference(flat_c[part].astype(np.float64), flat_r[part].astype(np.float64))
        absolute, scale = max(absolute, moved), max(scale, size)
    return absolute, scale


def _difference_of_parts(candidate: Value, reference: Value) -> tuple[float, float]:
    if not isinstance(candidate, list) or not isinstance(reference, list) or len(candidate) != len(reference):
        return (0.0 if candidate is reference else math.inf), 0.0
    found = [difference(one, other) for one, other in zip(candidate, reference, strict=True)]
    return max((each[0] for each in found), default=0.0), max((each[1] for each in found), default=0.0)


def sqnr_db(candidate: Array, reference: Array) -> float:
    """Return 10·log₁₀(Σ reference² / Σ (candidate − reference)²), the signal to quantization noise ratio in decibels.

    Equal tensors, and a reference of nothing but zeros that is met within rounding, give infinity; so does an integer
    or empty tensor that is equal, and one that is not gives minus infinity.
    """
    if candidate.shape != reference.shape:
        return -math.inf
    if reference.dtype.kind != "f" and reference.dtype.name not in CODES:
        return math.inf if np.array_equal(candidate, reference) else -math.inf
    signal = noise = 0.0
    flat_c, flat_r = candidate.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_r.size, PIECE):
        part = slice(start, start + PIECE)
        one = flat_r[part].astype(np.float64)
        signal += float(one @ one)
        moved = flat_c[part].astype(np.float64) - one
        noise += float(moved @ moved)
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _difference(candidate: Array, reference: Array) -> tuple[float, float]:
    finite = np.isfinite(reference)
    if finite.all():
        moved = float(np.abs(candidate - reference).max())
        return (moved if math.isfinite(moved) else math.inf), float(np.abs(reference).max())
    if not np.array_equal(np.isfinite(candidate), finite):
        return math.inf, 0.0
    if not np.array_equal(candidate[~finite], reference[~finite], equal_nan=True):
        return math.inf, 0.0
    if not finite.any():
        return 0.0, 0.0
    return float(np.abs(candidate[finite] - reference[finite]).max()), float(np.abs(reference[finite]).max())


def is_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether numbers have a fraction or an exponent, those of ml_dtypes included."""
    return np.issubdtype(dtype, np.floating) or dtype.name in {np.dtype(ir.DataType[n].numpy()).name for n in FLOATS}

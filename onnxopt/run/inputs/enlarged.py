"""Resize maps of numbers as torch's `interpolate` does without aligned corners, in NumPy."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxopt.spec import Array

Kernel = Literal["bilinear", "bicubic"]
_SHARPNESS = -0.75  # of Keys' cubic convolution (1981), as torch and OpenCV have it


def enlarged(maps: Array, size: tuple[int, int], kernel: Kernel = "bilinear") -> Array:
    """Return maps of another size.

    Args:
        maps: float32 [..., height, width].
        size: height and width.
        kernel: which neighbours count, and how much.

    Returns:
        float32 [..., height, width].
    """
    down, across = (weights(old, new, kernel) for old, new in zip(maps.shape[-2:], size, strict=True))
    return np.asarray(down @ maps.astype(np.float32) @ across.T, np.float32)


def weights(old: int, new: int, kernel: Kernel) -> Array:
    """Return what each place of a longer or shorter row takes from the places of a row: float32 [new, old].

    Args:
        old: places there are.
        new: places there will be.
        kernel: as for `enlarged`.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    if kernel == "bilinear":
        centres = np.maximum(centres, 0.0)
    first = np.floor(centres).astype(int)
    rest = centres - first
    made = np.zeros((new, old))
    for offset in (0, 1) if kernel == "bilinear" else (-1, 0, 1, 2):
        distance = np.abs(rest - offset)
        share = 1 - distance if kernel == "bilinear" else _cubic(distance)
        np.add.at(made, (np.arange(new), np.clip(first + offset, 0, old - 1)), share)
    return made.astype(np.float32)


def _cubic(distance: Array) -> Array:
    """Return the weights of neighbours at distances below 2."""
    a, near = _SHARPNESS, distance <= 1
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.asarray(np.where(near, inner, outer))

"""Layers in every precision that they may get: codes, what rounding adds to a product, and how long a token takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxopt.graph.linears import Linear
from onnxopt.qmath.precision import Blocked, PlannedLinear, Precision

# MatMulNBits on one row, two threads of an AVX-512 VNNI EPYC, onnxruntime 1.32.0, weights beyond the cache, 2026-11-26:
# 576 x 1536 in 40, 45 and 56 us (4 bits, blocks of 128, 64, 32), 55 us (8 bits, blocks of 128). They only rank.
WEIGHT_SECONDS = {"int4-weights": 39e-12, "int8-weights": 56e-12}
BLOCK_SECONDS, POINT_SECONDS = 0.75e-9, 0.85e-9

Seconds = Callable[[int, int, Precision], float]  # of one token, for inputs, outputs and a precision


@dataclass(frozen=True)
class Rounding:
    """A layer in one precision.

    Attributes:
        planned: with its codes.
        noise: tr(Eᵀ M E), what rounding adds to the energy of the product.
        seconds: one token.
    """

    planned: PlannedLinear
    noise: float
    seconds: float


def recorded_seconds(rows: int, columns: int, precision: Precision) -> float:
    """Return what one token takes in a linear layer: a part per weight, by its bits, and a part per block."""
    weights = rows * columns
    blocks = columns * -(-rows // precision.block_size)
    return weights * WEIGHT_SECONDS[precision.kind] + blocks * (BLOCK_SECONDS if precision.symmetric else POINT_SECONDS)


def exact(linear: Linear, blocks: Blocked, seconds: Seconds) -> Rounding:
    """Return a layer in codes that stand for its weight exactly, as the checkpoint has them."""
    planned = PlannedLinear.as_given(blocks)
    return Rounding(planned, 0.0, seconds(linear.rows, linear.columns, planned.precision))

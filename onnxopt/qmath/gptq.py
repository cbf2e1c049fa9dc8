"""Round a matrix so that its product, not its elements, stays close: GPTQ.

Columns of inputs are rounded one after the other; what rounding one does to the product is taken back by the inputs not
yet rounded, through the inverse of the second moment of the inputs (Frantar, Ashkboos, Hoefler & Alistarh 2022,
arXiv:2210.17323, eq. 2 to 4 and algorithm 1). Two deviations, both from their code: the inputs with the largest second
moment come first when `act_order` is set, on grids found beforehand, so that blocks stay contiguous; without it the
grid of each block is found when its turn comes, from the weights as they have become.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.host.threads import side_by_side
from onnxopt.qmath.blocks import Floats, Method, fit, split
from onnxopt.qmath.precision import Blocked

DAMPING = 0.01  # of the mean diagonal, as in the paper
_AT_ONCE = 1024  # outputs, which are independent: their rows stay in the cache of a core
MOST_INVERTED = 4096  # inputs; beyond, the factor is found without the inverse of the whole
_LAZY = 128  # columns whose updates are gathered before they reach the rest


@dataclass(frozen=True)
class Inputs:
    """What GPTQ wants of the inputs of a layer: found once for all weights that read them, in any precision.

    Attributes:
        moment: float32 [in], mean of the square of each, none of them 0.
        order: int64 [in], the inputs in the order in which they are rounded.
        factor: float32 [in, in] U, upper triangular, in that order: the inverse of the damped second moment is Uᵀ U.
        act_order: inputs of large second moment come first.
    """

    moment: Floats
    order: npt.NDArray[np.int64]
    factor: Floats
    act_order: bool

    @classmethod
    def of(cls, hessian: Floats, *, act_order: bool = True, damping: float = DAMPING) -> Inputs:
        """Prepare inputs of a known second moment.

        Args:
            hessian: float [in, in], E[x xᵀ] or any multiple.
            act_order: round inputs of large second moment first.
            damping: share of the mean diagonal added to it.

        Raises:
            ValueError: the second moment is no finite square matrix.
        """
        rows = len(hessian)
        if hessian.shape != (rows, rows) or not np.isfinite(hessian).all():
            raise ValueError(f"the second moment is {list(hessian.shape)}, or not finite")
        diagonal = np.diag(hessian).astype(np.float64)
        moment = np.maximum(diagonal, 1e-4 * max(diagonal.mean(), 1e-30)).astype(np.float32)
        order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(rows)
        second = hessian[np.ix_(order, order)].astype(np.float64)
        dead = np.flatnonzero(diagonal[order] <= 0)
        second[dead, dead] = 1.0
        return cls(moment, order, _factor(second, damping), act_order)


def gptq(
    weight: Floats, inputs: Inputs, bits: int, block_size: int, *, symmetric: bool = True, method: Method = "mse"
) -> Blocked:
    """Quantize a weight for inputs of a known second moment.

    Args:
        weight: float32 [in, out].
        inputs: what is known of them.
        bits: 4 or 8.
        block_size: inputs that share a scale.
        symmetric: without zero points.
        method: how grids are found.

    Raises:
        ValueError: the weight has another number of inputs.
    """
    if len(inputs.order) != len(weight):
        raise ValueError(f"the second moment is of {len(inputs.order)} inputs; the weight has {len(weight)}")
    importance = split(inputs.moment[None], block_size)[0]
    grid = _Grid(bits, block_size, symmetric, method, importance)

    def part(first: int) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
        return _rounded(weight[:, first : first + _AT_ONCE], inputs, grid)

    parts = side_by_side(part, range(0, weight.shape[1], _AT_ONCE))
    codes, steps, points = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return Blocked(
        np.ascontiguousarray(codes.T),
        np.ascontiguousarray(steps.T),
        None if symmetric else np.ascontiguousarray(points.T).astype(np.uint8),
        bits,
        block_size,
    )


@dataclass(frozen=True)
class _Grid:
    """What grids there are and how they are found."""

    bits: int
    block_size: int
    symmetric: bool
    method: Method
    importance: Floats  # [blocks, block]

    def fit(self, weight: Floats, first: int) -> tuple[Floats, Floats]:
        """Return float32 [blocks, out] scales and zero points of [in, out], which begins with block `first`."""
        blocks = split(weight.T, self.block_size)
        importance = self.importance[first : first + blocks.shape[1]]
        found = fit(blocks, self.bits, symmetric=self.symmetric, method=self.method, importance=importance)
        return np.ascontiguousarray(found[0].T), np.ascontiguousarray(found[1].T)


def _rounded(weight: Floats, inputs: Inputs, grid: _Grid) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """Return uint8 [in, out] codes, and float32 [blocks, out] scales and zero points."""
    order, factor, act_order = inputs.order, inputs.factor, inputs.act_order
    rows, block_size = len(weight), grid.block_size
    steps, points = grid.fit(weight, 0)
    # one input after the other is a row of [in, out], so that each step runs through memory in order
    codes = np.empty(weight.shape, np.uint8)
    work = np.ascontiguousarray(weight[order], np.float32)
    top = np.float32((1 << grid.bits) - 1)
    for start in range(0, rows, _LAZY):
        stop = min(start + _LAZY, rows)
        piece = work[start:stop]
        wrong = np.zeros_like(piece)
        for index in range(start, stop):
            place = int(order[index])
            block, own = place // block_size, piece[index - start]
            if not act_order and place % block_size == 0:
                # inputs of this block beyond the piece have had all updates but those of the piece itself
                now = work[index : place + block_size].copy()
                now[stop - index :] -= factor[start:index, stop : place + block_size].T @ wrong[: index - start]
                found = grid.fit(now, block)
                steps[block], points[block] = found[0][0], found[1][0]
            code = np.rint(own / steps[block])
            code += points[block]
            np.clip(code, 0, top, out=code)
            codes[place] = code
            code -= points[block]
            code *= steps[block]
            error = np.subtract(own, code, out=wrong[index - start])
            error /= factor[index, index]
            piece[index - start + 1 :] -= factor[index, index + 1 : stop, None] * error
        work[stop:] -= factor[start:stop, stop:].T @ wrong
    return codes, steps, points


def _factor(second: Floats, damping: float) -> Floats:
    """Return float32 [in, in] U, upper triangular, with the inverse of the damped second moment = Uᵀ U."""
    mean = float(np.diag(second).mean())
    invert = _inverted if len(second) <= MOST_INVERTED else _turned
    for _ in range(8):
        try:
            found = invert(second, damping * mean)
        except np.linalg.LinAlgError:
            damping = max(damping, 1e-6) * 10
            continue
        return np.ascontiguousarray(found, np.float32)
    raise ValueError("the second moment has no positive definite form")


def _inverted(second: Floats, added: float) -> Floats:
    """Return the factor by way of the inverse: quick where that is small."""
    damped = second + np.eye(len(second)) * added
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def _turned(second: Floats, added: float) -> Floats:
    """Return the factor without an inverse of the whole, in a fifth of the work and with half of the memory.

    With R upper triangular and H = R Rᵀ, which is the Cholesky factor of H in reversed order, H⁻¹ = R⁻ᵀ R⁻¹: U = R⁻¹.
    """
    damped = second[::-1, ::-1].copy()
    damped[np.diag_indices(len(damped))] += added
    upper = np.linalg.cholesky(damped)[::-1, ::-1]
    del damped
    found = np.array(upper, np.float32)
    _invert_upper(found)
    return found


def _invert_upper(upper: Floats) -> None:
    """Invert an upper triangular matrix in its own place: [[A, B], [0, D]] becomes [[A⁻¹, −A⁻¹ B D⁻¹], [0, D⁻¹]]."""
    if len(upper) <= _LAZY:
        upper[:] = np.triu(np.linalg.inv(upper.astype(np.float64)))
        return
    half = len(upper) // 2
    first, last = upper[:half, :half], upper[half:, half:]
    _invert_upper(first)
    _invert_upper(last)
    upper[:half, half:] = -(first @ upper[:half, half:]) @ last

"""Round a matrix so that its product, not its elements, stays close: GPTQ.

Columns of inputs are rounded one after the other; what rounding one does to the product is taken back by the inputs not
yet rounded, through the inverse of the second moment of the inputs (Frantar, Ashkboos, Hoefler & Alistarh 2022,
arXiv:2210.17323, eq. 2 to 4 and algorithm 1). Two deviations, both from their code: the inputs with the largest second
moment come first when `act_order` is set, on grids found beforehand, so that blocks stay contiguous; without it the
grid of each block is found when its turn comes, from the weights as they have become.
"""

from __future__ import annotations

import numpy as np

from onnxopt.precision import Blocked
from onnxopt.qmath.blocks import Floats, Method, fit, split

DAMPING = 0.01  # of the mean diagonal, as in the paper
_LAZY = 128  # columns whose updates are gathered before they reach the rest


def gptq(
    weight: Floats,
    hessian: Floats,
    bits: int,
    block_size: int,
    *,
    symmetric: bool = True,
    act_order: bool = True,
    damping: float = DAMPING,
    method: Method = "mse",
) -> Blocked:
    """Quantize a weight for inputs of a known second moment.

    Args:
        weight: float32 [in, out].
        hessian: float [in, in], E[x xᵀ] or any multiple.
        bits: 4 or 8.
        block_size: inputs that share a scale.
        symmetric: without zero points.
        act_order: round inputs of large second moment first.
        damping: share of the mean diagonal added to it.
        method: how grids are found.

    Raises:
        ValueError: the second moment is no finite [in, in] matrix.
    """
    rows = weight.shape[0]
    if hessian.shape != (rows, rows) or not np.isfinite(hessian).all():
        raise ValueError(f"the second moment is {list(hessian.shape)}, or not finite; the weight has {rows} inputs")
    second = hessian.astype(np.float64)
    diagonal = np.diag(second).copy()
    dead = diagonal <= 0
    second[dead, dead] = 1.0
    moment = np.maximum(diagonal, 1e-4 * max(diagonal.mean(), 1e-30)).astype(np.float32)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(rows)
    factor = _factor(second[np.ix_(order, order)], damping)

    importance = split(moment[None], block_size)[0]
    columns = np.ascontiguousarray(weight.T, np.float32)
    scales, zeros = fit(split(columns, block_size), bits, symmetric=symmetric, method=method, importance=importance)
    codes = np.empty(columns.shape, np.uint8)
    work = np.ascontiguousarray(columns[:, order])
    top = float((1 << bits) - 1)
    for start in range(0, rows, _LAZY):
        stop = min(start + _LAZY, rows)
        piece = work[:, start:stop]
        wrong = np.zeros_like(piece)
        for index in range(start, stop):
            place = int(order[index])
            block, own = place // block_size, piece[:, index - start]
            if not act_order and place % block_size == 0:
                # columns of this block beyond the piece have had all updates but those of the piece itself
                now = work[:, index : place + block_size].copy()
                now[:, stop - index :] -= wrong[:, : index - start] @ factor[start:index, stop : place + block_size]
                scales[:, block], zeros[:, block] = fit(
                    split(now, block_size)[:, 0], bits, symmetric=symmetric, method=method, importance=importance[block]
                )
            scale, zero = scales[:, block], zeros[:, block]
            code = np.clip(np.rint(own / scale + zero), 0, top)
            codes[:, place] = code
            error = (own - scale * (code - zero)) / factor[index, index]
            wrong[:, index - start] = error
            piece[:, index - start + 1 :] -= error[:, None] * factor[index, index + 1 : stop]
        work[:, stop:] -= wrong @ factor[start:stop, stop:]
    return Blocked(codes, scales, None if symmetric else zeros.astype(np.uint8), bits, block_size)


def _factor(second: Floats, damping: float) -> Floats:
    """Return float32 [in, in] U, upper triangular, with the inverse of the damped second moment = Uᵀ U."""
    mean = float(np.diag(second).mean())
    for _ in range(8):
        try:
            damped = second + np.eye(len(second)) * (damping * mean)
            # inverse = (L Lᵀ)⁻¹; its own upper factor comes from the reversed order
            inverse = np.linalg.inv(damped)
            lower = np.linalg.cholesky((inverse + inverse.T) / 2)
        except np.linalg.LinAlgError:
            damping = max(damping, 1e-6) * 10
            continue
        return np.ascontiguousarray(lower.T, np.float32)
    raise ValueError("the second moment has no positive definite form")

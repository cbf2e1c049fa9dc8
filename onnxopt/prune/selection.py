"""Which members of a group go, and how those that stay make up for them: NumPy only.

A group is `n` members (channels, or heads of several channels each) that one weight reads: y = xᵀW + b with x of n·unit
entries. What is known of x are its first and second moments over calibration tokens.

Sources: magnitude over all weights of a group: Fang et al. 2023 (DepGraph), arXiv:2301.12900; activation norm times
weight norm: Sun et al. 2023 (Wanda), arXiv:2306.11695; error after the best update: Hassibi & Stork 1992 (OBS), for
structures Kurtic et al. 2023 (ZipLM), arXiv:2302.04089; change of the residual stream: Men et al. 2024 (ShortGPT),
arXiv:2403.03853. The refit is ordinary least squares with a ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxopt.prune.spec import Importance
from onnxopt.spec import Array

LOOKS = 32  # how often the errors are looked at again while members go
RIDGE = 1e-4  # of the mean second moment, added to the diagonal: calibration never spans all directions
Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class Moments:
    """Running moments of the input of a weight.

    Attributes:
        size: entries of x.
        count: rows seen.
        total: float64 [size], Σ x.
        second: float64 [size, size], Σ x xᵀ.
    """

    size: int
    count: int = 0
    total: Float = field(init=False)
    second: Float = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size)
        self.second = np.zeros((self.size, self.size))

    def add(self, rows: Array) -> None:
        """Add float [rows, size]."""
        if not len(rows):
            return
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.second += rows.T.astype(np.float32) @ rows.astype(np.float32)

    @property
    def mean(self) -> Float:
        """E[x], float64 [size]."""
        return self.total / max(self.count, 1)

    def matrix(self, *, centred: bool) -> Float:
        """Return E[x xᵀ], or the covariance, with a ridge on its diagonal: float64 [size, size]."""
        found: Float = self.second / max(self.count, 1)
        if centred:
            found = found - np.outer(self.mean, self.mean)
        ridge = RIDGE * float(np.trace(found)) / self.size or RIDGE
        found[np.diag_indices(self.size)] += ridge
        return found


def magnitude(slices: Sequence[Array], unit: int = 1) -> Float:
    """Score members by the norm of all weights that make and read them.

    Args:
        slices: float [members·unit, anything], one per weight.
        unit: entries of a member.

    Returns:
        float64 [members]; the larger, the more important.
    """
    total = sum(np.square(one.reshape(len(one), -1).astype(np.float64)).sum(axis=1) for one in slices)
    return np.asarray(np.sqrt(np.asarray(total).reshape(-1, unit).sum(axis=1)), np.float64)


def activation(weight: Array, moments: Moments, unit: int = 1) -> Float:
    """Score members by √(E[x²]·‖w‖²): float64 [members].

    Args:
        weight: float [members·unit, outputs], which reads them.
        moments: of what it reads.
        unit: entries of a member.
    """
    power = np.diag(moments.second) / max(moments.count, 1) * np.square(weight.astype(np.float64)).sum(axis=1)
    return np.asarray(np.sqrt(power.reshape(-1, unit).sum(axis=1)), np.float64)


def removal_errors(weight: Array, moments: Moments, unit: int = 1, *, centred: bool = True) -> Float:
    """Score members by the squared output error that their removal leaves after the best update: float64 [members]."""
    inverse: Float = np.linalg.inv(moments.matrix(centred=centred)).astype(np.float64)
    return _errors(inverse, weight.astype(np.float64), unit)


def _errors(inverse: Float, weight: Float, unit: int) -> Float:
    """Return tr(W_jᵀ (H⁻¹_jj)⁻¹ W_j) of each member j."""
    if unit == 1:
        return np.asarray(np.square(weight).sum(axis=1) / np.diag(inverse))
    members = len(weight) // unit
    found = np.empty(members)
    for member in range(members):
        part = slice(member * unit, (member + 1) * unit)
        found[member] = np.sum(weight[part] * np.linalg.solve(inverse[part, part], weight[part]))
    return found


def choose(
    importance: Importance,
    gone: int,
    *,
    slices: Sequence[Array],
    weight: Array,
    moments: Moments | None,
    unit: int = 1,
    centred: bool = True,
) -> Ints:
    """Choose the members that stay.

    Args:
        importance: how to score. `error` removes one after the other, each time the one whose removal costs least.
        gone: how many go.
        slices: all weights of the group, float [members·unit, anything].
        weight: the one that reads, float [members·unit, outputs].
        moments: of what it reads; None only with `magnitude`.
        unit: entries of a member.
        centred: whether a bias takes up the mean.

    Returns:
        int64, the members that stay, in order.
    """
    members = len(weight) // unit
    if importance == "magnitude" or moments is None:
        scores = magnitude(slices, unit)
    elif importance == "activation":
        scores = activation(weight, moments, unit)
    else:
        return _greedy(weight, moments, gone, unit, centred=centred)
    return np.sort(np.argsort(-scores, kind="stable")[: members - gone])


def _greedy(weight: Array, moments: Moments, gone: int, unit: int, *, centred: bool) -> Ints:
    """Remove the cheapest members, update weights and inverse as if they were gone, and look again (OBS).

    A few go at a time, which with many members changes nothing that counts and saves most of the work.
    """
    inverse: Float = np.linalg.inv(moments.matrix(centred=centred)).astype(np.float64)
    current = weight.astype(np.float64)
    alive = np.ones(len(weight) // unit, bool)
    left = gone
    while left:
        errors = np.where(alive, _errors_alive(inverse, current, unit, alive), np.inf)
        members = np.argsort(errors, kind="stable")[: min(left, max(1, gone // LOOKS))]
        part = entries(np.sort(members), unit)
        column = inverse[:, part].copy()
        halved = np.linalg.solve(inverse[np.ix_(part, part)], np.concatenate([column.T, current[part]], axis=1))
        current -= column @ halved[:, len(inverse) :]
        inverse -= column @ halved[:, : len(inverse)]
        alive[members] = False
        left -= len(members)
        current[part] = 0.0
        inverse[part, :] = inverse[:, part] = 0.0
        inverse[part, part] = 1.0
    return np.flatnonzero(alive)


def _errors_alive(inverse: Float, weight: Float, unit: int, alive: npt.NDArray[np.bool_]) -> Float:
    if unit == 1:
        return _errors(inverse, weight, 1)
    found = np.zeros(len(alive))
    for member in np.flatnonzero(alive):
        part = slice(member * unit, (member + 1) * unit)
        found[member] = np.sum(weight[part] * np.linalg.solve(inverse[part, part], weight[part]))
    return found


def entries(members: Ints, unit: int) -> Ints:
    """Return the entries of members: [1] of 4 each is 4, 5, 6, 7."""
    return np.asarray((members[:, None] * unit + np.arange(unit)).reshape(-1), np.int64)


def refit(weight: Array, bias: Array | None, moments: Moments, kept: Ints) -> tuple[Array, Array | None]:
    """Refit a weight so that its output stays close when it reads only some of its input.

    With a bias the means are matched exactly and the weight is fitted to what varies around them.

    Args:
        weight: float [n, outputs].
        bias: float [outputs] or None.
        moments: of the whole input.
        kept: int64, entries of the input that stay.

    Returns:
        Weight float [kept, outputs] and bias, in the dtypes of the old ones.
    """
    matrix = moments.matrix(centred=bias is not None)
    whole = weight.astype(np.float64)
    fitted = np.linalg.solve(matrix[np.ix_(kept, kept)], matrix[kept] @ whole)
    if bias is None:
        return fitted.astype(weight.dtype), None
    mean = moments.mean
    shift = mean @ whole - mean[kept] @ fitted
    return fitted.astype(weight.dtype), (bias.astype(np.float64) + shift).astype(bias.dtype)


def left_error(weight: Array, moments: Moments, kept: Ints, *, centred: bool, fitted: bool) -> float:
    """Return the relative squared error of the output that pruning leaves on the calibration data.

    Args:
        weight: float [n, outputs].
        moments: of the whole input.
        kept: entries that stay.
        centred: whether a bias takes up the mean.
        fitted: whether the weight is refitted.
    """
    matrix, whole = moments.matrix(centred=centred), weight.astype(np.float64)
    change = whole.copy()
    if fitted:
        change[kept] -= np.linalg.solve(matrix[np.ix_(kept, kept)], matrix[kept] @ whole)
    else:
        change[kept] = 0.0
    before = float(np.sum(whole * (matrix @ whole)))
    return float(np.sum(change * (matrix @ change))) / before if before > 0 else 0.0


def allocate(curves: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], wanted: int) -> list[int]:
    """Spread a number of removals over groups so that the sum of their errors is small.

    Takes the step of least added error per removed member, again and again; with convex curves that is the optimum
    (Fox 1966).

    Args:
        curves: for each group its error at each choice, the first choice removing nothing.
        sizes: for each group how many members each choice removes, rising from 0.
        wanted: how many to remove in all.

    Returns:
        The index of the choice of each group.
    """
    chosen = [0] * len(curves)
    removed = 0
    while removed < wanted:
        steps = [
            ((curves[g][c + 1] - curves[g][c]) / (sizes[g][c + 1] - sizes[g][c]), g)
            for g, c in enumerate(chosen)
            if c + 1 < len(curves[g])
        ]
        if not steps:
            break
        _, group = min(steps)
        removed += sizes[group][chosen[group] + 1] - sizes[group][chosen[group]]
        chosen[group] += 1
    return chosen


def transfer(moments: Moments, stay: Ints, leave: Ints, *, centred: bool) -> tuple[Float, Float]:
    """Return how entries that leave follow from those that stay: x_leave ≈ Aᵀ x_stay + c.

    Args:
        moments: of all entries.
        stay: int64, which stay.
        leave: int64, which leave.
        centred: fit around the means; c is 0 without.

    Returns:
        A float64 [stay, leave] and c float64 [leave].
    """
    matrix = moments.matrix(centred=centred)
    share = np.asarray(np.linalg.solve(matrix[np.ix_(stay, stay)], matrix[np.ix_(stay, leave)]), np.float64)
    if not centred:
        return share, np.zeros(len(leave))
    return share, moments.mean[leave] - moments.mean[stay] @ share

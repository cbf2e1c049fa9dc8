"""The words in which a dimension is written: `sequence`, `batch*sequence`, `sequence + 1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PLAIN = re.compile(r"[^\W\d]\w*(\.\w+)*")


def is_plain(name: str) -> bool:
    """Tell whether a name cannot be read as a number or as an expression: `x*2` and `a - b` can, as `7` can."""
    return _PLAIN.fullmatch(name) is not None


def fit(seen: tuple[int, ...], sizes: Sequence[Mapping[str, int]]) -> int | str | None:
    """Name a dimension from its sizes in several runs.

    Args:
        seen: the dimension in each run.
        sizes: the axes in each run.

    Returns:
        A size, an axis name, `a*b`, `a*c`, `a + c`, or None.
    """
    axes = sorted(set.intersection(*(set(size) for size in sizes)))
    varying = [axis for axis in axes if len({size[axis] for size in sizes}) == len(sizes)]
    for axis in varying:
        if all(size[axis] == dim for size, dim in zip(sizes, seen, strict=True)):
            return axis
    if len(set(seen)) == 1:
        return seen[0]
    for i, first in enumerate(varying):
        for second in varying[i:]:
            if all(size[first] * size[second] == dim for size, dim in zip(sizes, seen, strict=True)):
                return f"{first}*{second}"
    for axis in varying:  # heads folded into the batch
        pairs = [(size[axis], dim) for size, dim in zip(sizes, seen, strict=True)]
        factors = {dim / size for size, dim in pairs if size} if all(size or not dim for size, dim in pairs) else set()
        if len(factors) == 1 and (factor := factors.pop()) > 1 and factor.is_integer():
            return f"{axis}*{int(factor)}"
    for axis in varying:
        offsets = {dim - size[axis] for size, dim in zip(sizes, seen, strict=True)}
        if len(offsets) == 1:
            offset = offsets.pop()
            return f"{axis} {'+' if offset > 0 else '-'} {abs(offset)}"
    return None


def size_of(dim: int | str | None, sizes: Mapping[str, int]) -> int:
    """Evaluate an expression of `fit`: a size, `a`, `a*b`, `a*c`, `a + c` or `a - c`.

    Raises:
        ValueError: the dimension is unknown.
    """
    if isinstance(dim, int):
        return dim
    if dim is None:
        raise ValueError("an unknown dimension has no size")
    if dim in sizes:  # it may be called `a + b`, being that
        return sizes[dim]
    for sign, factor in ((" + ", 1), (" - ", -1)):
        if sign in dim:
            axis, offset = dim.split(sign)
            return sizes[axis] + factor * int(offset)
    product = 1
    for part in dim.split("*"):
        product *= int(part) if part.isdigit() else sizes[part]
    return product

"""What is known of a value for every size: its dimensions, and the elements of a small one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant, is_constant
from onnxopt.sizes.terms import BOOL, INT, Number, Size, fresh

LARGEST_ELEMENTS = 128  # of a tensor whose elements are followed: shapes, bounds of slices, scales


@dataclass(frozen=True)
class Fact:
    """Dimensions and elements of a value.

    Attributes:
        dims: None where not even the rank is known.
        elements: row-major, of a small tensor that hangs on sizes alone; None of any other.
        dtype: NumPy name of the elements, every integer type being `int64`; empty without elements.
        items: the tensors of a sequence, where it has the same number of them at every size.
        computed: how many dimensions and elements are known by computing them at every size up to a bound, not by form.
    """

    dims: tuple[Size, ...] | None = None
    elements: tuple[Number, ...] | None = None
    dtype: str = ""
    items: tuple[Fact, ...] | None = None
    computed: int = 0

    @property
    def rank(self) -> int | None:
        """The number of dimensions."""
        return None if self.dims is None else len(self.dims)

    @property
    def whole(self) -> tuple[Size, ...] | None:
        """The elements where they are integers."""
        return self.elements if self.dtype == INT else None  # type: ignore[return-value]  # int64 elements are sizes


UNKNOWN = Fact()


def of_rank(rank: int) -> Fact:
    """Return what is known of a tensor of which only data tells the sizes."""
    return Fact(tuple(fresh() for _ in range(rank)))


def of_elements(elements: Sequence[Number], dtype: str, dims: tuple[Size, ...] | None = None) -> Fact:
    """Return a small tensor, of rank 1 unless its dimensions are given."""
    return Fact((len(elements),) if dims is None else dims, tuple(elements), dtype)


def kind_of(dtype: np.dtype[np.generic] | str) -> str:
    """Return the name under which numbers of a dtype are computed, an empty string for what is not followed."""
    found = np.dtype(dtype)
    if found.kind in "iu":
        return INT
    if found.kind == "b":
        return BOOL
    return found.name if found.kind == "f" else ""


def of_constant(value: ir.Value) -> Fact:
    """Return what a constant says of itself; its data is read only where it is small."""
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return UNKNOWN
    dims = tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]  # a tensor has no symbolic dimension
    if math.prod(dims) > LARGEST_ELEMENTS or tensor.dtype.is_string() or not is_constant(value):
        return Fact(dims)
    array = constant(value)
    kind = kind_of(array.dtype) if array is not None else ""
    if array is None or not kind:
        return Fact(dims)
    flat = array.reshape(-1)
    return Fact(dims, tuple(flat.tolist()) if kind in (INT, BOOL) else tuple(flat), kind)

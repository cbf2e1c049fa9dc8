"""Inputs of a few sizes, and the words in which a dimension is written: `sequence`, `batch*sequence`, `sequence + 1`.

What a dimension was in a few runs proposes what it is. It is so where `onnxopt.sizes` derives it for every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.spec import Array, Feeds


@dataclass(frozen=True)
class Observation:
    """Inputs of one size.

    Attributes:
        sizes: the size of each dynamic axis.
        feeds: inputs of that size.
    """

    sizes: Mapping[str, int]
    feeds: Feeds


def dtype_of(array: Array) -> ir.DataType:
    """Return the ONNX type of an array."""
    return ir.DataType.STRING if array.dtype.kind in "OUS" else ir.DataType.from_numpy(array.dtype)

"""How large the scores of an attention become, and whether a number hides a key from them for good.

A weight exp(hidden − seen) is 0 in float32 from a distance of 104 on. Where a hidden key gets −10000, that is so as
long as no score reaches 4,900; a score of 12,000 would be seen all the same. finfo.min and what lies near it is further
away than scores come that are numbers at all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, dims, rank
from onnxopt.graph.magnitude import magnitude

VANISHES = 104.0  # exp(-104) is below the smallest float32, 1.4e-45
# From there on a number counts as out of reach. A row that is written over with one finite number has equal weights.
# Added to a score, -1e30 swallows it just so, up to 6e22, and is above finfo.min, at which the kernel (onnxruntime
# 1.31.1) gives zeros instead.
OUT_OF_REACH: dict[np.dtype[Any], float] = {np.dtype(np.float16): 6e4}
OUT_OF_REACH_OTHERS = 1e30


def out_of_reach(kind: np.dtype[Any]) -> float:
    """Return the magnitude from which on a number hides a key whatever its score is."""
    return OUT_OF_REACH.get(kind, OUT_OF_REACH_OTHERS)


def kind_of(node: ir.Node) -> np.dtype[Any]:
    """Return the type of an attention's scores."""
    q = node.inputs[0]
    return np.dtype(q.dtype.numpy() if q is not None and q.dtype is not None else np.float32)


def largest_score(q: ir.Value, k: ir.Value, scale: float, *, turned: bool = False) -> float:
    """Return a bound of |scale · q kᵀ|, infinite where none is derived: |q kᵀ| <= ‖q‖ ‖k‖.

    Args:
        q: float [..., size], a query in each row.
        k: float [..., size], a key in each row.
        scale: of the products.
        turned: a key is a column of k.
    """
    rows, size = magnitude(q).row, (dims(q) or (None,))[-1]
    if not math.isfinite(rows) or not isinstance(size, int):
        return math.inf
    keys = magnitude(k)
    return abs(scale) * rows * (keys.entry * math.sqrt(size) if turned else keys.row)


def largest_score_of(node: ir.Node) -> float:
    """Return a bound of what an Attention compares, before its mask; keys of a cache are those of earlier tokens."""
    q, k = node.inputs[:2]
    if q is None or k is None:
        return math.inf
    width = (dims(q) or (None,))[-1]
    if not isinstance(width, int):
        return math.inf
    heads = (attribute(node, "q_num_heads") or 1) if rank(q) == 3 else 1
    scale = attribute(node, "scale")
    found = largest_score(q, k, (width // heads) ** -0.5 if scale is None else float(scale))
    return min(found, attribute(node, "softcap") or math.inf)


def hides_for_good(node: ir.Node, distance: float) -> bool:
    """Tell whether a key that lies so far below those that are seen has no weight, whatever its score is.

    Args:
        node: an Attention.
        distance: between what is added to the scores of seen keys and of hidden ones.
    """
    return distance >= out_of_reach(kind_of(node)) or 2 * largest_score_of(node) + VANISHES < distance

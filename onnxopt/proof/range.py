"""Hold a replacement to the range of what it replaces: where that gives a number, so must this.

Forms that are equal in real arithmetic overflow at other inputs: a softmax without its maximum at scores of 88, a norm
of squares at 1.8e19. A network whose activations have grown that far still has an answer, and keeps it. How near it is
nobody can say there, where a rounding of a score decides; that it is a number can be said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxopt.graph import Region, is_constant, is_op
from onnxopt.spec import Array

# Products of two such are near the largest float32, 3.4e38, so that the order of scale and product decides.
LARGEST_FACTOR = 1e18


def multiplies(parts: Iterable[Region]) -> bool:
    """Tell whether regions add up products of two activations, as an attention does."""
    return any(
        is_op(node, "Attention") or (is_op(node, "MatMul", "Einsum") and not any(map(is_constant, node.inputs)))
        for part in parts
        for node in part.nodes
    )


def out_of_range(old: Sequence[Array], new: Sequence[Array]) -> str:
    """Return how new outputs leave the range of numbers where the old ones do not, an empty string if they stay.

    Args:
        old: outputs of what is replaced, on large inputs.
        new: outputs of the replacement.
    """
    for reference, candidate in zip(old, new, strict=True):
        if not isinstance(reference, np.ndarray) or reference.dtype.kind != "f" or candidate.shape != reference.shape:
            continue
        lost = np.isfinite(reference) & ~np.isfinite(candidate)
        if lost.any():
            place = tuple(int(index) for index in np.argwhere(lost)[0])
            return f"large numbers give {candidate[place]} where they gave {reference[place]:.3g}"
    return ""

"""Which positions of an output matter: those that the padding mask keeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxopt.graph.cache import SEQUENCE, TOTAL, packed_rows
from onnxopt.graph.roles import mask_of
from onnxopt.spec import Array, Feeds, Signature


def rows_that_matter(
    signature: Signature, feeds: Mapping[str, Array], output: str, array: Array, *, packed: bool = False
) -> Array | None:
    """Return bool, true where an output is not padding, with a dimension for each of its leading axes that needs one.

    Args:
        signature: names the axes.
        feeds: the inputs, the mask among them.
        output: name of the output.
        array: its value, which tells how many positions it has.
        packed: a cache holds the real tokens of a row at its front.

    Returns:
        bool [batch, sequence] for an output with a row per position; [batch, heads, positions] for keys and values of
        a cache; [batch, 1] for the row of the last position alone, [batch] where that has no axis of its own; None when
        all of it matters.
    """
    mask = mask_of(signature)
    axes = next((spec.axes for spec in signature.outputs if spec.name == output), ())
    if mask is None or not axes or axes[0] != mask.axes[0] or len(axes) < 2:
        return None
    kept = np.asarray(feeds[mask.name]) != 0
    cached = mask.axes[1] == TOTAL
    if len(axes) == 4 and axes[2] == mask.axes[1]:
        rows = np.repeat((packed_rows(kept) if packed else kept)[:, None, :], array.shape[1], axis=1)
    elif axes[1] == mask.axes[1]:
        rows = kept
    elif cached and axes[1] in (SEQUENCE, 1):
        rows = kept[:, kept.shape[1] - array.shape[1] :]
    elif cached and len(axes) == 2:
        rows = kept[:, -1]
    else:
        return None
    return rows if array.shape[: rows.ndim] == rows.shape else None


def ending_last(signature: Signature, feeds: Mapping[str, Array]) -> Feeds | None:
    """Move the tokens of each row so far to the right that the last column is a real one.

    Padding on the right of a prompt becomes padding on its left; what lies between two tokens of a row stays between
    them. So whoever answers for the last column of these answers for the last real token of those.

    Args:
        signature: names the axes.
        feeds: the inputs; nothing was seen before.

    Returns:
        The inputs, those [batch, sequence] and the mask with rows moved; None when every row ends with a real token
        already, when something was seen before, or when there is no mask of past and new tokens.
    """
    mask = mask_of(signature)
    if mask is None or mask.axes[1] != TOTAL:
        return None
    kept = np.asarray(feeds[mask.name]) != 0
    own = [spec.name for spec in signature.inputs if spec.axes in (mask.axes, (mask.axes[0], SEQUENCE))]
    if any(np.shape(feeds[name]) != kept.shape for name in own):
        return None  # something was seen before
    behind = np.where(kept.any(axis=1), kept[:, ::-1].argmax(axis=1), 0)
    if not behind.any():
        return None
    columns = (np.arange(kept.shape[1])[None] - behind[:, None]) % kept.shape[1]
    return {name: np.take_along_axis(array, columns, 1) if name in own else array for name, array in feeds.items()}

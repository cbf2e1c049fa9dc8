"""Which positions of an output matter: those that the padding mask keeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxopt.model import Array
from onnxopt.spec import Signature, TensorSpec


def mask_of(signature: Signature) -> TensorSpec | None:
    """Return the padding mask [batch, sequence], None when there is none."""
    return next((spec for spec in signature.inputs if "mask" in spec.name and len(spec.axes) == 2), None)


def rows_that_matter(signature: Signature, feeds: Mapping[str, Array], output: str, array: Array) -> Array | None:
    """Return bool [batch, sequence], where an output is not padding; None when it has no such axes."""
    mask = mask_of(signature)
    axes = next((spec.axes for spec in signature.outputs if spec.name == output), ())
    if mask is None or axes[:2] != mask.axes:
        return None
    rows = np.asarray(feeds[mask.name]) != 0
    return rows if array.shape[:2] == rows.shape else None

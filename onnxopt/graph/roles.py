"""Which input is the mask, and what an axis that is called so usually is."""

from __future__ import annotations

import re
from typing import Literal

from onnxopt.spec import Signature, TensorSpec

Role = Literal["batch", "sequence", "past", "total", "other"]
_BATCH = re.compile(r"batch|^(n|b|bs)$")
_SEQUENCE = re.compile(r"seq|tok|^(s|l|t|len|length)$")
_PAST = re.compile(r"past|cache")
_TOTAL = re.compile(r"total|^kv")
POSITIONS = re.compile(r"^pos(ition)?(s|_?ids?)?$|position_?ids?$")


def role_of(axis: str) -> Role:
    """Return what an axis counts, judged by its name."""
    name = axis.lower()
    if _TOTAL.search(name) or (_PAST.search(name) and "+" in name):
        return "total"
    if _PAST.search(name):
        return "past"
    if _BATCH.search(name):
        return "batch"
    return "sequence" if _SEQUENCE.search(name) else "other"


def mask_of(signature: Signature) -> TensorSpec | None:
    """Return the padding mask [batch, sequence], None when there is none; with a cache it covers the past too.

    An import was asked what its inputs do; the inputs of an export have names of our own.
    """
    if signature.mask is not None:
        return next((spec for spec in signature.inputs if spec.name == signature.mask), None)
    return next((spec for spec in signature.inputs if "mask" in spec.name and len(spec.axes) == 2), None)


def own_axis(name: str, index: int) -> str:
    """Return a name that no other axis has: that of the input or output, and the place in it."""
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_dim{index}"

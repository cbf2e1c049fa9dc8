"""What inputs and axes that are called so usually are: which is the mask, which counts tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from onnxopt.spec import Signature, TensorSpec

Role = Literal["batch", "sequence", "past", "total", "other"]
Meaning = Literal["ids", "mask", "types", "positions", "past", ""]
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


def input_meaning(name: str) -> Meaning:
    """Return what transformers' name of an input stands for: ids, mask, types, positions, past, or nothing."""
    name = name.lower()
    if name.startswith("past"):
        return "past"
    if "mask" in name:
        return "mask"
    if "token_type" in name:
        return "types"
    if "position" in name:
        return "positions"
    return "ids" if name in {"input_ids", "ids", "input", "tokens"} or name.endswith("input_ids") else ""


def meanings_of(signature: Signature) -> dict[str, Meaning]:
    """Return what each input stands for, by its name; the mask may be one that was found by trying."""
    mask = mask_of(signature)
    return {
        spec.name: "mask" if mask is not None and spec.name == mask.name else input_meaning(spec.name)
        for spec in signature.inputs
    }


def fixed_length(inputs: Sequence[TensorSpec]) -> int:
    """Return the tokens of a row where the graph prescribes them, else 0."""
    rows = (spec.axes for spec in inputs if input_meaning(spec.name) == "ids" and len(spec.axes) == 2)
    return next((axes[1] for axes in rows if isinstance(axes[1], int)), 0)


def mask_of(signature: Signature) -> TensorSpec | None:
    """Return the padding mask [batch, sequence], None when there is none; with a cache it covers the past too.

    An import was asked what its inputs do; the inputs of an export have names of our own.
    """
    if signature.mask is not None:
        return next((spec for spec in signature.inputs if spec.name == signature.mask), None)
    named = (spec for spec in signature.inputs if input_meaning(spec.name) == "mask")
    return next((spec for spec in named if len(spec.axes) == 2), None)


def own_axis(name: str, index: int) -> str:
    """Return a name that no other axis has: that of the input or output, and the place in it."""
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_dim{index}"

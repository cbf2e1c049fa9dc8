"""Operators that give axes other sizes: asked for, or by a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.sizes.facts import UNKNOWN, Fact, of_rank
from onnxopt.sizes.rules import Step, place_of, rule
from onnxopt.sizes.terms import INT, Number, Size, call, is_constant, multiply


@rule("Resize", "Upsample")
def _resize(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    unknown = of_rank(len(dims))
    given = step.node.attributes.get("axes")
    axes = given.as_ints() if given is not None else range(len(dims))
    plain = (step.attribute("keep_aspect_ratio_policy") or "stretch") == "stretch"
    cropped = step.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    if not plain or cropped:
        return [unknown]
    if step.has(3):
        sizes = step.whole(3)
        if sizes is None or len(sizes) != len(axes):
            return [unknown]
        made = list(dims)
        for axis, size in zip(axes, sizes, strict=True):
            made[place_of(axis, len(dims))] = size
        return [Fact(tuple(made))]
    scales = _scales(step)
    if scales is None or len(scales) != len(axes):
        return [unknown]
    made = list(dims)
    for axis, scale in zip(axes, scales, strict=True):
        place = place_of(axis, len(dims))
        made[place] = _scaled(dims[place], scale)
    return [Fact(tuple(made))]


def _scales(step: Step) -> Sequence[Number] | None:
    """Return the scales of a Resize: input 2, input 1 of an Upsample and of Resize-10, an attribute of Upsample-7."""
    given = step.node.attributes.get("scales")
    if given is not None:
        return [np.float32(scale) for scale in given.as_floats()]
    index = 2 if step.node.op_type == "Resize" and step.opset >= 11 else 1
    return step.fact(index).elements


def _scaled(size: Size, scale: Number) -> Size:
    """Return floor(size · scale), as ONNX Runtime computes it in float32."""
    if is_constant(scale) and float(scale).is_integer():  # type: ignore[arg-type]  # a constant
        return multiply(size, int(float(scale)))  # type: ignore[arg-type]  # same
    wide = call("cast", "float32", size)
    return call("cast", INT, call("floor", "float32", call("mul", "float32", wide, scale)))  # type: ignore[return-value]  # int64


@rule("CenterCropPad")
def _crop_pad(step: Step) -> Sequence[Fact]:
    dims, sizes = step.dims(0), step.whole(1)
    if dims is None:
        return [UNKNOWN]
    given = step.node.attributes.get("axes")
    axes = given.as_ints() if given is not None else range(len(dims))
    if sizes is None or len(sizes) != len(axes):
        return [of_rank(len(dims))]
    made = list(dims)
    for axis, size in zip(axes, sizes, strict=True):
        made[place_of(axis, len(dims))] = size
    return [Fact(tuple(made))]

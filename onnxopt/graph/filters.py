"""The filters of a convolution by channel: how many there are, and what a factor or a shift per channel makes of them.

A Conv keeps its filters as [results, inputs / groups, ...], a ConvTranspose as [inputs, results / groups, ...]. In
both, group g of the inputs makes group g of the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph.nodes import attribute, is_op
from onnxopt.graph.values import Dim
from onnxopt.spec import Array


def groups_of(node: ir.Node) -> int:
    """Return into how many groups a Conv or ConvTranspose splits its channels."""
    return int(attribute(node, "group") or 1)


def result_channels(node: ir.Node, shape: Sequence[Dim]) -> int | None:
    """Return how many channels a Conv or ConvTranspose makes, None when its filters' shape is not known.

    Args:
        node: the operator.
        shape: of its filters.
    """
    return _channels(node, shape, grouped=is_op(node, "ConvTranspose"))


def input_channels(node: ir.Node, shape: Sequence[Dim]) -> int | None:
    """Return how many channels a Conv or ConvTranspose reads, None when its filters' shape is not known.

    Args:
        node: the operator.
        shape: of its filters.
    """
    return _channels(node, shape, grouped=not is_op(node, "ConvTranspose"))


def _channels(node: ir.Node, shape: Sequence[Dim], *, grouped: bool) -> int | None:
    """Return the channels of the second axis, which has those of one group, or of the first, which has all."""
    if len(shape) < 2:
        return None
    found = shape[1] if grouped else shape[0]
    if not isinstance(found, int):
        return None
    return found * groups_of(node) if grouped else found


def scale_results(node: ir.Node, filters: Array, factor: Array) -> Array:
    """Return the filters whose results are `factor` times those of the given ones.

    Args:
        node: the Conv or ConvTranspose that they belong to.
        filters: floats, in the operator's layout.
        factor: [results].
    """
    return _scaled(node, filters, factor, grouped=is_op(node, "ConvTranspose"))


def scale_inputs(node: ir.Node, filters: Array, factor: Array) -> Array:
    """Return the filters that make of an input what the given ones make of `factor` times that input.

    Args:
        node: the Conv or ConvTranspose that they belong to.
        filters: floats, in the operator's layout.
        factor: [inputs].
    """
    return _scaled(node, filters, factor, grouped=not is_op(node, "ConvTranspose"))


def _scaled(node: ir.Node, filters: Array, factor: Array, *, grouped: bool) -> Array:
    behind = [1] * (filters.ndim - 2)
    if not grouped:
        return filters * factor.reshape(-1, 1, *behind)
    groups = groups_of(node)
    apart = filters.reshape(groups, -1, *filters.shape[1:])
    return (apart * factor.reshape(groups, 1, -1, *behind)).reshape(filters.shape)


def result_of_constant(node: ir.Node, filters: Array, shift: Array) -> Array:
    """Return what a Conv without padding makes of an input that is constant per channel: [results].

    Args:
        node: the Conv.
        filters: floats [results, inputs / groups, ...].
        shift: [inputs].
    """
    return np.asarray(scale_inputs(node, filters, shift).reshape(len(filters), -1).sum(axis=1))


def is_padded(node: ir.Node) -> bool:
    """Tell whether a Conv may read zeros beyond the edges of its input."""
    automatic = attribute(node, "auto_pad") or "NOTSET"
    if automatic == "VALID":
        return False
    return automatic != "NOTSET" or any(attribute(node, "pads") or ())


def per_channel(array: Array, channels: int, rank: int) -> Array | None:
    """Return a constant that broadcasts to [batch, channels, ...] as one number per channel, else None.

    Args:
        array: one number, [channels, 1, ...] or [1, channels, 1, ...].
        channels: of the tensor that it meets.
        rank: of that tensor.

    Returns:
        float64 [channels]; None where it has more axes than the tensor or is not one number per channel.
    """
    whole = (1, channels) + (1,) * (rank - 2)
    if array.ndim > rank or not (array.size == 1 or array.shape in (whole, whole[1:])):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), channels)

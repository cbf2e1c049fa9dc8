"""Sizes and values to try a graph at, drawn when it has been optimized: nothing in the making knew them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.property.sketch import Array

LONGEST = 3000
MOST_ENTRIES = 1_000_000  # of the product of all axes and the width
MOST_SQUARES = 4_000_000  # of batch times an axis squared
SMALL = (0, 1, 2, 3, 4, 5)
VOCABULARY = 32

Feeds = dict[str, Array]
Place = tuple[str, int]  # an input and an axis of it


@dataclass(frozen=True)
class Case:
    """Inputs of one size.

    Attributes:
        sizes: by axis name; axes without one are called by their input and number.
        feeds: by input name.
        odd: a mask of integers or flags [batch, keys] holds what it does not by the contract (see fuse-attention):
            other numbers than 0 and 1, or a row without a key, which is one of padding. Masks of floats, and of other
            axes, may hold anything.
    """

    sizes: Mapping[str, int]
    feeds: Feeds
    odd: bool = False


def axes_of(model: onnx.ModelProto) -> dict[str, list[Place]]:
    """Return where each open axis occurs among the inputs."""
    found: dict[str, list[Place]] = {}
    for value in real_inputs(model):
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                found.setdefault(dim.dim_param or f"{value.name}[{index}]", []).append((value.name, index))
    return found


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are not initializers."""
    given = {item.name for item in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in given]


def numbers_of(graph: onnx.GraphProto) -> list[int]:
    """Return the whole numbers from 2 to 3,000 among the small constants of a graph and its bodies."""
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    held = [attribute.t for attribute in attributes if attribute.type == onnx.AttributeProto.TENSOR]
    tensors = [item for item in (*graph.initializer, *held) if np.prod(item.dims) <= 4]
    found = {abs(float(number)) for tensor in tensors for number in np.ravel(numpy_helper.to_array(tensor))}
    bodies = [attribute.g for attribute in attributes if attribute.HasField("g")]
    inner = {float(number) for body in bodies for number in numbers_of(body)}
    return sorted(int(number) for number in found | inner if 2 <= number <= LONGEST and number.is_integer())


def cases(model: onnx.ModelProto, seed: int, *, square: bool = False) -> Iterator[Case]:
    """Yield inputs of sizes from 0 to 3,000 without end; small ones and those around numbers of the graph often.

    Args:
        model: the original.
        seed: of sizes and values; not the one that the graph was drawn with.
        square: some value has an axis squared.
    """
    rng = random.Random(seed * 7919 + 1)  # noqa: S311  not a secret
    axes, numbers = axes_of(model), numbers_of(model.graph)
    while True:
        sizes = _sizes(rng, axes, numbers, square=square)
        odd = rng.random() < 0.15
        yield case_at(model, sizes, rng, odd=odd)


def case_at(model: onnx.ModelProto, sizes: Mapping[str, int], rng: random.Random, *, odd: bool = False) -> Case:
    """Draw values of given sizes; with `odd`, masks get other numbers than 0 and 1."""
    feeds = {value.name: _values(rng, value, _shape(value, sizes), odd=odd) for value in real_inputs(model)}
    return Case(sizes, feeds, any("mask" in name and _is_odd(array) for name, array in feeds.items()))


def _is_odd(mask: Array) -> bool:
    if mask.ndim != 2 or mask.dtype.kind == "f" or not mask.size:
        return False
    return bool(np.any((mask != 0) & (mask != 1)) or np.any(np.all(mask == 0, axis=-1)))


def _sizes(rng: random.Random, axes: Mapping[str, list[Place]], numbers: list[int], *, square: bool) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, places in axes.items():
        small = len(axes) > 1 and all(index == 0 for _, index in places)
        way = rng.random()
        if way < (0.9 if small else 0.15):
            sizes[name] = rng.choice(SMALL) if rng.random() < 0.9 else 7
        elif way < 0.6 and numbers and not small:
            number = rng.choice(numbers)
            sizes[name] = min(LONGEST, rng.choice((number - 1, number, number + 1, 2 * number + 1, number // 2 + 1)))
        else:
            sizes[name] = round(float(np.exp(rng.uniform(np.log(4), np.log(LONGEST)))))
    sizes |= _as_if_named(rng, axes, sizes)
    if "b2" in sizes:  # broadcasting: equal to the other one, or one
        others = [size for name, size in sizes.items() if name != "b2"]
        sizes["b2"] = rng.choice((1, others[0])) if others else 1
    return _within_memory(sizes, square=square)


def _as_if_named(rng: random.Random, axes: Mapping[str, list[Place]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return in half of all cases one size for the axes without a name at each place: mostly they are one axis."""
    places = {name: places[0][1] for name, places in axes.items() if name.endswith("]")}
    if len(places) == len(set(places.values())) or rng.random() < 0.5:
        return {}
    first = {place: sizes[name] for name, place in reversed(places.items())}
    return {name: first[place] for name, place in places.items()}


def _within_memory(sizes: dict[str, int], *, square: bool) -> dict[str, int]:
    """Shrink the largest axes until the tensors fit."""

    def cost() -> float:
        entries = float(np.prod([max(1, size) for size in sizes.values()])) * 16
        longest = max(sizes.values(), default=1)
        return max(entries / MOST_ENTRIES, entries / 16 * longest / MOST_SQUARES if square else 0.0)

    while cost() > 1:
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] = sizes[largest] * 2 // 3
    return sizes


def _shape(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else sizes[dim.dim_param or f"{value.name}[{index}]"]
        for index, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def _values(rng: random.Random, value: onnx.ValueInfoProto, shape: tuple[int, ...], *, odd: bool) -> Array:
    drawn = np.random.default_rng(rng.randrange(2**31))
    kind = value.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if "mask" in value.name:
        return _mask(rng, drawn, shape, odd=odd).astype(dtype)
    if kind == TensorProto.BOOL:
        return drawn.integers(0, 2, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return drawn.integers(0, VOCABULARY, shape).astype(dtype)
    way = rng.randrange(6)
    if way == 0:
        return np.full(shape, 0.5, dtype)
    if way == 1:
        return drawn.integers(-3, 4, shape).astype(dtype)
    scale = (1.0, 1.0, 8.0, 1e-2)[way - 2]
    return np.asarray(drawn.standard_normal(shape) * scale, dtype)


def _mask(rng: random.Random, drawn: np.random.Generator, shape: tuple[int, ...], *, odd: bool) -> Array:
    """Return zeros and ones: all seen, padded on a side, with holes, rows that see nothing; or other numbers."""
    if odd:
        return drawn.choice(np.array([0.0, 1.0, 2.0, -1.0, 0.3]), shape)
    mask = np.ones(shape)
    way = rng.randrange(6)
    length = shape[-1] if shape else 0
    if way in (1, 2) and length:
        seen = drawn.integers(0 if rng.random() < 0.3 else 1, length + 1, (*shape[:-1], 1))
        places = np.arange(length) if way == 1 else np.arange(length)[::-1]
        mask = (places < seen).astype(np.float64)
    elif way in (3, 4):
        mask = drawn.integers(0, 2, shape).astype(np.float64)
    elif way == 5 and len(shape) > 1 and shape[0]:
        mask[rng.randrange(shape[0])] = 0  # a row that sees nothing
    return mask

"""Operators that move, cut, join, repeat and count elements, and the arithmetic of shapes around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxopt.sizes.facts import LARGEST_ELEMENTS, UNKNOWN, Fact, as_array, of_array, of_elements, of_rank
from onnxopt.sizes.rules import Step, joined, parts_of, place_of, rule, together
from onnxopt.sizes.terms import (
    BOOL,
    ENDLESS,
    INT,
    Number,
    Size,
    add,
    at_least,
    call,
    copied,
    divide,
    exact_quotient,
    fresh,
    is_constant,
    largest,
    multiply,
    not_negative,
    pos,
    product,
    smallest,
    subtract,
)


@rule("Shape")
def _shape(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [of_rank(1)]
    start, end = int(step.attribute("start") or 0), step.node.attributes.get("end")
    return [of_elements(dims[slice(start, None if end is None else end.as_int())], INT)]


@rule("Size")
def _size(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    return [Fact(()) if dims is None else of_elements([product(dims)], INT, ())]


@rule("Reshape")
def _reshape(step: Step) -> Sequence[Fact]:
    before, target = step.dims(0), step.whole(1)
    if target is None:
        length = step.dims(1)
        return [of_rank(length[0]) if length and isinstance(length[0], int) else UNKNOWN]
    fact = step.fact(0)
    dims = _reshaped(before, target, copies=not step.attribute("allowzero"))
    return [Fact(dims, fact.elements, fact.dtype)]


def _reshaped(before: Sequence[Size] | None, target: Sequence[Size], *, copies: bool) -> tuple[Size, ...]:
    """Return the dimensions that a Reshape gives.

    A dimension that is 0 in the target copies that of the input, unless `allowzero` is set; so does a term that is 0 at
    a size of 0.
    """
    dims: list[Size] = []
    for place, size in enumerate(target):
        known = before[place] if before is not None and place < len(before) else None
        if size == 0 and copies:
            dims.append(known if known is not None else fresh())
        elif isinstance(size, int) or not copies or at_least(size, 1) or known == size or known is None:
            dims.append(size)
        else:
            dims.append(size if _zero_together(size, known) else copied(size, known))
    if -1 not in dims:
        return tuple(dims)
    place = dims.index(-1)
    rest = product(size for other, size in enumerate(dims) if other != place)
    dims[place] = fresh() if before is None else _left(before, rest)
    return tuple(dims)


def _zero_together(size: Size, other: Size) -> bool:
    """Tell whether one size is 0 wherever the other is, as a part of a product is."""
    return exact_quotient(other, size) is not None


def _left(before: Sequence[Size], rest: Size) -> Size:
    """Return what -1 stands for; where the rest is 0, the runtime refuses."""
    return divide(product(before), rest) if rest != 0 else fresh()


@rule("Flatten")
def _flatten(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [of_rank(2)]
    given = step.attribute("axis")
    axis = 1 if given is None else int(given)
    axis = axis + len(dims) if axis < 0 else axis
    return [Fact((product(dims[:axis]), product(dims[axis:])))]


@rule("Squeeze")
def _squeeze(step: Step) -> Sequence[Fact]:
    dims, axes = step.dims(0), step.axes(1)
    if dims is None or axes is None:
        return [UNKNOWN]
    fact = step.fact(0)
    if not axes:
        if not all(isinstance(size, int) or at_least(size, 2) for size in dims):
            return [UNKNOWN]  # an axis goes wherever it happens to be 1
        return [Fact(tuple(size for size in dims if size != 1), fact.elements, fact.dtype)]
    gone = {place_of(axis, len(dims)) for axis in axes}
    return [Fact(tuple(size for place, size in enumerate(dims) if place not in gone), fact.elements, fact.dtype)]


@rule("Unsqueeze")
def _unsqueeze(step: Step) -> Sequence[Fact]:
    dims, axes = step.dims(0), step.axes(1)
    if dims is None or axes is None:
        return [UNKNOWN]
    rank = len(dims) + len(axes)
    places = {place_of(axis, rank) for axis in axes}
    rest = iter(dims)
    fact = step.fact(0)
    return [Fact(tuple(1 if place in places else next(rest) for place in range(rank)), fact.elements, fact.dtype)]


@rule("Transpose")
def _transpose(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    perm = step.attribute("perm")
    fact = step.fact(0)
    order = list(perm) if perm is not None else list(range(len(dims)))[::-1]
    array = as_array(fact)
    if array is not None:
        return [of_array(array.transpose(order), fact.dtype)]
    return [Fact(tuple(dims[place] for place in order))]


@rule("Expand")
def _expand(step: Step) -> Sequence[Fact]:
    dims, target = step.dims(0), step.whole(1)
    fact = step.fact(0)
    if dims is None or target is None:
        length = step.dims(1)
        if dims is None or not length or not isinstance(length[0], int):
            return [UNKNOWN]
        return [of_rank(max(len(dims), length[0]))]
    made = together(dims, target)
    repeated = _repeated(fact.elements, made)
    return [Fact(made, repeated, fact.dtype if repeated is not None else "")]


def _repeated(elements: Sequence[Number] | None, dims: Sequence[Size] | None) -> tuple[Number, ...] | None:
    """Return the elements of a tensor that repeats a single one."""
    if elements is None or len(elements) != 1 or dims is None or not all(isinstance(size, int) for size in dims):
        return None
    count = math.prod(dims)  # type: ignore[arg-type]  # constants
    return tuple(elements) * count if len(dims) < 2 and 0 <= count <= LARGEST_ELEMENTS else None


@rule("Tile")
def _tile(step: Step) -> Sequence[Fact]:
    dims, repeats = step.dims(0), step.whole(1)
    if dims is None:
        return [UNKNOWN]
    if repeats is None or len(repeats) != len(dims):
        return [of_rank(len(dims))]
    fact = step.fact(0)
    count = repeats[0] if len(repeats) == 1 and isinstance(repeats[0], int) else 0
    if fact.elements is not None and 0 < count * len(fact.elements) <= LARGEST_ELEMENTS and len(dims) == 1:
        return [of_elements(fact.elements * count, fact.dtype)]
    return [Fact(tuple(multiply(size, times) for size, times in zip(dims, repeats, strict=True)))]


@rule("Concat")
def _concat(step: Step) -> Sequence[Fact]:
    return [joined(step.inputs, int(step.attribute("axis") or 0))]


@rule("Split")
def _split(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return []
    axis = place_of(int(step.attribute("axis") or 0), len(dims))
    count = len(step.node.outputs)
    given = step.node.attributes.get("split")
    sizes: Sequence[Size] | None = tuple(given.as_ints()) if given is not None else step.whole(1)
    if given is None and not step.has(1):
        sizes = _even_parts(dims[axis], count)
    elif sizes is None or len(sizes) != count:
        sizes = [fresh() for _ in range(count)]
    return parts_of(step.fact(0), axis, sizes)


def _even_parts(size: Size, count: int) -> list[Size]:
    """Return the sizes of equal parts; the last is what is left over."""
    part = exact_quotient(size, count)
    if part is not None:
        return [part] * count
    each = divide(add(size, count - 1), count)
    return [*[each] * (count - 1), subtract(size, multiply(each, count - 1))]


@rule("Slice")
def _slice(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    bounds = _bounds(step, len(dims))
    if bounds is None:
        return [of_rank(len(dims))]
    made = list(dims)
    for axis, start, end, stride in bounds:
        made[axis] = _taken(dims[axis], start, end, stride)
    fact = step.fact(0)
    array = as_array(fact)
    if array is not None and all(isinstance(bound, int) for _, *ends, _ in bounds for bound in ends):
        cuts = {axis: _python_slice(int(start), int(end), stride) for axis, start, end, stride in bounds}  # type: ignore[arg-type]  # constants
        return [of_array(array[tuple(cuts.get(axis, slice(None)) for axis in range(len(dims)))], fact.dtype)]
    return [Fact(tuple(made))]


def _python_slice(start: int, end: int, stride: int) -> slice:
    """Return the Python slice of the same elements: an end before the first element is written as None there."""
    return slice(start, None if stride < 0 and end < -ENDLESS else end, stride)


def _bounds(step: Step, rank: int) -> list[tuple[int, Size, Size, int]] | None:
    """Return axis, start, end and stride of each sliced axis; None where axes or strides are not constant.

    A bound that only data tells becomes a number of its own.
    """
    given = step.node.attributes.get("starts")
    if given is not None:  # up to opset 9
        starts: Sequence[Size] = given.as_ints()
        ends: Sequence[Size] = step.node.attributes["ends"].as_ints()
        axes: Sequence[int] | None = step.axes(len(step.node.inputs)) or range(len(starts))
        strides: Sequence[int] | None = [1] * len(starts)
    else:
        count = _count(step, 1)
        if count is None:
            return None
        starts, ends = step.whole(1) or _any(count), step.whole(2) or _any(count)
        axes = step.constants(3) if step.has(3) else range(count)
        strides = step.constants(4) if step.has(4) else [1] * count
    if axes is None or strides is None or 0 in strides or not len(axes) == len(strides) == len(starts) == len(ends):
        return None
    places = [place_of(axis, rank) for axis in axes]
    return list(zip(places, starts, ends, strides, strict=True))


def _count(step: Step, index: int) -> int | None:
    dims = step.dims(index)
    return dims[0] if dims and isinstance(dims[0], int) else None


def _any(count: int) -> list[Size]:
    return [subtract(fresh(), fresh()) for _ in range(count)]  # of either sign


def _taken(size: Size, start: Size, end: Size, stride: int) -> Size:
    """Return how many entries a Slice takes of an axis; ONNX operator Slice-13."""
    if stride > 0:
        first, last = (_clamped(bound, size, 0, size) for bound in (start, end))
        span = subtract(last, first)
    else:
        top = subtract(size, 1)
        first, last = _clamped(start, size, 0, top), _clamped(end, size, -1, top)
        span = subtract(first, last)
    steps = abs(stride)
    return pos(span) if steps == 1 else divide(add(pos(span), steps - 1), steps)


def _clamped(bound: Size, size: Size, low: int, high: Size) -> Size:
    """Return a bound counted from the front, within what there is."""
    if isinstance(bound, int):
        if bound >= ENDLESS:
            return high
        if bound <= -ENDLESS:
            return low
    if not_negative(bound):
        counted = bound
    elif not_negative(subtract(-1, bound)):
        counted = add(bound, size)
    else:
        below = call("less", BOOL, bound, 0)
        counted = call("where", INT, below, add(bound, size), bound)  # type: ignore[assignment]  # an int64 call is a size
    return smallest(largest(counted, low), high)


@rule("Gather")
def _gather(step: Step) -> Sequence[Fact]:
    data, indices = step.dims(0), step.dims(1)
    if data is None or indices is None:
        return [UNKNOWN]
    axis = place_of(int(step.attribute("axis") or 0), len(data))
    dims = (*data[:axis], *indices, *data[axis + 1 :])
    fact, places = step.fact(0), step.constants(1)
    elements = fact.elements if len(data) == 1 and len(indices) <= 1 else None
    if elements is None or places is None or any(not -len(elements) <= place < len(elements) for place in places):
        return [Fact(dims)]
    return [Fact(dims, tuple(elements[place] for place in places), fact.dtype)]


@rule("GatherElements")
def _gather_elements(step: Step) -> Sequence[Fact]:
    return [Fact(step.dims(1))]


@rule("GatherND")
def _gather_nd(step: Step) -> Sequence[Fact]:
    data, indices = step.dims(0), step.dims(1)
    if data is None or indices is None or not indices or not isinstance(indices[-1], int):
        return [UNKNOWN]
    skipped = int(step.attribute("batch_dims") or 0)
    return [Fact((*indices[:-1], *data[skipped + indices[-1] :]))]


@rule("Range")
def _range(step: Step) -> Sequence[Fact]:
    bounds = [step.fact(index) for index in range(3)]
    if any(bound.elements is None or len(bound.elements) != 1 for bound in bounds):
        return [of_rank(1)]
    start, limit, delta = ((bound.elements or (0,))[0] for bound in bounds)
    if all(map(is_constant, (start, limit, delta))) and delta:
        return [_counted(step.fact(0).dtype, float(start), float(limit), float(delta))]  # type: ignore[arg-type]  # constants
    if step.fact(0).dtype != INT or not isinstance(delta, int) or delta == 0:
        return [of_rank(1)]
    span = subtract(limit, start) if delta > 0 else subtract(start, limit)  # type: ignore[arg-type]  # int64 elements
    count = pos(span) if abs(delta) == 1 else divide(add(pos(span), abs(delta) - 1), abs(delta))
    if isinstance(count, int) and count <= LARGEST_ELEMENTS:
        return [of_elements([add(start, delta * place) for place in range(count)], INT)]  # type: ignore[arg-type]  # same
    return [Fact((count,))]


def _counted(dtype: str, start: float, limit: float, delta: float) -> Fact:
    """Return a Range of constants; ONNX operator Range-11."""
    count = max(0, math.ceil((limit - start) / delta))
    if count > LARGEST_ELEMENTS:
        return Fact((count,))
    numbers = np.asarray([start + delta * place for place in range(count)]).astype(dtype)
    return of_elements(numbers.tolist() if dtype == INT else list(numbers), dtype)


@rule("ConstantOfShape")
def _constant_of_shape(step: Step) -> Sequence[Fact]:
    target = step.whole(0)
    if target is None:
        length = step.dims(0)
        return [of_rank(length[0]) if length and isinstance(length[0], int) else UNKNOWN]
    given = step.node.attributes.get("value")
    tensor = given.as_tensor() if given is not None else None
    value: Number | None = None
    dtype = "float32"
    if tensor is not None:
        array = tensor.numpy()
        dtype = INT if array.dtype.kind in "iu" else BOOL if array.dtype.kind == "b" else ""
        value = array.reshape(-1)[0].item() if dtype else None
    elements = _repeated([value] if value is not None else None, target)
    return [Fact(tuple(target), elements, dtype if elements is not None else "")]


@rule("OneHot")
def _one_hot(step: Step) -> Sequence[Fact]:
    dims, depth = step.dims(0), step.whole(1)
    if dims is None:
        return [UNKNOWN]
    given = step.attribute("axis")
    axis = place_of(-1 if given is None else int(given), len(dims) + 1)
    return [Fact((*dims[:axis], depth[0] if depth else fresh(), *dims[axis:]))]


@rule("Pad")
def _pad(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    given = step.node.attributes.get("pads")
    pads: Sequence[Size] | None = given.as_ints() if given is not None else step.whole(1)
    axes = step.constants(3) if step.has(3) else tuple(range(len(dims)))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return [of_rank(len(dims))]
    made = list(dims)
    for place, axis in enumerate(axes):
        where = place_of(axis, len(dims))
        made[where] = add(add(made[where], pads[place]), pads[place + len(axes)])
    return [Fact(tuple(made))]


@rule("DepthToSpace", "SpaceToDepth")
def _space(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None or len(dims) != 4:
        return [of_rank(4)]
    block = int(step.attribute("blocksize"))
    batch, channels, height, width = dims
    if step.node.op_type == "DepthToSpace":
        return [Fact((batch, divide(channels, block * block), multiply(height, block), multiply(width, block)))]
    return [Fact((batch, multiply(channels, block * block), divide(height, block), divide(width, block)))]


@rule("NonZero")
def _non_zero(step: Step) -> Sequence[Fact]:
    rank = step.fact(0).rank
    return [Fact((max(1, rank) if rank is not None else fresh(), fresh()))]


@rule("Unique")
def _unique(step: Step) -> Sequence[Fact]:
    dims, axis = step.dims(0), step.node.attributes.get("axis")
    found = fresh()
    if axis is None:
        whole = (product(dims),) if dims is not None else (fresh(),)
        return [Fact((found,)), Fact((found,)), Fact(whole), Fact((found,))]
    if dims is None:
        return [UNKNOWN, Fact((found,)), of_rank(1), Fact((found,))]
    place = place_of(axis.as_int(), len(dims))
    return [
        Fact((*dims[:place], found, *dims[place + 1 :])),
        Fact((found,)),
        Fact((dims[place],)),
        Fact((found,)),
    ]


@rule("Compress")
def _compress(step: Step) -> Sequence[Fact]:
    dims, axis = step.dims(0), step.node.attributes.get("axis")
    if axis is None:
        return [of_rank(1)]
    if dims is None:
        return [UNKNOWN]
    place = place_of(axis.as_int(), len(dims))
    return [Fact((*dims[:place], fresh(), *dims[place + 1 :]))]


@rule("TopK")
def _top_k(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return []
    given = step.attribute("axis")
    place = place_of(-1 if given is None else int(given), len(dims))
    asked = step.node.attributes.get("k")
    count: Size | None = asked.as_int() if asked is not None else (step.whole(1) or (None,))[0]
    made = Fact((*dims[:place], fresh() if count is None else count, *dims[place + 1 :]))
    return [made, made]


@rule("NonMaxSuppression")
def _suppressed(step: Step) -> Sequence[Fact]:
    del step
    return [Fact((fresh(), 3))]


@rule("ArgMax", "ArgMin", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2")
def _reduce(step: Step) -> Sequence[Fact]:
    return _reduced(step)


@rule("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
def _reduce_more(step: Step) -> Sequence[Fact]:
    return _reduced(step)


_REDUCED = {"ReduceMax": "max", "ReduceMin": "min", "ReduceSum": "add", "ReduceProd": "mul"}


def _reduced(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    keep = step.attribute("keepdims") != 0
    if step.node.op_type.startswith("Arg"):
        axes: tuple[int, ...] | None = (int(step.attribute("axis") or 0),)
    else:
        axes = step.axes(1)
    if axes is None:
        return [of_rank(len(dims)) if keep else UNKNOWN]
    fact = step.fact(0)
    if not axes and step.attribute("noop_with_empty_axes"):
        return [fact]
    gone = {place_of(axis, len(dims)) for axis in axes} if axes else set(range(len(dims)))
    kept = tuple(1 if place in gone else size for place, size in enumerate(dims) if keep or place not in gone)
    name = _REDUCED.get(step.node.op_type, "")
    if name and fact.elements and len(dims) == 1 and gone:
        total = fact.elements[0]
        for one in fact.elements[1:]:
            total = call(name, fact.dtype, total, one)
        return [Fact(kept, (total,), fact.dtype)]
    return [Fact(kept)]

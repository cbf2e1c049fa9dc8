"""Hold a replacement to a rule's contract, row by row, and no further from it than rounding can explain.

A contract speaks of rounding: what is added up in another order differs by a share of what is added up. The largest
magnitude of a row (the vector along the last axis, over which layers add up, normalize and weigh) stands for that, so a
small row is held to its own size and cannot hide behind a large one. Where terms cancel, a row is smaller than what it
was added up from, and where a softmax saturates, a rounding ahead of it becomes much more than one behind it. How much
more is found by trying: the replaced region runs on inputs that are moved by two roundings, and each row may differ by
a few times what that did to it, up to a fixed multiple of the contract.

Only activations are moved. A mask decides, it does not round: finfo.min moved by one part in four million outweighs
every score there is, a row of equal weights becomes a row of one, and any difference would be forgiven.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, Region, constant, is_constant, is_op
from onnxopt.qmath.compare import MASK_LIKE, PIECE, difference, sqnr_db
from onnxopt.spec import SQNR, Array, Exact, Lossy, Numerics, Reassociated

UNITS = 2  # in the last place: what two roundings make of a number at most
SENSITIVITY_FACTOR = 4.0  # inputs are moved by chance, roundings add up as they like
MOST_WIDENING = 64.0  # times the contract, whatever the region makes of roundings
DRAWS = 3  # a single one may leave a short row where it is
LARGEST: Mapping[str, float] = {"float16": 6e4}  # that is made up, so that none is infinite
LARGEST_OTHERS = 3e38
LARGEST_NUMBER = 1024  # elements of a constant that is looked through for such a size

# Inputs of operators that say which keys are seen, by domain and operator.
MASK_PLACES: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (3,),
    (CONTRIB, "Attention"): (3, 5),
    (CONTRIB, "MultiHeadAttention"): (4, 5),
    (CONTRIB, "GroupQueryAttention"): (5, 6, 10),
}


@dataclass(frozen=True)
class Verdict:
    """What comparing has shown so far.

    Attributes:
        reason: why the replacement does not stay; empty while it may.
        error: the worst one, relative to the largest magnitude of the reference.
        values: the inputs that refute it.
    """

    reason: str = ""
    error: float = 0.0
    values: dict[ir.Value, Array] | None = None


@dataclass(frozen=True)
class Rows:
    """How far a tensor is from another, for each vector along the last axis that is longer than one.

    Attributes:
        moved: float64 [rows], the largest difference; inf where NaN or infinities lie elsewhere.
        size: float64 [rows], the largest finite magnitude of the reference.
    """

    moved: Array
    size: Array


def by_rows(candidate: Array, reference: Array) -> Rows:
    """Compare two tensors of one shape, some rows at a time, since each step in float64 needs twice their memory.

    Args:
        candidate: numbers.
        reference: numbers; every row of another shape is infinitely far away.
    """
    width = next((size for size in reversed(reference.shape) if size != 1), 1)
    count = reference.size // width if width else 0
    moved, size = np.zeros(count), np.zeros(count)
    if candidate.shape != reference.shape or reference.dtype.kind in "OUS":
        return Rows(np.full(count, np.inf), size)
    left, right = candidate.reshape(count, width), reference.reshape(count, width)
    step = max(1, PIECE // max(1, width))
    for start in range(0, count, step):
        part = slice(start, start + step)
        new, old = left[part].astype(np.float64), right[part].astype(np.float64)
        finite = np.isfinite(old)
        same = (new == old) | (np.isnan(new) & np.isnan(old))
        apart = np.full(old.shape, np.inf)
        np.subtract(new, old, out=apart, where=finite & np.isfinite(new))
        moved[part] = np.where(same, 0.0, np.abs(apart)).max(axis=1)
        size[part] = np.abs(np.where(finite, old, 0.0)).max(axis=1)
    return Rows(moved, size)


def compare(
    numerics: Numerics,
    old: Sequence[Array],
    new: Sequence[Array],
    so_far: float,
    values: dict[ir.Value, Array],
    *,
    moved: Sequence[Array] | None = None,
) -> Verdict:
    """Compare outputs under a contract.

    Args:
        numerics: the contract.
        old: outputs of what is replaced.
        new: outputs of the replacement.
        so_far: the worst error that was met before.
        values: the inputs, kept with a refutation.
        moved: float64 [rows] for each output, what roundings of the inputs do to its rows.
    """
    worst = so_far
    for index, (reference, candidate) in enumerate(zip(old, new, strict=True)):
        absolute, scale = difference(candidate, reference)
        relative = absolute / scale if scale > 0 else (0.0 if absolute == 0 else math.inf)
        refuted = Verdict(_difference(numerics, candidate, reference, relative), relative, values)
        if candidate.dtype != reference.dtype:
            return refuted
        if isinstance(numerics, Lossy):
            if not math.isfinite(absolute):
                return refuted
            if numerics.metric == SQNR and (found := sqnr_db(candidate, reference)) < numerics.floor:
                return Verdict(f"signal to noise {found:.1f} dB, contract {numerics}", relative, values)
            worst = max(worst, relative)
        elif isinstance(numerics, Exact):
            if absolute > 0:
                return refuted
        elif not _within(numerics, candidate, reference, (absolute, scale), moved[index] if moved else None):
            return refuted
        else:
            worst = max(worst, 0.0 if absolute <= numerics.atol else relative)
    return Verdict("", worst)


def _within(
    numerics: Reassociated, candidate: Array, reference: Array, whole: tuple[float, float], moved: Array | None
) -> bool:
    """Tell whether every row is as near as the contract wants it.

    |new - old| <= atol + rtol * max|row| + two roundings of max|tensor| + what roundings of the inputs explain, which
    is at most 64 * (atol + rtol * max|tensor|).
    """
    absolute, scale = whole
    rounding = UNITS * _unit(reference) * scale
    if absolute <= numerics.atol + rounding:
        return True
    if not math.isfinite(absolute):
        return False
    rows = by_rows(candidate, reference)
    allowed = numerics.atol + numerics.rtol * rows.size + rounding
    if moved is not None:
        most = MOST_WIDENING * (numerics.atol + numerics.rtol * scale)
        allowed += np.minimum(SENSITIVITY_FACTOR * np.where(np.isfinite(moved), moved, 0.0), most)
    return bool((rows.moved <= allowed).all())


def _difference(numerics: Numerics, candidate: Array, reference: Array, relative: float) -> str:
    if candidate.shape != reference.shape or candidate.dtype != reference.dtype:
        return (
            f"the replacement gives {candidate.dtype}{list(candidate.shape)}, "
            f"the replaced region gave {reference.dtype}{list(reference.shape)}"
        )
    return f"worst relative error {relative:.3g}, contract {numerics}"


# Inputs that are moved, and inputs that are drawn


def shaken(values: Mapping[ir.Value, Array], fixed: Collection[ir.Value], draw: int) -> dict[ir.Value, Array]:
    """Move every activation by up to two units in its last place.

    Args:
        values: inputs of regions.
        fixed: those among them that decide instead of being counted in (`mask_inputs`).
        draw: which of the movements; each input has its own, which follows from its name.
    """
    found: dict[ir.Value, Array] = {}
    for value, array in values.items():
        stays = value in fixed or not _is_float(array) or is_switch(array)
        found[value] = array if stays else _moved(array, _drawn(value, draw))
    return found


def _moved(array: Array, generator: np.random.Generator) -> Array:
    wide = array.astype(np.float64)
    free = np.isfinite(wide) & (np.abs(wide) < MASK_LIKE)
    step = generator.uniform(-1, 1, array.shape) * (UNITS * _unit(array))
    return np.where(free, wide * (1 + step), wide).astype(array.dtype)


def noise_like(captured: Mapping[ir.Value, Array], scale: float, seed: int) -> dict[ir.Value, Array]:
    """Return the captured values with activations replaced by noise of their spread times `scale`.

    What decides stays: masks, lengths, counts, places, a single number that something is compared or scaled with.

    Args:
        captured: inputs of regions.
        scale: of the noise.
        seed: which noise; each input has its own, which follows from its name.
    """
    noise: dict[ir.Value, Array] = {}
    for value, array in captured.items():
        if not _is_float(array) or array.size < 2 or is_switch(array) or not _is_tame(array):
            noise[value] = array
            continue
        drawn = _drawn(value, seed).standard_normal(array.shape, np.float32)
        drawn *= (float(array.astype(np.float32).std()) or 1.0) * scale
        most = LARGEST.get(array.dtype.name, LARGEST_OTHERS)
        noise[value] = np.clip(drawn, -most, most).astype(array.dtype, copy=False)
    return noise


def is_switch(array: Array) -> bool:
    """Tell whether floats decide or count instead of being added up: each is a whole number, or infinite.

    That is so of masks of 0 and 1, of 0 and -10000 or finfo.min, of lengths, counts and places.
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        part = flat[start : start + PIECE]
        part = part[np.isfinite(part)]
        if not np.array_equal(part, np.rint(part)):
            return False
    return True


def _is_tame(array: Array) -> bool:
    """Tell whether floats are finite, and none is what hides a key."""
    wide = array.astype(np.float32)
    return bool(np.isfinite(wide).all()) and float(wide.min(initial=0.0)) > -MASK_LIKE


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _unit(array: Array) -> float:
    """Return the unit in the last place of 1, of float32 for what is finer or no float."""
    narrow = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
    return narrow.get(array.dtype.name, 2.0**-23)


def _drawn(value: ir.Value, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32((value.name or "").encode())))


# Which inputs are masks, by what is done to them


def mask_inputs(parts: Iterable[Region]) -> list[ir.Value]:
    """Return the inputs of regions that say which keys are seen: by their place in an attention, or by their use.

    What is multiplied or divided by a number as large as a mask's, or chooses one, makes a mask.
    """
    found: dict[ir.Value, None] = {}
    for part in parts:
        inputs, made = set(part.inputs), {value: node for node in part.nodes for value in node.outputs}
        stack = [value for node in part.nodes for value in _deciding(node) if value is not None]
        seen: set[ir.Value] = set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in inputs:
                found[value] = None
            if value in made:
                stack.extend(parent for parent in made[value].inputs if parent is not None)
    return list(found)


def _deciding(node: ir.Node) -> list[ir.Value | None]:
    """Return the inputs of a node that decide which keys are seen."""
    places = MASK_PLACES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    if places is not None:
        return [node.inputs[place] for place in places if place < len(node.inputs)]
    if is_op(node, "Where") and any(map(_is_mask_like, node.inputs[1:])):
        return [node.inputs[0]]
    if is_op(node, "Mul", "Div") and any(map(_is_mask_like, node.inputs)):
        return [value for value in node.inputs if not is_constant(value)]
    return []


def _is_mask_like(value: ir.Value | None) -> bool:
    """Tell whether a value is a small constant that holds a number as large as those of masks."""
    if value is None or not is_constant(value) or value.dtype is None or not value.dtype.is_floating_point():
        return False
    tensor = value.const_value
    if tensor is not None and tensor.size > LARGEST_NUMBER:
        return False
    array = constant(value)
    return array is not None and bool((np.abs(array.astype(np.float64)) >= MASK_LIKE).any())

"""Find out what inputs and axes do by trying, whatever they are called.

A padding mask is an input whose zeros switch positions off: what stands there no longer reaches any other position.
The axis that it covers holds positions (`sequence`; with a cache `total_sequence`). Along a batch axis rows do not
touch each other. Inside onnxopt an axis with such a role has the usual name; files and messages keep that of the user.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from onnxopt.graph.cache import BATCH, PAST, SEQUENCE, TOTAL
from onnxopt.graph.roles import Role
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan
from onnxopt.load.learn.axis_names import plain_name
from onnxopt.sizes.words import is_plain
from onnxopt.spec import Array, Feeds, TensorSpec, Value

Run = Callable[[Feeds], Feeds | None]
Verdict = Literal["switches off", "no effect", "leaks"]

CANONICAL: Mapping[Role, str] = {"batch": BATCH, "sequence": SEQUENCE, "past": PAST, "total": TOTAL}
SAME = 1e-5  # of the largest value: what rounding may move
CHANGED = 1e-3  # of the largest value: what another text must move at least to say anything
SEED = 7
POSITIONS = 8  # so many are looked at
_CONTENT = ("ids", "float", "integer", "ones")  # kinds of inputs that hold what stands at a position


def structural_roles(plans: Sequence[InputPlan]) -> dict[str, Role]:
    """Return what axes count that the shapes of inputs tell, where no name of an axis speaks of a past.

    A cache is a number of inputs [batch, heads, positions, size] with an open axis that no other input has; a mask over
    past and new positions has an axis of its own.
    """
    if any("past" in str(axis).lower() for plan in plans for axis in plan.spec.axes):
        return {}
    caches = [plan.spec for plan in plans if _is_cache(plan.spec)]
    ids = next((plan.spec for plan in plans if plan.kind == "ids" and _is_plane(plan.spec)), None)
    if len(caches) < 2 or ids is None:
        return {}
    past = str(caches[0].axes[2])
    others = [plan.spec for plan in plans if plan.spec not in caches]
    if any(spec.axes[2] != past for spec in caches) or any(past in spec.axes for spec in others):
        return {}
    roles: dict[str, Role] = {past: "past", str(ids.axes[1]): "sequence", str(ids.axes[0]): "batch"}
    for plan in plans:
        if plan.kind == "mask" and _is_plane(plan.spec):
            roles.setdefault(str(plan.spec.axes[1]), "total")
    return roles


def _is_cache(spec: TensorSpec) -> bool:
    axes = spec.axes
    return (
        len(axes) == 4
        and np.dtype(spec.dtype).kind == "f"
        and isinstance(axes[2], str)
        and isinstance(axes[1], int)
        and isinstance(axes[3], int)
    )


def _is_plane(spec: TensorSpec) -> bool:
    return len(spec.axes) == 2 and all(isinstance(axis, str) for axis in spec.axes)


def find_mask(run: Run, feeder: GraphFeeder) -> tuple[str, GraphFeeder]:
    """Find the padding mask by what its zeros do.

    Args:
        run: the model, None for inputs that it does not take.
        feeder: makes inputs at sizes that run.

    Returns:
        Its name, empty for none, and the feeder that pads it. An input called a mask, of which the model shows neither
        that it switches positions off nor that it does not, is believed; one that leaks is none, so all is compared.
    """
    named = ""
    for plan in sorted(feeder.plans, key=lambda plan: "mask" not in plan.spec.name.lower()):
        if len(plan.spec.axes) != 2 or not isinstance(plan.spec.axes[1], str) or plan.kind in ("positions", "text"):
            continue
        verdict = _switches(run, feeder, plan)
        if verdict == "switches off":
            changed = replace(plan, kind="mask")
            return plan.spec.name, replace(feeder, plans=tuple(changed if one is plan else one for one in feeder.plans))
        if verdict == "no effect" and plan.kind == "mask" and "mask" in plan.spec.name.lower():
            named = named or plan.spec.name
    return named, feeder


def _switches(run: Run, feeder: GraphFeeder, plan: InputPlan) -> Verdict:
    """Tell whether zeros of an input keep what stands at some positions from all the others."""
    name, axis = plan.spec.name, str(plan.spec.axes[1])
    covered = _covered(feeder, axis)
    readers = [one for one in feeder.plans if one is not plan and covered in one.spec.axes and one.kind in _CONTENT]
    wanted = {covered: min(POSITIONS, feeder.limits.get(covered, POSITIONS))}
    usual = feeder.resolve(wanted)
    length = usual.get(covered, 0)
    if not readers or length < 4 or usual.get(axis, 0) < length:
        return "no effect"
    offset = usual[axis] - length  # positions that were seen before
    places = np.array([1, length // 2])
    first = feeder.make(wanted, seed=SEED)
    second = dict(first)
    for reader in readers:
        second[reader.spec.name] = _elsewhere(reader, covered, first[reader.spec.name], places)
    shape = first[name].shape
    ones, zeros = np.ones(shape, first[name].dtype), np.ones(shape, first[name].dtype)
    zeros[:, offset + places] = 0
    results = [run({**feeds, name: mask}) for mask in (ones, zeros) for feeds in (first, second)]
    if any(one is None for one in results):
        return "no effect"
    with_ones, with_zeros = (
        max(_moved(a or {}, b or {}, length, places), default=0.0) for a, b in (results[:2], results[2:])
    )
    if with_zeros > SAME:
        return "leaks"
    return "switches off" if with_ones > CHANGED else "no effect"


def _covered(feeder: GraphFeeder, axis: str) -> str:
    """Return the axis of the new positions: behind a total that of the sequence, else the axis itself."""
    if feeder.role(axis) != "total":
        return axis
    return next((other for other in feeder.axes if feeder.role(other) == "sequence"), axis)


def _elsewhere(plan: InputPlan, axis: str, array: Value, places: Array) -> Value:
    """Return an input with other numbers at some positions of an axis, in each tensor of a sequence."""
    if isinstance(array, list):
        return [_elsewhere(plan, axis, one, places) for one in array]
    other = np.random.default_rng([SEED, zlib.crc32(plan.spec.name.encode())])
    moved = np.array(array)
    view = np.moveaxis(moved, plan.spec.axes.index(axis), 0)
    shape = view[places].shape
    if array.dtype.kind == "f":
        view[places] = other.standard_normal(shape)
    elif plan.rows > 1:
        view[places] = (view[places] + other.integers(1, plan.rows, shape)) % plan.rows
    return moved


def _moved(first: Feeds, second: Feeds, length: int, places: Array) -> Iterator[float]:
    """Yield how far each output moved away from the changed positions, relative to its largest value."""
    rest = np.setdiff1d(np.arange(length), places)
    for name, array in first.items():
        other = second.get(name)  # a sequence may have another length
        if other is None or array.shape != other.shape or array.dtype.kind != "f":
            continue
        for axis in (index for index, size in enumerate(array.shape) if size == length and index > 0):
            array, other = np.take(array, rest, axis), np.take(other, rest, axis)  # noqa: PLW2901
            break
        yield _distance(array, other)


def _distance(first: Array, second: Array) -> float:
    a, b = first.astype(np.float64), second.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    scale = float(np.max(np.abs(a[both]), initial=0.0))
    return float(np.max(np.abs(a - b)[both], initial=0.0)) / (scale or 1.0)


def find_batch(run: Run, feeder: GraphFeeder) -> str:
    """Return the axis along which rows do not touch each other, when no axis is called a batch; empty for none."""
    named = next((axis for axis in feeder.axes if feeder.role(axis) == "batch"), "")
    # rows of numbers alone may be frames of a sound: a batch is told by what each of its rows has more of
    firsts = [plan.spec.axes[0] for plan in feeder.plans if sum(isinstance(axis, str) for axis in plan.spec.axes) > 1]
    usual = feeder.resolve({})
    for axis in [named] if named else dict.fromkeys(one for one in firsts if isinstance(one, str)):
        if named or (usual.get(axis, 0) > 1 and _rows_apart(run, feeder, axis)):
            return axis
    return ""


def _rows_apart(run: Run, feeder: GraphFeeder, axis: str) -> bool:
    first = feeder.make({}, seed=SEED)
    second = dict(first)
    own = [plan for plan in feeder.plans if plan.spec.axes[:1] == (axis,) and plan.kind in ("ids", "float", "integer")]
    size = feeder.resolve({})[axis]
    for plan in own:
        second[plan.spec.name] = _elsewhere(plan, axis, first[plan.spec.name], np.array([0]))
    results = run(first), run(second)
    if results[0] is None or results[1] is None:
        return False
    compared = [
        _distance(array[1:], results[1][name][1:])
        for name, array in results[0].items()
        if name in results[1] and array.shape[:1] == (size,) and array.dtype.kind == "f"
    ]
    return bool(compared) and max(compared) <= SAME


def canonical_names(feeder: GraphFeeder, batch: str, mask: str, outputs: Collection[int | str] = ()) -> dict[str, str]:
    """Return what axes are called in here, by the names in the file, where those differ.

    An axis with a role has the usual name. One whose name reads as an expression of others (`x*2`, `a - b`) has a plain
    name: in a graph an expression is a claim. A sum of axes that is one keeps its form.

    Args:
        feeder: knows the axes.
        batch: the axis of rows, empty for none.
        mask: the padding mask, empty for none; what it covers are positions.
        outputs: names of outputs' axes, which no axis of an input gets.
    """
    chosen: dict[Role, str] = {"batch": batch} if batch else {}
    plane = next((plan.spec for plan in feeder.plans if plan.spec.name == mask), None)
    has_past = any(feeder.role(axis) == "past" for axis in feeder.axes)
    if plane is not None and not has_past:
        chosen["sequence"] = str(plane.axes[1])
        chosen |= {"batch": plane.axes[0]} if isinstance(plane.axes[0], str) else {}
    for axis in feeder.axes:
        role = feeder.role(axis)
        if role != "other" and (role not in ("past", "total") or has_past):
            chosen.setdefault(role, axis)
    renamed = {axis: CANONICAL[role] for role, axis in chosen.items() if axis != CANONICAL[role]}
    for axis in feeder.axes:  # a name that another axis bears by chance
        if axis in renamed.values() and axis not in renamed and axis not in chosen.values():
            renamed[axis] = f"{axis}_of_file"
    taken = {*feeder.axes, *renamed.values(), *map(str, outputs)}
    for axis in feeder.axes:
        if axis not in renamed and not is_plain(axis) and not feeder.terms(axis):
            renamed[axis] = plain_name(axis, taken)
            taken.add(renamed[axis])
    return renamed


def renamed_axis(axis: int | str, names: Mapping[str, str]) -> int | str:
    """Return an axis under its new name; of a sum, with the new names of its parts."""
    if not isinstance(axis, str) or axis in names or "+" not in axis:
        return names.get(axis, axis) if isinstance(axis, str) else axis
    return " + ".join(names.get(part.strip(), part.strip()) for part in axis.split("+"))


def renamed_feeder(feeder: GraphFeeder, names: Mapping[str, str]) -> GraphFeeder:
    """Return a feeder whose axes have other names.

    Args:
        feeder: as it is.
        names: new names by the old ones.
    """

    def new(axis: str) -> str:
        return str(renamed_axis(axis, names))

    roles: dict[str, Role] = {new(axis): role for axis, role in feeder.roles.items()}
    others = {axis: name for axis, name in names.items() if name not in CANONICAL.values()}
    roles |= {name: "other" if axis in CANONICAL.values() else feeder.role(axis) for axis, name in others.items()}
    return replace(
        feeder,
        plans=tuple(
            replace(plan, spec=replace(plan.spec, axes=tuple(renamed_axis(axis, names) for axis in plan.spec.axes)))
            for plan in feeder.plans
        ),
        defaults={new(axis): size for axis, size in feeder.defaults.items()},
        limits={new(axis): size for axis, size in feeder.limits.items()},
        tied=tuple(tuple(new(axis) for axis in group) for group in feeder.tied),
        roles=roles,
        names={new(axis): axis for axis in feeder.axes if new(axis) != axis},
    )

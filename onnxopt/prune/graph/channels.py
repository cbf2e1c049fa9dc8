"""Prune a fused graph: choose what goes, set to zero what reads it, and refit what stays. Nothing is cut out here.

The graph that comes out computes what the smaller graph will: the pass `drop-dead-channels` then takes the channels out
and proves that it made no difference. So all that is lossy lies in this file, between two graphs of the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import constant, constant_value, is_constant, is_op
from onnxopt.graph.channels.groups import Channels, Group, Slot
from onnxopt.graph.channels.sizes import static
from onnxopt.graph.channels.walk import find_channels
from onnxopt.graph.weight_files import tensor_of
from onnxopt.probe.runners import GraphRunner
from onnxopt.prune.checkpoint.network import Pruned
from onnxopt.prune.selection import Float, Ints, Moments, activation, allocate, choose, left_error, magnitude, transfer
from onnxopt.prune.spec import Amount, PruneSpec
from onnxopt.records.events import Step
from onnxopt.spec import Array, Feeds, Say

CAPTURED_BYTES = 1 << 28  # of what is read in one run
MOMENTS_BYTES = 1 << 30  # of second moments at a time
LEAST_ROWS = 4  # rows of calibration per channel that stays; with fewer, a refit fits noise
STEPS = 8  # choices of each group when a budget is spread


@dataclass(frozen=True)
class _Job:
    """What pruning one graph needs to know everywhere."""

    model: ir.Model
    spec: PruneSpec
    batches: Sequence[Feeds]
    say: Say
    known: Mapping[str, Moments] | None = None

    def moments(self, values: Sequence[ir.Value]) -> dict[ir.Value, Moments]:
        """Return what is known of values, or run the calibration."""
        if self.known is None:
            return moments_of(self.model, values, self.batches, self.say)
        return {value: self.known[str(value.name)] for value in values if str(value.name) in self.known}


@dataclass(frozen=True)
class _Reader:
    """A weight that reads the members of a group.

    Attributes:
        slot: its axis.
        places: int64 [members, unit], where each member's entries lie along the axis.
        bias: node and input of the constant that is added to what it makes; None without one.
    """

    slot: Slot
    places: Ints
    bias: tuple[ir.Node, int] | None

    @property
    def source(self) -> ir.Value:
        """What it reads."""
        value = self.slot.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.slot.node.name} reads nothing")
        return value

    def weight(self) -> Array:
        """Return float [members·unit, outputs], members in order."""
        return self.slot.rows()[self.places.reshape(-1)]


def prune_channels(
    model: ir.Model,
    spec: PruneSpec,
    batches: Sequence[Feeds],
    say: Say,
    known: Mapping[str, Moments] | None = None,
) -> list[Pruned]:
    """Set to zero what reads the channels, heads and feed-forward channels that go, and refit the rest.

    Args:
        model: sorted, with shapes; weights are changed, shapes are not.
        spec: `ffn`, `heads` and `channels`.
        batches: calibration feeds; where there is an `attention_mask` only real positions count.
        say: told what happens.
        known: moments of values by name, where calibration has been run already.

    Returns:
        What will become smaller, group by group.

    Raises:
        InputError: when the graph has nothing of a kind that was asked for, or all of it would go.
    """
    found = find_channels(model)
    report: list[Pruned] = []
    for kind in ("heads", "ffn", "channels"):
        amount = spec.amounts.get(kind)
        if amount is None:
            continue
        groups = [group for group in found.groups() if group.kind == kind]
        if not groups:
            raise InputError(
                f"no {kind} can go",
                where=f"--prune {kind}",
                hint=_why_not(model, found, kind),
            )
        report += _prune_kind(_Job(model, spec, batches, say, known), groups, amount)
    return report


def read_moments(model: ir.Model, kinds: Sequence[str], batches: Sequence[Feeds], say: Say) -> dict[str, Moments]:
    """Return the moments, by the name of the value, of all that weights read which could lose something."""
    groups = [group for group in find_channels(model).groups() if group.kind in kinds]
    values = [_reader(slot, group).source for group in groups for slot in group.readers()]
    return {str(value.name): moments for value, moments in moments_of(model, values, batches, say).items()}


def _why_not(model: ir.Model, found: Channels, kind: str) -> str:
    if kind == "heads" and any("past" in (value.name or "") for value in model.graph.inputs):
        return "the graph's cache has an entry per head; give the checkpoint, or export it with --no-cache"
    locked = f"{int(found.locked.sum())} of {len(found.locked)} channels meet a norm, an output or an unknown operator"
    return f"{locked}; `onnxopt inspect` lists the operators"


def _prune_kind(job: _Job, groups: Sequence[Group], amount: Amount) -> list[Pruned]:
    spec = job.spec
    readers = [[_reader(slot, group) for slot in group.readers()] for group in groups]
    align = 1 if groups[0].kind == "heads" else spec.align
    seen: dict[ir.Value, Moments] = {}
    if spec.importance != "magnitude" or spec.compensate or spec.allocation == "sensitivity":
        seen = job.moments([one.source for some in readers for one in some])
    counts = [amount.of(len(group.members), align) for group in groups]
    if spec.allocation == "sensitivity":
        counts = _spread(list(zip(groups, readers, counts, strict=True)), align, spec, seen)
    report = []
    for group, some, gone in zip(groups, readers, counts, strict=True):
        if gone >= len(group.members):
            raise InputError(f"{gone} of {len(group.members)} cannot go", where=f"--prune {group.kind}")
        if gone:
            job.say(f"{group.kind} {group.name}: {len(group.members) - gone} of {len(group.members)} stay")
            report.append(_zero(job, group, some, gone, seen))
    return report


def _reader(slot: Slot, group: Group) -> _Reader:
    order = {int(one): place for place, one in enumerate(group.members)}
    places: list[list[int]] = [[] for _ in group.members]
    for entry, one in enumerate(slot.ids):
        if int(one) in order:
            places[order[int(one)]].append(entry)
    return _Reader(slot, np.array(places, np.int64), _bias_of(slot.node))


def _bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Find the constant that is added to the product, one entry per output."""
    if node.op_type in ("Conv", "Gemm"):
        return (node, 2) if len(node.inputs) > 2 and is_constant(node.inputs[2]) else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    user = uses[0].node
    if not is_op(user, "Add"):
        return None
    other = 1 - uses[0].idx
    added = user.inputs[other]
    size = static(node.outputs[0])[-1:]
    return (user, other) if is_constant(added) and static(added) == size else None


def moments_of(
    model: ir.Model, values: Iterable[ir.Value], batches: Sequence[Feeds], say: Say
) -> dict[ir.Value, Moments]:
    """Run calibration feeds and return the moments of values along their channels (the second axis of images)."""
    wanted = [value for value in dict.fromkeys(values) if value.producer() is not None]
    found: dict[ir.Value, Moments] = {}
    for value in wanted:
        found[value] = Moments(int(static(value)[_channel_axis(value)] or 0))
    for number, feeds in enumerate(batches, start=1):
        say(Step.piece("calibration batch", number, len(batches)))
        for some in _fitting(wanted, feeds):
            captured = GraphRunner(model, some, with_outputs=False).run(feeds)[1]
            for value, array in captured.items():
                found[value].add(_rows(value, array, feeds))
    return found


def _channel_axis(value: ir.Value) -> int:
    """Return where the channels are: last for rows of tokens, second for what a convolution reads."""
    convolved = any(use.node.op_type in ("Conv", "ConvTranspose") for use in value.uses())
    return 1 if convolved else len(static(value)) - 1


def _rows(value: ir.Value, array: Array, feeds: Feeds) -> Array:
    """Return float [rows, channels], without positions that the mask excludes."""
    moved = np.moveaxis(array, _channel_axis(value), -1)
    rows: Array = moved.reshape(-1, moved.shape[-1])
    mask = feeds.get("attention_mask")
    if mask is None or mask.all() or mask.size != len(rows):
        return rows
    kept: Array = rows[mask.reshape(-1).astype(bool)]
    return kept


def _fitting(values: Sequence[ir.Value], feeds: Feeds) -> list[list[ir.Value]]:
    positions = max((array.size for array in feeds.values() if array.dtype.kind in "iub"), default=1 << 14)
    each = max(1, CAPTURED_BYTES // max(1, positions * 4 * max(static(value)[-1] or 1 for value in values)))
    return [list(values[start : start + each]) for start in range(0, len(values), each)]


def _centred(reader: _Reader) -> bool:
    return reader.bias is not None


def _enough(moments: Moments | None, kept: int) -> bool:
    return moments is not None and moments.count >= LEAST_ROWS * kept


def _spread(
    wanted: Sequence[tuple[Group, Sequence[_Reader], int]], align: int, spec: PruneSpec, seen: dict[ir.Value, Moments]
) -> list[int]:
    """Spread what would go in all over the groups, more where the output's error grows less."""
    curves, sizes = [], []
    for group, some, gone in wanted:
        members = len(group.members)
        most = min(members - align, 2 * gone)
        steps = sorted({round(most * step / STEPS / align) * align for step in range(STEPS + 1)})
        reader = some[0]
        moments, errors = seen[reader.source], []
        order = _ranked(group, some, spec, seen)
        for step in steps:
            kept = np.sort(order[: members - step])
            entries = reader.places[kept].reshape(-1)
            local = _local(reader, moments)
            errors.append(
                left_error(
                    reader.weight(),
                    local,
                    _inside(reader, entries),
                    centred=_centred(reader),
                    fitted=spec.compensate,
                )
            )
        curves.append(errors)
        sizes.append(steps)
    chosen = allocate(curves, sizes, sum(gone for *_, gone in wanted))
    return [sizes[group][choice] for group, choice in enumerate(chosen)]


def _ranked(group: Group, readers: Sequence[_Reader], spec: PruneSpec, seen: dict[ir.Value, Moments]) -> Ints:
    """Return members from the most to the least important, by a score that needs one look."""
    return np.argsort(-_scores(group, readers, spec, seen), kind="stable")


def _scores(group: Group, readers: Sequence[_Reader], spec: PruneSpec, seen: dict[ir.Value, Moments]) -> Float:
    if spec.importance == "magnitude" or not seen:
        slices = []
        for slot in group.slots:
            places = _reader(slot, group).places
            width = max(1, places.shape[1])
            rows = slot.rows()[places.reshape(-1)]
            slices.append(rows.reshape(len(group.members), width * rows.shape[1]))
        return magnitude(slices)
    total = np.zeros(len(group.members))
    for reader in readers:
        unit = reader.places.shape[1]
        total += np.square(activation(reader.weight(), _local(reader, seen[reader.source]), unit))
    return np.asarray(np.sqrt(total))


def _local(reader: _Reader, moments: Moments) -> Moments:
    """Return the moments of the members' entries alone, in the order of `reader.weight`."""
    places = reader.places.reshape(-1)
    if len(places) == moments.size and np.array_equal(places, np.arange(moments.size)):
        return moments
    local = Moments(len(places))
    local.count, local.total = moments.count, moments.total[places]
    local.second = moments.second[np.ix_(places, places)]
    return local


def _inside(reader: _Reader, entries: Ints) -> Ints:
    """Return where entries of the axis lie among the members' entries."""
    where = {int(place): index for index, place in enumerate(reader.places.reshape(-1))}
    return np.array([where[int(entry)] for entry in entries], np.int64)


def _zero(job: _Job, group: Group, readers: Sequence[_Reader], gone: int, seen: dict[ir.Value, Moments]) -> Pruned:
    """Choose the members of one group that go, set their readers to zero and refit the rest."""
    members, spec, model = len(group.members), job.spec, job.model
    single = len(readers) == 1 and spec.importance == "error" and bool(seen)
    if single:
        reader = readers[0]
        kept = choose(
            "error",
            gone,
            slices=(),
            weight=reader.weight(),
            moments=_local(reader, seen[reader.source]),
            unit=reader.places.shape[1],
            centred=_centred(reader),
        )
    else:
        kept = np.sort(_ranked(group, readers, spec, seen)[: members - gone])
    lost = np.setdiff1d(np.arange(members), kept)
    errors: list[float] = []
    poor = False
    for reader in readers:
        moments = seen.get(reader.source)
        stay, leave = reader.places[kept].reshape(-1), reader.places[lost].reshape(-1)
        fits = spec.compensate and _enough(moments, len(stay))
        poor |= spec.compensate and not fits
        if moments is not None:
            local = _local(reader, moments)
            inside = _inside(reader, stay)
            errors.append(left_error(reader.weight(), local, inside, centred=_centred(reader), fitted=fits))
        _edit(model, reader, stay, leave, moments if fits else None)
    note = "too few calibration rows for a refit" if poor else ""
    return Pruned(group.kind, group.name, members, len(kept), max(errors, default=None), note)


def _edit(model: ir.Model, reader: _Reader, stay: Ints, leave: Ints, moments: Moments | None) -> None:
    """Set the rows that leave to zero; with moments, let the rows that stay, and the bias, make up for them.

    What leaves is written as a linear function of what stays, x_leave ≈ A x_stay + c, which holds position by position
    and so may be put into a kernel of any size.
    """
    slot = reader.slot
    array = np.moveaxis(np.array(constant(slot.value)), slot.axis, 0)
    whole = array.astype(np.float64)
    if moments is not None:
        share, shift = transfer(moments, stay, leave, centred=_centred(reader))
        flat = whole[leave].reshape(len(leave), -1)
        whole[stay] += (share @ flat).reshape(len(stay), *whole.shape[1:])
        if reader.bias is not None:
            _shift(model, reader, whole[leave], shift)
    whole[leave] = 0.0
    fresh = np.ascontiguousarray(np.moveaxis(whole.astype(array.dtype), 0, slot.axis))
    slot.node.replace_input_with(slot.index, _initializer(model, fresh, f"{slot.value.name}/refit"))


def _shift(model: ir.Model, reader: _Reader, lost: Array, shift: Float) -> None:
    """Add what the lost channels gave on average to the bias of their reader."""
    node, index = reader.bias or (reader.slot.node, 2)
    old = np.array(constant(node.inputs[index]))
    moved = np.tensordot(shift, lost, axes=(0, 0))  # [outputs, positions of the kernel]
    if reader.slot.node.op_type == "Conv":
        moved = moved.reshape(len(moved), -1).sum(axis=1)
    fresh = (old.astype(np.float64) + moved.reshape(old.shape)).astype(old.dtype)
    value = node.inputs[index]
    name = value.name if value is not None else node.name
    node.replace_input_with(index, _initializer(model, fresh, f"{name}/refit"))


def _initializer(model: ir.Model, array: Array, name: str) -> ir.Value:
    number, full = 0, name
    while full in model.graph.initializers:
        number += 1
        full = f"{name}_{number}"
    value = constant_value(tensor_of(array, full), full)
    model.graph.register_initializer(value)
    return value

"""Name the axes that a file leaves open, and turn what they are called into what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from onnxopt.graph.roles import own_axis, role_of
from onnxopt.spec import TensorSpec


def plain_name(name: str, taken: Collection[str]) -> str:
    """Return a plain name like one that is none, and that nothing else has."""
    wanted = f"axis_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}".rstrip("_")
    found, count = wanted, 2
    while found in taken:
        found, count = f"{wanted}_{count}", count + 1
    return found


def name_axes(inputs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[tuple[str, int]]]:
    """Give every open axis the name it most likely deserves; return also where, to be proved."""
    known = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis]
    usual = {role: next((axis for axis in known if role_of(axis) == role), "") for role in ("batch", "sequence")}
    has_past = any("past" in spec.name.lower() for spec in inputs)
    named, places = [], []
    for spec in inputs:
        axes: list[int | str] = []
        for index, axis in enumerate(spec.axes):
            if axis == "":
                places.append((spec.name, index))
            axes.append(axis if axis != "" else _guess_axis(spec, index, usual, has_past=has_past))
        named.append(replace(spec, axes=tuple(axes)))
    return named, places


def _guess_axis(spec: TensorSpec, index: int, usual: Mapping[str, str], *, has_past: bool) -> str:
    rank, name = len(spec.axes), spec.name.lower()
    if index == 0:
        return usual["batch"] or "batch"
    if rank == 4 and "past" in name:
        return "past_sequence" if index == 2 else f"heads_{index}"
    if rank == 4 and index >= 2:
        return ("height", "width")[index - 2]
    if rank in (2, 3) and index == 1:
        is_total = has_past and "mask" in name
        return "total_sequence" if is_total else usual["sequence"] or "sequence"
    return own_axis(spec.name, index)

"""Make the same inputs for every model of a benchmark, from their graphs and, for artifacts, their golden cases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.artifact.golden import GOLDEN_FOLDER
from onnxopt.artifact.package import read_golden
from onnxopt.errors import InputError
from onnxopt.graph.roles import role_of
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan, plan_input
from onnxopt.load.safety.check import check_onnx
from onnxopt.records.manifest import MANIFEST_NAME, Manifest
from onnxopt.run.there import model_file
from onnxopt.spec import Feeds, TensorSpec

_TYPES = re.compile(r"token_type|segment")
_USUAL_AXES = frozenset({"batch", "sequence"})  # every workload names them, also for models that lack one


@dataclass(frozen=True)
class Candidate:
    """One model of a benchmark.

    Attributes:
        path: what the user named.
        file: its .onnx file.
        size_bytes: of the graph and its weights.
        manifest: when it is an artifact.
        feeder: makes its inputs.
    """

    path: Path
    file: Path
    size_bytes: int
    manifest: Manifest | None
    feeder: GraphFeeder


@dataclass(frozen=True)
class Request:
    """One measured shape.

    Attributes:
        sizes: a size for each dynamic axis of the first candidate.
        feeds: for each candidate its inputs; equal where the names are equal.
    """

    sizes: dict[str, int]
    feeds: tuple[Feeds, ...]


def read_candidate(path: Path) -> Candidate:
    """Read what a benchmark must know of a model, after checking that the file is safe to open.

    Args:
        path: an artifact folder or an .onnx file.

    Raises:
        InputError: when it is neither, or its inputs cannot be made up.
    """
    path = Path(path)
    file = model_file(path)
    manifest = Manifest.read(path) if path.is_dir() and (path / MANIFEST_NAME).is_file() else None
    checked = check_onnx(file)
    model = ir.from_proto(checked.proto)
    ir.external_data.set_base_dir(model.graph, checked.folder)
    known = {spec.name: spec for spec in manifest.signature.inputs} if manifest else {}
    ceilings = _golden_ceilings(path) if manifest else {}
    plans = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue  # an initializer of an old file: the caller need not give it
        spec = known.get(value.name or "") or _spec(value, file)
        plan = plan_input(value, spec, model.functions)
        if plan.kind == "text":
            raise InputError(f"input {spec.name!r} takes text, which a benchmark cannot make up", where=str(file))
        if plan.kind == "integer" and spec.name in ceilings:
            plan = replace(plan, kind="ids", rows=ceilings[spec.name])
        plans.append(plan)
    size = file.stat().st_size + sum(data.stat().st_size for data in set(checked.external.values()))
    return Candidate(path, file, size, manifest, GraphFeeder(tuple(plans)))


def make_requests(candidates: Sequence[Candidate], shapes: Sequence[Mapping[str, int]]) -> list[Request]:
    """Make inputs of each shape for each candidate.

    Shapes that come to the same because the model lacks an axis are measured once.

    Raises:
        InputError: when a shape names an axis that no model has, or one candidate cannot take what another takes.
    """
    aligned = _aligned(candidates)
    first = aligned[0]
    requests: dict[tuple[tuple[str, int], ...], Request] = {}
    for shape in shapes:
        _check_axes(candidates[0], shape)
        sizes = first.resolve(shape)
        key = tuple(sizes.items())
        if key in requests:
            continue
        feeds = tuple(_feeds(feeder, shape) for feeder in aligned)
        for candidate, own in zip(candidates, feeds, strict=True):
            _check_equal(candidates[0], feeds[0], candidate, own)
        requests[key] = Request(sizes, feeds)
    return list(requests.values())


def _feeds(feeder: GraphFeeder, shape: Mapping[str, int]) -> Feeds:
    """Return inputs without padding, which every model must compute in full; token types are all of the first kind."""
    feeds = feeder.make(shape)
    return {name: np.zeros_like(array) if _TYPES.search(name.lower()) else array for name, array in feeds.items()}


def _aligned(candidates: Sequence[Candidate]) -> list[GraphFeeder]:
    """Return feeders that draw the same ids for inputs of one name: below the smallest table of any candidate."""
    rows: dict[str, int] = {}
    for candidate in candidates:
        for plan in candidate.feeder.plans:
            if plan.rows:
                rows[plan.spec.name] = min(plan.rows, rows.get(plan.spec.name, plan.rows))
    return [
        replace(candidate.feeder, plans=tuple(_limited(plan, rows) for plan in candidate.feeder.plans))
        for candidate in candidates
    ]


def _limited(plan: InputPlan, rows: Mapping[str, int]) -> InputPlan:
    limit = rows.get(plan.spec.name, 0)
    kind = "ids" if limit and plan.kind == "integer" else plan.kind
    return replace(plan, kind=kind, rows=limit)


def _check_axes(candidate: Candidate, shape: Mapping[str, int]) -> None:
    axes = candidate.feeder.axes
    roles = {role_of(axis) for axis in axes}
    for name in shape:
        if name in axes or name in _USUAL_AXES or (role_of(name) != "other" and role_of(name) in roles):
            continue
        raise InputError(
            f"no axis {name!r}",
            where=str(candidate.path),
            hint=f"its axes are {', '.join(axes) or 'all of fixed size'}",
        )


def _check_equal(first: Candidate, feeds: Feeds, other: Candidate, own: Feeds) -> None:
    """Refuse to compare work of different sizes."""
    for name, array in own.items():
        if name in feeds and feeds[name].shape != array.shape:
            raise InputError(
                f"input {name!r} would have shape {list(array.shape)} but {list(feeds[name].shape)} in {first.path}",
                where=str(other.path),
                hint="measure the shape that both take",
            )


def _spec(value: ir.Value, file: Path) -> TensorSpec:
    """Read an input of the graph; axes without a name get the usual ones."""
    dtype = value.dtype
    if dtype is None or value.shape is None:
        raise InputError(f"input {value.name!r} has no declared type and rank", where=str(file), hint="export it again")
    name = "object" if dtype == ir.DataType.STRING else np.dtype(dtype.numpy()).name
    axes = tuple(
        dim if isinstance(dim, int) else str(dim.value or _usual_axis(value.name or "", index, value.shape.rank()))
        for index, dim in enumerate(value.shape)
    )
    return TensorSpec(value.name or "", name, axes)


def _usual_axis(name: str, index: int, rank: int) -> str:
    if index == 0:
        return "batch"
    if rank <= 3 and index == 1:
        return "sequence"
    return f"{name}_{index}"


def _golden_ceilings(folder: Path) -> dict[str, int]:
    """Return one above the largest number of each integer input in the golden cases."""
    if not (folder / GOLDEN_FOLDER).is_dir():
        return {}
    ceilings: dict[str, int] = {}
    for case in read_golden(folder):
        for name, array in case.feeds.items():
            if array.dtype.kind in "iu" and array.size:
                ceilings[name] = max(ceilings.get(name, 1), int(array.max()) + 1)
    return ceilings

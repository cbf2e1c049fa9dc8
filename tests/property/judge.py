"""Optimize a graph as a user would, and compare what comes out with what went in, at sizes drawn afterwards.

Tolerances follow the graph's own sensitivity: how far its answers move when its inputs or weights move by some
roundings, when it does not round, and when ONNX Runtime optimizes it in its own way. What moves by steps (whole
numbers, sizes that follow the data) is compared where it stands still.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx

from tests.property.rounding import in_double, with_shaken_weights
from tests.property.sizes import Case, Feeds, cases
from tests.property.sketch import Array

RIGHT, REFUSED, UNPROVED, WRONG, INTERNAL, UNUSABLE = "right", "refused", "unproved", "wrong", "internal", "unusable"
CASES = 8  # that must run
TRIES = 24  # to find those
SHAKES = 2
SHAKE = 2.0**-20  # of a value: eight roundings of float32
LARGEST_SHAKEN = 1e4  # what is larger is a mask's, not an activation's
RTOL, ATOL = 1e-4, 3e-5  # of an entry, of the largest entry
WIDENING = 32  # times what the graph's own answers move
LARGE = (1e3, 1e8, 1e15)  # times the inputs; products of two are still in range then
NEAR = 100
FLIPPED = 0.01  # entries that may step elsewhere in a tensor in which some step under a shake

Answers = list[Array]


@dataclass
class Verdict:
    """What became of a graph.

    Attributes:
        outcome: `right`, `refused` (one line), `unproved` (refused by the last proof), `wrong`, `internal` (an error
            that is not the user's), `unusable` (ONNX Runtime does not run the graph at any size that was tried).
        reason: the refusal, the error, or how and where answers differ.
        rolled_back: pass, and what its proof turned down.
        case: inputs at which it is wrong.
        compared: cases that both ran.
        nodes: before and after.
        trace: of an internal error.
    """

    outcome: str
    reason: str = ""
    rolled_back: list[tuple[str, str]] = field(default_factory=list)
    case: Case | None = None
    compared: int = 0
    nodes: tuple[int, int] = (0, 0)
    trace: str = ""

    @property
    def kind(self) -> str:
        """What is counted together, and what shrinking must keep."""
        if self.outcome == INTERNAL:
            return f"{self.outcome}: {self.reason.partition(':')[0]}"
        if self.outcome == WRONG:
            return f"{self.outcome}: {self._how()}"
        if self.outcome == RIGHT and self.rolled_back:
            return f"rolled back: {self.rolled_back[0][0]}"
        return self.outcome

    def _how(self) -> str:
        """Tell by what kind of sizes and values a graph is wrong: who mends one kind does not mend the others."""
        if "is declared" in self.reason:
            return "declared size"
        if "leaves the range" in self.reason:
            return "range"
        where = ""
        if self.case is not None and 0 in self.case.sizes.values():
            where = ", an axis is empty"
        elif self.case is not None and self.case.odd:
            where = ", odd mask"
        how = "does not run" if "does not run" in self.reason or "does not load" in self.reason else "other numbers"
        return f"{'other shape' if 'has shape' in self.reason else how}{where}"

    @property
    def bad(self) -> bool:
        """Whether someone should look at it."""
        return self.outcome in (WRONG, INTERNAL, UNPROVED) or bool(self.rolled_back)


@dataclass(frozen=True)
class Promise:
    """The sizes that an artifact says it answers.

    Attributes:
        least: from which size on, by the artifact's names of axes.
        names: what the artifact calls the axes that had no name, by input and place: `x[0]`.
        joined: names of axes that it says in words to be one, although the original takes sizes that differ.
    """

    least: Mapping[str, int]
    names: Mapping[str, str]
    joined: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> Promise:
        """Read what is written beside the model; a file alone promises nothing."""
        if not (folder / "io.json").is_file():
            return cls({}, {}, frozenset())
        described = json.loads((folder / "io.json").read_text(encoding="utf-8"))
        notes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notes"]
        return cls(
            {axis: int(found["least"]) for axis, found in described.get("sizes", {}).items()},
            {
                f"{one['name']}[{place}]": axis
                for one in described["inputs"]
                for place, axis in enumerate(one["axes"])
                if isinstance(axis, str)
            },
            frozenset(name for note in notes for name in re.findall(r"without a name: taken for '([^']+)'", note)),
        )

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes are among them: no empty axis where none is promised, one size for what is one axis."""
        named: dict[str, set[int]] = {}
        for axis, size in sizes.items():
            named.setdefault(self.names.get(axis, axis), set()).add(size)
        is_empty = 0 in sizes.values()  # then the original may run at sizes at which it does not otherwise
        if is_empty and any(min(found) < self.least.get(name, 0) for name, found in named.items()):
            return False
        return all(len(found) == 1 for name, found in named.items() if name in self.joined)

    def leaves_out(self, feeds: Feeds) -> bool:
        """Tell whether inputs have an empty axis where none is promised, whatever the original called it."""
        places = ((f"{name}[{place}]", size) for name, array in feeds.items() for place, size in enumerate(array.shape))
        return any(not size and self.least.get(self.names.get(place, ""), 0) for place, size in places)


def open_session(model: onnx.ModelProto | Path, *, plain: bool) -> Any:
    """Open a model in ONNX Runtime, with its own optimizations off when `plain`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers_of(session: Any, feeds: Feeds) -> Answers | None:
    """Run a session; None when it fails."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        return [np.asarray(answer) for answer in session.run(None, feeds, options)]
    except Exception:  # noqa: BLE001  ONNX Runtime raises several kinds
        return None


@contextmanager
def without_report() -> Iterator[None]:
    """Leave out drawing the report, which takes longer than optimizing a small graph; everything else runs."""
    with mock.patch("onnxopt.road.write.render_report", lambda *_, **__: b""):
        yield


def optimized(source: Path, room: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Optimize a file for this machine's CPU into a folder of `room`, and return what was written and rolled back.

    Raises:
        OnnxoptError: it was refused.
    """
    import onnxopt
    from onnxopt.spec import Target

    with without_report():
        artifact = onnxopt.optimize(source, out=room / "out", target=Target("cpu", threads=1), measure=False)
    turned_down = [(entry.name, item.reason) for entry in artifact.manifest.ledger for item in entry.rolled_back]
    return artifact.model_path, turned_down


def judge(model: onnx.ModelProto, seed: int, room: Path, *, square: bool = False, case: Case | None = None) -> Verdict:
    """Optimize a graph and compare.

    Args:
        model: the original.
        seed: of the sizes and values at which it is compared.
        room: an empty folder.
        square: some value has an axis squared.
        case: compare here first.
    """
    try:
        plain, usual = open_session(model, plain=True), open_session(model, plain=False)
    except Exception as error:  # noqa: BLE001  ONNX Runtime raises several kinds
        return Verdict(UNUSABLE, _line(error))
    if not runs_at(model, plain, seed, square=square):
        return Verdict(UNUSABLE, "runs at none of the sizes that were tried")
    source = room / "drawn.onnx"
    onnx.save(model, source)
    verdict, path = outcome_of(source, room)
    if path is None:
        return verdict
    tried = islice(cases(model, seed, square=square), TRIES)
    judged = compared(model, (plain, usual), path, tried if case is None else [case, *tried])
    judged.rolled_back = verdict.rolled_back
    judged.nodes = len(model.graph.node), len(onnx.load(path, load_external_data=False).graph.node)
    return judged


def outcome_of(source: Path, room: Path) -> tuple[Verdict, Path | None]:
    """Optimize a file.

    Returns:
        `right` with what was rolled back, and the file that was written; or why none was.
    """
    from onnxopt.errors import OnnxoptError, ProofError

    try:
        path, turned_down = optimized(source, room)
    except ProofError as error:
        return Verdict(UNPROVED, _line(error, room)), None
    except OnnxoptError as error:
        return Verdict(REFUSED, _line(error, room)), None
    except Exception as error:  # noqa: BLE001  that it is not one of ours is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__} in {Path(where.filename).name}.{where.name}: {_line(error, room)}"
        return Verdict(INTERNAL, said, trace=traceback.format_exc()), None
    return Verdict(RIGHT, rolled_back=turned_down), path


def runs_at(model: onnx.ModelProto, session: Any, seed: int, *, square: bool) -> bool:
    """Tell whether a graph runs at one of the first sizes."""
    return any(answers_of(session, case.feeds) is not None for case in islice(cases(model, seed, square=square), 12))


def compared(
    model: onnx.ModelProto, sessions: tuple[Any, Any], path: Path, tried: Iterable[Case], *, most: int = CASES
) -> Verdict:
    """Compare a file with the original at the sizes at which that runs.

    Args:
        model: the original.
        sessions: of the original, without ONNX Runtime's own optimizations and with them.
        path: what was made of it.
        tried: inputs.
        most: comparisons.
    """
    try:
        made = open_session(path, plain=True), open_session(path, plain=False)
    except Exception as error:  # noqa: BLE001  ONNX Runtime raises several kinds
        return Verdict(WRONG, f"what was written does not load: {_line(error)}")
    if (said := _signature_kept(sessions[0], made[0])) is not None:
        return Verdict(WRONG, said)
    verdict = Verdict(RIGHT)
    promise = Promise.read(path.parent)
    for one in tried:
        if not promise.covers(one.sizes) or promise.leaves_out(one.feeds):
            continue
        expected = answers_of(sessions[0], one.feeds)
        if expected is None:
            continue
        verdict.compared += 1
        said = _differs(model, sessions, made, expected, one)
        if said is not None:
            told = ", ".join(f"{axis}={size}" for axis, size in one.sizes.items())
            reason = f"{said} at {told}{' (odd mask)' if one.odd else ''}"
            return Verdict(WRONG, reason, case=one, compared=verdict.compared)
        said = leaves_range(sessions, made, [value.name for value in model.graph.output], one)
        if said is not None:
            return Verdict(WRONG, said, case=one, compared=verdict.compared)
        if verdict.compared >= most:
            break
    return verdict


def leaves_range(sessions: tuple[Any, Any], made: tuple[Any, Any], names: Sequence[str], case: Case) -> str | None:
    """Return which output is no number on large inputs where it was one; None where each stays in range.

    Where the original itself leaves the range at inputs `NEAR` times as large, the order of two factors may decide.
    """
    for factor in LARGE:
        feeds = enlarged(case.feeds, factor)
        expected, found = answers_of(sessions[0], feeds), answers_of(made[0], feeds)
        if expected is None or found is None:
            continue
        for index, (name, old, new) in enumerate(zip(names, expected, found, strict=True)):
            if old.dtype.kind != "f" or old.shape != new.shape:
                continue
            left = np.isfinite(old) & ~np.isfinite(new)
            if left.any():
                beyond = answers_of(sessions[0], enlarged(case.feeds, factor * NEAR))
                if beyond is None or beyond[index].shape != old.shape or (left & np.isfinite(beyond[index])).any():
                    return f"{name} leaves the range of numbers at inputs {factor:g} times as large"
    return None


def enlarged(feeds: Mapping[str, Array], factor: float) -> Feeds:
    """Make all floats so many times as large, but for masks."""
    return {
        name: (array * array.dtype.type(factor)).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating) and "mask" not in name
        else array
        for name, array in feeds.items()
    }


def _signature_kept(before: Any, after: Any) -> str | None:
    for what in ("get_inputs", "get_outputs"):
        old, new = ([(item.name, item.type) for item in getattr(session, what)()] for session in (before, after))
        if old != new:
            return f"{what[4:]} were {old}, are {new}"
    return None


def _differs(
    model: onnx.ModelProto, sessions: tuple[Any, Any], made: tuple[Any, Any], expected: Answers, case: Case
) -> str | None:
    """Return how the optimized graph's answers differ at one size; None when they do not."""
    names = [value.name for value in model.graph.output]

    @cache
    def by_usual() -> Answers | None:
        return answers_of(sessions[1], case.feeds)

    @cache
    def moved() -> list[Answers]:
        others = [answers_of(sessions[0], shaken(case.feeds, seed)) for seed in range(SHAKES)]
        return [found for found in (by_usual(), *others, *_otherwise(model, case.feeds)) if found is not None]

    for session, how in zip(made, ("as written", "by default"), strict=True):
        found = answers_of(session, case.feeds)
        if found is None:
            if how == "by default" and by_usual() is None:
                continue  # nor does the original
            return f"does not run ({how})"
        for index, name in enumerate(names):
            if not plainly_same(expected[index], found[index]):
                said = difference(expected[index], found[index], [item[index] for item in moved()])
                if said is not None:
                    return f"{name} {said} ({how})"
            if (told := _broken_promise(session.get_outputs()[index], found[index], case)) is not None:
                return f"{name} {told}"
    return None


def _otherwise(model: onnx.ModelProto, feeds: Feeds) -> Iterator[Answers | None]:
    """Yield a graph's answers with weights that are off by some roundings, and without rounding where that can be run.

    What a mask of thousands does to the scores beside it shows in the second alone.
    """
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    for other, given in ((with_shaken_weights(model, SHAKE, 0), feeds), (in_double(model), wide)):
        with suppress(Exception):  # ONNX Runtime raises several kinds; not every operator has a kernel for float64
            found = answers_of(open_session(other, plain=True), given) or []
            yield [one.astype(np.float32) if one.dtype == np.float64 else one for one in found] or None


def _broken_promise(declared: Any, found: Array, case: Case) -> str | None:
    """Return which declared size of an output is not the one that it has."""
    if declared.shape is None or (not declared.shape and found.ndim):
        return None
    if len(declared.shape) != found.ndim:
        return f"is declared {declared.shape} and has {list(found.shape)}"
    for said, size in zip(declared.shape, found.shape, strict=True):
        wanted = said if isinstance(said, int) else case.sizes.get(said or "")
        if wanted is not None and wanted != size:
            return f"is declared {declared.shape} and has {list(found.shape)}"
    return None


def shaken(feeds: Mapping[str, Array], seed: int) -> Feeds:
    """Move floats by some roundings; what is as large as a mask's filler stays."""
    drawn = np.random.default_rng(seed)
    moved: Feeds = {}
    for name, array in feeds.items():
        if not np.issubdtype(array.dtype, np.floating) or "mask" in name:
            moved[name] = array
            continue
        factor = 1 + SHAKE * drawn.uniform(-1, 1, array.shape)
        moved[name] = np.where(np.abs(array) < LARGEST_SHAKEN, array * factor, array).astype(array.dtype)
    return moved


def plainly_same(expected: Array, found: Array) -> bool:
    """Tell whether an answer is the expected one up to rounding, so that nothing else need be tried: most are."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype != np.float32:
        return bool(np.array_equal(expected, found))
    with np.errstate(all="ignore"):
        near = np.abs(found - expected) <= 1e-6 + RTOL * np.abs(expected)
    return bool(np.all(near | (expected == found)))


def difference(expected: Array, found: Array, moved: Answers) -> str | None:
    """Return how an answer differs from the expected one beyond what its own sensitivity explains; None if not.

    Args:
        expected: of the original.
        found: of what was made.
        moved: of the original on inputs or with weights that moved by roundings, without rounding, or as ONNX Runtime
            optimizes it.
    """
    if any(item.shape != expected.shape for item in moved):
        return None if found.ndim == expected.ndim else f"has {found.ndim} axes and had {expected.ndim}"
    if expected.shape != found.shape:
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    if expected.dtype != found.dtype:
        return f"is {found.dtype}, expected {expected.dtype}"
    if not expected.size:
        return None
    if expected.dtype.kind != "f":
        steady = np.all([item == expected for item in moved], axis=0) if moved else np.ones(expected.shape, bool)
        off = (expected != found) & steady
        allowed = FLIPPED * expected.size if not steady.all() else 0
        return _worst(expected, found, off) if off.sum() > allowed else None
    return _float_difference(
        expected.astype(np.float64), found.astype(np.float64), [i.astype(np.float64) for i in moved]
    )


def _float_difference(expected: Array, found: Array, moved: Answers) -> str | None:
    with np.errstate(all="ignore"):
        finite = np.isfinite(expected)
        steady = np.all([_alike(item, expected) for item in moved], axis=0) if moved else np.ones(expected.shape, bool)
        swing = np.zeros(expected.shape)
        for item in moved:
            swing = np.maximum(swing, np.where(finite & np.isfinite(item), np.abs(item - expected), 0.0))
        largest = float(np.max(np.abs(expected[finite]), initial=0.0))
        own = np.maximum(swing, float(swing.mean()))
        if expected.ndim:
            own = np.maximum(own, swing.max(axis=-1, keepdims=True))  # what a row shares, its sum, moves all of it
        limit = 1e-6 + RTOL * np.abs(expected) + ATOL * min(largest, 1e30) + WIDENING * own
        off = np.where(finite, ~(np.abs(found - expected) <= limit), ~_alike(found, expected)) & steady
    jumps = not steady.all() or float(swing.max(initial=0.0)) > 1e3 * (float(np.median(swing)) + 1e-9)
    return _worst(expected, found, off) if off.sum() > (FLIPPED * expected.size if jumps else 0) else None


def _alike(first: Array, second: Array) -> Array:
    """Tell where two arrays are finite, infinite or not numbers in the same way."""
    same_infinity = np.isinf(first) & np.isinf(second) & (np.sign(first) == np.sign(second))
    alike: Array = (np.isfinite(first) & np.isfinite(second)) | (np.isnan(first) & np.isnan(second)) | same_infinity
    return alike


def _worst(expected: Array, found: Array, off: Array) -> str:
    place = tuple(int(i) for i in np.argwhere(off)[0]) if off.ndim else ()
    share = int(off.sum())
    told = f"is {found[place]:.6g} where {expected[place]:.6g} is expected"
    return f"{told}, at {list(place)} and {share - 1} more of {off.size}"


def _line(error: BaseException, room: Path | None = None) -> str:
    """Return an error in one line, without the folder that it lies in."""
    said = " ".join(str(error).split())
    if room is not None:
        said = said.replace(f"{room}/", "")
    return said[:400]

"""Round the layers of a large decoder piece by piece, in memory that one piece bounds; a stopped run goes on.

A piece is what lies between two places where only the residual stream crosses (`onnxopt.probe.pieces`): about half of a
decoder layer. It is run on the calibration text once, from what the piece before has left in files; its linear layers
are rounded from the second moments of their inputs, some outputs at a time; their codes go into a file at once.

What a piece gave is an entry of the user's cache, by the content of the graph, of its weights and those of all earlier
pieces, of the text and of the precisions; what crosses into the next piece is one beside it, until that is rounded. All
of them go when the artifact is written.

How much a layer in few bits harms is told by the noise in its own product, relative to the product's energy; of a
weight that is a table too the error of its rows, relative to them, is added. To run the whole model for every group of
layers, as for small ones, would take hours.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.data import CalibrationData
from onnxopt.graph.linears import Linear
from onnxopt.graph.values import constant
from onnxopt.graph.weight_files import as_stored, elements
from onnxopt.host.folders import sealed
from onnxopt.host.kept import keep
from onnxopt.host.usercache import cache_root, drop_entry, keep_until_done, make_entry, use_entry
from onnxopt.probe.memory import release_memory, release_pages
from onnxopt.probe.pieces import Pieces
from onnxopt.qmath.blocks import restored
from onnxopt.qmath.precision import Blocked, PlannedLinear, Precision
from onnxopt.quantize.roundings import Rounding, Seconds
from onnxopt.quantize.weights import BITS, SeenInput, WeightMethod, encoded, whole_blocks
from onnxopt.records.events import Step
from onnxopt.spec import Array, Feeds, Say
from onnxopt.version import __version__

ROUNDED = "rounded"  # the folder of the cache
OUTPUTS_AT_ONCE = 2048  # of a weight that are rounded together; they are rounded alike alone
WORK = "rounding"
_LAYERS, _INPUTS = "layers.json", "-inputs"
_LEAST_ENERGY = 1e-30


@dataclass(frozen=True)
class Rounded:
    """What came of the layers of a model.

    Attributes:
        roundings: by label, in every precision; codes are mapped from files.
        energies: by label, tr(Wᵀ M W) with the second moment M of the layer's input.
    """

    roundings: Mapping[str, list[Rounding]]
    energies: Mapping[str, float]


@dataclass(frozen=True)
class ByLayer:
    """How the layers of a large model are rounded.

    Attributes:
        pieces: of the model.
        linears: the layers that are rounded.
        tables: weights that are read by rows too.
        precisions: that each layer is rounded to, by label.
        batches: calibration inputs, without padding; with none the weights alone decide, and no piece is run.
        about: what tells the calibration text from others.
        method: how weights are rounded.
        say: told what is done.
    """

    pieces: Pieces
    linears: Sequence[Linear]
    tables: Collection[ir.Value]
    precisions: Mapping[str, Sequence[Precision]]
    batches: Sequence[Feeds]
    about: str
    method: WeightMethod
    say: Say
    _done: list[str] = field(default_factory=list, init=False, repr=False, compare=False)  # labels, for the progress

    @classmethod
    def of(
        cls,
        pieces: Pieces,
        linears: Sequence[Linear],
        data: CalibrationData | None,
        precisions: Mapping[str, Sequence[Precision]],
        *,
        tables: Collection[ir.Value] = (),
        most: int | None = None,
        method: WeightMethod = "auto",
        say: Say,
    ) -> ByLayer:
        """Take the samples that statistics are fitted to.

        Args:
            pieces: of the model.
            linears: the layers that are rounded.
            data: calibration text; None where the weights alone decide.
            precisions: that each layer is rounded to, by label.
            tables: weights that are read by rows too.
            most: the most samples.
            method: how weights are rounded.
            say: told what is done.
        """
        about = f"{__version__} {data.record.sha256 if data is not None else ''} {most}"
        batches = list(data.batches("fit", most=most)) if data is not None else []
        return cls(pieces, linears, tables, precisions, batches, about, method, say)

    def rounded(self, seconds: Seconds) -> Rounded:
        """Round every layer whose input is seen, or take what an earlier run has left of it.

        Args:
            seconds: of one token for inputs, outputs and a precision.
        """
        own = self._linears_by_piece()
        names = self._names()
        folders = {number: cache_root() / ROUNDED / names[number] for number in own}
        left = [number for number in own if not _is_there(folders[number])]
        if folders:
            keep(
                next(iter(folders.values())),
                "the layers rounded so far, in the cache: the same command goes on from there",
            )
        for number in own:
            if number not in left:
                self._tell([one.label for one in own[number]], "kept by an earlier run")
        if not self.batches:
            for number in left:
                folders[number] = self._round(folders[number], own[number], {})
            return _rounded(own, folders, seconds)
        begin = next((at for at in range(min(left, default=0), 0, -1) if _is_there(_inputs_of(names[at]))), 0)
        crossing: Path | None = _inputs_of(names[begin]) if begin else None
        for number in range(begin, max(left, default=-1) + 1):
            wanted = own[number] if number in left else []
            following = _inputs_of(names[number + 1]) if number < max(left) else None
            handed, seen = self._pass(number, crossing, following, wanted)
            if wanted:
                self._tell_of(wanted)
                folders[number] = self._round(folders[number], wanted, seen)
            if crossing is not None:
                drop_entry(crossing)
            crossing = handed
            release_pages(weight.const_value for weight in self.pieces.pieces[number].weights)
            release_memory()
        return _rounded(own, folders, seconds)

    def _linears_by_piece(self) -> dict[int, list[Linear]]:
        """Return the layers of each piece that has some, by its number."""
        place = {node: number for number, piece in enumerate(self.pieces.pieces) for node in piece.nodes}
        found: dict[int, list[Linear]] = {}
        for linear in self.linears:
            if linear.node in place:
                found.setdefault(place[linear.node], []).append(linear)
        return dict(sorted(found.items()))

    def _names(self) -> list[str]:
        """Return the names of the entries of all pieces."""
        shared = [linear.label for linear in self.linears if linear.weight in self.tables]
        wanted = [f"{one.label} {' '.join(map(str, self.precisions[one.label]))}" for one in self.linears]
        about = [self.about, self.method, *wanted, "", *shared]
        return [digest[:32] for digest in self.pieces.digests("\n".join(about))]

    def _pass(
        self, number: int, crossing: Path | None, following: Path | None, wanted: Sequence[Linear]
    ) -> tuple[Path | None, dict[ir.Value, SeenInput]]:
        """Run a piece on all samples.

        Args:
            number: of the piece.
            crossing: the folder with what crosses into it; None for the first.
            following: the entry for what crosses into the next one; None where nothing is wanted behind.
            wanted: layers whose inputs are looked at.

        Returns:
            The folder with what crosses into the next piece, and what was seen of inputs.
        """
        takes = [value.name or "" for value in self.pieces.pieces[number].takes]
        inputs = list(dict.fromkeys(linear.x for linear in wanted))
        seen: dict[ir.Value, _Moments] = {}

        def run(folder: Path | None) -> None:
            seen.clear()
            given = ({**feeds, **_crossed(crossing, place, takes)} for place, feeds in enumerate(self.batches))
            for place, (gives, values) in enumerate(self.pieces.run(number, given, fetch=inputs)):
                what = f"calibrate: part {number + 1} of {len(self.pieces.pieces)}, batch {place + 1}"
                self.say(Step(what, work=WORK, done=len(self._done), total=len(self.linears)))
                for value, array in values.items():
                    seen.setdefault(value, _Moments(array.shape[-1], whole=self._whole)).add(array)
                for at, array in enumerate(gives.values() if folder is not None else ()):
                    np.save(_crossing_file(folder or Path(), place, at), np.ascontiguousarray(array))

        handed = make_entry(following, run)[0] if following is not None else None
        if following is None:
            run(None)
        return handed, {value: found.seen() for value, found in seen.items() if found.rows}

    @property
    def _whole(self) -> bool:
        """Whether whole second moments are wanted: 8 bits do without."""
        return any(one.kind == "int4-weights" for own in self.precisions.values() for one in own)

    def _tell(self, labels: Sequence[str], words: str = "") -> None:
        for label in labels:
            self._done.append(label)
            number, total = len(self._done), len(self.linears)
            self.say(Step(f"{WORK} {number} of {total}: {words or label}", work=WORK, done=number - 1, total=total))

    def _tell_of(self, wanted: Sequence[Linear]) -> None:
        """Forget what was told of layers that are now rounded, should an entry be made twice."""
        labels = {linear.label for linear in wanted}
        self._done[:] = [label for label in self._done if label not in labels]

    def _round(self, entry: Path, wanted: Sequence[Linear], seen: Mapping[ir.Value, SeenInput]) -> Path:
        """Round the layers of a piece into an entry of the cache, and return where that lies."""

        def make(folder: Path) -> None:
            self._tell_of(wanted)
            made = []
            for place, linear in enumerate(wanted):
                self._tell([linear.label])
                if linear.x in seen or not self.batches:
                    made.append(self._layer(linear, seen.get(linear.x), folder, str(place)))
            (folder / _LAYERS).write_text(json.dumps(made, indent=1), encoding="utf-8")

        return make_entry(entry, make)[0]

    def _layer(self, linear: Linear, seen: SeenInput | None, folder: Path, stem: str) -> dict[str, object]:
        """Round a layer in every precision, write the codes, and return what else is known of it."""
        whole = linear.weight in self.tables
        own = self.precisions[linear.label]
        wanted = list(dict.fromkeys(whole_blocks(one, linear.rows) if whole else one for one in own))
        parts = [_Part(folder / f"{stem}-{place}", one, linear) for place, one in enumerate(wanted)]
        energy, squares = 0.0, 0.0
        for start in range(0, linear.columns, OUTPUTS_AT_ONCE):
            weight = outputs_of(linear, start, min(start + OUTPUTS_AT_ONCE, linear.columns))
            energy += _energy(weight, seen)
            squares += float(np.square(weight).sum())
            for part in parts:
                part.add(weight, start, seen, self.method)
        as_table = energy / max(squares, _LEAST_ENERGY) if whole else 0.0
        return {"label": linear.label, "energy": energy, "precisions": [part.finished(as_table) for part in parts]}


class _Moments:
    """The second moment and the mean of a tensor's channels over all rows.

    Args:
        channels: size of its last axis.
        whole: the whole second moment is wanted, in float32; else its diagonal.
    """

    def __init__(self, channels: int, *, whole: bool) -> None:
        self.rows = 0
        self._total = np.zeros(channels)
        self._squares = np.zeros((channels, channels), np.float32) if whole else np.zeros(channels)

    def add(self, values: Array) -> None:
        """Count the rows of [..., channels]."""
        x = np.asarray(values, np.float32).reshape(-1, len(self._total))
        self._total += x.sum(axis=0, dtype=np.float64)
        self._squares += x.T @ x if self._squares.ndim == 2 else np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.rows += len(x)

    def seen(self) -> SeenInput:
        """Return what is known; nothing may be added behind that."""
        self._squares /= self.rows
        return SeenInput(self._squares, self._total / self.rows)


class _Part:
    """A layer in one precision, while its outputs are rounded.

    Args:
        stem: begins the names of its files.
        precision: that was asked for.
        linear: the layer.
    """

    def __init__(self, stem: Path, precision: Precision, linear: Linear) -> None:
        self._stem, self._asked, self._linear = stem, precision, linear
        shape = (linear.columns, linear.rows)
        self._codes = np.lib.format.open_memmap(_file(stem, "codes"), mode="w+", dtype=np.uint8, shape=shape)
        self._blocks: list[Blocked] = []
        self._shifts: list[Array] = []
        self._noise, self._squares = 0.0, 0.0
        self._precision = precision

    def add(self, weight: Array, start: int, seen: SeenInput | None, method: WeightMethod) -> None:
        """Round float32 [in, some], the outputs from `start` on."""
        self._precision, made = encoded(weight, self._asked, method, seen)
        self._codes[start : start + len(made.codes)] = made.codes
        error = weight - restored(made).T
        self._noise += _energy(error, seen)
        self._squares += float(np.square(error).sum())
        if seen is not None:
            self._shifts.append(seen.mean @ error)
        self._blocks.append(Blocked(made.codes[:0], made.scales, made.zero_points, made.bits, made.block_size))

    def finished(self, as_table: float) -> dict[str, object]:
        """Write what belongs to the codes, and return the rest.

        Args:
            as_table: noise per square of an error, where the weight is a table too: its rows are read as they are.
        """
        self._codes.flush()
        np.save(_file(self._stem, "scales"), np.concatenate([one.scales for one in self._blocks]))
        points = [one.zero_points for one in self._blocks if one.zero_points is not None]
        if points:
            np.save(_file(self._stem, "points"), np.concatenate(points))
        own = constant(self._linear.bias)
        if own is not None and self._shifts:  # it takes back what rounding shifts on average, as `round_weight` has it
            np.save(_file(self._stem, "bias"), np.asarray(own + np.concatenate(self._shifts), np.float32))
        return {
            "stem": self._stem.name,
            "precision": str(self._precision),
            "noise": self._noise + as_table * self._squares,
        }


def outputs_of(linear: Linear, start: int, stop: int) -> Array:
    """Return float32 [in, stop - start]: some outputs of a layer's weight; of one in 16 bits no more are widened."""
    tensor = linear.weight.const_value
    if tensor is None:
        raise ValueError(f"{linear.label}: the weight is not constant")
    if linear.transposed:
        return elements(tensor, start * linear.rows, stop * linear.rows).reshape(-1, linear.rows).T
    stored = as_stored(tensor).numpy()
    # blocks lie along the inputs: they are read many times, so they are brought together once
    return np.ascontiguousarray(stored[:, start:stop].T, np.float32).T


def _energy(weight: Array, seen: SeenInput | None) -> float:
    """Return tr(Wᵀ M W) with the second moment of the input, or as much of it as is known: its diagonal, or 1."""
    if seen is None:
        return float(np.vdot(weight, weight))
    moment = seen.moment
    product = moment.astype(np.float32, copy=False) @ weight if moment.ndim == 2 else moment[:, None] * weight
    return float(np.vdot(product, weight))


def relative_harms(rounded: Rounded) -> dict[str, float]:
    """Return harm per unit of noise by label, where harm is noise relative to the energy of the layer's product."""
    return {label: 1.0 / max(energy, _LEAST_ENERGY) for label, energy in rounded.energies.items()}


def _inputs_of(name: str) -> Path:
    return cache_root() / ROUNDED / f"{name}{_INPUTS}"


def _is_there(entry: Path) -> bool:
    use_entry(entry)
    return sealed(entry)


def _file(stem: Path, role: str) -> Path:
    return stem.with_name(f"{stem.name}-{role}.npy")


def _crossing_file(folder: Path, place: int, at: int) -> Path:
    return folder / f"{place}-{at}.npy"


def _crossed(folder: Path | None, place: int, names: Sequence[str]) -> Feeds:
    """Return what crosses into a piece for one batch, mapped from files."""
    if folder is None:
        return {}
    return {name: np.load(_crossing_file(folder, place, at), mmap_mode="r") for at, name in enumerate(names)}


def _rounded(own: Mapping[int, Sequence[Linear]], folders: Mapping[int, Path], seconds: Seconds) -> Rounded:
    """Read what came of the layers of all pieces; it has served when the command has come to its end."""
    for folder in folders.values():
        keep_until_done(folder)
    found = [one for number in own for one in _read(folders[number], own[number], seconds)]
    return Rounded({label: made for label, made, _ in found}, {label: energy for label, _, energy in found})


def _read(entry: Path, linears: Sequence[Linear], seconds: Seconds) -> Iterator[tuple[str, list[Rounding], float]]:
    """Yield the label, the roundings and the energy of each layer in an entry."""
    sizes = {linear.label: (linear.rows, linear.columns) for linear in linears}
    for layer in json.loads((entry / _LAYERS).read_text(encoding="utf-8")):
        label = layer["label"]
        parts = [(entry / one["stem"], Precision.parse(one["precision"]), one["noise"]) for one in layer["precisions"]]
        made = [
            Rounding(_planned(stem, precision), noise, seconds(*sizes[label], precision))
            for stem, precision, noise in parts
        ]
        yield label, made, layer["energy"]


def _planned(stem: Path, precision: Precision) -> PlannedLinear:
    """Return a layer as its files have it, which are mapped."""

    def mapped(role: str) -> Array | None:
        file = _file(stem, role)
        return np.load(file, mmap_mode="r") if file.is_file() else None

    codes, scales = (np.load(_file(stem, role), mmap_mode="r") for role in ("codes", "scales"))
    blocks = Blocked(codes, scales, mapped("points"), BITS[precision.kind], precision.block_size)
    return PlannedLinear(precision, blocks=blocks, bias=mapped("bias"))

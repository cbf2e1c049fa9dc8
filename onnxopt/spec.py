"""The words of a run as data: numerics contracts, target, workload, budget, and a model's signature.

Nothing here imports another onnxopt module except `errors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError
from onnxopt.host.threads import available_threads

Array = npt.NDArray[Any]
Value = Any  # an Array; of a sequence a list of them; None for an optional that is empty
Feeds = dict[str, Array]
Say = Callable[[str], None]

Provider = Literal["cpu", "cuda", "tensorrt", "portable"]
PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt", "portable")

Padding = Literal["none", "right", "left", "holes", "mixed"]
PADDINGS: tuple[Padding, ...] = ("none", "right", "left", "holes")
MIXED: tuple[Padding, ...] = PADDINGS[:3]  # what the rows of one batch have in turn where it is mixed


def padding_of_row(padding: Padding, row: int) -> Padding:
    """Return the padding of one row of a batch; the first row never has any."""
    return "none" if row == 0 else MIXED[row % len(MIXED)] if padding == "mixed" else padding


@dataclass(frozen=True)
class Exact:
    """The rewrite gives the same bits."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Reassociated:
    """The rewrite is equal in real arithmetic; rounding differs: |new - old| <= atol + rtol * max|row of old|.

    `onnxopt.proof.contract` says what else rounding explains.
    """

    rtol: float = 1e-5
    atol: float = 1e-6

    def __str__(self) -> str:
        return f"reassociated (rtol {self.rtol:g}, atol {self.atol:g})"


SQNR = "sqnr_db"  # the metric that a lossy rewrite of one region is held to
SENTENCE = "sentence_embedding"  # the output of a graph that pools its tokens into one vector
SOUND_INPUTS = ("input_values", "input_features")  # transformers' names of waves, and of features of them
SOUND_AXES = ("samples", "frames")  # of the same


@dataclass(frozen=True)
class Lossy:
    """The rewrite changes the answer; `metric` must stay at or above `floor` on calibration data.

    The metric `sqnr_db` is the ratio of the signal to the noise in decibels; the driver measures it for every region.
    Any other is measured on the whole model, where its budget is.
    """

    metric: str
    floor: float

    def __str__(self) -> str:
        return f"lossy ({self.metric} >= {self.floor:g})"


Numerics = Exact | Reassociated | Lossy


@dataclass(frozen=True)
class AxisRange:
    """Sizes of an axis at which the model runs.

    Attributes:
        least: the smallest size.
        step: sizes are multiples of it.
        most: the largest size; 0 where no limit is known.
    """

    least: int = 1
    step: int = 1
    most: int = 0

    def fitted(self, size: int) -> int:
        """Return the size of the range that is nearest to one asked for: rounded up to the step, within the ends."""
        stepped = -(-max(size, self.least) // self.step) * self.step
        return min(stepped, self.most // self.step * self.step) if self.most else stepped


@dataclass(frozen=True)
class SizeClaims:
    """Dimensions and elements of shapes in a graph, by how they are known; passes lean on the first two kinds alone.

    Attributes:
        derived: known for every size by the form of what computes them.
        computed: known by computing them at every size up to a bound.
        computed_to: that bound.
        unknown: not known, whatever runs have shown.
    """

    derived: int = 0
    computed: int = 0
    computed_to: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        words = [f"{self.derived:,} sizes derived for every input size"]
        if self.computed:
            words.append(f"{self.computed:,} computed at every size up to {self.computed_to:,}")
        return ", ".join([*words, f"{self.unknown:,} not known"])


@dataclass(frozen=True)
class Target:
    """Where the model will run.

    Attributes:
        provider: execution provider, or `portable` for standard ai.onnx operators only.
        threads: threads of one operator; the default is what this process may use.
    """

    provider: Provider = "cpu"
    threads: int = field(default_factory=available_threads)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `cpu`, `cuda`, `tensorrt` or `portable`."""
        for provider in PROVIDERS:
            if text.strip().lower() == provider:
                return cls(provider)
        raise InputError(f"unknown target {text!r}", hint=f"use one of {', '.join(PROVIDERS)}")


@dataclass(frozen=True)
class Workload:
    """What will be asked of the model: sizes of its axes, one mapping per request shape.

    Attributes:
        shapes: each maps axis names (`batch`, `sequence`, ...) to a size; axes not named keep the model's default.
        fills: for each shape the share of positions that are real tokens, the rest being padding; all 1 when empty.
        weights: for each shape how much its time counts; all the same when empty.
    """

    shapes: tuple[Mapping[str, int], ...] = (
        {"batch": 1, "sequence": 16},
        {"batch": 1, "sequence": 128},
        {"batch": 8, "sequence": 128},
    )
    fills: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def fill(self, index: int) -> float:
        """Return the share of real tokens of one shape."""
        return self.fills[index] if self.fills else 1.0

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read `1x16,8x128` (batch × sequence), `batch=8:height=224`, or `32x256@0.26` when 26 % are real tokens.

        `1x16*3,8x128` counts the first shape three times as much.
        """
        weighed = [part.strip().partition("*") for part in text.split(",") if part.strip()]
        parts = [part.strip().partition("@") for part, _, _ in weighed]
        if not parts:
            raise InputError("the workload is empty", hint="write for example --workload 1x16,8x128")
        shapes = tuple(_parse_shape(shape) for shape, _, _ in parts)
        fills = tuple(_parse_fill(fill) if mark else 1.0 for _, mark, fill in parts)
        weights = tuple(_parse_weight(weight) if mark else 1.0 for _, mark, weight in weighed)
        return cls(
            shapes,
            fills if any(fill < 1.0 for fill in fills) else (),
            weights if any(weight != weights[0] for weight in weights) else (),
        )

    @classmethod
    def of_lengths(cls, lengths: Mapping[int, int], batches: Sequence[int] = (1,)) -> Workload:
        """Return the request shapes of a histogram of lengths.

        Args:
            lengths: how often each sequence length was asked for.
            batches: how many rows run together.

        Returns:
            Each batch with the smallest length, the quartiles and the largest, so that ranges and medians of the
            shapes are those of the requests.

        Raises:
            InputError: when there is no length.
        """
        ordered = sorted(length for length, count in lengths.items() if count > 0)
        total = sum(count for count in lengths.values() if count > 0)
        if not ordered or ordered[0] < 1 or not batches:
            raise InputError("the histogram of lengths is empty or has a length below 1")
        picks: list[int] = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            seen = 0
            for length in ordered:
                seen += lengths[length]
                if seen >= share * total and seen:
                    picks.append(length)
                    break
        return cls(tuple({"batch": batch, "sequence": length} for batch in batches for length in picks))

    def __str__(self) -> str:
        return ", ".join(self.label(index) for index in range(len(self.shapes)))

    def label(self, index: int) -> str:
        """Write one shape for a person: `batch 32 sequence 256, 26 % real tokens`."""
        sizes = " ".join(f"{axis} {size}" for axis, size in self.shapes[index].items())
        return sizes if self.fill(index) == 1.0 else f"{sizes}, {self.fill(index):.0%} real tokens"


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0.0 < weight < float("inf"):
        raise InputError(f"the weight {text!r} of a shape is not above 0", hint="write for example 1x16*3,8x128")
    return weight


def _parse_fill(text: str) -> float:
    try:
        fill = float(text)
    except ValueError:
        fill = 0.0
    if not 0.0 < fill <= 1.0:
        raise InputError(
            f"the share of real tokens {text!r} is not between 0 and 1", hint="write for example 32x256@0.26"
        )
    return fill


def _parse_shape(text: str) -> dict[str, int]:
    try:
        if "=" in text:
            pairs = (item.split("=") for item in text.split(":"))
            shape = {axis.strip(): int(size) for axis, size in pairs}
        else:
            sizes, mark, past = text.lower().partition("+")
            batch, sequence = sizes.split("x")
            shape = {"batch": int(batch), "sequence": int(sequence)}
            if mark:
                shape["past_sequence"] = int(past)
    except ValueError as error:
        raise InputError(
            f"cannot read the workload shape {text!r}",
            hint="write batch x sequence as 8x128, batch=8:sequence=128, or 1x1+256 for a token behind 256 others",
        ) from error
    if any(size < (axis != "past_sequence") for axis, size in shape.items()):
        raise InputError(f"the workload shape {text!r} has a size below 1", hint="sizes start at 1")
    return shape


@dataclass(frozen=True)
class Budget:
    """How far the answer may move.

    Attributes:
        relative_error: limit of max|candidate - reference| / max|reference| for every output, every probed shape.
    """

    relative_error: float = 1e-4


Form = Literal["", "any rank", "default", "sequence", "optional", "optional sequence"]
CONTAINERS: tuple[Form, ...] = ("sequence", "optional", "optional sequence")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: its name in the graph, which is the user's contract.
        dtype: NumPy name (`int64`, `float32`, `bool`, ...), with ml_dtypes' `bfloat16`, `float8_e4m3fn`, `int4` and so
            on; `object` for strings. Of a container, the type of what it holds.
        axes: one entry per dimension: a size, or the name of a dynamic axis. Of a container, those of what it holds.
        form: empty for a tensor of these axes; `any rank` for one whose number of dimensions differs from run to run
            (axes say nothing then); `default` for an input that may be left out, since the file holds a value for it;
            `sequence`, `optional` and `optional sequence` for what is no tensor.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]
    form: Form = ""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the concrete shape for the given axis sizes; raises KeyError for an axis without a size."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)


def elements_of(specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> int:
    """Return how many elements inputs or outputs have together; an axis without a size counts as one row."""
    axes = (spec.axes for spec in specs)
    return sum(math.prod(axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in one) for one in axes)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs in graph order.

    Attributes:
        inputs: what the graph takes.
        outputs: what it gives.
        mask: name of the input that says which positions are real, found by trying; empty for none, None where nobody
            tried and the name of an input decides.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    mask: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the dynamic axes of the inputs, in order of first use."""
        return tuple(dict.fromkeys(axis for spec in self.inputs for axis in spec.axes if isinstance(axis, str)))


def tensors_of(values: Mapping[str, Value]) -> Feeds:
    """Return values as tensors alone: those of a sequence as `name[0]`, `name[1]` and so on.

    How many there are is a tensor too, `name[]`; it is -1 for an optional that is empty. So what compares tensors sees
    every difference.
    """
    found: Feeds = {}
    for name, value in values.items():
        if value is None or isinstance(value, list):
            parts = value or []
            found[f"{name}[]"] = np.array(-1 if value is None else len(parts))
            found |= {f"{name}[{place}]": part for place, part in enumerate(parts)}
        else:
            found[name] = value
    return found


def shape_text(value: Value) -> str:
    """Return the shape of a value for a person: `[2, 3]`, `a sequence of 4`, `nothing`."""
    if value is None:
        return "nothing"
    return f"a sequence of {len(value)}" if isinstance(value, list) else str(list(np.shape(value)))

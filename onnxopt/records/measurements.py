"""What was measured on a run: the records of `measurements.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from onnxopt.records.manifest import SCHEMA_VERSION, FormName
from onnxopt.records.record import Record, read_object, validated
from onnxopt.records.speed import Verdict, speed_text, verdict_of

MEASUREMENTS_NAME: Final = "measurements.json"


class Latency(Record):
    """Median latency of one request shape before and after optimizing.

    Attributes:
        shape: size of each dynamic axis.
        before_ms: of the model as loaded, run by the same runtime with its own optimisations on.
        after_ms: of the result; where the original is shipped that is the same.
        fill: share of positions that were real tokens.
        low: lower end of the interval of the speed-up, at least 95 %, over turns; None where no interval was taken.
        high: upper end.
        before_p99_ms: 99 of 100 runs of the original were faster; with fewer runs, about the slowest.
        after_p99_ms: the same of the result.
    """

    shape: dict[str, int]
    fill: float = 1.0
    before_ms: float = Field(gt=0)
    after_ms: float = Field(gt=0)
    low: float | None = None
    high: float | None = None
    before_p99_ms: float | None = None
    after_p99_ms: float | None = None

    @property
    def speedup(self) -> float:
        """How many times faster the result is."""
        return self.before_ms / self.after_ms

    @property
    def verdict(self) -> Verdict:
        """What was seen."""
        return verdict_of(self.low, self.high)

    def __str__(self) -> str:
        return speed_text(self.speedup, self.low, self.high)

    @property
    def label(self) -> str:
        """The request in words: `batch 8 sequence 128, 26% real`."""
        sizes = " ".join(f"{axis} {size}" for axis, size in self.shape.items()) or "fixed size"
        return sizes if self.fill == 1.0 else f"{sizes}, {self.fill:.0%} real"


class SessionCost(Record):
    """What a session of a model takes.

    Attributes:
        open_ms: time to open it; the median over turns.
        held_bytes: memory beyond a process without a model, once it has answered requests of the first shape.
        own_bytes: of that, what is no page of a file; None where the system does not tell.
    """

    open_ms: float
    held_bytes: int
    own_bytes: int | None = None


class Race(Record):
    """One form of the graph beside the original, in turns.

    Attributes:
        form: which form ran beside the original.
        speedup: geometric mean over the shapes by the weights of the workload, the median of all turns.
        low: lower end of its interval, at least 95 %.
        high: upper end.
        turns: how often each of the two was started.
        shapes: each request.
        trouble: what else went on meanwhile on the machine; empty when nothing was noticed.
        part: `encoder` or `decoder` of an encoder-decoder, else empty.
        before_bytes: memory that the original took at its highest, beyond a process without a model; the median.
        after_bytes: the same of this form.
        before_session: what a session of the original takes; None in records of an older version.
        after_session: the same of this form.
    """

    form: FormName
    speedup: float
    low: float
    high: float
    turns: int
    shapes: tuple[Latency, ...]
    trouble: str = ""
    part: str = ""
    before_bytes: int | None = None
    after_bytes: int | None = None
    before_session: SessionCost | None = None
    after_session: SessionCost | None = None

    @property
    def verdict(self) -> Verdict:
        """What was seen on the workload as a whole."""
        return verdict_of(self.low, self.high)

    def __str__(self) -> str:
        return speed_text(self.speedup, self.low, self.high)

    @property
    def slower(self) -> tuple[Latency, ...]:
        """The shapes that are slower than with the original."""
        return tuple(shape for shape in self.shapes if shape.verdict == "slower")


class Measurements(Record):
    """`measurements.json`: what differs between two runs with the same inputs.

    Attributes:
        schema_version: version of this schema.
        created: ISO 8601 date and time in UTC.
        latency: before and after, of what is shipped.
        races: all forms that were measured, shipped or not.
        pass_seconds: how long each pass took, summed over its runs.
        seconds: how long the whole run took.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    latency: tuple[Latency, ...] = ()
    races: tuple[Race, ...] = ()
    pass_seconds: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> Measurements | None:
        """Read `measurements.json` of an artifact folder; None when there is none.

        Raises:
            InputError: when the file is malformed.
        """
        path = Path(folder) / MEASUREMENTS_NAME
        if not path.exists():
            return None
        return validated(cls, read_object(path), path)

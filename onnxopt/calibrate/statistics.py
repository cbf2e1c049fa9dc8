"""Statistics of tensors over any number of samples, in memory that does not grow with them.

Every tensor is seen as rows of channels [rows, channels]: its last axis are the channels. Kept are per-channel extremes
and moments, a histogram whose range doubles when a value lies outside, a bounded sample of whole rows, and on request
the Gram matrix Σ xᵀx that least squares and GPTQ want.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxopt.spec import Array

BINS = 4096  # of a histogram, over [-reach, reach]
KEPT_ROWS = 384  # of each tensor
MOVING_AVERAGE = 0.05  # share of the newest batch in the moving average of the extremes
IMAGE_ROWS = 2048  # positions of one image whose moments are taken; neighbours are alike
HISTOGRAM_VALUES = 1 << 18  # of one batch; more are thinned by whole rows, which costs no bias


_ARRAYS = ("low", "high", "total", "squares", "counts", "sample")


@dataclass
class Statistics:
    """What is known of one tensor.

    Attributes:
        channels: size of its last axis.
        rows: rows seen.
        low: float64 [channels], smallest values.
        high: float64 [channels], largest values.
        total: float64 [channels], Σ x.
        squares: float64 [channels], Σ x².
        average: moving average of (min, max) over batches; None before the first.
        reach: the histogram covers [-reach, reach].
        counts: int64 [BINS].
        sample: float32 [≤ KEPT_ROWS, channels], rows drawn evenly from all (reservoir sampling, Vitter 1985).
        gram: float64 [channels, channels], Σ xᵀx; None when it was not asked for.
    """

    channels: int
    with_gram: bool = False
    rows: int = 0
    low: Array = field(init=False)
    high: Array = field(init=False)
    total: Array = field(init=False)
    squares: Array = field(init=False)
    average: tuple[float, float] | None = None
    reach: float = 0.0
    counts: Array = field(init=False)
    sample: Array = field(init=False)
    gram: Array | None = field(init=False)
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.low, self.high = np.full(self.channels, np.inf), np.full(self.channels, -np.inf)
        self.total, self.squares = np.zeros(self.channels), np.zeros(self.channels)
        self.counts = np.zeros(BINS, np.int64)
        self.sample = np.zeros((0, self.channels), np.float32)
        self.gram = np.zeros((self.channels, self.channels)) if self.with_gram else None
        self._random = np.random.default_rng(self.channels)

    def add(self, values: Array, extremes: tuple[Array, Array] | None = None) -> None:
        """Count the rows of a tensor [..., channels]; rows of padding must have been left out.

        Args:
            values: all rows, or some of them.
            extremes: float [channels] twice, the smallest and largest values of all rows where these are some.
        """
        x = np.asarray(values, np.float32).reshape(-1, self.channels)
        if not x.size:
            return
        low, high = extremes or (x.min(axis=0), x.max(axis=0))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.total += x.sum(axis=0, dtype=np.float64)
        self.squares += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        newest = float(low.min()), float(high.max())
        old = self.average or newest
        mix = MOVING_AVERAGE if self.average else 1.0
        self.average = old[0] + mix * (newest[0] - old[0]), old[1] + mix * (newest[1] - old[1])
        self._count(x, max(abs(newest[0]), abs(newest[1])))
        if self.gram is not None:
            self.gram += (x.T @ x).astype(np.float64)
        self._keep(x)
        self.rows += len(x)

    def add_image(self, values: Array) -> None:
        """Count the positions of a tensor [batch, channels, ...]: the extremes of all, the moments of some, evenly."""
        x = np.asarray(values, np.float32).reshape(len(values), self.channels, -1)
        if not x.size:
            return
        extremes = x.min(axis=(0, 2)), x.max(axis=(0, 2))
        every = max(1, x.shape[0] * x.shape[2] // IMAGE_ROWS)
        self.add(x[:, :, ::every].transpose(0, 2, 1), extremes)

    def _count(self, x: Array, largest: float) -> None:
        if self.reach == 0.0:
            self.reach = largest or 1.0
        while self.reach < largest:  # two neighbours become one bin; the sides keep their halves
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
            self.reach *= 2
        every = max(1, x.size // HISTOGRAM_VALUES)
        places = ((x[::every].reshape(-1) + self.reach) * (BINS / 2 / self.reach)).astype(np.int32)
        np.clip(places, 0, BINS - 1, out=places)
        self.counts += every * np.bincount(places, minlength=BINS)

    def _keep(self, x: Array) -> None:
        """Keep each row seen so far with the same chance (algorithm R)."""
        room = KEPT_ROWS - len(self.sample)
        if room > 0:
            self.sample = np.concatenate([self.sample, x[:room]])
        rest = np.arange(max(room, 0), len(x))
        if not rest.size:
            return
        places = (self._random.random(len(rest)) * (self.rows + rest + 1)).astype(np.int64)
        for row, place in zip(rest[places < KEPT_ROWS], places[places < KEPT_ROWS], strict=True):
            self.sample[place] = x[row]

    def state(self) -> dict[str, Array]:
        """Return all that is known, so that `of_state` can go on: arrays by name, none of objects."""
        generator = np.frombuffer(json.dumps(self._random.bit_generator.state).encode(), np.uint8)
        found = {name: getattr(self, name) for name in _ARRAYS}
        found |= {"sizes": np.array([self.channels, self.rows]), "reach": np.array(self.reach), "random": generator}
        if self.average is not None:
            found["average"] = np.array(self.average)
        if self.gram is not None:
            found["gram"] = self.gram
        return found

    @classmethod
    def of_state(cls, state: Mapping[str, Array]) -> Statistics:
        """Return the statistics whose state that is."""
        channels, rows = (int(size) for size in state["sizes"])
        found = cls(channels, with_gram="gram" in state, rows=rows)
        for name in _ARRAYS:
            setattr(found, name, np.array(state[name]))
        found.reach = float(state["reach"])
        found.gram = np.array(state["gram"]) if "gram" in state else None
        if "average" in state:
            low, high = (float(end) for end in state["average"])
            found.average = low, high
        found._random.bit_generator.state = json.loads(state["random"].tobytes())
        return found

    @property
    def smallest(self) -> float:
        """The smallest value of all."""
        return float(self.low.min(initial=0.0))

    @property
    def largest(self) -> float:
        """The largest value of all."""
        return float(self.high.max(initial=0.0))

    @property
    def moments(self) -> Array:
        """float64 [channels], mean of the squares."""
        return np.asarray(self.squares / max(self.rows, 1))

    @property
    def mean(self) -> Array:
        """float64 [channels]."""
        return np.asarray(self.total / max(self.rows, 1))

    @property
    def magnitude(self) -> Array:
        """float64 [channels], largest |x|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def centres(self) -> Array:
        """float64 [BINS], the middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach)

"""Rows of tokens to learn from: running text in blocks, or one text a row, with labels where a file has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.spec import Array


@dataclass
class Order:
    """The rows of every update: each epoch a new order, drawn from the seed alone."""

    rows: int
    batch_size: int
    seed: int

    def batch(self, number: int) -> Array:
        """Return int64 [batch], the rows of update `number`, counted from 0."""
        start = number * self.batch_size
        places = np.arange(start, start + self.batch_size)
        return np.array([self._epoch(int(place) // self.rows)[int(place) % self.rows] for place in places])

    def _epoch(self, epoch: int) -> Array:
        known = self.__dict__.setdefault("known", {})
        if epoch not in known:
            known.clear()
            known[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        found: Array = known[epoch]
        return found

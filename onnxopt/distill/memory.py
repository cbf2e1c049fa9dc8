"""What a teacher said of each row, kept on disk, so that later epochs do not ask it again."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.disk import needing
from onnxopt.spec import Array

MOST_BYTES = 64 << 30


def _reserve(handle: int, size: int) -> None:
    """Give a file its size and its room on the disk: one that fills up under a map would end the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)


@dataclass
class Memory:
    """The teacher's likeliest tokens at every position of every row.

    Attributes:
        rows: how many rows there are.
        length: tokens of a row.
        top_k: entries of a position.
    """

    rows: int
    length: int
    top_k: int
    known: Array = field(init=False)

    def __post_init__(self) -> None:
        size = self.rows * self.length * self.top_k * 8
        if size > MOST_BYTES:
            raise InputError(
                f"the teacher's answers would take {size / 2**30:.0f} GiB of disk",
                where="--cache-teacher",
                hint="choose a smaller --top-k",
            )
        self.known = np.zeros(self.rows, bool)
        kind = np.dtype([("best", np.float32, (self.top_k,)), ("index", np.int32, (self.top_k,))])
        with tempfile.TemporaryFile(prefix="onnxopt-teacher-") as file:  # the map keeps it until it goes itself
            with needing(size):
                _reserve(file.fileno(), size)
            self._map = np.memmap(file, dtype=kind, mode="r+", shape=(self.rows, self.length))

    def recall(self, index: Array, width: int, device: Any) -> dict[str, Any] | None:
        """Return `best` float32 and `index` int64 [rows, width, k] of some rows, or None when one is new."""
        import torch

        if not self.known[index].all():
            return None
        found = self._map[index, :width]
        return {
            "best": torch.from_numpy(found["best"].copy()).to(device),
            "index": torch.from_numpy(found["index"].astype(np.int64)).to(device),
        }

    def keep(self, index: Array, taught: dict[str, Any]) -> None:
        """Keep what a teacher said of some rows."""
        best, places = taught["best"].cpu().numpy(), taught["index"].cpu().numpy()
        entry = np.empty(best.shape[:2], self._map.dtype)
        entry["best"], entry["index"] = best, places
        self._map[index, : best.shape[1]] = entry
        self.known[index] = True

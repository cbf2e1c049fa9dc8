"""Count the weights of a checkpoint from the headers of its files: how many, how large, how many of them in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.stored import Place, places_in

TABLES = ("embed", "wte", "word_embeddings", "lm_head", "embed_out")  # parts of names of tables of words, and of heads
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Counted:
    """The float weights of a checkpoint.

    Attributes:
        parameters: how many numbers.
        in_tables: how many of them in tables of words and in heads.
        largest: numbers of the largest weight.
        stored_bytes: of the files.
    """

    parameters: int = 0
    in_tables: int = 0
    largest: int = 0
    stored_bytes: int = 0

    @property
    def float_bytes(self) -> int:
        """What all of them take as float32."""
        return 4 * self.parameters


def count_weights(files: Iterable[Path]) -> Counted | None:
    """Count what safetensors files hold, without reading any weight; None where one of them cannot be read.

    Args:
        files: of one checkpoint.
    """
    places: dict[str, Place] = {}
    stored = 0
    try:
        for path in files:
            stored += path.stat().st_size
            places |= places_in(path)
    except (OSError, InputError):  # what is wrong with it is said where it is loaded
        return None
    sizes = {name: math.prod(place.shape) for name, place in places.items() if place.dtype in _FLOATS}
    tables = (name for name in sizes if len(places[name].shape) > 1 and any(word in name for word in TABLES))
    return Counted(sum(sizes.values()), sum(sizes[name] for name in tables), max(sizes.values(), default=0), stored)

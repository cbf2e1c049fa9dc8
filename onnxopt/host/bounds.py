"""What an input may cost before it is judged, and how a user allows more: `ONNXOPT_LIMITS=nodes=500000,seconds=60`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from onnxopt.errors import InputError
from onnxopt.host.sizes import parse_size

VARIABLE = "ONNXOPT_LIMITS"
_COUNTS: Mapping[str, int] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_OF_BYTES = ("memory", "verify")
_COUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmg]?)")
_BYTES_PER_SECOND = 1 << 26  # of weights: a slow disk reads so many, and a product reads each once
_ELEMENTS = 4096
_SHARE_OF_WEIGHTS = 16  # a run may take so many times the weights beside `memory`


@dataclass(frozen=True)
class Bounds:
    """The limits of one process.

    Attributes:
        nodes: of a graph, with those of its functions at every place that calls them, and of its subgraphs.
        growth: how many times the nodes of its file a graph may have once functions are written out, beyond 20,000.
        seconds: of one run of a graph; 1 s more for each 64 MiB of weights, and so much for each 4096 numbers of an
            input once it has been seen to run.
        memory: bytes that such a run may take; 16 bytes more for each byte of weights.
        verify: bytes of a file of an artifact up to which opening it compares the content with the manifest; of larger
            ones the length. 0 compares nothing.
    """

    nodes: int = 200_000  # no network that we know has half of them: experts of 58 layers, 256 each, have 150,000
    growth: int = 20
    seconds: float = 10.0
    memory: int = 1 << 30
    verify: int = 1 << 30

    def seconds_for(self, weight_bytes: int, elements: int = 0) -> float:
        """Return how long one run may take, in seconds.

        Args:
            weight_bytes: of the model.
            elements: numbers that go in; 0 for what nobody has run yet.
        """
        return (self.seconds + weight_bytes / _BYTES_PER_SECOND) * max(1.0, elements / _ELEMENTS)

    def memory_for(self, weight_bytes: int, elements: int = 0) -> int:
        """Return how many bytes one run may take; the arguments are those of `seconds_for`."""
        return int((self.memory + _SHARE_OF_WEIGHTS * weight_bytes) * max(1.0, elements / _ELEMENTS))


def bounds() -> Bounds:
    """Return the limits of this process: the usual ones, with what the environment says.

    Raises:
        InputError: the environment says what cannot be read.
    """
    return parse_bounds(os.environ.get(VARIABLE, ""))


def parse_bounds(text: str) -> Bounds:
    """Read `name=number` separated by commas; counts may end in k, M or G, bytes are sizes such as 512MB or 4GiB.

    Raises:
        InputError: a name is unknown, or a number none.
    """
    known = {field.name: field for field in fields(Bounds)}
    said: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, number = (one.strip().lower() for one in part.partition("="))
        value = _value(name, number)
        if name not in known or value is None:
            hint = f"write {', '.join(known)} with a number each, such as {VARIABLE}=seconds=60,memory=4GiB"
            raise InputError(f"cannot read {part!r}", where=VARIABLE, hint=hint)
        said[name] = value if name == "seconds" else int(value)
    return replace(Bounds(), **said)


def _value(name: str, text: str) -> float | None:
    """Return what is said of a limit, bytes where it counts these; None for what cannot be read."""
    if name in _OF_BYTES:
        with contextlib.suppress(InputError):
            return 0 if text == "0" else parse_size(text)
        return None
    found = _COUNT.fullmatch(text)
    return float(found[1]) * _COUNTS[found[2]] if found else None


def allow(name: str, value: str) -> str:
    """Return the hint that tells how to allow more: a limit by its name, with a number that would do."""
    return f"if you trust it, allow more with {VARIABLE}={name}={value}"

"""The register of pieces: small functions, each of which adds one idea to a sketch.

A piece that finds nothing to build on leaves the sketch as it is. What a piece knows about dimensions it states in the
values that it gives; where it does not know, it says so with a fresh name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.property.sketch import Sketch

Build = Callable[[Sketch], None]


@dataclass(frozen=True)
class Piece:
    """One idea.

    Attributes:
        name: for tables and tests.
        build: adds it.
        weight: how often it is drawn, beside the others.
    """

    name: str
    build: Build
    weight: float


PIECES: dict[str, Piece] = {}


def piece(name: str, weight: float = 1.0) -> Callable[[Build], Build]:
    """Register a piece under a name of its own."""

    def register(build: Build) -> Build:
        if name in PIECES:
            raise ValueError(f"two pieces are called {name!r}")
        PIECES[name] = Piece(name, build, weight)
        return build

    return register

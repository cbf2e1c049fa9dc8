"""What is written down of an option is found in the docstring of its class, and shown by functions that take it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from onnxopt.road.described import described, spelled_out
from onnxopt.road.options import PLACES, Stage


@dataclass(frozen=True)
class Paint(Stage):
    """How it is painted.

    Attributes:
        colour: of the wall: `red`, or
            any other word.
        coats: how many.

    Behind the attributes there may be more.
    """

    colour: str = "red"
    coats: int = 2


def test_words_stand_on_one_line_whatever_follows() -> None:
    found = {one.name: (one.annotation, one.default, one.words) for one in described(Paint)}
    assert found["colour"] == ("str", "red", "of the wall: `red`, or any other word.")
    assert found["coats"] == ("int", 2, "how many.")


def test_without_docstrings_there_are_no_words() -> None:
    @dataclass(frozen=True)
    class Silent(Stage):
        colour: str = "red"

    Silent.__doc__ = None
    assert [one.words for one in described(Silent)] == [""]


def test_a_function_shows_every_option_in_its_signature_and_its_docstring() -> None:
    @spelled_out
    def go(place: str, **options: Any) -> dict[str, Any]:
        """Go.

        Args:
            place: where to.
            **options: whatever
                there is.

        Returns:
            What was given.
        """
        return {"place": place, **options}

    assert list(inspect.signature(go).parameters) == ["place", *PLACES]
    lines = (go.__doc__ or "").splitlines()
    assert "**options" not in (go.__doc__ or "")
    assert "there is." not in (go.__doc__ or "")
    assert sum(line.startswith("            ") and line[12] != " " for line in lines if line.strip()) == len(PLACES) + 2
    assert max(map(len, lines)) <= 120
    assert go("x", keep="head") == {"place": "x", "keep": "head"}

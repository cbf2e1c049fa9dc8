"""A line is parted between words in a terminal and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnxopt.cli.words import print_words

LINE = "lower         14.3 s  lower-attention 6, lower-gelu 6, /a/path/that/is/wider/than/the/terminal/model.onnx, end"


def printed(line: str, width: int, *, terminal: bool, indent: int = 14) -> list[str]:
    stream = io.StringIO()
    print_words(Console(file=stream, width=width, force_terminal=terminal, color_system=None), line, indent=indent)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_word_is_cut_and_none_is_lost(width: int) -> None:
    lines = printed(LINE, width, terminal=True)
    assert " ".join(lines).split() == LINE.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert all(line.startswith(" ") for line in lines[1:])


def test_what_follows_stands_below_the_first_word() -> None:
    assert printed("error: one two three four", 16, terminal=True, indent=7) == [
        "error: one two",
        "     three four",
    ]  # a third at most
    assert printed("error: one two three four", 24, terminal=True, indent=7) == ["error: one two three", "       four"]


def test_a_pipe_gets_one_line_whatever_its_length() -> None:
    assert printed(LINE, 20, terminal=False) == [LINE]
    assert printed("", 20, terminal=True) == [""]

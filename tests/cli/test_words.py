"""A line is parted between words in a terminal and nowhere else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from onnxopt.cli.words import near, print_list, print_words

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


@pytest.mark.parametrize(
    ("width", "terminal", "line"),
    [
        (80, True, "fuse  0.7 s  gelu 6, attention 6, norm 1"),
        (34, True, "fuse  0.7 s  gelu 6, ..."),
        (20, True, "fuse  0.7 s  ..."),
        (20, False, "fuse  0.7 s  gelu 6, attention 6, norm 1"),
    ],
)
def test_a_stage_is_one_line(width: int, line: str, *, terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    print_list(console, "fuse  0.7 s  ", ["gelu 6", "attention 6", "norm 1"])
    assert stream.getvalue() == f"{line}\n"


def test_a_path_is_written_from_here_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "build" / "x") == Path("build/x")
    assert near(tmp_path.parent) == tmp_path.parent
    assert near(Path("build/x")) == Path("build/x")


def test_a_pipe_gets_one_line_whatever_its_length() -> None:
    assert printed(LINE, 20, terminal=False) == [LINE]
    assert printed("", 20, terminal=True) == [""]


def test_lines_stay_lines_and_a_terminal_without_a_width_has_one() -> None:
    assert printed("note: one\n  two", 40, terminal=True) == ["note: one", "  two"]
    assert printed("def f():\n    return  1", 40, terminal=True) == ["def f():", "    return  1"]
    assert printed("some words to part", 0, terminal=True, indent=2) == ["some words", "  to part"]

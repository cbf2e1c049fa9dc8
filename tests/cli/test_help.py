"""The help pages: whole names at any width, options in panels, examples to copy, one option a line in a pipe.

Covers: cli/panels.py
"""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import typer
from rich.console import Console

from onnxopt.cli.help import ALL, Page, Row, examples_of, names_of, page_of, row_lines, written
from onnxopt.cli.main import main
from onnxopt.cli.panels import OTHERS, PANELS, RARE, is_rare, panel_of
from onnxopt.cli.shared import app

GROUP: Any = typer.main.get_command(app)
CONTEXT: Any = GROUP.context_class(GROUP, info_name="onnxopt", **GROUP.context_settings)
COMMANDS: dict[str, Any] = dict(GROUP.commands)


def context_of(name: str) -> Any:
    return COMMANDS[name].context_class(COMMANDS[name], info_name=name, parent=CONTEXT)


def options_of(name: str) -> list[Any]:
    return [one for one in COMMANDS[name].get_params(context_of(name)) if one.param_type_name == "option"]


def shown(page: Page, width: int) -> str:
    """Return a page as a terminal of some columns shows it, without colours."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    return written(page, console)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_no_value_and_no_example_is_cut(name: str, width: int) -> None:
    text = shown(page_of(COMMANDS[name], context_of(name)), width)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    assert "…" not in text
    for option in options_of(name):
        names = names_of(option, context_of(name))
        assert all(one in names for one in (*option.opts, *option.secondary_opts))
        assert any(re.match(rf"│ {re.escape(names)}(  | *│$)", line) for line in lines), names
    examples = examples_of(COMMANDS[name].epilog)
    assert examples
    assert all(f"  {one}" in lines for one in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_panel_is_a_box_with_its_options(name: str) -> None:
    text = shown(page_of(COMMANDS[name], context_of(name)), 80)
    boxes = dict(re.findall(r"^╭─ (.*?) ─+╮\n((?:│.*│\n)+)╰─+╯$", text, re.MULTILINE))
    for option in options_of(name):
        assert option.opts[0] in boxes[panel_of(name, option.name)]
    assert "--help" in boxes["Help"]


def test_what_optimize_takes_is_parted() -> None:
    text = shown(page_of(COMMANDS["optimize"], context_of("optimize")), 80)
    titles = re.findall(r"^╭─ (.*?) ─+╮$", text, re.MULTILINE)
    assert titles == [
        *("Arguments", "Source", "Target and workload", "Precision", "Pruning", "Measuring", "Output", "Help")
    ]


def test_every_word_of_the_arrangement_is_an_option() -> None:
    known = {word for name in COMMANDS for one in options_of(name) for word in (one.name, f"{name}.{one.name}")}
    assert set().union(*PANELS.values(), RARE) <= known
    alone = {f"{name}.{one.name}" for name in COMMANDS for one in options_of(name)}
    assert not [word for word in alone if sum(word in panel for panel in PANELS.values()) > 1]


@pytest.mark.parametrize("name", COMMANDS)
def test_rare_options_are_shown_when_everything_is_asked_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rare = [one.opts[0] for one in options_of(name) if is_rare(name, one.name)]
    assert main([name, "--help"]) == 0
    few = capsys.readouterr().out
    assert main([name, ALL]) == 0
    everything = capsys.readouterr().out
    assert not [one for one in rare if re.search(rf"{one}[, ]", few)]
    assert all(one in everything for one in rare)
    if rare:
        assert re.fullmatch(rf"{ALL} shows {len(rare)} more options?\.", few.splitlines()[-1])
    else:
        assert ALL not in few


def test_the_argument_behind_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--", ALL]) == 2
    assert ALL in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_gets_one_option_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, ALL]) == 0
    text = capsys.readouterr().out
    assert not set(text) & set("│╭╰─")
    for option in options_of(name):
        (line,) = (one for one in text.splitlines() if one.startswith(f"  {names_of(option, context_of(name))}  "))
        assert " ".join(option.help.replace("`", "").split()) in line


def test_all_commands_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        (line,) = (one for one in lines if one.split()[:1] == [name])
        assert " ".join(command.help.replace("`", "").split()) in line
    assert main([ALL]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert max(len(line) for line in shown(page_of(GROUP, CONTEXT), 80).splitlines()) <= 80


def test_nothing_asked_is_help_and_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    found = capsys.readouterr()
    assert found.out.startswith("Usage: onnxopt COMMAND")
    assert found.err == ""


def test_words_stand_below_names_where_both_do_not_fit() -> None:
    row = Row("--a-name-that-is-long VALUE", "words that say what it means [default: some words]")
    beside = list(row_lines(row, 80, 30))
    assert beside == [f"{row.names:<32}words that say what it means", f"{'':<32}[default: some words]"]
    assert next(iter(row_lines(row, 52, 20))) == row.names
    below = list(row_lines(row, 30, 30))
    assert below[0] == row.names
    assert all(line.startswith("    ") and len(line) <= 30 for line in below[1:])
    assert sum("[default: some words]" in line for line in below) == 1


def test_an_option_that_nothing_is_said_of_stands_among_the_others() -> None:
    assert panel_of("optimize", "colour") == OTHERS
    assert not is_rare("optimize", "colour")
    assert (panel_of("optimize", "budget"), panel_of("verify", "budget")) == ("Precision", "Comparing")

"""How far a command is: for people in a terminal and in a pipe, for programs, and how long the rest will take.

Covers: records/pace.py
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from onnxopt.cli.main import main
from onnxopt.cli.progress import JsonView, LiveView, View, view_of
from onnxopt.cli.schemas import schema_of
from onnxopt.cli.shared import ProgressName, app
from onnxopt.records.events import Event, Said, Step
from onnxopt.records.pace import Pace, left_text
from tests.support.commands import arguments_of_all
from tests.support.json_schema import faults
from tests.support.own_text import sentences, text_encoder

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group
SHOWING = [name for name, one in COMMANDS.items() if any(each.name == "progress" for each in one.params)]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def work(view: View) -> None:
    """Two stages, the second with three pieces of work."""
    with view:
        view.show(Event("load", "hashing"))
        view.show(Event("fuse", "fuse-gelu", 2))
        for number in (1, 2, 3):
            view.show(Event("quantize", Step.piece("grids", number, 3, f"layer [{number}]")))


def test_a_program_gets_an_object_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    work(JsonView())
    found = lines_of(capsys.readouterr().err)
    assert all(faults(one, schema_of("progress")) == [] for one in found)
    assert [(one["event"], one["stage"]) for one in found] == [
        *(("step", "load"), ("stage", "load"), ("step", "fuse"), ("stage", "fuse")),
        *(("step", "quantize"),) * 3,
        ("stage", "quantize"),
    ]
    assert [one["kept"] for one in found[:4]] == [0, 0, 2, 2]
    assert [(one["done"], one["total"], one["fraction"]) for one in found[3:7]] == [
        (None, None, None),
        (0, 3, 0.0),
        (1, 3, 0.3333),
        (2, 3, 0.6667),
    ]
    assert found[4]["seconds_left"] is None
    assert found[5]["seconds_left"] >= 0
    assert found[5]["step"] == "grids 2 of 3: layer [2]"


def test_a_pipe_gets_a_line_per_stage() -> None:
    console = Console(file=io.StringIO(), width=40)
    work(LiveView(console))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["load", "fuse", "quantize"]
    assert lines[1].endswith("fuse-gelu 2")


def test_what_is_said_stays_to_be_read() -> None:
    console = Console(file=io.StringIO(), width=40)
    with LiveView(console) as view:
        view.say("load", Said("it takes [about] an hour"))
        view.say("load", "reading")
    assert isinstance(console.file, io.StringIO)
    said, over = console.file.getvalue().splitlines()
    assert said == "load          it takes [about] an hour"
    assert over.startswith("load ")
    assert over.endswith(" s")


def test_a_terminal_shows_the_share_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("onnxopt.cli.progress.time.monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, legacy_windows=False)
    view = LiveView(console)
    seen = []
    with view:
        for number in (1, 2, 3):
            view.say("quantize", Step.piece("grids", number, 3, f"layer [{number}]"))
            seen.append(view._progress.tasks[0].description)
    assert seen[0] == r"grids 1 of 3: layer \[1]  0%"
    assert seen[1].startswith(r"grids 2 of 3: layer \[2]  33%, ")
    assert seen[1].endswith(" s left")


def test_a_stage_that_fails_is_not_said_to_be_over(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="lost"), JsonView() as view:
        view.say("load", "hashing")
        raise ValueError("lost")
    assert [one["event"] for one in lines_of(capsys.readouterr().err)] == ["step"]


@pytest.mark.parametrize(
    ("asked", "quiet", "kind"),
    [
        ("auto", False, LiveView),
        ("auto", True, View),
        ("plain", False, LiveView),
        ("plain", True, LiveView),
        ("json", True, JsonView),
        ("none", False, View),
    ],
)
def test_what_is_asked_for_is_shown_and_else_what_suits(asked: str, quiet: bool, kind: type[View]) -> None:  # noqa: FBT001
    assert type(view_of(asked, quiet=quiet)) is kind
    assert type(view_of(ProgressName(asked), quiet=quiet)) is kind


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    return arguments_of_all(tmp_path_factory.mktemp("progress"))


@pytest.mark.parametrize("name", SHOWING)
def test_a_command_says_how_far_it_is_and_prints_its_answer_alone(
    name: str, arguments: Mapping[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[name], "--json", "--progress", "json"]) == 0
    printed = capsys.readouterr()
    assert faults(json.loads(printed.out), schema_of(name)) == []
    found = lines_of(printed.err)
    assert all(faults(one, schema_of("progress")) == [] for one in found)
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    assert found[-1]["event"] == "stage"
    assert any(one["fraction"] is not None for one in found)


def test_each_stage_that_takes_long_counts_its_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_encoder(tmp_path / "model", layers=1)
    (tmp_path / "texts.txt").write_text("\n".join(sentences(48)), encoding="utf-8")
    options = ["--precision", "int8", "--calibration", str(tmp_path / "texts.txt"), "--no-measure", "--allow-slower"]
    options += ["--budget", "cosine>=0.9", "--prune", "ffn=25%", "--prune-data", str(tmp_path / "texts.txt")]
    asked = ["optimize", str(model), "-o", str(tmp_path / "out"), *options, "--json"]
    assert main([*asked, "--progress", "json"]) == 0
    counted = {one["stage"] for one in lines_of(capsys.readouterr().err) if one["fraction"] is not None}
    assert {"canonicalize", "fuse", "prune", "quantize", "lower", "verify"} <= counted
    assert main(asked) == 0
    assert capsys.readouterr().err == ""


def steps(work_name: str, total: int) -> Callable[[int], Step]:
    return lambda done: Step(f"{work_name} {done}", work=work_name, done=done, total=total)


def test_time_left_is_of_the_pieces_and_the_slow_first_one_stops_counting() -> None:
    pace, at = Pace(), steps("layers", 5)
    assert pace.seconds_left(at(0), 100.0) is None
    assert pace.seconds_left(at(1), 130.0) == pytest.approx(4 * 30.0)  # all that is known
    assert pace.seconds_left(at(2), 132.0) == pytest.approx(3 * 2.0)
    assert pace.seconds_left(at(4), 136.0) == pytest.approx(1 * 2.0)
    assert pace.seconds_left(at(5), 138.0) == 0.0


def test_each_work_has_a_pace_and_one_that_begins_anew_has_another() -> None:
    pace, first, second = Pace(), steps("fit", 4), steps("choose", 4)
    assert pace.seconds_left(first(0), 0.0) is None
    assert pace.seconds_left(second(0), 1.0) is None
    assert pace.seconds_left(first(2), 10.0) == pytest.approx(10.0)
    assert pace.seconds_left(second(2), 3.0) == pytest.approx(2.0)
    assert pace.seconds_left(first(0), 20.0) is None
    assert pace.seconds_left(first(1), 21.0) == pytest.approx(3.0)


def test_work_that_goes_on_where_it_was_stopped_counts_what_is_new() -> None:
    pace, at = Pace(), steps("steps", 100)
    assert pace.seconds_left(at(90), 0.0) is None
    assert pace.seconds_left(at(92), 4.0) == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s left"), (89, "89 s left"), (90, "2 min left"), (3000, "50 min left"), (9000, "2.5 h left")],
)
def test_time_left_is_told_no_finer_than_it_is_known(seconds: float, words: str) -> None:
    assert left_text(seconds) == words

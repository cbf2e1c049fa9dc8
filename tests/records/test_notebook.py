"""In a notebook a call tells how far it is, in a line that is written anew in place; elsewhere nothing is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxopt
from onnxopt.errors import InputError
from onnxopt.records.events import Event, Step
from onnxopt.records.notebook import in_notebook, shown, steps_shown
from onnxopt.timing.bench import bench


class ZMQInteractiveShell:
    """What Jupyter's kernels have, by its name."""


class ColabShell(ZMQInteractiveShell):
    """What other kernels make of it."""


class TerminalInteractiveShell:
    """What IPython has in a terminal."""


class Page:
    """Stands for IPython's display: what is below a cell now, and how often it was written."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.written = 0

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Page:
        assert raw
        assert display_id
        self.shown.append(data)
        self.written += 1
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown[-1] = data
        self.written += 1

    @property
    def text(self) -> str:
        (line,) = self.shown
        return line["text/plain"]

    @property
    def markup(self) -> str:
        (line,) = self.shown
        return line["text/html"]


def set_shell(monkeypatch: pytest.MonkeyPatch, shell: object) -> Page:
    page, package, display = Page(), ModuleType("IPython"), ModuleType("IPython.display")
    package.__dict__.update(get_ipython=lambda: shell, display=display)
    display.__dict__.update(display=page.display)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return page


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    return set_shell(monkeypatch, ZMQInteractiveShell())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advance the clock that lines are timed with."""
    now = [100.0]
    monkeypatch.setattr("onnxopt.records.notebook.time.monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [6, 5], np.ones(30, np.float32))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    ends = [value("x", TensorProto.FLOAT, ["rows", 6])], [value("y", TensorProto.FLOAT, ["rows", 5])]
    graph = helper.make_graph(nodes, "small", *ends, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("shell", "is_one"),
    [(ZMQInteractiveShell(), True), (ColabShell(), True), (TerminalInteractiveShell(), False), (None, False)],
)
def test_a_notebook_is_known_by_its_kernel(shell: object, *, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_shell(monkeypatch, shell)
    assert in_notebook() is is_one


def test_outside_of_one_nothing_is_shown_or_imported() -> None:
    code = """
import sys
from onnxopt.records.events import Event
from onnxopt.records.notebook import shown
with shown(None) as say:
    say(Event("fuse", "gelu"))
print([name for name in sys.modules if name.split(".")[0] in ("IPython", "ipywidgets", "onnx", "torch")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_line_tells_stage_step_share_and_time_left(page: Page, clock: Callable[[float], None]) -> None:
    with shown(None) as say:
        for number in (1, 2, 3):
            say(Event("quantize", Step.piece("layer", number, 5, "q<1>")))
            clock(3.0)
        assert page.text == "quantize  40%, 9 s left  layer 3 of 5: q<1>"
        assert '<progress max="1" value="0.4000"' in page.markup
        assert "q&lt;1&gt;" in page.markup
        assert not re.search(r"color|background", page.markup)  # those of the page, light or dark
        say(Event("lower", "fuse-gelu", 7))
        assert page.text == "lower  fuse-gelu  7 kept"
        assert "<progress" not in page.markup


def test_the_last_line_has_the_seconds_of_each_stage(page: Page, clock: Callable[[float], None]) -> None:
    with shown(None) as say:
        for stage, seconds in (("load", 2.0), ("fuse", 0.5), ("verify", 1.0), ("fuse", 0.25)):
            say(Event(stage, "a step"))
            clock(seconds)
    assert page.text == "load 2.0 s · fuse 0.8 s · verify 1.0 s · 3.8 s in all"


def test_it_is_said_where_work_stopped(page: Page, clock: Callable[[float], None]) -> None:
    with pytest.raises(InputError), steps_shown("prune", None) as say:
        say("looking")
        clock(1.5)
        raise InputError("no")
    assert page.text == "stopped in prune after 1.5 s: prune 1.5 s"


def test_steps_faster_than_eyes_are_left_out(page: Page, clock: Callable[[float], None]) -> None:
    with shown(None) as say:
        for number in range(1, 1001):
            say(Event("verify", Step.piece("case", number, 1000)))
            clock(0.001)
    assert 5 <= page.written <= 15


def test_who_is_named_takes_its_place_and_quiet_shows_nothing(page: Page) -> None:
    events: list[Event] = []
    steps: list[str] = []
    with shown(events.append) as say, steps_shown("prune", steps.append) as tell, shown(onnxopt.quiet) as nobody:
        say(Event("load", "a"))
        tell(Step.piece("part", 2, 3))
        nobody(Event("load", "b"))
    with steps_shown("prune", onnxopt.quiet) as tell:
        tell("c")
    assert events == [Event("load", "a")]
    assert [(step, step.done) for step in steps if isinstance(step, Step)] == [("part 2 of 3", 1)]
    assert page.written == 0


def test_nothing_is_below_the_cell_where_nothing_was_told(page: Page) -> None:
    with shown(None):
        pass
    assert page.written == 0


def test_optimize_and_bench_show_their_line(page: Page, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"measure": False, "target": "portable"}
    onnxopt.optimize(model, out=tmp_path / "a", **options)
    assert re.fullmatch(r"load \d+\.\d s · .*package \d+\.\d s · \d+\.\d s in all", page.text)
    page.shown.clear()
    bench([model], shapes=[{"rows": 3}], rounds=1, seconds=0.1)
    assert re.fullmatch(r"measure (\d+\.\d) s · \1 s in all", page.text)
    page.shown.clear()
    onnxopt.optimize(model, out=tmp_path / "b", progress=onnxopt.quiet, **options)
    assert page.shown == []

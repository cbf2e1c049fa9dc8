"""What programs read: with `--json` one line on standard output that its schema describes, whatever becomes of it.

Covers: cli/answers.py, cli/schema.py, cli/schemas.py, cli/telling.py, host/failures.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import typer

import onnxopt.cli.main as entry
from onnxopt.cli.answers import plain
from onnxopt.cli.main import BUG_EXIT_CODE, main
from onnxopt.cli.schemas import SCHEMAS, schema_of
from onnxopt.cli.shared import app
from onnxopt.cli.telling import LONGEST_LINE, Teller
from onnxopt.cli.watcher import ChildDiedError
from onnxopt.errors import (
    ExportError,
    GateError,
    InputError,
    LimitError,
    OnnxoptError,
    OwnPassError,
    ProofError,
)
from onnxopt.host.failures import asks_for_json
from onnxopt.proof.compare import Comparison, OutputReport
from onnxopt.records.measurements import Latency, Measurements, Race
from tests.artifact.test_report import make_manifest
from tests.support.commands import arguments_of_all
from tests.support.json_schema import faults
from tests.support.own_text import text_encoder

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group
ANSWERING = [name for name, one in COMMANDS.items() if any(each.name == "as_json" for each in one.params)]
WITHOUT = {"serve": "it answers over HTTP until it is stopped"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    return arguments_of_all(tmp_path_factory.mktemp("json"))


def the_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the object on the only line of standard output."""
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert out == json.dumps(found, separators=(",", ":")) + "\n"
    assert isinstance(found, dict)
    assert next(iter(found)) == "schema_version"
    return found


def test_every_command_answers_or_says_why_not(arguments: Mapping[str, list[str]]) -> None:
    assert set(ANSWERING) | set(WITHOUT) == set(COMMANDS)
    assert set(SCHEMAS) == {*ANSWERING, "error", "progress"}
    assert set(arguments) == set(ANSWERING)


@pytest.mark.parametrize("name", ANSWERING)
def test_an_answer_is_a_line_that_its_schema_describes(
    name: str, arguments: Mapping[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[name], "--json"]) == 0
    found = the_line(capsys)
    assert faults(found, schema_of(name)) == []
    assert faults({**found, "another": 1}, schema_of(name))
    assert faults({key: one for key, one in found.items() if key != "schema_version"}, schema_of(name))
    assert "error" not in found


def test_what_was_measured_is_described_too() -> None:
    shape = Latency(shape={"batch": 3, "sequence": 40}, before_ms=2.0, after_ms=1.0, low=1.9, high=float("inf"))
    race = Race(form="optimized", speedup=2.0, low=1.9, high=2.1, turns=6, shapes=(shape,))
    measured = Measurements(created="2026-11-02T03:04:05+00:00", races=(race,), latency=(shape,))
    found = plain({"schema_version": 1, "path": "x", "manifest": make_manifest(), "measurements": measured})
    assert faults(found, schema_of("optimize")) == []
    assert found["measurements"]["latency"][0]["high"] == "Infinity"
    found["measurements"]["latency"][0]["high"] = "a lot"
    assert faults(found, schema_of("optimize"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_usage_error_is_a_line_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--json", "--no-such-option"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert faults(found, schema_of("error")) == []
    assert found["error"]["kind"] == "usage"
    assert found["error"]["where"] == f"onnxopt {name}"
    assert f"onnxopt {name} --help" in found["error"]["hint"]
    assert printed.err == f"error: {found['error']['message']}\n"


def test_a_schema_is_json_and_says_what_each_key_means(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SCHEMAS:
        assert main(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out) == schema_of(name)
    keys = schema_of("optimize")["properties"]
    assert set(keys) == {"schema_version", "path", "manifest", "measurements"}
    assert all(one["description"] for one in keys.values())
    assert schema_of("explain")["properties"]["pass"]["description"] == "its name."
    assert main(["schema", "nothing", "--json"]) == 2
    assert "optimize, " in the_line(capsys)["error"]["hint"]


def test_two_models_that_differ_are_an_answer_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("one", 1.0), ("two", 3.0)):
        model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[rows,5] x) => (float[rows,5] y) { y = Mul(x, f) }""")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(5, factor, np.float32), "f"))
        onnx.save(model, tmp_path / f"{name}.onnx")
    assert main(["verify", str(tmp_path / "one.onnx"), str(tmp_path / "two.onnx"), "--json"]) == 1
    found = the_line(capsys)
    assert faults(found, schema_of("verify")) == []
    assert found["equal"] is False
    assert found["outputs"][0]["relative_error"] == pytest.approx(2.0)
    assert (found["error"]["kind"], found["error"]["exit_code"]) == ("proof", 1)
    assert found["error"]["where"].endswith("two.onnx")


KINDS = {
    InputError: ("input", 2),
    LimitError: ("limit", 2),
    ExportError: ("export", 2),
    ProofError: ("proof", 1),
    GateError: ("gate", 1),
    OwnPassError: ("own-pass", 2),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_error_is_told_part_by_part(
    kind: type[OnnxoptError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise kind("is\nodd", where="a/file.onnx", hint="mend it")

    monkeypatch.setattr("onnxopt.host.checkup.check_up", fail)
    word, code = KINDS[kind]
    assert main(["doctor", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "schema_version": 1,
        "error": {
            "kind": word,
            "message": "is odd",
            "exit_code": code,
            "where": "a/file.onnx",
            "hint": "mend it",
            "kept": [],
        },
    }
    assert printed.err == "error: a/file.onnx: is odd; mend it\n"
    assert main(["doctor"]) == code
    assert capsys.readouterr().out == ""


def test_a_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setattr("onnxopt.host.checkup.check_up", fail)
    assert main(["doctor", "--json"]) == BUG_EXIT_CODE
    found = the_line(capsys)
    assert faults(found, schema_of("error")) == []
    assert found["error"]["kind"] == "internal"
    assert "KeyError" in found["error"]["message"]
    assert "--verbose" in found["error"]["hint"]


def test_a_name_without_end_is_cut_in_the_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "a\x1b[31m" + "b" * 20_000 + ".onnx", "--json"]) == 2
    told = the_line(capsys)["error"]
    assert all(len(told[part]) <= LONGEST_LINE + 3 for part in ("message", "where", "hint"))
    assert told["where"].startswith("a?[31mb")


@pytest.mark.parametrize(("number", "code", "kind"), [(9, 2, "died"), (15, 143, "terminated"), (2, 130, "interrupted")])
def test_a_process_that_was_killed_is_told_by_the_one_that_waited(
    number: int, code: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry._fail_of(ChildDiedError(number), Teller(is_json=True)) == code
    found = the_line(capsys)
    assert faults(found, schema_of("error")) == []
    assert (found["error"]["kind"], found["error"]["exit_code"]) == (kind, code)


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize(
    ("stop", "code", "kind"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stop_is_told_as_json(stop: signal.Signals, code: int, kind: str, tmp_path: Path) -> None:
    model, room = text_encoder(tmp_path / "model"), tmp_path / "temporary"
    room.mkdir()
    command = [sys.executable, "-m", "onnxopt", "optimize", str(model), "-o", str(tmp_path / "out"), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(room)}
    ) as running:
        deadline = time.monotonic() + 120
        while not any(room.glob("onnxopt-*")) and time.monotonic() < deadline:
            time.sleep(0.02)  # the graph is being worked on from there on
        running.send_signal(stop)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == code
    assert out.count("\n") == 1
    found = json.loads(out)
    assert faults(found, schema_of("error")) == []
    assert found["error"]["kind"] == kind


def test_what_stands_behind_two_dashes_asks_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert asks_for_json(["run", "x", "--json"])
    assert not asks_for_json(["run", "x", "--", "--json"])
    assert main(["inspect", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_numbers_that_json_cannot_spell_are_words() -> None:
    report = OutputReport("y", float("inf"), float("-inf"), float("nan"), 0.5)
    found = plain(Comparison(equal=False, outputs=(report,), cases=1))["outputs"][0]
    assert list(found.values()) == ["y", "Infinity", "-Infinity", "NaN", 0.5]


def test_a_name_in_any_letters_is_ascii(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(tmp_path / "modèle 模型.onnx")
    assert main(["inspect", name, "--json"]) == 2
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["error"]["where"] == name

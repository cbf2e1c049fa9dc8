"""`onnxopt doctor` and `onnxopt cache` as a user types them."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from onnxopt.cli.main import main
from onnxopt.version import __version__
from tests.support.command import onnxopt
from tests.support.without import without


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two exports, one of them old, and somebody else's file."""
    root = tmp_path / "cache"
    for name, size in (("new", 3000), ("old", 5000)):
        entry = root / "exports" / f"{name}-{'0a' * 12}"
        entry.mkdir(parents=True)
        (entry / "model.onnx").write_bytes(bytes(size))
    os.utime(root / "exports" / f"old-{'0a' * 12}", (1_600_000_000, 1_600_000_000))
    (root / "exports" / "README").write_text("mine", encoding="utf-8")
    monkeypatch.setenv("ONNXOPT_CACHE", str(root))
    return root


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_doctor_tells_what_a_bug_report_needs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["doctor"], capsys)
    for fact in (__version__, metadata.version("onnxruntime"), "CPUExecutionProvider", "threads", "2 entries", "[hf]"):
        assert fact in text
    assert text.endswith("no problem found\n")


def test_the_doctor_speaks_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(["doctor", "--json"], capsys))
    assert found["schema_version"] == 1
    assert found["cache"]["entries"] == 2
    assert found["extras"]["serve"]["install"] == "pip install 'onnxopt[serve]'"


def test_missing_extras_are_named_with_their_commands_and_no_failure(tmp_path: Path) -> None:
    done = onnxopt("doctor", cwd=None, **without({"torch", "uvicorn"}, tmp_path))
    assert done.code == 0, done.err
    assert "[hf]          not installed (torch): pip install 'onnxopt[hf]'; for " in done.out
    assert "[serve]       not installed (uvicorn): pip install 'onnxopt[serve]'; for " in done.out
    assert "[image]       installed" in done.out


def test_the_cache_is_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, kind, *rows = said(["cache"], capsys).splitlines()
    assert first.endswith("cache: 7.8 KiB in 2 entries")
    assert kind == "exports: checkpoints as graphs, 7.8 KiB"
    assert [row.split()[-1].partition("-")[0] for row in rows] == ["old", "new"]  # the largest first
    found = json.loads(said(["cache", "--json"], capsys))
    assert {one["name"]: one["bytes"] for one in found["entries"]} == {
        f"new-{'0a' * 12}": 3000,
        f"old-{'0a' * 12}": 5000,
    }
    assert (found["freed_bytes"], found["removed"]) == (0, 0)


def test_what_is_old_can_be_looked_at_and_cleared_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "4.9 KiB in 1 entries" in said(["cache", "--older-than", "30d"], capsys)
    assert said(["cache", "clear", "--older-than", "30d"], capsys) == "removed 1 entries, 4.9 KiB freed\n"
    assert sorted(path.name for path in (root / "exports").iterdir()) == ["README", f"new-{'0a' * 12}"]
    found = json.loads(said(["cache", "clear", "--json"], capsys))
    assert (found["freed_bytes"], found["removed"], found["entries"]) == (3000, 1, [])
    assert (root / "exports" / "README").is_file()


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "none"))
    assert "0 B in 0 entries" in said(["cache"], capsys)
    assert said(["cache", "clear"], capsys) == "removed 0 entries, 0 B freed\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["cache", "clear", "--older-than", "a month"], ["cache", "empty"]])
def test_what_cannot_be_read_is_a_line(arguments: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(list((root / "exports").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "position", "answers"), [("onnxopt opt", 1, "optimize"), ("onnxopt cache cl", 2, "clear")]
)
def test_a_shell_completes_what_is_begun(words: str, position: int, answers: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(position), "_ONNXOPT_COMPLETE": "complete_bash"}
    done = onnxopt(cwd=None, **asked)
    assert (done.code, done.out.split()) == (0, [answers])


def test_the_completion_of_a_shell_can_be_shown() -> None:
    done = onnxopt("--show-completion", "zsh", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "#compdef onnxopt" in done.out

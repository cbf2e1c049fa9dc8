"""The settings of a server in a file: the command line goes before the environment, and that before the file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.serve import ahead
from onnxopt.serve import app as web
from onnxopt.serve.limits import Limits

FILE = """
port = 9100
max-batch = 4
max_queue = 77
access-log = true
api-key = ["from-the-file"]
[models]
vectors = "made/vectors"
"""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def bound(host: str, port: int) -> Any:
        found.update(host=host, port=port)
        return contextlib.nullcontext()

    def create_app(folders: Any, **others: Any) -> Any:
        found.update(folders=folders, **others)
        raise InputError("it would begin here")

    monkeypatch.setattr(ahead, "require_models", lambda _: None)
    monkeypatch.setattr(ahead, "bound", bound)
    monkeypatch.setattr(web, "create_app", create_app)
    return found


def serve(*arguments: object) -> None:
    assert main(["serve", *map(str, arguments)]) == 2


def test_what_the_file_says_is_taken(begun: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(FILE)
    serve("--config", path)
    limits: Limits = begun["limits"]
    assert (begun["port"], limits.max_batch, limits.max_queue) == (9100, 4, 77)
    assert begun["folders"] == {"vectors": tmp_path / "made" / "vectors"}
    assert list(begun["access"].api_keys) == ["from-the-file"]
    assert begun["access"].log is not None


def test_the_environment_goes_before_it_and_the_command_line_before_both(
    begun: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(FILE)
    monkeypatch.setenv("ONNXOPT_SERVE_PORT", "9200")
    monkeypatch.setenv("ONNXOPT_SERVE_MAX_BATCH", "8")
    monkeypatch.setenv("ONNXOPT_SERVE_API_KEY", "from-the-environment")
    serve("other=build/x", "--config", path, "--max-batch", 16)
    assert (begun["port"], begun["limits"].max_batch, begun["limits"].max_queue) == (9200, 16, 77)
    assert list(begun["folders"]) == ["other"]
    assert list(begun["access"].api_keys) == ["from-the-environment"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 9000", "there is no option 'prot'; did you mean port?"),
        ("folders = ['a']", "there is no option 'folders'"),
        ("port = ", "is no TOML"),
        ("models = 3", "[models] names folders"),
        ("[models]\na = 3", "[models] names folders"),
        ("[port]\nnumber = 3", "'port' is a table"),
        ("port = 'many'", "--port"),
        ("max-batch = 0", "--max-batch"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    assert main(["serve", "x", "--config", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_file_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "/none/serve.toml"]) == 2
    assert "serve.toml" in capsys.readouterr().err


def test_what_is_no_file_or_nests_without_end_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text(f"port = {'[' * 50_000}")
    for path, said in ((Path("/dev/zero"), "is a device"), (deep, "is no TOML")):
        assert main(["serve", "x", "--config", str(path)]) == 2
        assert said in capsys.readouterr().err

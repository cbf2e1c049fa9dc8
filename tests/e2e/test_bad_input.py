"""Bad input: one line, exit code 2, nothing written.

Covers: cli/main.py, cli/shared.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxopt.cli.main import main
from tests.support.bad_models import BAD_FILES
from tests.support.tiny import tiny_checkpoint


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()  # what a fixture printed while it made the input
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def assert_refused(code: int, err: str, out: Path) -> None:
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    assert not out.exists()
    assert not list(out.parent.glob(f"*{out.name}*"))


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_a_bad_file_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = BAD_FILES[name](folder)
    out = tmp_path / "result" / "out"
    code, err = run(capsys, "optimize", path, "--out", out, "--quiet")
    assert_refused(code, err, out)


def checkpoint_with_pickled_weights_only(folder: Path) -> Path:
    made = tiny_checkpoint("bert", folder / "pickled")
    for file in made.glob("*.safetensors"):
        file.rename(made / "pytorch_model.bin")
    return made


def checkpoint_without_tokenizer(folder: Path) -> Path:
    made = tiny_checkpoint("bert", folder / "no-tokenizer")
    for file in [*made.glob("tokenizer*"), *made.glob("vocab*"), *made.glob("special_tokens*")]:
        file.unlink()
    return made


def checkpoint_with_broken_config(folder: Path) -> Path:
    made = tiny_checkpoint("bert", folder / "broken")
    (made / "config.json").write_text("{ not json", encoding="utf-8")
    return made


def checkpoint_with_truncated_weights(folder: Path) -> Path:
    made = tiny_checkpoint("bert", folder / "truncated")
    (weights,) = made.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    return made


def checkpoint_that_wants_to_run_code(folder: Path) -> Path:
    made = tiny_checkpoint("bert", folder / "code")
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModel": "evil.Model"}
    config["model_type"] = "evil"
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


BAD_CHECKPOINTS = {
    "only pickled weights": (checkpoint_with_pickled_weights_only, "safetensors"),
    "a missing tokenizer": (checkpoint_without_tokenizer, "tokenizer"),
    "a broken config": (checkpoint_with_broken_config, "config.json"),
    "truncated weights": (checkpoint_with_truncated_weights, "weights"),
    "code of its own": (checkpoint_that_wants_to_run_code, "trust"),
}


@pytest.mark.parametrize("name", sorted(BAD_CHECKPOINTS))
def test_a_bad_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, word = BAD_CHECKPOINTS[name]
    out = tmp_path / "result" / "out"
    code, err = run(capsys, "optimize", build(tmp_path), "--out", out, "--quiet")
    assert_refused(code, err, out)
    assert word in err


def test_an_unsupported_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result" / "out"
    code, err = run(
        capsys, "optimize", tiny_checkpoint("bert", tmp_path / "bert"), "--task", "make-coffee", "-o", out, "-q"
    )
    assert_refused(code, err, out)
    assert "make-coffee" in err
    assert "feature-extraction" in err


def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder", encoding="utf-8")
    code, err = run(capsys, "optimize", tiny_checkpoint("bert", tmp_path / "bert"), "--out", blocker / "out", "--quiet")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert blocker.read_text(encoding="utf-8") == "not a folder"


def test_a_folder_that_holds_something_else_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work", encoding="utf-8")
    code, err = run(capsys, "optimize", tiny_checkpoint("bert", tmp_path / "bert"), "--out", precious, "--quiet")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert [file.name for file in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["optimize", "no/such/thing/here"], "no/such/thing/here"),
        (["optimize", "minilm", "--target", "toaster"], "toaster"),
        (["optimize", "minilm", "--workload", "big"], "big"),
        (["optimize"], "source"),
        (["inspect", "missing.onnx"], "missing.onnx"),
        (["explain", "missing.onnx", "fuse-attention"], "missing.onnx"),
        (["verify", "a.onnx", "b.onnx"], "a.onnx"),
        (["bench", "missing.onnx"], "missing.onnx"),
        (["run", "missing", "text"], "missing"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, err = run(capsys, *arguments)
    assert code == 2
    assert len([line for line in err.splitlines() if line.strip()]) == 1, err
    assert word.lower() in err.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_nobody_knows_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12\x03abc")  # the name is looked at before the file is read
    code, err = run(capsys, "explain", tmp_path / "model.onnx", "fuse-atention")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "fuse-atention" in line

"""What is wrong by its name alone is said within a second: before any of the large libraries is imported.

Covers: compress/ahead.py, prune/ahead.py, serve/ahead.py
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = ("onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "sympy", "fastapi", "uvicorn", "tokenizers")
# the exit code, and which of the large libraries were imported on the way to it
PROGRAM = f"""
import json, sys
from onnxopt.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, [name for name in {LARGE!r} if name in sys.modules]]))
"""
NOWHERE = "no such file or folder"
READERS = ("generate {} hi", "perplexity {}", "serve {}", "bench {}", "verify {} {}", "inspect {}", "placement {}")
ARTIFACTS = ("run {} hi", "package {} --for node", "sensitivity {}")
SOURCES = ("prune ./{} ffn=25% -o out", "distill ./{} --student layers=2 -o out", "optimize ./{}")
DATA = "no such calibration file or folder"

CASES = [
    *((command.format("gone", "gone"), NOWHERE) for command in (*READERS, "explain {} fuse-gelu", *SOURCES)),
    *((command.format("gone"), "no such folder") for command in ARTIFACTS),
    *((command.format("notes.txt", "notes.txt"), "is a text file") for command in (*READERS, "explain {} fuse-gelu")),
    *((command.format("notes.txt"), "is a file, not an artifact folder") for command in ARTIFACTS),
    *((command.format("notes.txt"), "is neither an .onnx or .gguf file nor a folder") for command in SOURCES),
    *((command.format("plain", "plain"), "no model.onnx in this folder") for command in READERS),
    *((command.format("plain"), "no manifest.json") for command in ARTIFACTS),
    *((command.format("plain"), "is a folder without a config.json") for command in SOURCES),
    ("verify model.onnx gone", NOWHERE),
    ("bench model.onnx gone", NOWHERE),
    ("verify model.onnx model.onnx --feeds gone.npz", NOWHERE),
    ("serve mine=model.onnx other=gone", NOWHERE),
    ("serve a=model.onnx a=model.onnx", "two models are named a"),
    ("generate model.onnx hi", "no tokenizer.json"),
    ("generate model.onnx --prompts gone.jsonl", "cannot be read"),
    ("perplexity read/model.onnx --text gone.txt", "cannot be read (No such file"),
    ("optimize model.onnx -p int8 --calibration gone.npz", DATA),
    ("optimize model.onnx -o plain", "holds other files"),
    ("prune model.onnx ffn=25% -o out --data gone.txt", DATA),
    ("prune model.onnx ffn=25% -o plain", "is there already"),
    ("prune model.onnx vocab=keep:gone.txt -o out", "no such file"),
    ("distill minilm --student layers=2 -o out --data gone.jsonl", DATA),
    ("distill minilm --student layers=2 -o out --evaluate gone.txt", DATA),
    ("distill minilm --student layers=2 -o plain", "is a folder with other content"),
    ("compress gone.toml", "cannot be read (No such file"),
    ("compress plain", "cannot be read (Is a directory)"),
    ("compress notes.txt", "is not TOML"),
    ("compress nowhere.toml", NOWHERE),
    ("compress dataless.toml", DATA),
    ("compress unjudged.toml", DATA),
    ("compress whole.toml -o plain", "holds other files"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what is no model, and with what nobody looks into before a name is refused."""
    (tmp_path / "notes.txt").write_text("a note\n", encoding="utf-8")
    for folder, name in (("plain", "other.txt"), ("read", "tokenizer.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}", encoding="utf-8")
    for name in ("model.onnx", "read/model.onnx"):
        (tmp_path / name).write_bytes(b"\x08\x0a\x12\x03abc")
    recipes = {
        "nowhere": 'source = "./gone.onnx"',
        "dataless": 'source = "./model.onnx"\ndata = "gone.txt"',
        "unjudged": 'source = "./model.onnx"\nevaluate = "gone.txt"',
        "whole": 'source = "./model.onnx"',
    }
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.toml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*arguments: str) -> tuple[str, list[str]]:
    """Return what a command says on its way to exit code 2, in one line, and the large libraries that it imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    code, imported = json.loads(done.stdout)
    (line,) = done.stderr.splitlines()
    assert code == 2
    return line, imported


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("command", "said"), CASES, ids=lambda value: value if " " in value else "")
def test_nothing_large_is_imported_for_what_is_wrong_by_name(command: str, said: str) -> None:
    line, imported = refused(*command.split())
    assert said in line
    assert imported == []
    assert not Path("out").exists()


@pytest.mark.usefixtures("place")
def test_nor_for_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        line, imported = refused("serve", "model.onnx", "--port", str(other.getsockname()[1]))
    assert "cannot listen there" in line
    assert imported == []

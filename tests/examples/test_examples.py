"""The examples do what they say, on models that need no Hub."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from tests.support.artifacts import shared_artifact
from tests.support.server import serving
from tests.support.tiny import tiny_checkpoint

FOLDER = Path(__file__).parents[2] / "examples"
TEXTS = ["a cat sleeps", "a kitten naps", "shares fell"]


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def started(name: str, *arguments: object, text: str = "") -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_says_how_to_start_it() -> None:
    for path in FOLDER.glob("*.py"):
        assert f"`python examples/{path.name} " in path.read_text(encoding="utf-8").split('"""')[1]


def test_embed_finds_what_belongs_together() -> None:
    folder = shared_artifact("minilm")
    vectors = load("embed")["embed"](folder, TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    alone = load("embed")["embed"](folder, TEXTS[2:])
    np.testing.assert_allclose(alone[0], vectors[2], atol=1e-5)  # padding changes nothing
    first, *_ = started("embed", folder, *TEXTS).splitlines()
    assert first == f"{vectors[0] @ vectors[1]:.4f}  a cat sleeps · a kitten naps"


def test_chat_answers_each_line_and_ends_at_an_empty_one() -> None:
    folder = shared_artifact("gpt2-mini")
    wanted = onnxopt.Generator(folder).generate(["Return the"], max_new_tokens=200).texts[0]
    assert started("chat", folder, text="Return the\n\nThis is not read\n") == f"{wanted}\n"


def test_client_gets_what_the_session_gives() -> None:
    folder = shared_artifact("minilm")
    with serving(folder) as server:
        address = f"http://127.0.0.1:{server.port}"
        found = load("client")["embeddings"](address, "minilm", TEXTS)
        with pytest.raises(SystemExit, match=r"404: .*nobody"):
            load("client")["embeddings"](address, "nobody", TEXTS)
    np.testing.assert_allclose(found, load("embed")["embed"](folder, TEXTS), atol=1e-5)


def test_the_own_pass_is_applied_and_proved(tmp_path: Path) -> None:
    rule, graph, error = started("own_pass", tmp_path / "new" / "out").splitlines()
    assert rule.startswith("rule   fuse-log-sum-exp of own_pass.py (sha256 ")
    assert rule.endswith(": 1 applied")
    assert graph == "graph  ReduceLogSumExp"
    assert float(error.split()[1]) < 1e-5
    x = np.linspace(-40, 40, 60, dtype=np.float32).reshape(4, 15)
    wanted = np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True))
    found = onnxopt.Session(tmp_path / "new" / "out" / "artifact").run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_int8_tells_what_it_was_judged_by(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "source")
    lines = load("int8_budget")["quantize"](str(source), "cosine>=0.9", tmp_path / "out", measure=False)
    assert lines[0].startswith("precision     int8: ")
    assert any("budget cosine>=0.9" in line for line in lines)

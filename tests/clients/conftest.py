"""Decoders that several clients run; each is made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxopt
from onnxopt.generator import Generator
from tests.support.served import KINDS, NEW_TOKENS, Served, make_served

QUESTIONS = ("The capital of France is", "def fibonacci(n):", "Water boils at")


@pytest.fixture(scope="session", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(request.param, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Return an artifact with real weights, and what onnxopt writes after some texts."""
    artifact = onnxopt.optimize("smollm2-135m", out=tmp_path_factory.mktemp("served") / "smollm2", measure=False)
    generator = Generator(artifact.path)
    texts = {
        text: generator.generate([text], max_new_tokens=NEW_TOKENS, chat=False).results[0].tokens for text in QUESTIONS
    }
    return artifact.path, {text: list(tokens) for text, tokens in texts.items()}

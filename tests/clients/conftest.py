"""Decoders that several clients run; each is made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxopt
from tests.support.served import KINDS, QUESTIONS, REAL_TOKENS, Served, make_served, torch_texts


@pytest.fixture(scope="session", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(request.param, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Return an artifact with real weights, and the greedy tokens that torch writes after each text alone."""
    artifact = onnxopt.optimize("smollm2-135m", out=tmp_path_factory.mktemp("served") / "smollm2", measure=False)
    texts = {text: torch_texts([text], REAL_TOKENS)[0] for text in QUESTIONS}
    return artifact.path, texts

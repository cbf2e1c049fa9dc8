"""A model that is large goes the whole road under a limit of its memory; `make bench-large` takes the truly large ones.

Cached pages of files count, as they do in a container; the kernel ends what takes more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import large
from bench.checkpoints import SHAPES, count_of, write_checkpoint
from bench.large import INT4, Case, run_case
from bench.limited import has_group
from onnxopt.graph.weight_files import LARGE_BYTES

SHAPE = replace(SHAPES["layers-4"], layers=3, words=40_000)  # 75 million parameters: the least that is large
LIMIT_BYTES: Mapping[str, int] = {"float": 1_500_000_000, "int4": 1_800_000_000}
MOST_HELD = 1.15  # of the file's bytes, by a session
BASE_BYTES = 48_000_000  # that a session of any size takes: of the runtime, of inputs and outputs, and of the allocator


pytestmark = [pytest.mark.alone, pytest.mark.skipif(not has_group(), reason="no memory cgroup can be made here")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert 4 * count_of(SHAPE) > LARGE_BYTES
    return write_checkpoint(SHAPE, tmp_path_factory.mktemp("large") / "made", shard_bytes=64 << 20)


def made(name: str, options: tuple[str, ...], checkpoint: Path, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(large, "SHAPES", {"some": SHAPE})
    case = Case("some", options=options, most_seconds=900)
    found = run_case(case, str(checkpoint), folder, limit_bytes=LIMIT_BYTES[name])
    assert found["error"] == "", json.dumps(found["stages"])
    assert found["peak_bytes"] <= LIMIT_BYTES[name]
    return found


def test_a_float_model_is_made_and_opened_within_its_limit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made("float", (), checkpoint, tmp_path, monkeypatch)
    assert found["artifact_bytes"] == pytest.approx(found["float_bytes"], rel=0.02)
    run = found["running"]
    assert run["after_token"]["resident"] - run["base"]["resident"] <= MOST_HELD * found["artifact_bytes"] + BASE_BYTES


@pytest.mark.slow
def test_a_model_in_4_bits_is_made_within_its_limit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made("int4", INT4, checkpoint, tmp_path, monkeypatch)
    assert found["artifact_bytes"] < 0.3 * found["float_bytes"]
    assert found["running"]["token_seconds"] > 0

"""A language model writes its own calibration text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.calibrate.own_text import TOGETHER, write_own
from onnxopt.errors import InputError
from onnxopt.load.entry import load
from onnxopt.load.onnx_file import load_onnx
from onnxopt.load.source.source import resolve
from onnxopt.road.optimize import optimize
from tests.support.bad_models import write_good


def quiet(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("self") / "out"
    return optimize("gpt2-mini", out=out, precision="int8", calibration="self", calibration_samples=24, measure=False)


def test_what_it_wrote_calibrates_and_judges(artifact: Artifact) -> None:
    record = artifact.manifest.quantization
    assert record is not None
    assert record.calibration is not None
    assert (record.calibration.source, record.calibration.samples) == ("self", 24)
    assert record.calibration.longest == record.calibration.shortest
    assert not record.calibration.meaningless
    assert record.gate is not None
    assert record.gate.metric == "perplexity"


def test_the_same_seed_writes_the_same_text_in_any_number(artifact: Artifact) -> None:
    loaded = load(resolve("gpt2-mini"))
    one, other = (
        write_own(loaded, artifact.path / "model.onnx", samples=count, say=quiet).rows
        for count in (TOGETHER, TOGETHER + 1)
    )
    assert one == other[:TOGETHER]
    assert len(set(other)) == TOGETHER + 1
    seen = np.concatenate([np.array(row) for row in one])
    assert len(np.unique(seen)) > 200, "one sentence again and again is no calibration text"


def test_an_encoder_writes_nothing(tmp_path: Path) -> None:
    encoder = write_good(tmp_path)
    with pytest.raises(InputError, match="only a language model"):
        write_own(load_onnx(encoder), encoder, say=quiet)

"""What a user writes behind a command arrives as the options of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import onnxopt.road.ahead
import onnxopt.road.optimize
from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.road.described import keywords
from onnxopt.road.options import Options

SAID = "that is all"


def given(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the keywords that `optimize` is called with by a command line."""
    found: dict[str, Any] = {}

    def optimize(source: str, **options: Any) -> None:
        found.update(options, source=source)
        raise InputError(SAID)

    monkeypatch.setattr(onnxopt.road.optimize, "optimize", optimize)
    monkeypatch.setattr(onnxopt.road.ahead, "look_ahead", lambda *_: None)  # which no such line would get past
    assert main(["optimize", *arguments]) == 2
    assert SAID in capsys.readouterr().err
    del found["progress"]
    return found


def test_nothing_written_is_every_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = given(["minilm"], monkeypatch, capsys)
    assert (found.pop("source"), found.pop("out")) == ("minilm", None)
    assert found == {one.name: one.default for one in keywords()}
    assert Options.of(**found) == Options()


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "m.onnx -o out -t cuda -w 1x7 --shard-size 2GB --budget 1e-3 -p int8 --calibration a.txt "
        "--calibration-samples 3 --calibrator mse --keep head --force-calibration --allow-slower --require-precision "
        "--weights random --revision main --trust-remote-code "
        "--task fill-mask "
        "--no-pooling --without bbox --no-cache --logits all --exporter dynamo --padding right --feeds a.npz "
        "--axis a=1 --axis b=2..8 --value rate=8000 --pass a.py --pass b.c "
        "--no-measure --no-tune --retune --forms-from build/x --require-speedup 1.5 --prune heads=1 --prune-data b.txt "
        "--prune-budget cosine>=0.9"
    )
    found = given(line.split(), monkeypatch, capsys)
    assert found == {
        "source": "m.onnx",
        "out": Path("out"),
        "target": "cuda",
        "workload": "1x7",
        "shard_size": "2GB",
        "budget": "1e-3",
        "precision": "int8",
        "calibration": "a.txt",
        "calibration_samples": 3,
        "calibrator": "mse",
        "keep": "head",
        "force_calibration": True,
        "allow_slower": True,
        "require_precision": True,
        "weights": "random",
        "revision": "main",
        "trust_remote_code": True,
        "task": "fill-mask",
        "with_pooling": False,
        "without": "bbox",
        "with_cache": False,
        "logits": "all",
        "exporter": "dynamo",
        "padding": "right",
        "feeds": Path("a.npz"),
        "axes": ["a=1", "b=2..8"],
        "values": ["rate=8000"],
        "passes": ["a.py", "b.c"],
        "measure": False,
        "tune": False,
        "retune": True,
        "forms_from": "build/x",
        "require_speedup": 1.5,
        "prune": "heads=1",
        "prune_data": "b.txt",
        "prune_budget": "cosine>=0.9",
    }
    assert type(found["target"]) is str  # and no member of an enumeration, which is written otherwise


@pytest.mark.parametrize("line", ["--logits first", "--no-retune", "--calibration-samples few", "--prune-align 8"])
def test_what_is_no_option_is_bad_input(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "minilm", *line.split()]) == 2
    assert capsys.readouterr().err.strip()

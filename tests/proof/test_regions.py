"""A proof is never void: wrong rewrites are refuted under every mask, and in every order that memory may bring.

Covers: graph/files.py, graph/regions.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.graph.files import save_graph
from tests.support.planted import Case, cases, stays, wrongs_of
from tests.support.synthetic import encoder
from tests.test_house import ROOT

SEEDS = range(5)  # of hashes: sets of strings have another order with each

OPTIMIZE = """
import hashlib, json, sys
import onnxopt
made = onnxopt.optimize(sys.argv[1], out=sys.argv[2], measure=False)
files = sorted(path for path in made.path.glob("*.onnx*"))
ledger = [e.model_dump(exclude={"seconds"}) for e in made.manifest.ledger]
print(json.dumps([[hashlib.sha256(path.read_bytes()).hexdigest() for path in files], ledger]))
"""


def run(seed: int, *arguments: str) -> str:
    """Run Python in a process of its own and return what it printed."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("seed", SEEDS)
def test_wrong_rewrites_are_refuted_and_right_ones_stay_under_every_mask(seed: int) -> None:
    assert run(seed, "-m", "tests.support.planted").splitlines() == []


def test_the_planted_rewrites_are_found_where_nothing_refutes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    monkeypatch.setattr("onnxopt.proof.contract._within", lambda *_: True)
    case = next(case for case in cases() if case == Case("soft, finfo.min", "a row that sees nothing", inside=True))
    assert [wrong for wrong in wrongs_of(case) if stays(case, wrong)] == wrongs_of(case)


def test_a_file_comes_out_with_the_same_bytes_and_the_same_ledger_in_every_order(tmp_path: Path) -> None:
    source = save_graph(encoder(2), tmp_path / "encoder")
    found = [json.loads(run(seed, "-c", OPTIMIZE, str(source), str(tmp_path / str(seed)))) for seed in (0, 1, 2)]
    assert found[0][0]
    assert found[0] == found[1] == found[2]

"""What large models cost: cases are run under their limits, merged into one record and shown in tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import large, large_peers
from bench.checkpoints import SHAPES, write_checkpoint
from bench.large import GB, Case, is_half_way, render, run_case, running
from bench.limited import Outcome

RECORD: dict[str, Any] = {
    "created": "2026-12-24T12:00:00+00:00",
    "machine": {"cores": 2, "cpu": "A CPU"},
    "versions": {"onnxruntime": "1.32.0"},
    "load_before": 0.1,
    "shape": {"like": "Some-1B", "dtype": "float16", "layers": 8},
    "options": ["--precision", "int4-weights"],
    "goal_seconds": 1800,
    "error": "",
    "how": "cgroup",
    "limit_bytes": 4 * GB,
    "seconds": 1500.0,
    "killed_after_seconds": None,
    "peak_bytes": int(3.9 * GB),
    "anonymous_bytes": int(1.25 * GB),
    "stages": {
        "load": {"seconds": 30.0, "anonymous_bytes": 1},
        "quantize": {"seconds": 1200.0},
        "verify": {"anonymous_bytes": 5},
    },
    "float_bytes": int(4.7 * GB),
    "artifact_bytes": GB,
    "running": {
        "base": {"resident": 50, "anonymous": 20},
        "open_seconds": 3.21,
        "after_token": {"resident": 50 + int(1.1 * GB), "anonymous": 20 + int(0.2 * GB)},
        "token_seconds": 0.1,
        "prompt_seconds": 2.0,
    },
}


def test_the_tables_tell_limits_stages_and_sessions() -> None:
    text = render({"cases": {"1b-int4": RECORD}})
    first = "| Some-1B, float16 | onnxopt int4-weights | 4.00 GB | 3.90 GB | 1.25 GB | 25 min | 30 min "
    assert f"{first}| quantize 20 min, load 30 s |" in text
    assert (
        "| Some-1B, float16 | onnxopt int4-weights | 1.00 GB | 3.2 s | 1.10 GB | 1.10× | 0.20 GB | 64.0 | 10.0 |"
        in text
    )
    assert "2 cores of A CPU, onnxruntime 1.32.0, 2026-12-24, `make bench-large`" in text
    assert "a memory cgroup" in text
    assert "Other work" not in text
    assert "by their number of layers" not in text


def test_the_tables_tell_what_failed_and_what_went_on_beside() -> None:
    failed = {**RECORD, "error": "out of memory", "load_before": 3.0, "limit_bytes": None}
    del failed["running"]
    text = render({"cases": {"1b-int4": failed}})
    assert "| none | 3.90 GB | 1.25 GB | **out of memory** after 25 min |" in text
    assert "Other work went on on the machine during 1b-int4." in text
    assert "A session of the result" not in text
    ways = {name: {"artifact_bytes": 3 * GB, "running": RECORD["running"]} for name in ("mapped", "packed")}
    rows = render({"cases": {"1b-int4": {**RECORD, "ways": ways}}}).splitlines()
    assert [row.split(" | ")[1:3] for row in rows if "1.10 GB" in row] == [
        ["onnxopt int4-weights", "1.00 GB"],
        ["onnxopt int4-weights, weights not packed", "3.00 GB"],
        ["onnxopt int4-weights, in a file that holds them packed", "3.00 GB"],
    ]
    dead = render({"cases": {"1b-int4": {**RECORD, "running": {"error": "it does not run"}}}})
    assert "| 1.00 GB | **it does not run** | " in dead
    killed = render({"cases": {"1b-int4": {**RECORD, "killed_after_seconds": 600.0}}})
    assert "25 min, killed after 10 min and started again" in killed


def test_models_of_one_width_have_a_table_of_their_own_and_peers_stand_behind_ours() -> None:
    flat = {**RECORD, "shape": {"like": "8 layers", "layers": 8}, "seconds": 40.0}
    cases = {"genai": {**RECORD, "peer": "a builder", "stages": {}, "options": []}, "ours": RECORD, "layers-8": flat}
    text = render({"cases": cases})
    assert "| 8 |  | 4.70 GB | 3.90 GB | 1.25 GB | 40 s | 5.0 |" in text
    rows = [line for line in text.splitlines() if line.startswith("| Some-1B")]
    assert ["a builder" in row for row in rows] == [False, True, False, True]


@pytest.mark.parametrize(
    ("told", "is_half"),
    [
        ({"stage": "quantize", "total": 36, "fraction": 0.5}, True),
        ({"stage": "quantize", "total": 36, "fraction": 0.47}, False),
        ({"stage": "quantize", "total": 3, "fraction": 0.66}, False),
        ({"stage": "verify", "total": 36, "fraction": 0.9}, False),
        ({"stage": "quantize", "total": None, "fraction": None}, False),
    ],
)
def test_half_way_is_told_in_layers(told: dict[str, Any], is_half: bool) -> None:  # noqa: FBT001  # what is expected
    assert is_half_way(told, 36) is is_half


def test_a_killed_case_is_started_again_and_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], limit_bytes: int | None, *, stop: Any, **_: Any) -> Outcome:
        asked.append((command, limit_bytes, stop is not None))
        stopped = stop is not None and stop({"stage": "quantize", "total": 90, "fraction": 0.6})
        return Outcome(seconds=5, peak_bytes=7 - len(asked), anonymous_bytes=len(asked), stopped=stopped)

    monkeypatch.setattr(large, "run_limited", run)
    monkeypatch.setattr(large, "running", lambda _: {})
    found = run_case(replace(large.CASES["3b-int4"], shape="3b"), str(tmp_path), tmp_path, limit_bytes=9)
    assert (found["seconds"], found["killed_after_seconds"], found["peak_bytes"], found["anonymous_bytes"]) == (
        10,
        5,
        6,
        2,
    )
    assert found["error"] == ""
    assert [limit for _, limit, _ in asked] == [9, 9]
    assert asked[0][0] == asked[1][0]
    assert [stops for *_, stops in asked] == [True, False]


def test_a_case_that_ends_before_it_can_be_killed_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "run_limited", lambda *_, **__: Outcome())
    monkeypatch.setattr(large, "running", lambda _: {})
    found = run_case(large.CASES["3b-int4"], str(tmp_path), tmp_path, limit_bytes=9)
    assert "before half" in found["error"]


def test_records_are_merged_in_the_order_of_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "measured", lambda name, **_: {**RECORD, "error": "" if name != "3b-int4" else "no"})
    out = tmp_path / "large.json"
    for names, code in ((["3b-int4"], 1), (["0.5b-float", "genai-1.1b"], 0)):
        asked = [word for name in names for word in ("--case", name)]
        monkeypatch.setattr(sys, "argv", ["large", *asked, "--out", str(out)])
        assert large.main() == code
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert list(cases) == ["0.5b-float", "3b-int4", "genai-1.1b"]
    assert cases["3b-int4"]["error"] == "no"


def test_a_case_runs_the_command_and_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(SHAPES["100m"], hidden=64, inner=96, layers=2, heads=2, shared=1, words=1200)
    monkeypatch.setattr(large, "SHAPES", {"tiny": shape})
    source = write_checkpoint(shape, tmp_path / "made")
    (tmp_path / "run").mkdir()
    found = run_case(Case("tiny", in_ways=True), str(source), tmp_path / "run", limit_bytes=3 * GB)
    assert found["error"] == ""
    assert found["stages"]["load"]["seconds"] > 0
    assert found["stages"]["package"]["seconds"] >= 0
    assert 100e6 < found["anonymous_bytes"] <= found["peak_bytes"] <= 3 * GB
    assert found["artifact_bytes"] >= found["float_bytes"] * 0.9
    run = found["running"]
    assert run["open_seconds"] > 0
    assert run["token_seconds"] < run["prompt_seconds"]
    assert run["after_token"]["resident"] > run["base"]["resident"]
    assert (tmp_path / "run" / "cache").is_dir()
    assert found["ways"]["mapped"]["artifact_bytes"] == found["artifact_bytes"]
    assert found["ways"]["packed"]["artifact_bytes"] > 1.2 * found["artifact_bytes"]
    assert all(way["running"]["token_seconds"] > 0 for way in found["ways"].values())
    assert running(tmp_path / "run" / "artifact" / "model.onnx", "onnxruntime")["token_seconds"] > 0


def test_what_does_not_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    assert running(tmp_path / "broken.onnx") == {"error": "it does not run"}


def test_a_peer_that_makes_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_peers, "run_limited", lambda *_, **__: Outcome(code=1, lines=["no room"], seconds=3.0))
    for name, peer in large_peers.PEERS.items():
        found = large_peers.run_peer(peer, tmp_path, tmp_path, limit=None)
        assert (found["error"], found["peer"], found["limit_bytes"]) == ("no room", peer.title, peer.limit_bytes), name
    monkeypatch.setattr(large_peers, "run_limited", lambda *_, **__: Outcome())
    found = large_peers.run_peer(large_peers.PEERS["genai-1.1b"], tmp_path, tmp_path, limit=0)
    assert (found["error"], found["limit_bytes"]) == ("it wrote no model", None)


def test_a_checkpoint_is_written_as_gguf_by_a_command(tmp_path: Path) -> None:
    shape = replace(SHAPES["100m"], hidden=64, inner=96, layers=1, heads=2, shared=1, words=1200)
    source = write_checkpoint(shape, tmp_path / "made")
    made, outcome = large_peers._llama(source, tmp_path, None)
    assert outcome.error == ""
    assert made.stat().st_size > 1200 * 64

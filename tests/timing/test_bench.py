"""Benchmarks: equal work for all, in processes of their own, with the noise in the numbers.

Covers: cli/bench.py, host/machine.py, timing/candidates.py, timing/worker.py
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from rich.console import Console

from onnxopt.cli.live import print_bench
from onnxopt.errors import InputError
from onnxopt.timing.bench import BenchResult, bench
from onnxopt.timing.candidates import make_requests, read_candidate
from onnxopt.timing.rounds import median_told, shape_stats

EMBED = """
<ir_version: 10, opset_import: ["" : 20]>
embed (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask, int64[batch, sequence] token_type_ids)
    => (float[batch, sequence, 2] y)
<float[ROWS, 2] table = {VALUES}, float[2, 2] kinds = {0.0, 0.0, 1.0, 1.0}>
{
    words = Gather(table, input_ids)
    types = Gather(kinds, token_type_ids)
    sum = Add(words, types)
    last = Constant<value = int64[1] {-1}>()
    mask = Cast<to = 1>(attention_mask)
    column = Unsqueeze(mask, last)
    y = Mul(sum, column)
}
"""


def save(path: Path, rows: int = 7, text: str = EMBED) -> Path:
    values = ", ".join(f"{i}.0" for i in range(2 * rows))
    onnx.save(onnx.parser.parse_model(text.replace("ROWS", str(rows)).replace("VALUES", values)), path)
    return path


def test_measures_models_in_turns_and_compares_with_the_first(tmp_path: Path) -> None:
    steps: list[str] = []
    paths = [save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx")]
    shapes = [{"batch": 1, "sequence": 4}, {"batch": 2, "sequence": 8}]
    result = bench(paths, shapes=shapes, threads=1, rounds=2, seconds=0.5, progress=steps.append)
    first, second = result.candidates
    assert [stats.sizes for stats in first.shapes] == shapes
    assert steps == [
        "trying a",
        "trying b",
        "round 1 of 2, a",
        "round 1 of 2, b",
        "round 2 of 2, b",
        "round 2 of 2, a",
    ]
    for stats in (*first.shapes, *second.shapes):
        assert stats.runs >= 6
        assert 0 < stats.p50_ms <= stats.p90_ms <= stats.p99_ms
        assert stats.round_low_ms <= stats.round_high_ms
        assert stats.speedup_low <= stats.speedup <= stats.speedup_high
    assert {stats.speedup for stats in first.shapes} == {1.0}
    assert first.peak_bytes > first.base_bytes > 0
    assert first.size_bytes == paths[0].stat().st_size
    assert first.load_ms > 0
    assert 0 < first.held_bytes < first.peak_bytes
    assert first.own_bytes is None or 0 < first.own_bytes <= first.held_bytes + (1 << 20)
    assert BenchResult.model_validate_json(result.to_json()) == result
    assert result.machine["cores"] >= 1
    assert "onnxruntime" in result.versions


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = save(tmp_path / "folder" / "model.onnx")
    result = bench([path, path.parent], shapes=[{"batch": 1, "sequence": 1}], rounds=1, seconds=0.1)
    assert [candidate.name for candidate in result.candidates] == ["folder", "folder (2)"]


def test_every_candidate_gets_the_same_ids_below_the_smallest_table(tmp_path: Path) -> None:
    candidates = [read_candidate(save(tmp_path / f"{rows}.onnx", rows)) for rows in (500, 7)]
    (request,) = make_requests(candidates, [{"batch": 2, "sequence": 50}])
    large, small = request.feeds
    np.testing.assert_array_equal(large["input_ids"], small["input_ids"])
    assert large["input_ids"].max() == 6
    assert (large["attention_mask"] == 1).all()
    assert (large["token_type_ids"] == 0).all()


def test_shapes_that_come_to_the_same_are_measured_once(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }
    """
    candidate = read_candidate(save(tmp_path / "m.onnx", text=text))
    requests = make_requests([candidate], [{"batch": 1, "sequence": 4}, {"batch": 1, "sequence": 9}, {"batch": 2}])
    assert [request.sizes for request in requests] == [{"batch": 1}, {"batch": 2}]


def test_axes_without_names_get_the_usual_ones(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(EMBED.replace("ROWS", "7").replace("VALUES", ", ".join(["1.0"] * 14)))
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    onnx.save(model, tmp_path / "m.onnx")
    (request,) = make_requests([read_candidate(tmp_path / "m.onnx")], [{"batch": 2, "sequence": 5}])
    assert request.feeds[0]["input_ids"].shape == (2, 5)


def test_models_of_different_sizes_are_not_compared(tmp_path: Path) -> None:
    free = save(tmp_path / "free.onnx")
    fixed = save(tmp_path / "fixed.onnx", text=EMBED.replace("batch", "1"))
    with pytest.raises(InputError, match=r"would have shape \[1, 4\] but \[3, 4\] in .*free\.onnx"):
        bench([free, fixed], shapes=[{"batch": 3, "sequence": 4}])


def test_an_axis_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no axis 'height'; its axes are batch, sequence"):
        bench([save(tmp_path / "a.onnx")], shapes=[{"batch": 1, "height": 4}])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rounds": 0}, "is no measurement"),
        ({"seconds": 0.0}, "is no measurement"),
        ({"shapes": []}, "no request shape"),
    ],
)
def test_options_without_sense_are_refused(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        bench([save(tmp_path / "a.onnx")], **options)


def test_nothing_to_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        bench([])
    with pytest.raises(InputError, match="no such file or folder"):
        bench([tmp_path / "none.onnx"])


def test_a_failure_in_the_worker_is_one_line(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, 3] x, float[other, 3] z) => (float[c, 3] y) { y = Add(x, z) }
    """
    with pytest.raises(InputError, match=r"onnxruntime failed on x .*, z ") as caught:
        bench([save(tmp_path / "m.onnx", text=text)], shapes=[{"batch": 5, "other": 4}], rounds=1, seconds=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("import sys; sys.exit('lost')", "its process ended with code 1: lost"),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, perhaps for want of memory"),
    ],
)
def test_a_worker_that_dies_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, line: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o700)
    model = save(tmp_path / "a.onnx")
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(InputError, match=line):
        bench([model], rounds=1, seconds=0.1)


def test_no_module_comes_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(tmp_path / "a.onnx")
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    if sys.version_info >= (3, 11):  # older interpreters know no safe path
        assert bench([model], shapes=[{"batch": 1, "sequence": 1}], rounds=1, seconds=0.1).candidates


def test_the_interval_holds_the_noise_between_rounds() -> None:
    steady = [[10.0, 10.0, 10.0]] * 5
    twice = shape_stats({}, [[5.0, 5.0]] * 5, steady)
    assert (twice.speedup, twice.speedup_low, twice.speedup_high) == (2.0, 2.0, 2.0)
    assert twice.is_clear
    noisy = shape_stats({}, [[8.0], [12.0], [9.0], [11.0], [10.0]], steady)
    assert noisy.speedup_low < 1.0 < noisy.speedup_high
    assert not noisy.is_clear
    assert (noisy.round_low_ms, noisy.round_high_ms) == (8.0, 12.0)


def test_a_drift_that_hits_both_models_cancels() -> None:
    drift = np.array([1.0, 1.5, 2.0, 2.5, 3.0])
    stats = shape_stats({}, [[5.0 * factor] for factor in drift], [[10.0 * factor] for factor in drift])
    assert stats.is_clear
    assert stats.speedup == stats.speedup_low == stats.speedup_high == 2.0


def test_a_session_is_shown_with_what_it_takes(tmp_path: Path) -> None:
    result = bench([save(tmp_path / "a.onnx")], shapes=[{"batch": 1, "sequence": 2}], threads=1, rounds=1, seconds=0.1)
    (one,) = result.candidates
    told = one.model_copy(update={"load_ms": 3210.0, "size_bytes": 2 << 30, "held_bytes": 3 << 30, "own_bytes": None})
    console = Console(file=io.StringIO(), width=400)
    print_bench(console, result.model_copy(update={"candidates": (told,)}))
    assert isinstance(console.file, io.StringIO)
    *_, title, head, row = console.file.getvalue().splitlines()
    assert title == "a session"
    assert head.split() == ["model", "file", "opening", "holds", "of", "the", "file", "without", "files"]
    assert row.split() == ["a", "2.00", "GiB", "3.21", "s", "3.00", "GiB", "1.50x"]


def test_the_median_is_of_what_is_told() -> None:
    assert median_told([None, None]) is None
    assert median_told([3, None, 1, 8]) == 3


def test_the_worker_speaks_json(tmp_path: Path) -> None:
    model = save(tmp_path / "a.onnx")
    ids = np.zeros((1, 2), np.int64)
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=ids, token_type_ids=ids)
    job = {"model": str(model), "provider": "cpu", "threads": 1, "inputs": [str(tmp_path / "x.npz")], "seconds": 0.0}

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-m", "onnxopt.timing.worker"]  # it limits its own memory, so never in this process
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(done.stdout))

    assert len(answer(job)["times_ms"][0]) == 1
    assert answer(job | {"model": "none"})["error"]["what"] == "no such model file"

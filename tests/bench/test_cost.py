"""What optimizing costs: work grows with the graph, not with its square; in counts, since seconds vary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import cost, table
from onnxopt.graph import nodes as graph
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.probe import program
from onnxopt.probe import runners as probe
from onnxopt.proof import driver
from onnxopt.rewrite import patterns
from onnxopt.rewrite import rule as rewrite
from onnxopt.spec import Target
from tests.support.synthetic import LAYER_NODES, encoder_of, loaded_encoder

FEW, MANY = 10 * LAYER_NODES, 20 * LAYER_NODES  # with fewer layers, a mask that looks at all of them is looked through


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count sessions, runs, copies of the graph, attempts to match, and steps back through the graph."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, label: str) -> None:
        real = getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            counts[label] += 1
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    count(program, "_open", "sessions")
    count(program.Program, "run", "runs")
    count(driver.Driver, "_snapshot", "copies asked for")
    count(rewrite.Rule, "find", "attempts to match")
    count(patterns, "_match_op", "nodes matched")
    count(graph, "is_op", "nodes looked at")
    yield counts


def counts_of(nodes: int, counts: Counter[str]) -> Counter[str]:
    probe._programs.clear()
    counts.clear()
    run_pipeline(loaded_encoder(nodes), Target("cpu"))
    return counts.copy()


def test_twice_the_nodes_take_twice_the_work_and_no_more_sessions(counted: Counter[str]) -> None:
    few, many = counts_of(FEW, counted), counts_of(MANY, counted)
    for label in ("attempts to match", "nodes matched", "nodes looked at", "runs"):
        assert many[label] <= 2.2 * few[label], label
    for label in ("sessions", "copies asked for"):
        assert many[label] <= 1.1 * few[label], label


def test_the_synthetic_encoder_has_the_size_that_was_asked_for() -> None:
    for nodes in (690, 2760):
        assert encoder_of(nodes).graph.num_nodes() == pytest.approx(nodes, rel=0.05)


def make_result(**runs: dict[str, Any]) -> dict[str, Any]:
    models = [
        {"name": "smollm2-135m", "nodes": 6504, "bytes": 2**29, "runs": runs},
        {"name": "encoder, 10 nodes", "nodes": 10, "bytes": 1, "runs": runs},
        {"name": "encoder, 40 nodes", "nodes": 40, "bytes": 1, "runs": {**runs, "onnxopt": run(4.0)}},
    ]
    machine = {"cores": 2, "cpu": "some | processor"}
    return {"machine": machine, "versions": {"onnxopt": "0.1"}, "created": "2026-11-23T01:02:03", "models": models}


def run(seconds: float) -> dict[str, Any]:
    return {
        "open_seconds": 0.5,
        "seconds": 2 * seconds,
        "cpu_seconds": seconds,
        "peak_bytes": 2**29,
        "own_bytes": 2**28,
        "nodes": 1459,
    }


def test_the_table_tells_time_memory_and_growth() -> None:
    text = cost.render(make_result(onnxopt=run(1.0), onnxsim={"error": "no | such"}))
    title = "| smollm2-135m, 6,504 nodes, 512 MiB | onnxopt, every rewrite proved |"
    assert f"{title} 0.5 s | 2.0 s | 1.0 s | 512 MiB | 1.00× | 1,459 |" in text
    assert "| encoder, 10 nodes | onnxsim | no \\| such |" in text
    assert "onnxopt n^1.00" in text
    assert "2 cores of some \\| processor, onnxopt 0.1, 2026-11-23" in text


def test_the_table_goes_between_its_own_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{table.START}\n{table.END}\n{cost.MARKS[0]}\nstale\n{cost.MARKS[1]}\n", encoding="utf-8")
    table.put(readme, cost.MARKS, cost.render(make_result(onnxopt=run(1.0))))
    assert "stale" not in readme.read_text(encoding="utf-8")
    assert readme.read_text(encoding="utf-8").startswith(f"{table.START}\n{table.END}\n")


def test_growth_needs_two_sizes() -> None:
    assert cost.exponent({"models": []}, "onnxopt") is None

"""Before and after in turns: what an interval shows, when more turns are run, and what else the machine did.

Covers: timing/busy.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.probe.observe import Observation
from onnxopt.records.measurements import Race, SessionCost
from onnxopt.spec import Feeds, Signature, Target, TensorSpec, Workload
from onnxopt.timing import busy, latency
from onnxopt.timing.busy import Load, Watch
from onnxopt.timing.latency import race, summed_up, typed
from onnxopt.timing.rounds import Start, median_interval


def test_what_sessions_take_is_the_median_over_turns() -> None:
    seen = ((9.0, 30, 7), (1.0, 10, 9), (2.0, 20, 8))
    before = [Start(load, 1, 5, [[2.0], [4.0]], held, own) for load, held, own in seen]
    after = [Start(1.5, 1, 4, [[1.0], [2.0]], 12)] * 3
    found = summed_up(before, after, REQUESTS, form="optimized", workload=WORKLOAD)
    assert found.before_session == SessionCost(open_ms=2.0, held_bytes=20, own_bytes=8)
    assert found.after_session == SessionCost(open_ms=1.5, held_bytes=12, own_bytes=None)


def test_inputs_get_the_types_of_the_result() -> None:
    signature = Signature((TensorSpec("ids", "int64", ("batch",)), TensorSpec("past", "float16", ("batch", 2))), ())
    feeds: Feeds = {"ids": np.arange(3), "past": np.ones((3, 2), np.float32)}
    found = typed(feeds, signature)
    assert {name: array.dtype.name for name, array in found.items()} == {"ids": "int64", "past": "float16"}
    assert found["ids"] is feeds["ids"]


WORKLOAD = Workload(({"batch": 1}, {"batch": 8}))
REQUESTS = [Observation({"batch": batch}, {"x": np.zeros((batch, 1), np.float32)}) for batch in (1, 8)]
SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 1)),), ())
Batch = Sequence[tuple[tuple[float, ...], tuple[float, ...]]]


def starts(*turns: tuple[float, ...]) -> list[Start]:
    """Starts with one time per shape."""
    return [Start(1.0, 1, 1, [[time] for time in times]) for times in turns]


def summed(before: Sequence[tuple[float, ...]], after: Sequence[tuple[float, ...]], *weights: float) -> Race:
    workload = Workload(WORKLOAD.shapes, (), weights)
    return summed_up(starts(*before), starts(*after), REQUESTS, form="optimized", workload=workload)


def raced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *batches: Batch, load: Load | None = None) -> Race:
    """Race where turns take the times that we say: of each batch, (original, optimized) by turn and shape."""
    left = list(batches)

    def run_rounds(jobs: object, names: Sequence[str], **_: object) -> list[list[Start]]:
        assert list(names) == ["original", "optimized"]
        turns = left.pop(0)
        return [starts(*(before for before, _ in turns)), starts(*(after for _, after in turns))]

    monkeypatch.setattr(latency, "run_rounds", run_rounds)
    monkeypatch.setattr(Watch, "load", lambda self: load)
    said: list[str] = []
    found = race(
        tmp_path / "a" / "model.onnx",
        tmp_path / "b" / "model.onnx",
        REQUESTS,
        form="optimized",
        signature=SIGNATURE,
        target=Target("cpu", 2),
        workload=WORKLOAD,
        say=said.append,
    )
    assert not left, "more turns were expected"
    assert sum("measuring on" in line for line in said) == len(batches) - 1
    return found


def turns(*ratios: float) -> Batch:
    """Turns in which the original takes so many times as long, while the machine gets slower."""
    return [((ratio * (1 + n), ratio * 5 * (1 + n)), (1.0 + n, 5.0 * (1 + n))) for n, ratio in enumerate(ratios)]


def test_a_graph_that_does_not_run_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_rounds(jobs: Sequence[dict[str, str]], *_: object, **__: object) -> list[list[Start]]:
        raise InputError("onnxruntime failed on x [8, 1]", where=jobs[failing]["model"])

    monkeypatch.setattr(latency, "run_rounds", run_rounds)
    for failing, name in enumerate(("original", "fused")):  # noqa: B007 - read above
        with pytest.raises(InputError, match=f"timing the {name} graph: .*--workload") as caught:
            race(
                tmp_path / "a" / "model.onnx",
                tmp_path / "b" / "model.onnx",
                REQUESTS,
                form="fused",
                signature=SIGNATURE,
                target=Target("cpu", 2),
                workload=WORKLOAD,
                say=lambda _: None,
            )
        assert str(tmp_path) not in str(caught.value)


def test_drift_does_not_hide_what_neighbours_show() -> None:
    batch = turns(*[1.25] * 6)
    found = summed([before for before, _ in batch], [after for _, after in batch])
    assert (found.speedup, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))
    assert found.verdict == "faster"
    assert [shape.verdict for shape in found.shapes] == ["faster", "faster"]


def test_the_workload_decides_by_its_weights_and_shapes_that_lose_are_named() -> None:
    before, after = [(2.0, 9.0)] * 6, [(1.0, 10.0)] * 6
    for weights, verdict in (((), "faster"), ((1.0, 20.0), "slower")):
        found = summed(before, after, *weights)
        assert found.verdict == verdict
        assert [shape.label for shape in found.slower] == ["batch 8"]
    assert str(found.shapes[1]) == "0.90x (0.90 to 0.90): slower"


def test_a_clear_gain_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = raced(monkeypatch, tmp_path, turns(1.2, 1.3, 1.25, 1.4, 1.3, 1.2))
    assert (found.turns, found.verdict) == (6, "faster")


def test_equal_within_two_percent_is_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = raced(monkeypatch, tmp_path, turns(1.01, 0.99, 1.0, 1.02, 0.99, 1.0))
    assert (found.turns, found.verdict) == (6, "no difference")


def test_what_cannot_be_told_is_measured_longer_and_then_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise = turns(0.7, 1.2, 0.8, 1.1, 0.75, 1.3)
    found = raced(monkeypatch, tmp_path, noise, noise, noise)
    assert (found.turns, found.verdict) == (18, "no difference")
    assert str(found).endswith("): no difference seen")


def test_slower_is_said_after_a_second_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow, noise = turns(0.9, 0.88, 0.91, 0.9, 0.89, 0.9), turns(1.2, 1.2, 1.1, 0.8, 1.3, 1.2)
    assert raced(monkeypatch, tmp_path, slow, slow).verdict == "slower"
    assert raced(monkeypatch, tmp_path, slow, noise, noise).verdict == "no difference"


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batch = turns(*[1.5] * 6)
    loud = raced(monkeypatch, tmp_path, batch, load=Load(others=1.4, stolen=0.0, cores=2, threads=2))
    assert loud.trouble == "other processes took 1.4 of 2 processors"
    quiet = [((1.5, 7.5), (1.0, 5.0))] * 6
    assert raced(monkeypatch, tmp_path, quiet, load=Load(others=0.1, stolen=0.0, cores=2, threads=2)).trouble == ""
    assert "differ by a quarter" in raced(monkeypatch, tmp_path, batch).trouble  # its turns get ever slower


@pytest.mark.parametrize(
    ("others", "stolen", "threads", "is_busy"),
    [(0.2, 0.0, 2, False), (0.3, 0.0, 2, True), (0.0, 0.3, 2, True), (1.2, 0.0, 1, False), (1.4, 0.0, 1, True)],
)
def test_a_machine_is_busy_when_less_is_left_than_is_needed(
    others: float, stolen: float, threads: int, *, is_busy: bool
) -> None:
    load = Load(others, stolen, cores=2, threads=threads)
    assert load.is_busy == is_busy
    assert ("host" in str(load)) == (stolen > 0)


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # ten seconds, in which the processors worked for 14 and the host took 1; 12 of the 14 were our own
    moments = [busy.Moment(100.0, 50.0, 3.0, 20.0), busy.Moment(110.0, 64.0, 4.0, 32.0)]
    monkeypatch.setattr(busy, "now", lambda: moments.pop(0))
    load = Watch(threads=1).load()
    assert load is not None
    assert (load.others, load.stolen) == pytest.approx((0.2, 0.1))


def test_what_this_machine_counts_goes_up() -> None:
    first = busy.now()
    sum(range(3_000_000))
    second = busy.now()
    assert second.clock > first.clock
    assert second.own > first.own
    assert second.busy >= first.busy
    assert Watch(threads=1).load() is None, "too little time has passed"


@pytest.mark.parametrize(
    ("count", "ends"), [(5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (12, (2, 9)), (18, (4, 13))]
)
def test_the_interval_of_a_median_takes_the_ranks_of_the_tables(count: int, ends: tuple[int, int] | None) -> None:
    values = [float(value) for value in range(count)]
    expected = (0.0, math.inf) if ends is None else ends
    assert median_interval(values[::-1]) == expected


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = np.random.default_rng(3).lognormal(0.0, 0.5, (4000, 12))
    hits = [low <= 1.0 <= high for low, high in (median_interval(row.tolist()) for row in draws)]
    assert 0.95 <= float(np.mean(hits)) <= 0.975

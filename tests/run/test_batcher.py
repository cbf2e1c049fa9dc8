"""Requests together: each gets the answer it would get alone, whatever happens to its neighbours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt import Batcher, FixedShapes, Session
from onnxopt.errors import InputError
from onnxopt.probe.crossing import crossings_of
from onnxopt.proof.prepare import prepare
from onnxopt.run.batcher import BusyError, ClosedError, TooLargeError
from onnxopt.spec import Array, Feeds
from tests.support.pool import feeds, session
from tests.support.rules import parse

__all__ = ["session"]


class Gate:
    """A model that waits until it may run, and notes what it was given."""

    def __init__(self, session: Session, fails: Callable[[Mapping[str, Array]], bool] = lambda feeds: False) -> None:
        self.session, self.fails = session, fails
        self.open, self.entered = threading.Event(), threading.Event()
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        self.entered.set()
        assert self.open.wait(10)
        self.shapes.append(feeds["input_ids"].shape)
        if self.fails(feeds):
            raise InputError("the model fails on this one")
        return self.session.run(feeds, outputs)


def same(expected: Feeds, found: Any) -> None:
    assert list(expected) == list(found)
    for name, array in expected.items():
        np.testing.assert_array_equal(array, found[name])


def test_mixed_requests_are_answered_as_alone_and_in_order(session: Session) -> None:
    requests = [feeds(1 + number % 3, 1 + number * 7 % 40, number) for number in range(60)]
    with Batcher(session, max_batch=8, workers=2) as batcher:
        answers = batcher.map(requests)
    for request, answer in zip(requests, answers, strict=True):
        same(session.run(request), answer)
    assert batcher.stats.requests == 60
    assert batcher.stats.rows == sum(len(request["input_ids"]) for request in requests)
    assert batcher.stats.batches < 60


def test_similar_lengths_run_together_and_the_oldest_comes_first(session: Session) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, buckets=(4, 8, 64), max_wait_ms=0) as batcher:
        first = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        later = [batcher.submit(feeds(1, length)) for length in (60, 3, 33, 7, 2)]
        gate.open.set()
        for one in (first, *later):
            one.result(10)
    assert gate.shapes == [(1, 1), (2, 60), (2, 3), (1, 7)]
    assert batcher.stats.places == 1 + 120 + 6 + 7
    assert batcher.stats.tokens == 1 + 60 + 3 + 33 + 7 + 2


@pytest.mark.parametrize(("limits", "shapes"), [({"max_batch": 2}, [2, 2, 1]), ({"max_tokens": 12}, [3, 2])])
def test_a_batch_stays_within_its_limits(session: Session, limits: dict[str, Any], shapes: list[int]) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_wait_ms=0, **limits) as batcher:
        first = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        later = [batcher.submit(feeds(1, 4)) for _ in range(5)]
        gate.open.set()
        for one in (first, *later):
            one.result(10)
    assert [rows for rows, _ in gate.shapes[1:]] == shapes


def test_a_wrong_request_fails_alone_and_before_it_waits(session: Session) -> None:
    wrong: list[Feeds] = [
        {"input_ids": np.ones((1, 3), np.int32), "attention_mask": np.ones((1, 3), np.int64)},
        {"input_ids": np.ones((1, 3), np.int64)},
        {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 4), np.int64)},
        {"input_ids": np.ones((0, 3), np.int64), "attention_mask": np.ones((0, 3), np.int64)},
        feeds(1, 9),
    ]
    with Batcher(session, longest=8) as batcher:
        answers = batcher.map([feeds(1, 3), *wrong, feeds(1, 8)])
        with pytest.raises(InputError, match="no output 'z'"):
            batcher.submit(feeds(1, 3), outputs=["z"])
    same(session.run(feeds(1, 3)), answers[0])
    same(session.run(feeds(1, 8)), answers[-1])
    said = [str(answer) for answer in answers[1:-1]]
    assert "input_ids' is int32, the model takes int64" in said[0]
    assert "input 'attention_mask' is missing" in said[1]
    assert "has sequence 4, another input has 3" in said[2]
    assert "0 rows" in said[3]
    assert said[4].startswith("the request has 9 tokens, the model takes 8")


def test_a_request_that_fails_in_the_model_takes_no_other_with_it(session: Session) -> None:
    gate = Gate(session, lambda given: bool((given["input_ids"] == 4).any()))  # only a request that starts at 3
    with Batcher(session, runner=gate, max_wait_ms=0) as batcher:
        first = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        later = [batcher.submit(feeds(1, 1, number)) for number in range(6)]
        gate.open.set()
        for number, one in enumerate(later):
            if number == 3:
                with pytest.raises(InputError, match="fails on this one"):
                    one.result(10)
            else:
                same(session.run(feeds(1, 1, number)), one.result(10))
    first.result(10)
    assert batcher.stats.failed == 1


def test_an_id_that_the_model_does_not_know_fails_alone(session: Session) -> None:
    beyond = {"input_ids": np.full((1, 3), 99), "attention_mask": np.ones((1, 3), np.int64)}
    with Batcher(session, max_wait_ms=20) as batcher:
        good, bad, fine = batcher.map([feeds(1, 3), beyond, feeds(1, 3, 2)])
    assert isinstance(bad, InputError)
    same(session.run(feeds(1, 3)), good)
    same(session.run(feeds(1, 3, 2)), fine)


def test_a_full_queue_refuses_and_a_free_place_is_taken(session: Session) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_queue=2, max_wait_ms=0) as batcher:
        running = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        waiting = [batcher.submit(feeds(1, 1)) for _ in range(2)]
        assert batcher.waiting == 2
        with pytest.raises(BusyError, match="2 requests wait already"):
            batcher.submit(feeds(1, 1))
        with pytest.raises(BusyError):
            batcher.submit(feeds(1, 1), timeout=0.01)
        threading.Timer(0.05, gate.open.set).start()
        last = batcher.submit(feeds(1, 1), timeout=10)
        for one in (running, *waiting, last):
            one.result(10)


def test_what_was_cancelled_is_not_run(session: Session) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_wait_ms=0) as batcher:
        running = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        taken_back, other = batcher.submit(feeds(1, 2)), batcher.submit(feeds(1, 2))
        assert taken_back.cancel()
        assert not running.cancel()
        gate.open.set()
        other.result(10)
    assert gate.shapes == [(1, 1), (1, 2)]
    assert batcher.stats.cancelled == 1


def test_closing_answers_what_waits_and_refuses_what_comes(session: Session) -> None:
    gate = Gate(session)
    batcher = Batcher(session, runner=gate, max_wait_ms=1000)
    waiting = [batcher.submit(feeds(1, 1)) for _ in range(3)]
    gate.open.set()
    batcher.close()
    assert all(one.done() for one in waiting)
    with pytest.raises(ClosedError, match="shutting down"):
        batcher.submit(feeds(1, 1))


def test_closing_without_draining_cancels_what_waits(session: Session) -> None:
    gate = Gate(session)
    batcher = Batcher(session, runner=gate, max_wait_ms=0)
    running = batcher.submit(feeds(1, 1))
    assert gate.entered.wait(10)
    waiting = batcher.submit(feeds(1, 1))
    threading.Timer(0.05, gate.open.set).start()
    batcher.close(drain=False)
    same(session.run(feeds(1, 1)), running.result(0))
    with pytest.raises(CancelledError):
        waiting.result(0)


def test_a_request_waits_for_others_only_so_long(session: Session) -> None:
    with Batcher(session, max_wait_ms=1) as batcher:
        same(session.run(feeds(1, 2)), batcher.run(feeds(1, 2)))
    assert batcher.stats.mean_batch == 1


def test_only_the_wanted_outputs_come(session: Session) -> None:
    with Batcher(session, max_wait_ms=20) as batcher:
        mean = batcher.submit(feeds(1, 2), outputs=["mean"])
        both = batcher.submit(feeds(1, 2))
        assert list(mean.result(10)) == ["mean"]
        same(session.run(feeds(1, 2)), both.result(10))


def test_asyncio_callers_run_together_and_may_give_up(session: Session) -> None:
    gate = Gate(session)

    async def run() -> list[Feeds]:
        tasks = [asyncio.create_task(batcher.arun(feeds(1, 3, number))) for number in range(5)]
        await asyncio.to_thread(gate.entered.wait, 10)
        given_up = asyncio.create_task(batcher.arun(feeds(1, 50)))
        await asyncio.sleep(0.01)
        given_up.cancel()
        # only then is its request out of the queue
        with pytest.raises(asyncio.CancelledError):
            await given_up
        gate.open.set()
        return [await asyncio.wait_for(task, 10) for task in tasks] + [await batcher.arun(feeds(1, 1), timeout=5)]

    with Batcher(session, runner=gate, max_wait_ms=0) as batcher:
        answers = asyncio.run(run())
    for number, answer in enumerate(answers[:5]):
        same(session.run(feeds(1, 3, number)), answer)
    assert (1, 50) not in gate.shapes


def test_a_model_without_a_mask_runs_equal_lengths_together(tmp_path: Any) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> m (float[n, w] x) => (float[n, w] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    session = Session(tmp_path)
    requests = [{"x": np.full((1, width), number, np.float32)} for number, width in enumerate((2, 3, 2, 3, 2))]
    with Batcher(session, max_wait_ms=50) as batcher:
        answers = batcher.map(requests)
    for request, answer in zip(requests, answers, strict=True):
        same(session.run(request), answer)
    assert batcher.stats.batches == 2


def test_a_model_whose_rows_cannot_be_joined_is_refused(tmp_path: Any) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> m (float[2, w] x) => (float[2, w] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="requests cannot be joined"):
        Batcher(Session(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "the batch is 0"),
        ({"workers": 0}, "the number of workers is 0"),
        ({"max_wait_ms": -1}, "the wait is -1"),
        ({"buckets": (8, 4)}, r"the buckets \[8, 4\] do not rise"),
    ],
)
def test_limits_out_of_range_are_said(session: Session, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Batcher(session, **options)


def test_fixed_shapes_and_the_histogram_of_lengths(session: Session) -> None:
    buckets = FixedShapes(session, [{"batch": 4, "sequence": 8}, {"batch": 4, "sequence": 64}])
    requests = [feeds(1, length, length) for length in (3, 8, 40, 5)]
    with Batcher(session, runner=buckets, buckets=(8, 64), max_batch=4) as batcher:
        answers = batcher.map(requests)
    for request, answer in zip(requests, answers, strict=True):
        same(session.run(request), answer)
    assert batcher.stats.lengths == {3: 1, 8: 1, 40: 1, 5: 1}
    assert [shape["sequence"] for shape in batcher.stats.workload().shapes] == [3, 3, 5, 8, 40]


TABLED = """
g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (float[batch,sequence] y) {
  length = Shape<start=1, end=2>(attention_mask) longer = Greater(length, limit)
  factor = Where(longer, slow, fast) x = Cast<to=1>(input_ids) y = Mul(x, factor)
}"""


@pytest.mark.parametrize("limit", [9, 31])
def test_requests_on_two_sides_of_a_crossing_do_not_run_together(limit: int, tmp_path: Path) -> None:
    weights = {"limit": np.array([limit]), "slow": np.array([0.5], np.float32), "fast": np.array([2.0], np.float32)}
    model = parse(TABLED, weights)
    prepare(model)
    found = crossings_of(model, longest=512)
    assert found.at == (limit,)
    model.metadata_props.update(found.to_metadata())
    ir.save(model, tmp_path / "model.onnx")
    opened = Session(tmp_path / "model.onnx")
    assert opened.crossings == found
    lengths = (limit + 3, 2, limit, limit + 1, limit - 1)
    requests = [
        {"input_ids": np.full((1, length), length), "attention_mask": np.ones((1, length), np.int64)}
        for length in lengths
    ]
    with Batcher(opened, buckets=(64,), max_wait_ms=20) as batcher:
        answers = batcher.map(requests)
    for request, answer in zip(requests, answers, strict=True):
        same(opened.run(request), answer)
    assert batcher.stats.batches == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_more_rows_than_run_together_are_run_in_parts(session: Session, workers: int) -> None:
    request = feeds(23, 9, 5)
    gate = Gate(session)
    gate.open.set()
    with Batcher(session, runner=gate, max_batch=5, workers=workers) as batcher:
        answer = batcher.run(request, outputs=None)
    assert sorted(gate.shapes, reverse=True) == [(5, 9)] * 4 + [(3, 9)]
    expected = session.run(request)
    assert list(answer) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, rtol=1e-5, atol=1e-6)


def test_others_are_answered_between_two_parts(session: Session) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_batch=2, max_wait_ms=0) as batcher:
        large = batcher.submit(feeds(6, 4))
        assert gate.entered.wait(10)
        small = batcher.submit(feeds(1, 40))
        gate.open.set()
        small.result(10)
        large.result(10)
    assert gate.shapes == [(2, 4), (1, 40), (2, 4), (2, 4)]


def test_who_gives_up_a_large_request_gives_up_the_parts_that_have_not_begun(session: Session) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_batch=1, max_wait_ms=0) as batcher:
        large = batcher.submit(feeds(50, 4))
        assert gate.entered.wait(10)
        assert large.cancel()
        gate.open.set()
        batcher.run(feeds(1, 7))
    assert gate.shapes == [(1, 4), (1, 7)]


def test_a_part_that_fails_fails_its_request_and_no_other(session: Session) -> None:
    gate = Gate(session, fails=lambda given: bool((given["input_ids"] == 9).any()))
    gate.open.set()
    request = feeds(6, 4)
    request["input_ids"][:] = 1
    request["input_ids"][3] = 9
    with Batcher(session, runner=gate, max_batch=2) as batcher:
        with pytest.raises(InputError, match="the model fails on this one"):
            batcher.run(request)
        assert batcher.run(feeds(1, 4))


def test_parts_end_with_the_batcher(session: Session) -> None:
    gate = Gate(session)
    batcher = Batcher(session, runner=gate, max_batch=1, max_wait_ms=0)
    drained, dropped = batcher.submit(feeds(3, 4)), batcher.submit(feeds(90, 5))
    assert gate.entered.wait(10)
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    gate.open.set()
    closing.join(10)
    assert not closing.is_alive()
    for one in (drained, dropped):
        with pytest.raises(CancelledError):
            one.result(10)
    assert len(gate.shapes) == 1


@pytest.mark.parametrize(("budget", "shapes"), [(24, [3, 3, 1]), (60, [7])])
def test_no_more_rows_run_together_than_fit_into_the_memory(session: Session, budget: int, shapes: list[int]) -> None:
    gate = Gate(session)
    with Batcher(session, runner=gate, max_wait_ms=0, most_rows=lambda elements: budget // elements) as batcher:
        first = batcher.submit(feeds(1, 1))
        assert gate.entered.wait(10)
        later = [batcher.submit(feeds(1, 4)) for _ in range(7)]  # two inputs of four: eight elements a row
        gate.open.set()
        for one in (first, *later):
            one.result(10)
        with pytest.raises(TooLargeError, match="takes more memory than a run may have"):
            batcher.submit(feeds(1, budget))
    assert [rows for rows, _ in gate.shapes[1:]] == shapes

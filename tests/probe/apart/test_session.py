"""What kills the process that runs it, never ends or takes all memory is an error in words.

Covers: probe/apart/session.py, probe/apart/worker.py
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxopt.host.bounds import VARIABLE
from onnxopt.host.runtime_errors import runtime_line
from onnxopt.probe.apart import session as apart
from onnxopt.probe.apart.session import ApartError, ApartSession, BoundError, start_worker
from tests.support.hostile_graphs import counting_without_end, dividing_the_smallest, growing

ONES = {"x": np.ones((3, 4), np.float32)}


def opened(model: onnx.ModelProto) -> ApartSession:
    return ApartSession(model.SerializeToString())


def relu() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }'
    )


def test_what_it_gives_is_what_a_session_here_gives() -> None:
    session = opened(relu())
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [("x", "tensor(float)", ["n", 4])]
    assert [one.name for one in session.get_outputs()] == ["y"]
    for rows in (1, 5, 0):
        x = np.linspace(-1, 1, 4 * rows, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], np.maximum(x, 0))


def test_what_the_runtime_says_is_passed_on() -> None:
    with pytest.raises(ApartError, match="Invalid rank") as found:
        opened(relu()).run(["y"], {"x": np.ones(4, np.float32)})
    assert not isinstance(found.value, BoundError)
    with pytest.raises(ApartError) as broken:
        ApartSession(b"no model")
    assert runtime_line(broken.value)


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
def test_a_division_that_kills_its_process_is_said_and_the_next_graph_runs(dtype: int) -> None:
    session = opened(dividing_the_smallest(dtype))
    with pytest.raises(BoundError, match=r"ends its process \(SIGFPE\)"):
        session.run(["y"], ONES)
    assert opened(relu()).run(["y"], ONES)[0].shape == (3, 4)
    with pytest.raises(BoundError, match="SIGFPE"):  # it is opened again
        session.run(["y"], ONES)


def test_a_loop_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "seconds=1")
    began = time.monotonic()
    with pytest.raises(BoundError, match="does not end within 1 s") as found:
        opened(counting_without_end()).run(["y"], ONES)
    assert found.value.is_slow
    assert "ONNXOPT_LIMITS=seconds=60" in found.value.hint
    assert time.monotonic() - began < 20


def test_what_takes_more_memory_than_it_may_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "memory=256MiB")
    small, large = opened(growing(1 << 20)), opened(growing(1 << 28))
    assert small.run(["y"], ONES)[0].shape == ()
    with pytest.raises(BoundError, match="more than 256 MiB") as found:
        large.run(["y"], ONES)
    assert "ONNXOPT_LIMITS=memory=1GiB" in found.value.hint
    monkeypatch.setenv(VARIABLE, "memory=4GiB")
    assert opened(growing(1 << 28)).run(["y"], ONES)[0] == 1 << 28


def test_graphs_that_nobody_has_any_more_are_closed() -> None:
    session = opened(relu())
    numbers = [session._number]
    unused = session._worker.unused
    del session
    assert unused[-1:] == numbers
    other = opened(relu())
    assert not unused
    other.close()
    with pytest.raises(ApartError):
        other.run(["y"], ONES)


def test_threads_take_turns() -> None:
    session, answers = opened(relu()), dict[int, float]()

    def ask(number: int) -> None:
        answers[number] = float(session.run(["y"], {"x": np.full((50, 4), number, np.float32)})[0].mean())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_starts_a_worker_of_its_own() -> None:
    start_worker()
    worker = apart._workers[-1]
    child = os.fork()
    if child == 0:
        os._exit(0 if worker.is_over else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not worker.is_over

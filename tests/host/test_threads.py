"""A file is held to what it gives with the threads it is going to run with: some kernels' numbers follow from those."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxopt
from onnxopt.host import threads as threads_module
from onnxopt.host.threads import side_by_side, step_back
from onnxopt.load.reference import OrtReference
from onnxopt.spec import Array, Target

HIDDEN, WIDTH = 16, 8


def quantized_lstm(path: Path) -> Path:
    """Write an LSTM whose inputs are brought to 8 bits while it runs, rows of a batch together or in parts."""
    drawn = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": drawn.integers(-127, 128, (1, WIDTH, 4 * HIDDEN), np.int8),
        "r": drawn.integers(-127, 128, (1, HIDDEN, 4 * HIDDEN), np.int8),
        "scale": np.full((1,), 0.01, np.float32),
        "zero": np.zeros((1,), np.int8),
    }
    inputs = ["x", "w", "r", "", "", "", "", "", "scale", "zero", "scale", "zero"]
    lstm = helper.make_node(
        "DynamicQuantizeLSTM", inputs, ["h"], domain="com.microsoft", hidden_size=HIDDEN, direction="forward"
    )
    nodes = [lstm, helper.make_node("Relu", ["h"], ["k"]), helper.make_node("Identity", ["k"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["steps", 1, "rows", HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_what_follows_from_threads_is_no_error_of_a_rewrite(threads: int, tmp_path: Path) -> None:
    path = quantized_lstm(tmp_path / "m.onnx")
    made = onnxopt.optimize(path, out=tmp_path / "out", target=Target("cpu", threads=threads), measure=False)
    assert max(record.worst_relative_error for record in made.manifest.proof) == 0


def test_a_reference_is_opened_with_its_threads(tmp_path: Path) -> None:
    path = quantized_lstm(tmp_path / "m.onnx")
    usual = OrtReference(path, threads=2)
    assert usual.with_threads(2) is usual
    alone = usual.with_threads(1)
    assert alone.name == usual.name
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 4, WIDTH)).astype(np.float32)}
    apart = [OrtReference(path, threads=1).run({"x": feeds["x"][:, row : row + 1]})["y"] for row in range(4)]
    together, dealt = alone.run(feeds)["y"], OrtReference(path, threads=4).run(feeds)["y"]
    assert np.abs(together - np.concatenate(apart, axis=2)).max() > 1e-4
    assert not np.array_equal(together, dealt)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux'")
def test_a_thread_that_steps_back_leaves_the_others_where_they_are() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def work() -> None:
        step_back(3)
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + 3, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_have_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(threads_module, "available_threads", lambda: count)
    assert side_by_side(lambda one: one * one, range(23)) == [one * one for one in range(23)]
    assert side_by_side(str, []) == []


def test_pieces_are_not_parted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "available_threads", lambda: 2)
    both = threading.Barrier(2, timeout=30)

    def piece(_: int) -> set[str]:
        both.wait()  # two threads are at work
        return set(side_by_side(lambda _: threading.current_thread().name, range(4)))

    first, second = side_by_side(piece, range(2))
    assert len(first) == len(second) == 1
    assert first != second


def test_what_fails_in_a_piece_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "available_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda one: 1 // one, [1, 0, 1])

from __future__ import annotations

import numpy as np

from onnxopt.graph.blocks import count_blocks
from tests.support.rules import parse


def test_spelled_out_blocks_count_as_missed_with_their_node() -> None:
    model = parse(
        """
    g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k) => (y)
    <float two = {2.0}, float eps = {1e-5}, float root = {1.4142135}, int64[1] last = {-1}> {
      t = Transpose <perm = [0, 1, 3, 2]> (k)
      s = MatMul (q, t)
      [weights] w = Softmax <axis = -1> (s)
      a = MatMul (w, k)
      mean = ReduceMean (a, last)
      d = Sub (a, mean)
      p = Pow (d, two)
      v = ReduceMean (p, last)
      e = Add (v, eps)
      [deviation] r = Sqrt (e)
      n = Div (d, r)
      x = Div (n, root)
      [error] f = Erf (x)
      y = MatMul (f, weight)
    }""",
        {"weight": np.eye(4, dtype=np.float32)},
    )
    counts = count_blocks(model)
    assert (counts["attention"].fused, counts["attention"].total, counts["attention"].missed) == (0, 1, ("weights",))
    assert counts["layer_norm"].missed == ("deviation",)
    assert counts["gelu"].missed == ("error",)
    assert str(counts["linear"]) == "1 of 1"
    assert counts["rms_norm"].total == 0


def test_kernels_that_hold_a_projection_count_as_attention_and_as_linear() -> None:
    model = parse(
        """
    g (float[batch,sequence,8] x) => (y) { y = com.microsoft.Attention <num_heads = 2> (x, w, b) }""",
        {"w": np.zeros((8, 24), np.float32), "b": np.zeros(24, np.float32)},
    )
    counts = count_blocks(model)
    assert str(counts["attention"]) == "1 of 1"
    assert str(counts["linear"]) == "1 of 1"


def test_a_softmax_of_a_classifier_is_no_attention() -> None:
    model = parse("g (float[batch,8] x) => (y) { y = Softmax (x) }")
    assert count_blocks(model)["attention"].total == 0


def test_a_mean_of_squares_without_centring_is_a_root_mean_square_norm() -> None:
    model = parse("""
    g (float[batch,8] x) => (y) <float two = {2.0}, float eps = {1e-5}, int64[1] last = {-1}> {
      p = Pow (x, two) v = ReduceMean (p, last) e = Add (v, eps) r = Sqrt (e) y = Div (x, r)
    }""")
    counts = count_blocks(model)
    assert counts["rms_norm"].total == 1
    assert counts["layer_norm"].total == 0

"""Inputs of the original become inputs of a result that hands its cache over in 16 bits."""

from __future__ import annotations

import numpy as np

from onnxopt.latency import typed
from onnxopt.spec import Signature, TensorSpec


def test_inputs_get_the_types_of_the_result() -> None:
    signature = Signature((TensorSpec("ids", "int64", ("batch",)), TensorSpec("past", "float16", ("batch", 2))), ())
    feeds = {"ids": np.arange(3), "past": np.ones((3, 2), np.float32)}
    found = typed(feeds, signature)
    assert {name: array.dtype.name for name, array in found.items()} == {"ids": "int64", "past": "float16"}
    assert found["ids"] is feeds["ids"]

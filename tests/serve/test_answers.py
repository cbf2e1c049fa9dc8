from __future__ import annotations

import json

import numpy as np
import pytest

from onnxopt.serve.answers import Numbers, count_letters, encoded


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 9000])
def test_numbers_are_written_as_python_writes_them(size: int) -> None:
    array = np.random.default_rng(3).standard_normal(size).astype(np.float32)
    content = {"a": [{"b": Numbers(array)}, {}, []], "c": "é\ud83d", "d": None}
    plain = {"a": [{"b": array.astype(np.float64).tolist()}, {}, []], "c": "é\ud83d", "d": None}
    assert json.loads(encoded(content)) == plain
    assert count_letters(content) == 20 * size


@pytest.mark.parametrize("kind", ["int64", "uint64", "bool", "float16", "float64"])
def test_every_kind_of_number_keeps_its_value(kind: str) -> None:
    array = np.array([[0, 1], [1, 0]], kind)
    assert json.loads(encoded(Numbers(array))) == array.ravel().tolist()

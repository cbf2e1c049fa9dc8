"""What a process and its worker say to each other comes out as it went in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from onnxopt.probe.apart.frames import packed, read_frame, unpacked, write_frame


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float16).reshape(2, 3, 4)[:, ::-1],
        np.array(-7, np.int64),
        np.zeros((3, 0, 2), np.uint8),
        np.array([True, False]),
        np.array([["a", "ä\n"], ["", "日本"]], object),
        np.array([np.nan, np.inf, -0.0]),
    ],
    ids=["strides", "scalar", "empty", "bool", "text", "odd"],
)
def test_tensors_come_out_as_they_went_in(array: np.ndarray) -> None:
    found = there_and_back(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_sequences_and_nothing_come_out_as_they_went_in() -> None:
    first, second = there_and_back([np.ones(2), np.zeros((1, 1), np.int32)])
    assert first.tolist() == [1, 1]
    assert second.shape == (1, 1)
    assert there_and_back(None) is None
    assert there_and_back([]) == []


def test_a_frame_that_is_cut_short_is_an_end() -> None:
    stream = io.BytesIO()
    write_frame(stream, {"a": 1}, [np.arange(9, dtype=np.uint8).data])
    whole = stream.getvalue()
    for length in range(len(whole)):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(whole[:length]))


def there_and_back(value: Any) -> Any:
    stream, buffers = io.BytesIO(), list[memoryview]()
    spec = packed(value, buffers)
    write_frame(stream, {"value": spec}, buffers)
    message, found = read_frame(io.BytesIO(stream.getvalue()))
    return unpacked(message["value"], found)

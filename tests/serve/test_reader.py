from __future__ import annotations

import json
import marshal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from onnxopt.serve.reader import ASKED, BEYOND, MOST_KEYS, MOST_VALUES, PLAIN, SAID, TENSORS, pack, read


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": [1, "b", null]}', ""),
        ("{", "json"),
        ("1" * 5000, "json"),
        (nested(60), ""),
        (nested(70), "depth"),
        (nested(5000), "depth"),
        (json.dumps([1] * (MOST_VALUES - 2)), ""),
        (json.dumps([1] * (MOST_VALUES + 1)), "values"),
        ("[" + "[]," * MOST_VALUES + "[]]", "values"),
        (json.dumps({"in": {str(key): 1 for key in range(MOST_KEYS)}}), ""),
        (json.dumps({"in": {str(key): 1 for key in range(MOST_KEYS + 1)}}), "keys"),
    ],
)
def test_a_body_is_read_or_the_limit_that_it_breaks_is_named(text: str, why: str) -> None:
    assert read(text.encode()) == (why, None if why else json.loads(text))


@pytest.mark.parametrize(
    ("data", "kind", "numbers"),
    [
        ([1, -2], "q", [1, -2]),
        ([[1, 2], [3, 4]], "q", [1, 2, 3, 4]),
        ([1 << 63, 1], "Q", [1 << 63, 1]),
        ([1.5, 2], "d", [1.5, 2.0]),
        ([True, 2], "q", [1, 2]),
        ([], "q", []),
    ],
)
def test_numbers_are_packed(data: Any, kind: str, numbers: list[float]) -> None:
    found, raw = pack(data)
    assert found == kind
    assert np.frombuffer(raw, f"={kind}").tolist() == numbers


@pytest.mark.parametrize("data", [["a"], [1, "a"], [[1], [2, 3]], [[1], 2], [None], [{}]])
def test_what_is_no_regular_array_is_packed_as_nothing(data: Any) -> None:
    assert pack(data) == ("", b"")


@pytest.mark.parametrize("data", [[1 << 64], [-1, 1 << 63], [10**400, 1.5]])
def test_what_no_64_bits_hold_is_said(data: Any) -> None:
    assert pack(data) == (BEYOND, b"")


def test_tensors_count_as_one_value_each() -> None:
    body = json.dumps({"inputs": [{"name": "a", "data": [1.5] * (2 * MOST_VALUES)}]}).encode()
    assert read(body, PLAIN) == ("values", None)
    why, value = read(body, TENSORS)
    assert not why
    assert value["inputs"][0]["data"][0] == "d"


def test_the_process_reads_one_body_after_another_and_none_beyond_its_memory() -> None:
    words = b"[" + b",".join(b'"%06d"' % number for number in range(200_000)) + b"]"
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxopt.serve.reader", str(90 << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    with process:
        found = []
        for body in (b"[1]", words * 40, b"[2]"):
            process.stdin.write(ASKED.pack(PLAIN, len(body)) + body)
            process.stdin.flush()
            said = process.stdout.read(*SAID.unpack(process.stdout.read(SAID.size)))
            found.append(marshal.loads(said))  # noqa: S302  # of our own process
        process.stdin.close()
    assert found == [("", [1]), ("memory", None), ("", [2])]

"""Answers with many numbers as JSON, in pieces: Python writes a list of numbers without letting other threads run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request

from onnxopt.host.sizes import size_text
from onnxopt.serve.gate import HELD
from onnxopt.serve.memory import Holding
from onnxopt.serve.problems import Json, Problem
from onnxopt.serve.texts import off_loop
from onnxopt.spec import Array

# of a number: the array, Python's float or integer, its letters, and these once more as one body
JSON_BYTES = 8 + 32 + 2 * 22
# of a byte: the array, and the whole body
COPIES = 3
_PIECE = 4096  # numbers, which take about 3 ms
_LETTERS_PER_NUMBER = 20  # of a float as Python writes it


def hold_answer(request: Request, size: int) -> None:
    """Keep memory for an answer until it is sent.

    Args:
        request: whose answer.
        size: bytes that making and sending it takes.

    Raises:
        Problem: when no answer may take so many.
        BusyError: when the answers of others take too many.
    """
    answers: Holding = request.app.state.answers
    if size > answers.most:
        raise Problem(
            413,
            f"the answer would take {size_text(size)} of memory, one may have {size_text(answers.most)}; ask for fewer "
            "rows or outputs, or for bytes instead of JSON",
            code="answer_too_large",
        )
    request.scope[HELD].enter_context(answers.hold(size))


class Numbers:
    """An array of numbers in an answer, written flat, each as Python writes it.

    Args:
        array: of any shape; booleans, integers, or finite floats.
    """

    def __init__(self, array: Array) -> None:
        wide = array.dtype.kind == "f" and array.dtype.itemsize < 8
        self.array = array.astype(np.float64) if wide else array


class Encoded(Json):
    """An answer that is JSON already."""

    def render(self, content: Any) -> bytes:
        """Return the bytes as they are."""
        return bytes(content)


async def with_numbers(content: Mapping[str, Any]) -> Encoded:
    """Return an answer in which `Numbers` may stand wherever JSON has a value; many are written beside the loop."""
    return Encoded(await off_loop(lambda: encoded(content), letters=count_letters(content)))


def encoded(content: Any) -> bytes:
    """Return JSON in which `Numbers` may stand for lists."""
    return b"".join(_parts(content))


def count_letters(content: Any) -> int:
    """Return how many letters the numbers of an answer are, about."""
    if isinstance(content, Numbers):
        return _LETTERS_PER_NUMBER * int(content.array.size)
    inner: Sequence[Any] = ()
    if isinstance(content, dict):
        inner = tuple(content.values())
    elif isinstance(content, list):
        inner = content
    return sum(map(count_letters, inner))


def _parts(content: Any) -> Iterator[bytes]:
    if isinstance(content, Numbers):
        flat = content.array.ravel()
        yield b"["
        for start in range(0, flat.size, _PIECE):
            yield b"," if start else b""
            yield json.dumps(flat[start : start + _PIECE].tolist(), separators=(",", ":"))[1:-1].encode()
        yield b"]"
    elif isinstance(content, dict):
        for number, (key, value) in enumerate(content.items()):
            yield b"," if number else b"{"
            yield _plain(key) + b":"
            yield from _parts(value)
        yield b"}" if content else b"{}"
    elif isinstance(content, list):
        yield b"["
        for number, value in enumerate(content):
            yield b"," if number else b""
            yield from _parts(value)
        yield b"]"
    else:
        yield _plain(content)


def _plain(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")

"""A prompt of the checkpoint stands in front of what is embedded, where a caller names it.

Covers: serve/encodes.py
"""

from __future__ import annotations

import pytest

from tests.serve.conftest import PROMPTS
from tests.support.asgi import Caller


def vector(caller: Caller, text: str, **more: object) -> list[float]:
    found = caller.ask("/v1/embeddings", {"model": "vectors", "input": text, **more})
    assert found.status == 200, found.said
    numbers: list[float] = found.json["data"][0]["embedding"]
    return numbers


def test_a_named_prompt_is_part_of_the_text(caller: Caller) -> None:
    plain = vector(caller, "the value")
    asked = vector(caller, "the value", prompt_name="query")
    assert asked == pytest.approx(vector(caller, f"{PROMPTS['query']}the value"), abs=1e-6)
    assert asked != pytest.approx(plain, abs=1e-3)
    assert vector(caller, "the value", prompt_name="passage") == pytest.approx(plain, abs=1e-6)
    assert vector(caller, "the value", prompt_name="") == pytest.approx(plain, abs=1e-6)


def test_rows_of_tokens_are_taken_as_they_are(caller: Caller) -> None:
    body = {"model": "vectors", "input": [5, 6, 7], "encoding_format": "float"}
    plain, asked = (caller.ask("/v1/embeddings", body | more).json for more in ({}, {"prompt_name": "query"}))
    assert plain["usage"] == asked["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_an_empty_text_is_empty_whatever_stands_in_front_of_it(caller: Caller) -> None:
    found = caller.ask("/v1/embeddings", {"model": "vectors", "input": " ", "prompt_name": "query"})
    assert found.status == 422
    assert "the text is empty" in found.said

"""Requests that are drawn from the API's own description, right, nearly right and wild: never a fault of the server.

Covers: serve/kserve.py, serve/openai.py
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.asgi import Caller

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# a right request of each path: one of its fields is then another
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "vectors", "input": ["a name", "of"]},
    "/v1/completions": {"model": "stories", "prompt": "a name", "max_tokens": 2},
    "/v1/chat/completions": {"model": "stories", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v2/models/{name}/infer": {
        "inputs": [{"name": name, "shape": [1, 3], "datatype": "INT64", "data": [1, 0, 1]} for name in _INPUTS]
    },
}
PATHS = tuple(RIGHT)
# none of these may be in an answer: folders of this machine, traces of Python, names of its files
LEAKS = re.compile(r"/(?:home|tmp|root|work|usr|var)/|Traceback|site-packages|\.onnx\b|\.py\b")
# a lone half of a surrogate pair, as "\ud83d" in JSON gives it, is among the letters
LETTERS = st.characters(exclude_categories=())
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["", " ", "a name", "the class of an object", "\x00", "x" * 3000]
)
NUMBERS = (
    st.integers(-3, 450)
    | st.sampled_from([2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, 10**400])
    | st.floats(allow_nan=True, allow_infinity=True)
)
WILD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
# values by which a request gets beyond its first check
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["vectors", "stories", "vectors", "stories", "none"]),
    "role": st.sampled_from(["user", "assistant", "system"]),
    "name": st.sampled_from(["input_ids", "attention_mask", "token_type_ids", "sentence_embedding", "none"]),
    "datatype": st.sampled_from(["INT64", "INT64", "INT64", "FP32", "BOOL", "BF16", "INT65"]),
    "shape": st.sampled_from([[1, 2], [2, 1], [2, 2], [1, 0], [0, 3], [3]]) | st.lists(NUMBERS, max_size=4),
    "data": st.lists(st.integers(-1, 201), min_size=2, max_size=4) | st.lists(WILD, max_size=4),
    "max_tokens": st.integers(1, 3),
    "max_completion_tokens": st.integers(1, 3),
    "n": st.integers(1, 2),
}


def drawn(schema: dict[str, Any], parts: dict[str, Any], field: str = "") -> st.SearchStrategy[Any]:
    """Return values of a JSON schema, with some that are not.

    Args:
        schema: of the value.
        parts: schemas that it refers to, by name.
        field: where the value stands.
    """
    if "$ref" in schema:
        return drawn(parts[schema["$ref"].rpartition("/")[2]], parts, field)
    right = KNOWN[field] if field in KNOWN else _right(schema, parts)
    return st.one_of(right, right, right, right, right, right, right, WILD)


def _right(schema: dict[str, Any], parts: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "anyOf" in schema:
        return st.one_of([drawn(one, parts) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "object":
        fields = {name: drawn(one, parts, name) for name, one in schema.get("properties", {}).items()}
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        extra: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.dictionaries(TEXTS, WILD, max_size=1)
        known = st.fixed_dictionaries(needed, optional=fields)
        return st.builds(lambda some, more: {**more, **some}, known, extra) if schema.get("properties") else extra
    if kind == "array":
        return st.lists(drawn(schema.get("items", {}), parts), max_size=3)
    if kind in {"integer", "number"}:
        least = math.ceil(schema.get("minimum", schema.get("exclusiveMinimum", -3)))
        most = math.floor(min(schema.get("maximum", 450), schema.get("exclusiveMaximum", 450)))
        return (
            st.integers(max(least, -3), max(most, least)) if kind == "integer" else st.floats(least, max(most, least))
        )
    plain = {"string": TEXTS, "boolean": st.booleans(), "null": st.none()}
    return plain.get(str(kind), WILD)


def one_changed(path: str, schema: dict[str, Any], parts: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return right requests of which one field is what the description says of it, or something else."""
    whole = parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    changes = [
        st.builds(lambda value, name=name: {**RIGHT[path], name: value}, drawn(one, parts, name))
        for name, one in whole["properties"].items()
    ]
    return st.one_of(changes)


@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_fault_of_the_server(caller: Caller, path: str) -> None:
    described = json.loads(json.dumps(caller.app.openapi()))
    schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    parts = described["components"]["schemas"]
    statuses: list[int] = []

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn(schema, parts) | one_changed(path, schema, parts))
    def check(body: Any) -> None:
        found = caller.ask(path.format(name="vectors"), raw=json.dumps(body).encode())
        statuses.append(found.status)
        assert found.status < 500, found.body
        text = found.body.decode(errors="replace")  # what was asked for may be bytes
        assert not LEAKS.search(text), text
        if found.headers["content-type"] == "application/json":
            json.loads(text, parse_constant=pytest.fail)
        if found.status >= 400:
            assert found.said

    check()
    assert 200 in statuses  # else nothing got beyond the first check
    assert 422 in statuses


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/none"])
@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"{", b"[" * 20_000, b"1" * 5000, b'"\\ud83d"', b"NaN", b"null", b"[]"]
)
def test_no_bytes_are_a_fault_of_the_server(caller: Caller, path: str, raw: bytes) -> None:
    found = caller.ask(path.format(name="vectors"), raw=raw)
    assert 400 <= found.status < 500
    assert found.said

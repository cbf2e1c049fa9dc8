"""Who may ask a server, the name of each request, its line in the log, and the pages of the server itself.

Covers: serve/app.py, serve/pages.py, serve/requests.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.serve.app import create_app
from onnxopt.serve.front import OPEN_PATHS, Access
from onnxopt.serve.pages import render_docs
from tests.support.asgi import Caller

KEYS = ("a-first-secret", "another-secret")
SITE = "https://example.org"
EMBED = {"model": "vectors", "input": "the name"}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def guarded(encoder_folder: Path, lines: list[str]) -> Iterator[Caller]:
    access = Access(KEYS, (SITE,), lines.append)
    caller = Caller(create_app({"vectors": encoder_folder}, access=access))
    yield caller
    caller.close()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["Bearer", "bearer"])
def test_who_has_a_key_is_answered(guarded: Caller, key: str, kind: str) -> None:
    assert guarded.ask("/v1/embeddings", EMBED, authorization=f"{kind} {key}").status == 200


@pytest.mark.parametrize(
    "said", ["", "Bearer", "Bearer a-first", "Bearer a-first-secret2", f"Basic {KEYS[0]}", KEYS[0]]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/models/vectors/infer", "/metrics", "/docs", "/v1/models"])
def test_who_has_none_is_not(guarded: Caller, said: str, path: str) -> None:
    found = guarded.ask(path, EMBED if path.endswith("s") and "v1/e" in path else None, authorization=said)
    assert found.status == 401
    assert found.headers["www-authenticate"] == "Bearer"
    assert "API key" in found.said


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_watchdogs_need_no_key(guarded: Caller, path: str) -> None:
    assert guarded.ask(path).status == 200


def test_a_page_of_an_allowed_site_may_ask(guarded: Caller) -> None:
    found = guarded.ask("/v1/embeddings", EMBED, authorization=f"Bearer {KEYS[0]}", origin=SITE)
    assert found.headers["access-control-allow-origin"] == SITE
    other = guarded.ask("/v1/embeddings", EMBED, authorization=f"Bearer {KEYS[0]}", origin="https://evil.example")
    assert "access-control-allow-origin" not in other.headers


def test_each_request_has_a_name_and_a_line(guarded: Caller, lines: list[str]) -> None:
    lines.clear()
    mine = guarded.ask("/v1/models", authorization=f"Bearer {KEYS[0]}", x_request_id="order-7")
    assert mine.headers["x-request-id"] == "order-7"
    odd = guarded.ask("/no/such\npath", authorization=f"Bearer {KEYS[0]}", x_request_id="a b\tc")
    assert re.fullmatch(r"[0-9a-f]{16}", odd.headers["x-request-id"])
    assert re.fullmatch(r"\d{4}-\S+Z order-7 127.0.0.1 GET /v1/models 200 \d+\.\d ms", lines[0])
    assert re.fullmatch(r"\S+ [0-9a-f]{16} 127.0.0.1 GET .* 404 \d+\.\d ms", lines[1])
    assert "\n" not in lines[1]


def test_a_server_that_stops_lives_and_is_not_ready(guarded: Caller) -> None:
    assert guarded.ask("/readyz").json == {"status": "ok"}
    guarded.app.state.stopping = True
    try:
        assert guarded.ask("/readyz").status == 503
        assert guarded.ask("/livez").status == 200
    finally:
        guarded.app.state.stopping = False


@pytest.mark.parametrize("keys", [("short",), ("with a\nline",), ("schlüssel-lang",)])
def test_keys_that_are_none_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="API key"):
        Access(keys)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/path", "null", ""])
def test_origins_that_are_none_are_refused(origin: str) -> None:
    with pytest.raises(InputError, match="is no origin"):
        Access(origins=(origin,))


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {value}" for name, value in attrs if name == "src" or tag in {"link", "script"}]


def test_the_page_says_what_can_be_asked_and_loads_nothing(guarded: Caller) -> None:
    found = guarded.ask("/docs", authorization=f"Bearer {KEYS[0]}")
    text = found.body.decode()
    assert found.status == 200
    for said in ("/v1/embeddings", "/v1/rerank", "prompt_name", "&#34;model&#34;: &#34;vectors&#34;", "/readyz"):
        assert said in text
    assert "http://" not in text
    assert "https://" not in text
    assert _Page(text).loads == []


def test_names_of_models_stay_text() -> None:
    text = render_docs({"paths": {}}, {"<script>alert(1)</script>": ["/v1/embeddings"]})
    assert "<script>" not in text

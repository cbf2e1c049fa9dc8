from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnxopt
from bench import soak
from bench.soak_requests import Request, hostile_requests
from bench.soak_server import Looks
from tests.support.served import tiny_decoder
from tests.support.tiny import tiny_checkpoint

RECORD: dict[str, Any] = {
    "created": "2026-11-30T12:00:00+00:00",
    "machine": {"cores": 2, "cpu": "A CPU"},
    "versions": {"onnxruntime": "1.32.0"},
    "models": ["one", "other"],
    "seconds": 60.0,
    "clients": 3,
    "limit_bytes": 2 << 30,
    "start": {"memory": 100 << 20, "beside": 0, "files": 12},
    "end": {"memory": 101 << 20, "beside": 0, "files": 12},
    "peak": 200 << 20,
    "kinds": {"embedding": {"answers": 1500, "p50_ms": 2.0, "p99_ms": 9.0, "p999_ms": 11.0}},
    "statuses": {"embedding 200": 1500, "malformed 400": 7, "stream, left 0": 3},
    "worst_error": 2e-7,
    "faults": [],
}


def test_the_table_tells_what_was_sent_and_what_became_of_it() -> None:
    text = soak.render(RECORD)
    assert "one and other in one server with 2 GiB of address space" in text
    assert "1,510 requests, 10 of them hostile" in text
    assert "0 faults" in text
    assert "| embedding | 1,500 | 2 | 9 | 11 |" in text
    assert "| memory, MiB | 100 | 101 |" in text


def test_every_status_and_every_wrong_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = soak.Seen()
    sent = Request("text", "/", b"", right=lambda answer: answer == b"right")
    answers = iter([(200, b"right"), (200, b"wrong"), (500, b""), (0, b"reset"), (429, b""), (200, b"right")])
    monkeypatch.setattr(soak, "_ask", lambda *_: next(answers))
    monkeypatch.setattr("bench.soak.time.sleep", lambda _: None)
    for _ in range(5):
        soak._send(0, seen, sent, end=float("inf"))
    assert dict(seen.statuses) == {("text", 200): 3, ("text", 500): 1, ("text", 0): 1, ("text", 429): 1}
    assert [fault.split(" b'")[0] for fault in seen.faults] == ["text: a wrong answer,", "text: 500", "text: 0"]
    assert len(seen.times["text"]) == 3


def test_a_hostile_request_that_is_answered_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = soak.Seen()
    malformed = next(one for one in hostile_requests() if one.kind == "malformed")
    for status in (400, 200, 503):
        monkeypatch.setattr(soak, "_ask", lambda *_, status=status: (status, b""))
        soak._send(0, seen, malformed, end=float("inf"))
    assert len(seen.faults) == 2


def test_what_has_grown_is_a_fault() -> None:
    looks = Looks.__new__(Looks)
    looks._start, looks._end = {"memory": 100, "files": 10}, {"memory": 104, "files": 11}
    assert looks.faults(0.05) == ["files grew from 10 to 11"]


@pytest.mark.slow
def test_a_short_load_has_no_faults(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    checkpoint = tiny_checkpoint("bert", tmp_path / "bert", pooling=pooling)
    encoder = onnxopt.optimize(checkpoint, out=tmp_path / "vectors", measure=False).path
    decoder = onnxopt.optimize(tiny_decoder("gpt2", tmp_path / "gpt2"), out=tmp_path / "stories", measure=False).path
    found = soak.soak(encoder, decoder, 20.0)
    json.dumps(found)
    # so short a load says nothing of what grows
    assert [fault for fault in found["faults"] if " grew " not in fault] == []
    assert found["kinds"]["embedding"]["answers"] > 50
    assert found["peak"] < found["limit_bytes"]

"""`onnxopt serve` as its callers see it: both protocols, every limit, a mixed load, and a graceful end.

Covers: cli/serving.py, serve/app.py, serve/kserve.py, serve/limits.py, serve/metrics.py, serve/openai.py,
serve/problems.py, serve/shelf.py
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from bench.load import EXPECTED, Load, mixed_texts, run_load
from onnxopt.cli.main import main
from onnxopt.run.generate.generator import Generator
from onnxopt.run.generate.sampling import Sampling, choose_sampling
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.session import Session
from onnxopt.serve.limits import Limits
from tests.support.artifacts import shared_artifact
from tests.support.command import onnxopt
from tests.support.server import Server, serving

PROMPT = "The value of a name is"
LONG = "word " * 600


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        shared_artifact("minilm"), f"gpt={shared_artifact('gpt2-mini')}", "--max-body-mb", 1, "--max-items", 8
    ) as found:
        yield found


@pytest.fixture(scope="module")
def encoder() -> TextModel:
    return TextModel.open(shared_artifact("minilm"), Session(shared_artifact("minilm")))


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(shared_artifact("gpt2-mini"))


def ask(server: Server, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("GET" if data is None else "POST", path, data, fields)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if "json" in (answer.getheader("Content-Type") or ""):
        return answer.status, json.loads(content)
    return answer.status, content


def embedding(encoder: TextModel, text: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = encoder.run(encoder.encode([text])).outputs["sentence_embedding"][0]
    return found


def test_embeddings_are_those_of_the_model(server: Server, encoder: TextModel) -> None:
    texts = ["a cat sleeps", "shares fell on Tuesday after a long and quiet morning", "x"]
    status, found = ask(server, "/v1/embeddings", {"model": "minilm", "input": texts, "user": "me"})
    assert status == 200
    assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
    for entry, text in zip(found["data"], texts, strict=True):
        assert np.abs(np.array(entry["embedding"]) - embedding(encoder, text)).max() < 1e-5
    tokens = [len(encoding.ids) for encoding in encoder.encode(texts)]
    assert found["usage"] == {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}


def test_embeddings_take_tokens_and_give_bytes(server: Server, encoder: TextModel) -> None:
    ids = encoder.encode(["a cat sleeps"])[0].ids
    for given in (ids, [ids]):
        body = {"model": "minilm", "input": given, "encoding_format": "base64"}
        _, found = ask(server, "/v1/embeddings", body)
        vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
        assert np.abs(vector - embedding(encoder, "a cat sleeps")).max() < 1e-5


def test_a_long_text_is_cut_when_that_is_asked_for(server: Server, encoder: TextModel) -> None:
    status, found = ask(server, "/v1/embeddings", {"model": "minilm", "input": LONG, "truncate": True})
    assert status == 200
    assert np.abs(np.array(found["data"][0]["embedding"]) - embedding(encoder, LONG)).max() < 1e-5


def greedy(generator: Generator, *prompts: str, count: int = 12) -> list[str]:
    """Return what the checkpoint writes greedily, with its own repetition penalty."""
    sampling = choose_sampling(generator.settings, sample=False, temperature=None)
    return generator.generate(prompts, max_new_tokens=count, sampling=sampling).texts


def test_completions_are_those_of_the_generator(server: Server, generator: Generator) -> None:
    expected = greedy(generator, PROMPT, "a")
    status, found = ask(
        server, "/v1/completions", {"model": "gpt", "prompt": [PROMPT, "a"], "max_tokens": 12, "temperature": 0}
    )
    assert status == 200
    assert [choice["text"] for choice in found["choices"]] == expected
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    assert found["usage"]["completion_tokens"] == 24


def test_sampled_choices_repeat_with_their_seed(server: Server, generator: Generator) -> None:
    body = {"model": "gpt", "prompt": PROMPT, "max_tokens": 8, "temperature": 0.9, "seed": 7, "n": 2}
    first, second = (ask(server, "/v1/completions", body)[1]["choices"] for _ in range(2))
    assert first == second
    sampling = Sampling.from_settings(generator.settings, temperature=0.9, seed=7)
    assert first[0]["text"] == generator.generate([PROMPT], max_new_tokens=8, sampling=sampling).texts[0]
    assert first[0]["text"] != first[1]["text"]


def test_a_stream_joins_to_the_text(server: Server, generator: Generator) -> None:
    body = {
        "model": "gpt",
        "prompt": PROMPT,
        "max_tokens": 12,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    status, raw = ask(server, "/v1/completions", body)
    events = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    assert status == 200
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event) for event in events[:-1]]
    text = "".join(piece["choices"][0]["text"] for piece in pieces if piece["choices"])
    assert text == greedy(generator, PROMPT)[0]
    assert pieces[-2]["choices"][0]["finish_reason"] == "length"
    assert pieces[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}


def test_models_health_and_metrics(server: Server) -> None:
    assert ask(server, "/healthz") == (200, {"status": "ok"})
    assert {entry["id"] for entry in ask(server, "/v1/models")[1]["data"]} == {"minilm", "gpt"}
    assert ask(server, "/v1/models/minilm")[1]["id"] == "minilm"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/minilm/ready"):
        assert ask(server, path)[0] == 200
    assert ask(server, "/v2")[1]["name"] == "onnxopt"
    status, text = ask(server, "/metrics")
    assert status == 200
    assert b'onnxopt_requests_total{route="/healthz",status="200"}' in text
    assert b'onnxopt_waiting{model="minilm"} 0.0' in text


def tensors(ids: list[int]) -> list[dict[str, Any]]:
    values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    return [{"name": name, "shape": [1, len(ids)], "datatype": "INT64", "data": data} for name, data in values.items()]


def test_kserve_runs_any_model(server: Server, encoder: TextModel) -> None:
    ids = encoder.encode(["a cat sleeps"])[0].ids
    body = {"id": "7", "inputs": tensors(ids), "outputs": [{"name": "sentence_embedding"}]}
    status, found = ask(server, "/v2/models/minilm/infer", body)
    assert status == 200
    assert (found["id"], found["model_name"]) == ("7", "minilm")
    (output,) = found["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP32", [1, 384])
    assert np.abs(np.array(output["data"]) - embedding(encoder, "a cat sleeps")).max() < 1e-5
    inputs = ask(server, "/v2/models/minilm")[1]["inputs"]
    assert inputs[0] == {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}


def test_kserve_takes_and_gives_bytes(server: Server, encoder: TextModel) -> None:
    ids = encoder.encode(["a cat sleeps"])[0].ids
    inputs, raw = [], b""
    for tensor in tensors(ids):
        data = np.array(tensor.pop("data"), "<i8").tobytes()
        inputs.append(tensor | {"parameters": {"binary_data_size": len(data)}})
        raw += data
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    fields = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", "/v2/models/minilm/infer", head + raw, fields)
    answer = connection.getresponse()
    content, size = answer.read(), int(answer.getheader("Inference-Header-Content-Length") or 0)
    connection.close()
    outputs = json.loads(content[:size])["outputs"]
    assert [output["name"] for output in outputs] == ["last_hidden_state", "sentence_embedding"]
    vector = np.frombuffer(content[-outputs[1]["parameters"]["binary_data_size"] :], "<f4")
    assert np.abs(vector - embedding(encoder, "a cat sleeps")).max() < 1e-5


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/embeddings", {"model": "none", "input": "a"}, 404, "no model 'none', there is minilm, gpt"),
        ("/v1/embeddings", {"model": "gpt", "input": "a"}, 422, "gives no embedding"),
        ("/v1/embeddings", {"model": "minilm"}, 422, "Field required"),
        ("/v1/embeddings", {"model": "minilm", "input": " "}, 422, "the text is empty"),
        ("/v1/embeddings", {"model": "minilm", "input": []}, 422, "nothing in it"),
        ("/v1/embeddings", {"model": "minilm", "input": ["a"] * 9}, 413, "9 texts in one request, at most 8"),
        ("/v1/embeddings", {"model": "minilm", "input": LONG}, 400, "tokens, the model takes"),
        ("/v1/embeddings", {"model": "minilm", "input": "a", "dimensions": 3}, 422, "384 dimensions"),
        ("/v1/embeddings", {"model": "minilm", "input": [10**9]}, 422, "the model knows 0 to 30521"),
        ("/v1/completions", {"model": "gpt", "prompt": "a", "max_tokens": 0}, 422, "max_tokens"),
        ("/v1/completions", {"model": "gpt", "prompt": "a", "max_tokens": 10**6}, 422, "at most 4096"),
        ("/v1/completions", {"model": "gpt", "prompt": "a", "logprobs": 3}, 422, "logprobs is not supported"),
        ("/v1/completions", {"model": "gpt", "prompt": LONG}, 400, "tokens, the model takes"),
        ("/v1/completions", {"model": "minilm", "prompt": "a"}, 422, "writes no text"),
        ("/v1/chat/completions", {"model": "gpt", "messages": []}, 422, "messages"),
        (
            "/v1/chat/completions",
            {"model": "gpt", "messages": [{"role": "user", "content": "a"}]},
            422,
            "has no chat template",
        ),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/v2/models/none/infer", {"inputs": []}, 404, "no model"),
        ("/v2/models/minilm/infer", {"inputs": []}, 422, "input 'input_ids' is missing"),
        ("/v2/models/minilm/infer", {"inputs": [{"name": "input_ids"}]}, 422, "inputs.0.shape: Field required"),
    ],
)
def test_what_is_wrong_is_said_with_its_code(server: Server, path: str, body: Any, status: int, said: str) -> None:
    code, found = ask(server, path, body)
    error = found["error"]
    assert code == status, found
    assert said in (error if path.startswith("/v2") else error["message"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"datatype": "INT65"}, "unknown datatype 'INT65'"),
        ({"datatype": "INT32"}, "is int32, the model takes int64"),
        ({"data": [1.5, 2, 3]}, "the data is not INT64"),
        ({"data": ["a", 2, 3]}, "not a regular array of numbers"),
        ({"data": [1, 2]}, "2 elements, the shape [1, 3] has 3"),
        ({"data": None}, "no data"),
        ({"shape": [1, -3]}, "greater than or equal to 0"),
        ({"shape": [3]}, "has shape [3], the model takes [batch, sequence]"),
    ],
)
def test_wrong_tensors_are_said(server: Server, change: dict[str, Any], said: str) -> None:
    inputs = tensors([101, 5, 102])
    code, found = ask(server, "/v2/models/minilm/infer", {"inputs": [inputs[0] | change, *inputs[1:]]})
    assert code == 422
    assert said in found["error"]


def test_no_json_and_too_large_a_body(server: Server) -> None:
    for path in ("/v1/embeddings", "/v2/models/minilm/infer"):
        assert ask(server, path, raw=b'{"model": "minilm", ')[0] == 400
        assert ask(server, path, raw=b" " * ((1 << 20) + 1))[0] == 413
        assert ask(server, path, raw=b"[" * 100_000)[0] in {400, 422}


def test_chat_uses_the_template_of_the_checkpoint(tmp_path: Any) -> None:
    import shutil

    folder = shutil.copytree(shared_artifact("gpt2-mini"), tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    expected = greedy(Generator(folder), "The value of", count=6)[0]
    options = {"max_completion_tokens": 6, "temperature": 0}
    parts = [{"type": "text", "text": "The value"}, {"type": "text", "text": " of"}]
    with serving(folder) as server:
        for content in ("The value of", parts):
            body = {"model": "chat", "messages": [{"role": "user", "content": content}], **options}
            status, found = ask(server, "/v1/chat/completions", body)
            assert status == 200, found
            message = found["choices"][0]["message"]
            assert message == {"role": "assistant", "content": expected}
        _, raw = ask(server, "/v1/chat/completions", body | {"stream": True})
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in raw.decode().split("\n\n")[:-2]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == expected
        body["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
        assert ask(server, "/v1/chat/completions", body)[0] == 422
        assert server.stop() == 0


def test_a_full_queue_is_429_and_a_slow_request_503(generator: Generator) -> None:
    limits = ("--max-queue", 1, "--max-rows", 1, "--timeout", 1)
    with serving(shared_artifact("gpt2-mini"), *limits) as server:
        body = {"model": "gpt2-mini", "prompt": PROMPT, "max_tokens": 4000}
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(ask(server, "/v1/completions", body)[0])) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 429 in codes
        assert set(codes) <= {200, 429, 503}
        assert ask(server, "/healthz")[0] == 200


def compare(load: Load, texts: list[str], encoder: TextModel) -> None:
    """Make sure that each answer is the one of its own text, and each wrong request got its code."""
    offline = np.stack([embedding(encoder, text) for text in texts])
    for one in load.outcomes:
        if one.kind == "cancelled":
            continue
        assert one.status == EXPECTED[one.kind], one
        if one.vector is not None:
            assert np.abs(one.vector - offline[one.number]).max() < 1e-5


def test_a_mixed_load_gets_every_answer_right(server: Server, encoder: TextModel) -> None:
    texts = mixed_texts(lambda text: encoder.tokenizer.encode(text).ids, 24, 8, 96)
    load = asyncio.run(run_load(server.port, "minilm", texts, clients=64, requests=192, wrong=0.1))
    assert len(load.outcomes) == 192
    assert {one.kind for one in load.outcomes} == {"good", "malformed", "oversized", "cancelled"}
    compare(load, texts, encoder)


def test_sigterm_in_the_middle_answers_what_was_accepted(encoder: TextModel) -> None:
    texts = mixed_texts(lambda text: encoder.tokenizer.encode(text).ids, 12, 32, 96)
    with serving(shared_artifact("minilm")) as server:
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            if asked == 96:
                server.process.terminate()
            return server.process.poll() is not None

        load = asyncio.run(run_load(server.port, "minilm", texts, clients=32, requests=4000, stop=stop))
        assert server.process.wait(60) == 0
    answered = [one for one in load.outcomes if one.status]
    assert len(answered) >= 64
    assert {one.status for one in answered} == {200}
    offline = np.stack([embedding(encoder, text) for text in texts])
    for one in answered:
        assert one.vector is not None
        assert np.abs(one.vector - offline[one.number]).max() < 1e-5
    # what the server says it answered is what the clients got
    assert server.lines[-1] == f"stopped; answered {len(answered)} requests"


def test_a_port_that_is_taken_is_said_before_models_are_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxopt.serve import app as served

    monkeypatch.setattr(served, "create_app", lambda *_, **__: pytest.fail("a model was opened"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(shared_artifact("gpt2-mini")), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}: cannot listen there (Address already in use); choose another" in capsys.readouterr().err


def test_what_cannot_be_served_is_one_line(tmp_path: Any) -> None:
    folder = shared_artifact("gpt2-mini")
    for arguments, said in (
        ([tmp_path / "none"], "no such file or folder"),
        ([folder, folder], "two models are named gpt2-mini"),
        ([folder, "--device", "tpu"], "unknown device 'tpu'"),
        ([folder, "--host", "203.0.113.7"], "cannot listen there"),
    ):
        done = onnxopt("serve", *arguments)
        assert done.code == 2
        assert said in done.error_lines[-1]


def test_an_answer_does_not_wait_for_the_callers_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.serve import app as served
    from onnxopt.serve.ahead import bound

    taken: list[socket.socket] = []
    monkeypatch.setattr(served._Server, "run", lambda _, sockets: taken.extend(sockets))
    app = FastAPI()
    app.state.limits = Limits()
    served.serve(app, bound("127.0.0.1", 0))
    (listener,) = taken
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY

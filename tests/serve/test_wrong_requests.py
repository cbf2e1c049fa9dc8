"""Nothing that a caller sends is a fault of the server: every wrong request has its own code and line, in JSON.

Covers: serve/bodies.py, serve/encodes.py, serve/gate.py, serve/problems.py, serve/texts.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from onnxopt.run.generate.generator import Generator
from onnxopt.serve.app import create_app
from onnxopt.serve.problems import Problem, answer, problem_of
from tests.serve.conftest import LIMITS
from tests.support.asgi import Caller

HALF = "\ud83d"
CHAT = [{"role": "user", "content": "a name"}]


def words(**changes: Any) -> dict[str, Any]:
    return {"model": "stories", "prompt": "a", "max_tokens": 2} | changes


def chat(*messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"model": "stories", "messages": list(messages), "max_tokens": 2} | changes


def vectors(**changes: Any) -> dict[str, Any]:
    return {"model": "vectors", "input": "a"} | changes


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", words(prompt=[-1]), 422, "there is no token -1; the model knows 0 to 399"),
        ("/v1/completions", words(prompt=[1 << 63]), 422, "there is no token 9223372036854775808"),
        ("/v1/completions", words(prompt=[[5], [400]]), 422, "there is no token 400"),
        ("/v1/completions", words(prompt=[[5], []]), 422, "a row of tokens is empty"),
        ("/v1/completions", words(prompt=HALF), 422, "half of a surrogate pair"),
        ("/v1/completions", words(prompt=[]), 422, "there is nothing in it"),
        ("/v1/completions", words(stop=["", "x"]), 422, "stop.0: String should have at least 1 character"),
        ("/v1/completions", words(seed=1 << 70), 422, "seed"),
        ("/v1/completions", words(max_tokens=10**4000), 422, "max_tokens: Input should be less than 2147483648"),
        ("/v1/completions", words(max_tokens=17), 422, "17 new tokens, at most 16"),
        ("/v1/completions", words(**{"x" * 5000: 1}), 422, "x… is not supported"),
        ("/v1/embeddings", vectors(input=HALF), 422, "half of a surrogate pair"),
        ("/v1/embeddings", vectors(input=[1 << 63]), 422, "there is no token"),
        ("/v1/embeddings", vectors(input=[200]), 422, "there is no token 200; the model knows 0 to 199"),
        ("/v1/embeddings", vectors(input=[-2]), 422, "there is no token -2"),
        ("/v1/embeddings", vectors(prompt_name="title"), 422, "has no prompt 'title'; use one of query, passage"),
        ("/v1/embeddings", vectors(model=HALF), 404, "there is vectors, stories"),
        ("/v1/embeddings", vectors(model="m" * 5000), 404, "m…'"),
        ("/v1/chat/completions", chat({"role": "user", "content": None}), 422, "only a message of the assistant's"),
        ("/v1/chat/completions", chat({"role": "user"}), 422, "only a message of the assistant's"),
        ("/v1/chat/completions", chat(*CHAT * 4097), 422, "messages: List should have at most 4096 items"),
        (
            "/v1/chat/completions",
            chat(CHAT[0], {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}),
            422,
            "messages.1.tool_calls is not supported",
        ),
    ],
)
def test_what_is_wrong_with_a_text_is_said(caller: Caller, path: str, body: Any, status: int, said: str) -> None:
    found = caller.ask(path, body)
    assert found.status == status, found.body
    assert said in found.said


@pytest.mark.parametrize("field", ["prompt", "input"])
def test_the_field_that_is_empty_is_named(caller: Caller, field: str) -> None:
    path, body = ("/v1/completions", words()) if field == "prompt" else ("/v1/embeddings", vectors())
    assert caller.ask(path, body | {field: []}).json["error"]["param"] == field


def test_an_assistant_may_have_said_nothing(caller: Caller) -> None:
    said = caller.ask("/v1/chat/completions", chat(*CHAT, {"role": "assistant", "content": None}, *CHAT, temperature=0))
    empty = caller.ask("/v1/chat/completions", chat(*CHAT, {"role": "assistant", "content": ""}, *CHAT, temperature=0))
    assert said.status == 200, said.body
    assert said.json["choices"] == empty.json["choices"]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [2, 7, 3]} | changes


def inference(*first: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rest = [tensor(name="attention_mask", data=[1, 1, 1]), tensor(name="token_type_ids", data=[0, 0, 0])]
    return {"inputs": [*(first or (tensor(),)), *rest]} | changes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (inference(tensor(shape=[1 << 70, 0], data=[])), "inputs.0.shape.0: Input should be less than"),
        (inference(tensor(shape=[(1 << 63) - 1, 0], data=[])), "is too large"),
        (inference(tensor(shape=[1] * 70)), "inputs.0.shape: List should have at most 32 items"),
        (inference(tensor(shape=[1] * 31 + [3])), "the model takes [batch, sequence]"),
        (inference(tensor(shape=[1, -3])), "inputs.0.shape.1: Input should be greater than or equal to 0"),
        (inference(tensor(data=[[2, 7], [3]])), "not a regular array"),
        (inference(tensor(data=["x" * 10_000, 7, 3])), "not a regular array of numbers"),
        (inference(tensor(data=[1 << 63, 7, 3])), "a number does not fit into INT64"),
        (inference(tensor(data=[-201, 7, 3])), "indices element out of data bounds"),
        (inference(tensor(datatype="FP16", data=[1e300, 7, 3])), "a number is not finite in FP16"),
        (inference(tensor(datatype="FP32", data=[10**400, 7, 3])), "a number does not fit into FP32"),
        (inference(tensor(datatype="INT64" * 90)), "unknown datatype"),
        (inference(tensor(), tensor()), "input 'input_ids' is there twice"),
        (inference(outputs=[{"name": "sentence_embedding"}] * 2), "output 'sentence_embedding' is there twice"),
        (inference(outputs=[{"name": "none"}]), "no output 'none'"),
        (inference(inputs=[tensor(colour="red")]), "inputs.0.colour: Extra inputs are not permitted"),
        (inference(model="x"), "model: Extra inputs are not permitted"),
        (inference(tensor(parameters={"shared_memory_region": "r"})), "shared_memory_region is not supported"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(caller: Caller, body: Any, said: str) -> None:
    found = caller.ask("/v2/models/vectors/infer", body)
    assert found.status == 422, found.body
    assert said in found.said
    assert ".onnx" not in found.said


def test_numbers_may_be_nested_as_their_shape(caller: Caller) -> None:
    flat, nested = (
        caller.ask("/v2/models/vectors/infer", inference(tensor(data=data))) for data in ([2, 7, 3], [[2, 7, 3]])
    )
    assert flat.status == 200, flat.body
    assert flat.body == nested.body


def test_no_outputs_named_are_all_outputs(caller: Caller) -> None:
    every = caller.ask("/v2/models/vectors/infer", inference())
    none = caller.ask("/v2/models/vectors/infer", inference(outputs=[]))
    assert none.status == 200, none.body
    assert none.json["outputs"] == every.json["outputs"]


def test_an_id_comes_back_as_it_was_sent(caller: Caller) -> None:
    assert caller.ask("/v2/models/vectors/infer", inference(id=f"é{HALF}")).json["id"] == f"é{HALF}"


@pytest.mark.parametrize("said", ["-5", "1_0", "٣", "9" * 40, "100000", ""])
def test_a_wrong_length_of_the_json_is_said(caller: Caller, said: str) -> None:
    found = caller.ask("/v2/models/vectors/infer", inference(), Inference_Header_Content_Length=said)
    assert found.status == 400
    assert "Inference-Header-Content-Length is not a number from 0 to" in found.said


def test_models_are_listed_when_their_folder_is_gone(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "gone")
    caller = Caller(create_app({"gone": folder}))
    shutil.rmtree(folder)
    try:
        assert caller.ask("/v1/models").json["data"][0]["created"] > 0
    finally:
        caller.close()


def test_a_fault_is_json_counted_and_leaves_the_server_there(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("/home/somebody/secret")

    with monkeypatch.context() as patched:
        patched.setattr(Generator, "row", broken)
        found = caller.ask("/v1/completions", words())
    assert found.status == 500
    assert found.json["error"] == {
        "message": "internal error: KeyError",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "secret" in caplog.text  # the log has the rest
    numbers = caller.ask("/metrics").body.decode()
    assert 'onnxopt_requests_total{route="/v1/completions",status="500"} 1.0' in numbers
    assert 'onnxopt_errors_total{route="/v1/completions"} 1.0' in numbers
    assert 'onnxopt_requests_cancelled_total{route="/v1/completions"}' not in numbers
    assert caller.ask("/v1/completions", words()).status == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/models/vectors/infer"])
def test_a_body_that_is_too_large_is_refused(caller: Caller, path: str) -> None:
    found = caller.ask(path, raw=b" " * (LIMITS.max_body_bytes + 1))
    assert found.status == 413
    assert found.said == "the body is larger than 1048576 bytes"
    assert "connection" not in found.headers  # it was received, so that the next request may follow
    told = caller.ask(path, raw=b" ", Content_Length=str(100 * LIMITS.max_body_bytes))
    assert told.status == 413
    assert told.headers["connection"] == "close"


def test_folders_are_left_out_of_what_is_said() -> None:
    said = "cannot read /srv/models/x/model.onnx.data beside '/a/b.json'; node /encoder/layer.0/Add has no input"
    expected = "cannot read model.onnx.data beside 'b.json'; node /encoder/layer.0/Add has no input"
    assert answer(Problem(422, said), "/v2").body == f'{{"error":"{expected}"}}'.encode()


def test_what_went_wrong_below_keeps_its_words() -> None:
    from onnxopt.errors import InputError

    problem = problem_of(InputError("is not finite", where="/srv/models/x", hint="look at it"))
    assert (problem.status, problem.message) == (422, "is not finite; look at it")

"""What `bench.soak` sends: right requests with what the models say to them offline, and hostile ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.load import mixed_texts
from bench.serve import NEAR

PATIENCE_S = 120.0
_TEXTS, _LOW, _HIGH = 96, 8, 200
_PROMPTS, _WORDS, _NEW_TOKENS = 24, 24, 24
_ROWS, _LENGTH = 6000, 100  # of tensors that are near the limit of a body
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_V1, _V2, _WRITE, _CHAT = "/v1/embeddings", "/v2/models/minilm/infer", "/v1/completions", "/v1/chat/completions"
_REFUSED = frozenset({400, 413, 422, 429})


@dataclass(frozen=True)
class Request:
    """A request and what may come of it.

    Attributes:
        kind: for the record.
        path: of the request.
        body: its bytes.
        statuses: that are right.
        right: tells whether an answer is; None for a hostile request.
        leaves: after how many seconds the caller goes away.
    """

    kind: str
    path: str
    body: bytes
    statuses: frozenset[int] = frozenset({200})
    right: Callable[[bytes], bool] | None = None
    leaves: float = PATIENCE_S


def said(**fields: Any) -> bytes:
    """Return a body."""
    return json.dumps(fields).encode()


def right_requests(encoder: Path, decoder: Path, note_error: Callable[[float], None]) -> list[Request]:
    """Return requests with what the models say to them offline.

    Args:
        encoder: an artifact that makes embeddings.
        decoder: one that writes texts.
        note_error: told how far each embedding is from its offline one.
    """
    from onnxopt.run.inputs.text import TextModel
    from onnxopt.run.session import Session

    model = TextModel.open(encoder, Session(encoder))
    texts = mixed_texts(lambda text: model.tokenizer.encode(text).ids, _TEXTS, _LOW, _HIGH)
    return [*_embeddings(model, texts, note_error), *_written(decoder, texts[:_PROMPTS])]


def _embeddings(model: Any, texts: Sequence[str], note_error: Callable[[float], None]) -> Iterator[Request]:
    for text in texts:
        (encoding,) = model.encode([text])
        expected = model.run([encoding]).outputs["sentence_embedding"][0]
        body = said(model="minilm", input=text, encoding_format="base64")
        yield Request("embedding", _V1, body, right=_near(expected, _of_v1, note_error))
        rows = zip(_INPUTS, (encoding.ids, encoding.attention_mask, encoding.type_ids), strict=True)
        inputs = [{"name": name, "shape": [1, len(row)], "datatype": "INT64", "data": row} for name, row in rows]
        body = said(inputs=inputs, outputs=[{"name": "sentence_embedding"}])
        yield Request("tensors", _V2, body, right=_near(expected, _of_v2, note_error))


def _written(decoder: Path, texts: Sequence[str]) -> Iterator[Request]:
    from onnxopt.run.generate.generator import Generator
    from onnxopt.run.generate.sampling import choose_sampling

    generator = Generator(decoder)
    sampling = choose_sampling(generator.settings, sample=False, temperature=None)
    for text in texts:
        prompt = " ".join(text.split()[:_WORDS])
        expected = generator.generate([prompt], max_new_tokens=_NEW_TOKENS, sampling=sampling).texts[0]
        plain = {"model": "gpt", "prompt": prompt, "max_tokens": _NEW_TOKENS, "temperature": 0}
        yield Request("text", _WRITE, said(**plain), right=_equal(expected, _of_text))
        yield Request("stream", _WRITE, said(**plain, stream=True), right=_equal(expected, _of_stream))


def _near(expected: Any, read: Callable[[bytes], Any], note_error: Callable[[float], None]) -> Callable[[bytes], bool]:
    def near(answer: bytes) -> bool:
        error = float(np.abs(read(answer) - expected).max())
        note_error(error)
        return error <= NEAR

    return near


def _equal(expected: str, read: Callable[[bytes], str]) -> Callable[[bytes], bool]:
    return lambda answer: read(answer) == expected


def _of_v1(answer: bytes) -> Any:
    return np.frombuffer(base64.b64decode(json.loads(answer)["data"][0]["embedding"]), "<f4")


def _of_v2(answer: bytes) -> Any:
    return np.array(json.loads(answer)["outputs"][0]["data"], np.float32)


def _of_text(answer: bytes) -> str:
    return str(json.loads(answer)["choices"][0]["text"])


def _of_stream(answer: bytes) -> str:
    events = [line[6:] for line in answer.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def hostile_requests() -> list[Request]:
    """Return requests that must be refused, or whose callers go away; none may harm the others."""
    data = [7] * (_ROWS * _LENGTH)
    tensors = [{"name": name, "shape": [_ROWS, _LENGTH], "datatype": "INT64", "data": data} for name in _INPUTS]
    shapeless = [{"name": "x", "shape": [1 << 70, 0], "datatype": "INT64", "data": []}]
    message = {"role": "user", "content": "the name of a class"}
    keys = dict.fromkeys(map(str, range(450_000)))
    one = [{"name": "sentence_embedding"}]
    refused = {
        "malformed": (_V1, b'{"model": "minilm", '),
        "half a pair": (_V1, b'{"model": "minilm", "input": "\\ud83d"}'),
        "wrong tokens": (_WRITE, said(model="gpt", prompt=[-1, 1 << 70])),
        "wrong shape": (_V2, said(inputs=shapeless)),
        "long text": (_V1, said(model="minilm", input="a name " * 1_000_000)),
        "long prompt": (_WRITE, said(model="gpt", prompt="x" * 7_000_000)),
        "many keys": (_WRITE, said(model="gpt", prompt="a", **keys)),
        "many messages": (_CHAT, said(model="gpt", messages=[message] * 100_000)),
        "large answer": (_V2, said(inputs=tensors)),
        "too large": (_V1, b" " * (12 << 20)),
    }
    left = {
        "many rows, left": (_V2, said(inputs=tensors, outputs=one), 2.0),
        "stream, left": (_WRITE, said(model="gpt", prompt="the", max_tokens=400, stream=True), 0.3),
    }
    return [
        *(Request(kind, path, body, _REFUSED) for kind, (path, body) in refused.items()),
        *(Request(kind, path, body, _REFUSED | {0, 200}, leaves=wait) for kind, (path, body, wait) in left.items()),
    ]

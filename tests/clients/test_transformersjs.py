"""Artifacts in transformers.js: it opens the folder as it lies there and gives torch's tokens and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.textinput import TextModel
from tests.support.node import transformers_js
from tests.support.served import NEW_TOKENS, PROMPTS, Served

pytestmark = pytest.mark.node


def test_transformers_js_writes_what_torch_writes(served: Served) -> None:
    assert (served.path / "model.onnx_data").is_file() is (served.path.name == "llama")
    found = transformers_js("generate", str(served.path), str(NEW_TOKENS), *PROMPTS)
    assert found["ids"] == list(served.ids)
    assert found["alone"] == list(served.tokens)
    batch = zip(found["batch"], served.tokens, strict=True)
    assert [row[: len(tokens)] for row, tokens in batch] == list(served.tokens)  # a text that ended is filled up


def test_transformers_js_embeds_sentences(tmp_path: Path) -> None:
    texts = ["a cat sleeps", "shares fell on Tuesday after a long and quiet morning"]
    artifact = onnxopt.optimize("minilm", out=tmp_path / "minilm", measure=False)
    model = TextModel.open(artifact.path, artifact.session())
    expected = model.run(model.encode(texts)).outputs["sentence_embedding"]
    found = np.array(transformers_js("embed", str(artifact.path), *texts))
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.slow
def test_a_real_decoder_answers_in_transformers_js_as_in_onnxopt(smollm2: tuple[Path, dict[str, list[int]]]) -> None:
    folder, expected = smollm2
    found = transformers_js("generate", str(folder), str(NEW_TOKENS), *expected)
    for rows in (found["alone"], found["batch"]):
        assert [row[: len(tokens)] for row, tokens in zip(rows, expected.values(), strict=True)] == [*expected.values()]

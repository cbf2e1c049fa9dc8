"""Artifacts in transformers.js: it opens the folder as it lies there and gives torch's tokens and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.run.inputs.text import TextModel
from tests.support.node import transformers_js
from tests.support.served import NEW_TOKENS, PROMPTS, REAL_TOKENS, Served

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
def test_a_real_decoder_answers_in_transformers_js_as_in_torch(smollm2: tuple[Path, dict[str, list[int]]]) -> None:
    folder, expected = smollm2
    found = transformers_js("generate", str(folder), str(REAL_TOKENS), *expected)
    for rows in (found["alone"], found["batch"]):
        assert [row[: len(tokens)] for row, tokens in zip(rows, expected.values(), strict=True)] == [*expected.values()]


@pytest.mark.slow
def test_transformers_js_reads_text_with_a_cut_vocabulary(tmp_path: Path) -> None:
    """What the kept texts give in Node after the cut is what they gave in Python before it."""
    from onnxopt.texts.builtin import builtin_texts

    texts = [text.replace("\n", " ") for text in builtin_texts()[:2000]]
    kept = tmp_path / "texts.txt"
    kept.write_text("\n".join(texts), encoding="utf-8")
    whole = onnxopt.optimize("minilm", out=tmp_path / "whole", measure=False)
    cut = onnxopt.optimize("minilm", out=tmp_path / "cut", prune=f"vocab=keep:{kept}", measure=False)
    assert cut.manifest.bytes_after < 0.6 * whole.manifest.bytes_after, "at least 40 % smaller"
    asked = texts[:: len(texts) // 24]
    before, after = (TextModel.open(one.path, one.session()) for one in (whole, cut))
    old, new = before.encode(asked), after.encode(asked)
    assert [one.tokens for one in old] == [one.tokens for one in new]
    assert [before.tokenizer.decode(one.ids) for one in old] == [after.tokenizer.decode(one.ids) for one in new]
    expected = before.run(old).outputs["sentence_embedding"]
    assert np.abs(after.run(new).outputs["sentence_embedding"] - expected).max() <= 1e-5
    # what reaches our limit was cut there; transformers.js cuts at the tokenizer's own, which is longer
    short = [index for index, one in enumerate(old) if len(one.ids) < after.limit]
    found = np.array(transformers_js("embed", str(cut.path), *(asked[index] for index in short)))
    assert np.abs(found - expected[short]).max() <= 1e-5

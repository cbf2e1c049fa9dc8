"""A quantized decoder in our generator, onnxruntime-genai and transformers.js: one file, the same tokens everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate.generator import Generator
from onnxopt.run.session import Session
from onnxopt.texts.tokenizer import open_tokenizer
from tests.support.node import transformers_js

pytestmark = pytest.mark.slow

PROMPTS = ("The import statement", "A list is")
COUNT = 24


@pytest.fixture(scope="module", params=["int4-weights:64", "int8-weights:32:asymmetric", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "gpt2-mini"
    path = onnxopt.optimize("gpt2-mini", out=out, precision=request.param, measure=False).path
    for name, part in (("genai_config.json", "search"), ("generation_config.json", "")):
        settings = json.loads((path / name).read_text(encoding="utf-8"))
        (settings[part] if part else settings).pop("repetition_penalty")  # greedy in all of them
        (path / name).write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_what_was_asked_for_is_in_the_file_and_the_manifest(artifact: Path) -> None:
    found = Manifest.model_validate_json((artifact / "manifest.json").read_text(encoding="utf-8")).quantization
    assert found is not None
    assert found.shipped
    assert found.gate is not None
    assert found.gate.holds
    precisions = {label: layer.precision for label, layer in found.layers.items()}
    assert len(precisions) == 27
    assert all("-weights:" in one for one in precisions.values())


def gaps(artifact: Path, prompt: str, tokens: Sequence[int], *, afresh: bool = False) -> list[float]:
    """Return how far behind the likeliest token each one was, by plain runs of the model.

    Args:
        artifact: a decoder.
        prompt: what was continued.
        tokens: what was written.
        afresh: compute the whole row for each token, without a cache.
    """
    session = Session(artifact)
    ids, found = list(open_tokenizer(artifact).encode(prompt).ids), []
    empty = {
        given.name: np.zeros([1, *(d if isinstance(d, int) else 0 for d in given.axes[1:])], np.float32)
        for given in session.inputs
        if given.name.startswith("past")
    }
    past, new = empty, ids
    for token in tokens:
        feeds = {"input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        outputs = session.run(feeds | past)
        logits = outputs["logits"][0, -1]
        found.append(float(logits.max() - logits[token]))
        ids.append(token)
        if not afresh:
            past = {name: outputs[name.replace("past_key_values", "present")] for name in empty}
        new = ids if afresh else [token]
    return found


# A batch or another thread count moves the last bit of an activation, that moves some activations to the next of 256
# steps, and two tokens that are as likely change places.
TIE = 0.05
# `int8` rounds a model in two ways: prompts go through integers on both sides, single tokens through weights in blocks.
BRANCHES = 0.5


def test_with_and_without_a_cache_the_same_tokens_are_likeliest(artifact: Path) -> None:
    for prompt in PROMPTS:
        tokens = Generator(artifact).generate([prompt], max_new_tokens=COUNT).results[0].tokens
        assert len(tokens) > COUNT // 2
        assert max(gaps(artifact, prompt, tokens)) < TIE
        branched = any(node.op_type == "If" for node in ir.load(artifact / "model.onnx").graph)
        assert max(gaps(artifact, prompt, tokens, afresh=True)) < (BRANCHES if branched else TIE)


def test_prompts_of_a_batch_do_not_change_each_other(artifact: Path) -> None:
    together = Generator(artifact).generate(list(PROMPTS), max_new_tokens=COUNT).results
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert max(gaps(artifact, prompt, result.tokens)) < TIE


def test_genai_writes_the_likeliest_tokens(artifact: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is for Python 3.11 and later")
    from tests.clients.test_genai import continued

    for prompt in PROMPTS:
        assert max(gaps(artifact, prompt, continued(artifact, [prompt], COUNT)[0])) < TIE


@pytest.mark.node
def test_transformers_js_writes_the_likeliest_tokens(artifact: Path) -> None:
    found = transformers_js("generate", str(artifact), str(COUNT), *PROMPTS)
    for rows in (found["alone"], found["batch"]):
        for prompt, row in zip(PROMPTS, rows, strict=True):
            assert max(gaps(artifact, prompt, row)) < TIE

"""Writing across a crossing of rotary tables: one text or many, at once or whenever they come.

Covers: run/generate/decoder.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.artifact.io_json import io_description
from onnxopt.artifact.stacks import stack_files
from onnxopt.errors import InputError
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate.continuous import ContinuousBatcher
from onnxopt.run.generate.generator import Generator
from tests.support.cached import LONGEST, lower
from tests.support.crossing import SPELLINGS, crossing_decoder
from tests.support.decoder import VOCABULARY, decoder_artifact

LIMIT = 17
LENGTHS = (3, 9, 16, 17, 18, 44)
NEW = 15


@pytest.fixture(scope="module", params=["shared", "growing"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    small, rng = crossing_decoder(SPELLINGS["the largest position"], LIMIT), np.random.default_rng(2)
    words = {
        "words_table": rng.standard_normal((VOCABULARY, small.width)).astype(np.float32),
        "head": (rng.standard_normal((small.width, VOCABULARY)) * small.width**-0.5).astype(np.float32),
    }
    wide = replace(small, weights={**small.weights, **words}, outputs=f"float[batch,1,{VOCABULARY}] logits")
    shared = request.param == "shared"
    model = lower(wide.model(), *(["lower-cached-attention"] if shared else [])).model
    folder = tmp_path_factory.mktemp("crossing") / request.param
    made = decoder_artifact(folder, ir.to_proto(model), shared=shared, context=LONGEST, ends=(), crossings=(LIMIT,))
    return Generator(made)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, length).tolist() for length in LENGTHS]


def whole(generator: Generator, prompt: Sequence[int], count: int) -> list[int]:
    """Return the likeliest tokens, the whole text read anew for each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(generator.decoder.read([ids], new_tokens=1).logits[0].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def expected(generator: Generator) -> list[list[int]]:
    return [whole(generator, prompt, NEW) for prompt in prompts()]


def test_a_text_is_the_same_alone_and_beside_others(generator: Generator, expected: list[list[int]]) -> None:
    alone = [generator.generate([prompt], max_new_tokens=NEW).results[0].tokens for prompt in prompts()]
    together = generator.generate(prompts(), max_new_tokens=NEW).results
    assert [list(tokens) for tokens in alone] == expected
    assert [list(result.tokens) for result in together] == expected


def test_texts_that_come_and_go_are_the_same(generator: Generator, expected: list[list[int]]) -> None:
    counts = (15, 4, 15, 2, 9, 15)
    with ContinuousBatcher(generator, max_rows=3) as batcher:
        writing = [
            batcher.submit(prompt, max_new_tokens=count) for prompt, count in zip(prompts(), counts, strict=True)
        ]
        found = [list(one.future.result(60).tokens) for one in writing]
    assert found == [tokens[:count] for tokens, count in zip(expected, counts, strict=True)]


def test_the_context_still_ends_a_text(generator: Generator) -> None:
    rng = np.random.default_rng(9)
    long = rng.integers(0, 256, LONGEST - 4).tolist()
    results = generator.generate([prompts()[0], long], max_new_tokens=30).results
    assert [result.finish for result in results] == ["length", "context"]
    assert list(results[0].tokens) == whole(generator, prompts()[0], 30)
    with pytest.raises(InputError, match=f"the model takes {LONGEST}"):
        generator.generate([[1] * (LONGEST + 1)])


def test_other_programs_are_told(generator: Generator) -> None:
    folder = Path(generator.decoder.session.path).parent
    manifest = Manifest.read(folder)
    assert manifest.decoding is not None
    said = io_description(folder, "x", manifest.task, manifest.signature, manifest.decoding)["decoding"]
    assert said["crossings"] == [LIMIT]
    assert "read anew" in said["crossing_contract"]
    genai = json.loads(stack_files(folder, manifest.signature, manifest.decoding)["genai_config.json"])
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == LIMIT

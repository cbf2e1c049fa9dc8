"""A decoder in onnxruntime-genai: it opens the artifact as it lies there and gives torch's greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import onnxopt
from onnxopt.run.generate.generator import Generator
from tests.support.node import transformers_js
from tests.support.served import (
    END,
    NEW_TOKENS,
    PROMPTS,
    REAL_TOKENS,
    Served,
    plain_tokens,
    tiny_decoder,
    torch_texts,
    torch_tokens,
)

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is for Python 3.11 and later")


def continued(artifact: Path, prompts: Sequence[str], count: int = NEW_TOKENS) -> list[list[int]]:
    """Return the greedy tokens after each prompt, all prompts in one batch; a text that ended is filled up."""
    model = genai.Model(str(artifact))
    ids = genai.Tokenizer(model).encode_batch(list(prompts)).as_numpy()
    options = genai.GeneratorParams(model)
    width = ids.shape[1]
    options.set_search_options(do_sample=False, max_length=width + count, batch_size=len(prompts))
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[width:].tolist() for row in range(len(prompts))]


def test_onnxopt_and_a_plain_session_agree_with_torch(served: Served) -> None:
    for ids, tokens in zip(served.ids, served.tokens, strict=True):
        assert plain_tokens(served.path, ids, len(tokens)) == tokens
    made = Generator(served.path).generate(list(PROMPTS), max_new_tokens=NEW_TOKENS)
    assert [[token for token in row if token != END] for row in served.tokens] == [
        list(result.tokens) for result in made.results
    ]


def test_genai_writes_what_torch_writes(served: Served) -> None:
    for prompt, tokens in zip(PROMPTS, served.tokens, strict=True):
        ended = tokens[-1] == END  # which genai does not hand out
        assert continued(served.path, [prompt]) == [tokens[:-1] if ended else tokens]


def test_genai_writes_the_same_in_a_batch(served: Served) -> None:
    found = continued(served.path, PROMPTS)
    assert [row[: len(tokens)] for row, tokens in zip(found, served.tokens, strict=True)] == list(served.tokens)


def test_genai_reads_the_tokenizer(served: Served) -> None:
    tokenizer = genai.Tokenizer(genai.Model(str(served.path)))
    for prompt, ids in zip(PROMPTS, served.ids, strict=True):
        assert tokenizer.encode(prompt).tolist() == ids
        assert tokenizer.decode(ids) == prompt


def test_genai_shares_buffers_where_the_graph_allows_it(served: Served) -> None:
    manifest = onnxopt.Artifact.open(served.path).manifest
    assert manifest.decoding is not None
    search = json.loads((served.path / "genai_config.json").read_text())["search"]
    assert search["past_present_share_buffer"] is manifest.decoding.shared_buffers
    assert {"genai_config.json", "model.onnx"} <= set(manifest.files)


@pytest.mark.node
@pytest.mark.slow
def test_a_portable_decoder_runs_in_genai_and_transformers_js(tmp_path: Path) -> None:
    checkpoint = tiny_decoder("llama", tmp_path / "checkpoint")
    artifact = onnxopt.optimize(checkpoint, out=tmp_path / "out", target="portable", measure=False)
    expected = [torch_tokens(checkpoint, prompt)[1] for prompt in PROMPTS]
    found = (
        continued(artifact.path, PROMPTS),
        transformers_js("generate", str(artifact.path), str(NEW_TOKENS), *PROMPTS)["batch"],
    )
    for rows in found:
        assert [row[: len(tokens)] for row, tokens in zip(rows, expected, strict=True)] == expected


@pytest.mark.slow
def test_a_real_decoder_answers_alone_and_in_a_batch_as_in_torch(smollm2: tuple[Path, dict[str, list[int]]]) -> None:
    """64 tokens behind 8 prompts, one by one and padded on the left together."""
    folder, expected = smollm2
    generator = Generator(folder)
    texts, wanted = list(expected), list(expected.values())
    alone = [generator.generate([text], max_new_tokens=REAL_TOKENS, chat=False).results[0] for text in texts]
    assert [list(result.tokens) for result in alone] == wanted
    together = generator.generate(texts, max_new_tokens=REAL_TOKENS, chat=False)
    assert [list(result.tokens) for result in together.results] == wanted
    assert torch_texts(texts, REAL_TOKENS) == wanted


@pytest.mark.slow
def test_a_real_decoder_answers_in_genai_as_in_torch(smollm2: tuple[Path, dict[str, list[int]]]) -> None:
    folder, expected = smollm2
    alone = {text: continued(folder, [text], REAL_TOKENS)[0][: len(tokens)] for text, tokens in expected.items()}
    assert alone == expected
    messages = json.dumps([{"role": "user", "content": "Name three rivers."}])
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    chat = tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n")

"""A decoder in onnxruntime-genai: it opens the artifact as it lies there and gives torch's greedy tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import onnxopt
from onnxopt.artifact.clients import add_client
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


TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose tokenizer puts a token in front of every text, as that of Llama 3 does, with its client."""
    room = tmp_path_factory.mktemp("marked")
    checkpoint = tiny_decoder("gpt2", room / "in")
    path = checkpoint / "tokenizer.json"
    mark = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [mark, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [mark, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [END], "tokens": ["<|endoftext|>"]}},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    settings = checkpoint / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    artifact = onnxopt.optimize(checkpoint, out=room / "out", target="portable", measure=False).path
    add_client(artifact, "genai")
    return artifact


def continued_ids(artifact: Path, ids: Sequence[int]) -> str:
    """Return what onnxruntime-genai writes after ids, in 60 tokens at most as its client does."""
    model = genai.Model(str(artifact))
    options = genai.GeneratorParams(model)
    options.set_search_options(do_sample=False, max_length=len(ids) + 60)
    generator = genai.Generator(model, options)
    generator.append_tokens(list(ids))
    while not generator.is_done():
        generator.generate_next_token()
    return str(genai.Tokenizer(model).decode(generator.get_sequence(0)[len(ids) :]))


def client(artifact: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the client of an artifact."""
    command = [sys.executable, str(artifact / "clients" / "genai" / "generate.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_the_client_puts_the_special_tokens_around_a_text(marked: Path) -> None:
    cases = json.loads((marked / "golden" / "texts.json").read_text())["cases"]
    plain, chats = ([case for case in cases if bool(case.get("chat")) == chat] for chat in (False, True))
    assert plain
    assert chats
    assert {case["ids"][0] for case in cases} == {END}
    assert all(case["ids"].count(END) == 1 for case in cases)
    done = client(marked)
    assert (done.returncode, done.stdout.count("equal: ")) == (0, len(cases)), done.stdout + done.stderr
    ids = plain[0]["ids"]
    written, unmarked = (continued_ids(marked, row) for row in (ids, ids[1:]))
    assert written != unmarked
    assert client(marked, "--plain", *plain[0]["text"].split()).stdout.strip("\n") == written


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_the_client_tells_other_ids(marked: Path, tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(marked, tmp_path / "copy")
    path = copy / "golden" / "texts.json"
    content = json.loads(path.read_text())
    case = next(case for case in content["cases"] if bool(case.get("chat")) == (kind == "chat"))
    case["ids"] = case["ids"][1:]
    path.write_text(json.dumps(content))
    done = client(copy)
    assert (done.returncode, "differs: the tokenizer makes [0, " in done.stdout) == (1, True), done.stdout


def test_the_client_says_why_it_cannot_run(marked: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(marked, tmp_path / "copy")
    for name, said in (("golden/texts.json", "no golden texts"), ("model.onnx", "unusable: ")):
        (copy / name).unlink()
        done = client(copy)
        assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True), done.stderr


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

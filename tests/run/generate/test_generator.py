"""Writing on from prompts: greedy equals NumPy, batches equal singles, texts end where they should.

Covers: run/generate/written.py, run/results.py
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.generate.decoder import Batch
from onnxopt.run.generate.generator import Generator
from onnxopt.run.generate.sampling import Sampling, choose_sampling
from onnxopt.run.results import Continuations
from tests.support.decoder import (
    CHAT,
    CONTEXT,
    END,
    FORMS,
    VOCABULARY,
    TinyDecoder,
    bigram_model,
    byte_tokenizer,
    decoder_artifact,
    decoder_model,
    file_of,
    folder_of,
)

TINY = TinyDecoder()
ENDS = frozenset({END})
PROMPTS = ([104, 101], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [250], [60, 61, 62, 63], [9, 9, 9], [33, 1, 200, 4, 90])
DRAWN = Sampling(temperature=0.9, top_p=0.9, seed=5)


@pytest.fixture(scope="module", params=FORMS)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(folder_of(tmp_path_factory.mktemp("generator"), request.param), threads=1)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Return a model that says the alphabet: after each byte the next one, after z the end."""
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    ids = byte_ids(tmp_path_factory.mktemp("bytes"), "abcdefghijklmnopqrstuvwxyz")
    for now, after in zip(ids, [*ids[1:], END], strict=True):
        table[now, after] = 5.0
    folder = tmp_path_factory.mktemp("chain") / "chain"
    return Generator(decoder_artifact(folder, bigram_model(table, "last"), shared=False, context=30))


def byte_ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(byte_tokenizer(folder) / "tokenizer.json"))
    return list(tokenizer.encode(text).ids)


def test_greedy_equals_numpy_in_batches_of_any_size(generator: Generator) -> None:
    expected = [TINY.greedy(prompt, 24, ENDS) for prompt in PROMPTS]
    for size in (1, 2, 3, 8):
        found = generator.generate(PROMPTS, max_new_tokens=24, max_batch=size)
        assert [list(result.tokens) for result in found.results] == expected


def test_a_graph_without_left_padding_gets_batches_of_equal_lengths(tmp_path: Path) -> None:
    rows = [[1, 2, 3], [4], [5, 6, 7], [8], [9]]
    found = Generator(folder_of(tmp_path, "right")).generate(rows, max_new_tokens=9)
    assert [list(result.tokens) for result in found.results] == [TINY.greedy(row, 9, ENDS) for row in rows]


def test_text_is_what_the_tokens_say(generator: Generator) -> None:
    found = generator.generate(PROMPTS, max_new_tokens=24)
    for prompt, result in zip(PROMPTS, found.results, strict=True):
        both = generator.tokenizer.decode([*prompt, *result.tokens])
        assert both[len(generator.tokenizer.decode(list(prompt))) :] == result.text


def test_a_stream_gives_the_same_text_in_pieces(generator: Generator) -> None:
    pieces = list(generator.stream("hello", max_new_tokens=24))
    assert len(pieces) > 5
    assert "".join(pieces) == generator.generate(["hello"], max_new_tokens=24).texts[0]


def test_pieces_are_told_with_the_number_of_their_prompt(generator: Generator) -> None:
    told = [""] * len(PROMPTS)

    def hear(number: int, piece: str) -> None:
        told[number] += piece

    assert generator.generate(PROMPTS, max_new_tokens=9, max_batch=4, on_text=hear).texts == told


def test_what_is_drawn_does_not_depend_on_the_batch(generator: Generator) -> None:
    one, all_ = (generator.generate(PROMPTS, max_new_tokens=16, sampling=DRAWN, max_batch=size) for size in (1, 6))
    assert [result.tokens for result in one.results] == [result.tokens for result in all_.results]
    other = generator.generate(PROMPTS, max_new_tokens=16, sampling=dataclasses.replace(DRAWN, seed=6))
    assert other.texts != one.texts


def test_a_seed_is_chosen_and_told_when_none_is_given(generator: Generator) -> None:
    drawn = Sampling(temperature=1.0)
    first = generator.generate(["ab"], max_new_tokens=12, sampling=drawn)
    again = dataclasses.replace(drawn, seed=first.seed)
    assert generator.generate(["ab"], max_new_tokens=12, sampling=again).texts == first.texts
    assert generator.generate(["ab"], max_new_tokens=1).seed is None


def test_the_first_token_is_drawn_from_the_models_distribution(generator: Generator) -> None:
    logits = TINY.logits(PROMPTS[0])[-1].astype(np.float64) / 2.0
    expected = np.exp(logits - logits.max())
    drawn = Sampling(temperature=2.0, seed=1)
    found = generator.generate([PROMPTS[0]] * 2_000, max_new_tokens=1, sampling=drawn, max_batch=500)
    tokens = [result.tokens[0] if result.tokens else END for result in found.results]
    counts = np.bincount(tokens, minlength=VOCABULARY)
    assert np.abs(counts / 2_000 - expected / expected.sum()).max() < 0.035


def test_an_end_token_ends_a_text(chain: Generator) -> None:
    found = chain.generate(["uvw", "abcx"])
    assert [(result.text, result.finish) for result in found.results] == [("xyz", "end"), ("yz", "end")]
    assert END not in found.results[0].tokens


def test_texts_that_have_ended_leave_the_batch(chain: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = Batch.step

    def watched(self: Batch, ids: Sequence[int], live: Sequence[bool] | None = None) -> Any:
        sizes.append(len(ids))
        return step(self, ids, live)

    monkeypatch.setattr(Batch, "step", watched)
    found = chain.generate(["y", "w", "s", "a"], chat=False)
    assert found.texts == ["z", "xyz", "tuvwxyz", "bcdefghijklmnopqrstuvwxyz"]
    assert sizes == [4, *[3] * 2, *[2] * 4, *[1] * 18]
    assert found.speed.prefill_tokens == 4
    assert found.speed.decode_tokens == sum(len(text) for text in found.texts)  # the end tokens, less the first ones


def test_a_stop_string_ends_a_text_before_it(chain: Generator) -> None:
    found = chain.generate(["ab", "xy"], stop=["efg", "m"])
    assert [(result.text, result.finish) for result in found.results] == [("cd", "stop"), ("z", "end")]
    assert "".join(chain.stream("ab", stop=["efg"])) == "cd"


def test_the_number_of_tokens_ends_a_text(chain: Generator) -> None:
    found = chain.generate(["ab"], max_new_tokens=3).results[0]
    assert (found.text, found.finish, len(found.tokens)) == ("cde", "length", 3)


def test_a_full_context_ends_a_text_and_is_noted(generator: Generator) -> None:
    rows = [[2] * CONTEXT, [1] * (CONTEXT - 3), [7, 8]]
    found = generator.generate(rows, max_new_tokens=40)
    assert [list(result.tokens) for result in found.results] == [TINY.greedy(row, 40, ENDS) for row in rows]
    assert [result.finish for result in found.results] == ["context", "context", "length"]
    assert found.notes == (f"2 of 3 texts stopped at the {CONTEXT} tokens that the model takes",)


def test_rows_never_go_beyond_the_context_while_others_are_written(generator: Generator) -> None:
    rows = [[5] * CONTEXT, *([number] for number in range(1, 7))]  # one of seven is less than a quarter
    found = generator.generate(rows, max_new_tokens=CONTEXT + 9)
    assert [list(result.tokens) for result in found.results] == [TINY.greedy(row, CONTEXT + 9, ENDS) for row in rows]


def test_a_repetition_penalty_works_for_greedy_too(generator: Generator) -> None:
    row = PROMPTS[0]
    strong = generator.generate([row], max_new_tokens=20, sampling=Sampling(repetition_penalty=1e6)).results[0]
    assert len({*row, *strong.tokens}) == len(row) + 20


def test_the_chat_template_is_used_when_there_is_one(tmp_path: Path) -> None:
    talks = Generator(folder_of(tmp_path, "shared", chat=CHAT))
    decode = talks.tokenizer.decode
    assert decode(talks.encode("hi")) == "<user>hi\n<assistant>"
    assert decode(talks.encode("hi", system="be nice")) == "<system>be nice\n<user>hi\n<assistant>"
    assert decode(talks.encode("hi", chat=False)) == "hi"
    assert decode(talks.encode_chat([{"role": "a", "content": "b"}])) == "<a>b\n<assistant>"
    found = talks.generate(["hi"], max_new_tokens=5)
    assert found.chat
    assert list(found.results[0].tokens) == TINY.greedy(talks.encode("hi"), 5, ENDS)


def test_a_system_prompt_or_chat_needs_a_template(generator: Generator) -> None:
    with pytest.raises(InputError, match="no chat template"):
        generator.generate(["hi"], chat=True)
    with pytest.raises(InputError, match="needs a chat template"):
        generator.generate(["hi"], system="be nice")


@pytest.mark.parametrize(
    ("prompts", "options", "reason"),
    [
        ([], {}, "there is no prompt"),
        ("hello", {}, "there is no prompt"),
        (["a", "  "], {}, "prompt 2 is empty"),
        ([""], {}, "the prompt is empty"),
        ([[]], {}, "the prompt gives no tokens"),
        (["x" * (CONTEXT + 1)], {}, f"the prompt has {CONTEXT + 1} tokens, the model takes {CONTEXT}"),
        (["a"], {"max_new_tokens": 0}, "new tokens is 0"),
        (["a"], {"max_batch": 0}, "batch is 0"),
        ([[VOCABULARY]], {}, "onnxruntime failed"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    generator: Generator, prompts: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        generator.generate(prompts, **options)


def test_a_plain_file_works_with_a_tokenizer_beside_it_or_named(tmp_path: Path) -> None:
    file = file_of(tmp_path, decoder_model(TINY, "growing"), "mine.onnx")
    expected = TINY.greedy(byte_ids(tmp_path / "words", "abc"), 6)
    for words in (tmp_path / "words", tmp_path / "words" / "tokenizer.json"):
        assert list(Generator(file, tokenizer=words).generate(["abc"], max_new_tokens=6).results[0].tokens) == expected
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Generator(file)
    byte_tokenizer(tmp_path)
    assert list(Generator(file).generate(["abc"], max_new_tokens=6).results[0].tokens) == expected


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    folder = decoder_artifact(tmp_path / "a", bigram_model(table, cached=False), shared=False, decoding=False)
    with pytest.raises(InputError, match="is no decoder"):
        Generator(folder)


def test_random_weights_are_noted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shared")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"random_weights": True}))
    assert "random" in Generator(folder).generate(["a"], max_new_tokens=1).notes[0]
    found = run_text(folder, ["a"], max_new_tokens=1)
    assert len(found.notes) == 1


def test_run_continues_texts_with_the_cache(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shared", chat=CHAT)
    found = run_text(folder, ["hello", "you"], max_new_tokens=6)
    assert isinstance(found, Continuations)
    plain = Generator(folder).generate(["hello", "you"], max_new_tokens=6, chat=False)
    assert list(found.continuations) == plain.texts


def test_end_tokens_come_from_the_generation_config_and_the_tokenizer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "growing", ends=(END,))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert Generator(folder).ends == {3, 4, END}
    shutil.rmtree(folder)
    assert Generator(folder_of(tmp_path, "growing", ends=())).ends == frozenset()


def test_generators_can_be_had_from_the_root() -> None:
    assert onnxopt.Generator is Generator
    assert onnxopt.Sampling is Sampling


def test_sampling_is_chosen_by_what_was_said() -> None:
    file = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    nothing: dict[str, float | None] = {"top_k": None, "top_p": None, "seed": None}
    assert choose_sampling(file, sample=False, temperature=None, **nothing) == Sampling(repetition_penalty=1.1)
    assert choose_sampling({}, sample=False, temperature=None, **nothing) == Sampling()
    assert choose_sampling(file, sample=False, temperature=None, repetition_penalty=1.0) == Sampling()
    expected = Sampling(temperature=0.7, top_k=4, repetition_penalty=1.1)
    assert choose_sampling(file, sample=False, temperature=0.7, top_k=4) == expected
    assert choose_sampling(file, sample=True, temperature=None, top_p=0.5) == Sampling(0.6, 0, 0.5, 0.0, 1.1)
    assert choose_sampling(file, sample=True, temperature=0.0).greedy
    with pytest.raises(InputError, match="--top-k means nothing to greedy"):
        choose_sampling(file, sample=False, temperature=None, top_k=4)

"""The sample gpt2-mini needs no network, is the file that was trained, and has learnt English."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.host.folders import sha256_of
from onnxopt.load.checkpoint.folder import read_checkpoint
from onnxopt.load.source.recipe import SampleFolder, all_recipes
from onnxopt.load.source.samples import fetch_sample
from onnxopt.load.source.source import resolve

RECIPE = all_recipes()["gpt2-mini"]
ROOM = 0.3  # nats by which another Python's documentation may be harder


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch_sample(RECIPE)


@pytest.fixture(scope="module")
def facts(folder: Path) -> Any:
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_it_is_found_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = resolve("gpt2-mini")
    assert (source.kind, source.name, source.weights) == ("sample", "gpt2-mini", "pretrained")
    assert source.path
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in source.path.iterdir()
    }
    assert read_checkpoint(source).has_tokenizer
    assert resolve("gpt2-mini", weights="random").kind == "architecture"


def test_the_weights_are_those_that_were_trained(folder: Path, facts: Any) -> None:
    assert isinstance(RECIPE.sample, SampleFolder)
    assert RECIPE.sample.sha256 == sha256_of(folder / "model.safetensors") == facts["sha256"]
    assert (folder / "model.safetensors").stat().st_size < 12_000_000


def test_the_card_says_what_the_training_measured(folder: Path, facts: Any) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    outcome, text = facts["outcome"], facts["text"]
    for fact in (
        facts["sha256"],
        facts["date"],
        f"{outcome['held_out_perplexity']:.1f}",
        f"{outcome['held_out_loss']:.3f}",
        f"{outcome['step']:,}",
        f"{text['tokens']:,}",
        text["sha256"],
        *(f"{name} {version}" for name, version in text["packages"].items()),
    ):
        assert fact in card


def test_the_recipe_and_the_config_are_the_same_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert RECIPE.architecture.items() <= config.items()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    assert isinstance(RECIPE.sample, SampleFolder)
    other = replace(RECIPE, sample=replace(RECIPE.sample, sha256="0" * 64))
    with pytest.raises(InputError, match=r"model\.safetensors: has sha256 .*, expected 000.*; install onnxopt again"):
        fetch_sample(other)
    missing = replace(RECIPE, sample=replace(RECIPE.sample, name="no-such-model"))
    with pytest.raises(InputError, match="is missing from this installation; install onnxopt again"):
        fetch_sample(missing)


@pytest.mark.parametrize(
    "text",
    [
        "The import statement",
        "  two spaces,\n\ttabs and\r\n\r\nlines  ",
        "naïve café: Ωμέγα, 日本語, עברית, 👩‍🚀 and \u0000\ufffd",
        "don't we'll I'M 'it's'",
        "",
    ],
)
def test_every_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_end_of_text_is_one_token_and_never_written(tokenizer: Any) -> None:
    end = RECIPE.architecture["eos_token_id"]
    assert [end] == tokenizer("<|endoftext|>")["input_ids"]
    assert (end, end) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert len(tokenizer) == RECIPE.architecture["vocab_size"]
    assert end not in tokenizer("The import statement")["input_ids"]


def test_it_reads_text_that_it_was_not_trained_on(folder: Path, facts: Any, tokenizer: Any) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    from training.gpt2_mini import encode, held_out_loss
    from training.text import documents

    held = encode(tokenizer, [one.text for one in documents(held_out_only=True)])[:20_000]
    network = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    assert held_out_loss(network, held) < facts["outcome"]["held_out_loss"] + ROOM


def test_it_continues_the_import_statement(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    from training.text import paragraphs

    network = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("The import statement", return_tensors="pt")
    written = network.generate(**prompt, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(written[0])
    assert text.startswith("The import statement")
    assert list(paragraphs(text.splitlines()[0].rpartition(".")[0] + "."))  # prose, by the measure of the training text
    assert len(set(text.lower().split())) >= 12

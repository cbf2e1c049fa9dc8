"""Decoders as `optimize` builds them, against transformers' own `generate` and the original's perplexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnxopt
from onnxopt.judge.perplexity import measure_perplexity
from onnxopt.run.generate.generator import Generator
from onnxopt.run.generate.sampling import Sampling
from tests.support.tiny import POSITIONS, VOCABULARY, spread_weights, tiny_checkpoint, tiny_tokenizer

PROMPTS = (
    "the name of a class",
    "if the value is an object that has no such method , then the",
    "a",
    " ".join(["the class of an object"] * 30),  # so long that the context ends the text
)


def tiny_llama(folder: Path) -> Path:
    """Write a Llama of two layers with rotary positions and grouped heads."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(config).eval()
        spread_weights(model)
    model.save_pretrained(folder)
    return tiny_tokenizer(folder, gpt2=True)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return the original in torch, and its artifact."""
    import transformers

    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    folder = tiny_checkpoint("gpt2", folder) if request.param == "gpt2" else tiny_llama(folder)
    artifact = onnxopt.optimize(folder, out=folder.parent / "made", measure=False)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), artifact.path


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_batch_is_written_as_transformers_writes_each_text(pair: tuple[Any, Path], penalty: float) -> None:
    import torch

    original, folder = pair
    generator = Generator(folder)
    sampling = Sampling(repetition_penalty=penalty)
    found = generator.generate(PROMPTS, max_new_tokens=40, sampling=sampling, max_batch=4)
    assert [result.finish == "context" for result in found.results] == [False, False, False, True]
    for prompt, result in zip(PROMPTS, found.results, strict=True):
        ids = torch.tensor([generator.encode(prompt)])
        most = min(40, POSITIONS + 1 - ids.shape[1])
        options = {"do_sample": False, "pad_token_id": 0, "repetition_penalty": penalty, "max_new_tokens": most}
        with torch.inference_mode():
            row = original.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
        assert list(result.tokens) == [token for token in row if token not in generator.ends]


def test_the_artifact_is_as_perplexed_as_the_original(pair: tuple[Any, Path]) -> None:
    _, folder = pair
    found = measure_perplexity(folder, window=64, max_windows=6, original=True)
    assert found.ratio == pytest.approx(1.0, abs=1e-4)
    assert [score.name for score in found.scores] == ["onnx", "original"]

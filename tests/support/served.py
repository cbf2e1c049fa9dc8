"""Tiny decoders with a tokenizer that every serving program reads, and the greedy tokens that they must all give.

The weights are random, but wide, and the head is not tied to the embedding: the tokens vary, and the best one leads the
second by far, so that rounding cannot change a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

import onnxopt
from onnxopt.artifact.package import Artifact
from onnxopt.graph import files
from onnxopt.graph.cache import Cache
from onnxopt.load.checkpoint.folder import read_checkpoint
from onnxopt.load.source.source import resolve

Kind = Literal["gpt2", "llama"]
KINDS: tuple[Kind, ...] = ("gpt2", "llama")
NEW_TOKENS = 20
REAL_TOKENS = 64
PROMPTS = (
    "The value of a name is",
    "If an object\n\tis a naïve class, it's 12345 —",
    "a",
    "Python calls the method with the instance as its first argument, and the class is found by its name. What",
)
POSITIONS = 160
END = 0
SEEDS: dict[Kind, int] = {"gpt2": 11, "llama": 12}  # of the second, a text ends before the others
QUESTIONS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "Once upon a time, in a village by the sea, there lived",
    "Name three rivers:",
    "1, 1, 2, 3, 5, 8,",
    "The import statement combines two operations; it searches for the named module, then",
    "Dear",
)
_VOCABULARY = 400
_END_TEXT, _PAD_TEXT = "<|endoftext|>", "<|pad|>"
_LEAD = 1e-4  # relative to the largest logit, of which float32 programs differ by about 1e-6


def tiny_decoder(kind: Kind, folder: Path) -> Path:
    """Write a checkpoint of two layers with a byte-level BPE tokenizer and return its folder."""
    import torch
    import transformers

    ids = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": 1}
    common = {"vocab_size": _VOCABULARY, "tie_word_embeddings": False, **ids}
    network: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[kind])
        if kind == "gpt2":
            sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": POSITIONS}
            network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes))
        else:
            config = transformers.LlamaConfig(
                **common,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=POSITIONS,
            )
            network = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                is_scale = parameter.ndim == 1 and name.endswith("weight")  # of a normalization
                parameter.normal_(1.0 if is_scale else 0.0, 0.3 if parameter.ndim == 2 else 0.05)
    network.eval().save_pretrained(folder)
    _tokenizer(folder)
    return folder


@dataclass(frozen=True)
class Served:
    """An artifact with what it must say.

    Attributes:
        path: the artifact.
        ids: of each of `PROMPTS`.
        tokens: the greedy tokens after each of them, as transformers generates them in torch.
    """

    path: Path
    ids: tuple[list[int], ...]
    tokens: tuple[list[int], ...]


def make_served(kind: Kind, folder: Path) -> Served:
    """Make a checkpoint, its artifact, and the tokens; the Llama's weights lie beside the graph, as large ones do."""
    checkpoint = tiny_decoder(kind, folder / "checkpoint")
    with patch.object(files, "EXTERNAL_DATA_BYTES", 1000 if kind == "llama" else files.EXTERNAL_DATA_BYTES):
        artifact = onnxopt.optimize(checkpoint, out=folder / kind, measure=False)
    ids, tokens = zip(*(torch_tokens(checkpoint, prompt) for prompt in PROMPTS), strict=True)
    return Served(artifact.path, ids, tokens)


def torch_tokens(folder: Path, prompt: str, count: int = NEW_TOKENS) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and the greedy tokens after it, as transformers generates them."""
    import torch
    import transformers

    ids = transformers.AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        row = torch.tensor([ids])
        options = {"do_sample": False, "max_new_tokens": count, "output_logits": True, "return_dict_in_generate": True}
        made = network.generate(row, attention_mask=torch.ones_like(row), **options)
    best = torch.cat([step.topk(2).values for step in made.logits])
    lead = float(((best[:, 0] - best[:, 1]) / best.abs().max()).min())
    assert lead > _LEAD, f"the best token leads by {lead:.1e} only; take another seed"
    return ids, made.sequences[0, len(ids) :].tolist()


def torch_texts(texts: Sequence[str], count: int) -> list[list[int]]:
    """Return the greedy tokens, up to an end, that SmolLM2 writes in torch after texts padded on the left together."""
    import torch

    network, tokenizer, ends = _smollm2()
    given = tokenizer(list(texts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        found = network.generate(**given, do_sample=False, max_new_tokens=count)
    rows: list[list[int]] = found[:, given["input_ids"].shape[1] :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), count)] for row in rows]


@cache
def _smollm2() -> tuple[Any, Any, frozenset[int]]:
    import torch
    import transformers

    folder = read_checkpoint(resolve("smollm2-135m")).folder
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    end = network.generation_config.eos_token_id
    return network, tokenizer, frozenset(end if isinstance(end, list) else [end])


def plain_tokens(artifact: Path, ids: Sequence[int], count: int = NEW_TOKENS) -> list[int]:
    """Return the greedy tokens after a prompt from a plain onnxruntime session, the cache handed back and forth."""
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
    cache = Cache.of(Artifact.open(artifact).manifest.signature)
    assert cache is not None
    empty = {"batch": 1, "past_sequence": 0}
    past = {spec.name: np.zeros(spec.shape(empty), spec.dtype) for spec in cache.inputs}
    found: list[int] = []
    new = list(ids)
    for _ in range(count):
        mask = np.ones((1, len(ids) + len(found)), np.int64)
        logits, *present = session.run(
            ["logits", *(spec.name for spec in cache.outputs)],
            {"input_ids": np.array([new]), "attention_mask": mask, **past},
        )
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        found += new
    return found


def _tokenizer(folder: Path) -> None:
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END_TEXT, _PAD_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([str(topics[key]) for key in sorted(topics)], trainer)
    specials = {"bos_token": _END_TEXT, "eos_token": _END_TEXT, "pad_token": _PAD_TEXT}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=POSITIONS, **specials).save_pretrained(folder)

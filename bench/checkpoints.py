"""Checkpoints of random weights in the shapes of known models, written shard by shard; no model is ever held whole.

A weight depends on the seed and its own name alone, so a checkpoint is the same wherever and however often it is made.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "float16", "bfloat16"]
SHARD_BYTES = 1 << 30
MADE_NAME = "made.json"  # written last: with it, a checkpoint is whole
_AT_ONCE = 1 << 23  # elements that are drawn at a time
_TABLE_SCALE = 0.02  # standard deviation of embeddings and biases, as transformers initializes them
_NEAR = "gpt2-mini"  # a sample that lies in this repository
_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
_QWEN: Mapping[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class Shape:
    """What a checkpoint looks like.

    Attributes:
        like: whose shape it is, for people.
        hidden: width.
        inner: width of the feed-forward layers.
        layers: number of them.
        heads: of queries.
        shared: heads of keys and values.
        words: in the vocabulary.
        dtype: of the weights in the file.
        base: more entries of the config.
        tied: whether the table of words is also the head.
        tokenizer: the sample whose tokenizer is copied.
    """

    like: str
    hidden: int
    inner: int
    layers: int
    heads: int
    shared: int
    words: int
    dtype: DType
    base: Mapping[str, Any] = field(default_factory=lambda: _LLAMA)
    tied: bool = False
    tokenizer: str = "smollm2-135m"

    @property
    def settings(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {
            **self.base,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "vocab_size": self.words,
            "tie_word_embeddings": self.tied,
            "torch_dtype": self.dtype,
        }


def _wide(layers: int) -> Shape:
    """Return one of the shapes that differ in their number of layers alone."""
    return Shape(f"{layers} layers of 1,024", 1024, 2816, layers, 16, 4, 49152, "bfloat16", tied=True, tokenizer=_NEAR)


SHAPES: Mapping[str, Shape] = {
    "100m": Shape("100 M, like Llama", 768, 2048, 8, 12, 4, 49152, "bfloat16", tied=True, tokenizer=_NEAR),
    "0.5b": Shape("Qwen2.5-0.5B", 896, 4864, 24, 14, 2, 151936, "float32", _QWEN, tied=True),
    "1.1b": Shape("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 49152, "float16"),
    "3b": Shape("Qwen2.5-3B", 2048, 11008, 36, 16, 2, 151936, "bfloat16", _QWEN, tied=True),
    "7b": Shape("Llama-2-7B", 4096, 11008, 32, 32, 32, 32000, "bfloat16"),
    **{f"layers-{count}": _wide(count) for count in (4, 8, 16, 32)},
}


def write_checkpoint(shape: Shape, folder: Path, *, shard_bytes: int = SHARD_BYTES, seed: int = 0) -> Path:
    """Write a checkpoint unless it is there, and return its folder.

    Args:
        shape: what it looks like.
        folder: of config, shards and tokenizer; what lies there of another shape is replaced.
        shard_bytes: a shard ends with the weight that takes it beyond.
        seed: of all weights.
    """
    made = {"shape": asdict(shape), "shard_bytes": shard_bytes, "seed": seed}
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    mark = folder / MADE_NAME
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.settings, indent=1) + "\n", encoding="utf-8")
    _write_shards(shape, folder, shard_bytes, seed)
    _write_tokenizer(shape, folder)
    mark.write_text(text, encoding="utf-8")
    return folder


def weights_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight, tied ones once, without making any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape.settings))
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def count_of(shape: Shape) -> int:
    """Return the number of parameters."""
    return sum(math.prod(size) for size in weights_of(shape).values())


def drawn(name: str, size: tuple[int, ...], dtype: DType, seed: int) -> torch.Tensor:
    """Return a weight: rows of a matrix normal and scaled by their length, gains near 1, biases small.

    Args:
        name: of the weight; it decides the numbers.
        size: its shape.
        dtype: of the result.
        seed: of all weights.
    """
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    made = torch.empty(size, dtype=getattr(torch, dtype))
    is_gain = len(size) == 1 and name.endswith("weight")
    is_table = len(size) == 1 or "embed" in name
    scale = _TABLE_SCALE if is_table else size[-1] ** -0.5
    flat = made.view(-1)
    for start in range(0, flat.numel(), _AT_ONCE):
        piece = torch.randn(min(_AT_ONCE, flat.numel() - start), generator=generator) * scale
        flat[start : start + piece.numel()] = piece + 1 if is_gain else piece
    return made


def _shards(shape: Shape, shard_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the weights of each shard."""
    each = {"float32": 4}.get(shape.dtype, 2)
    shard: dict[str, tuple[int, ...]] = {}
    taken = 0
    for name, size in weights_of(shape).items():
        shard[name] = size
        taken += each * math.prod(size)
        if taken >= shard_bytes:
            yield shard
            shard, taken = {}, 0
    if shard:
        yield shard


def _write_shards(shape: Shape, folder: Path, shard_bytes: int, seed: int) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(shape, shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if shards[1:] else "model.safetensors"
        tensors = {one: drawn(one, size, shape.dtype, seed) for one, size in shard.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    if shards[1:]:
        each = {"float32": 4}.get(shape.dtype, 2)
        size = each * sum(math.prod(one) for shard in shards for one in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    """Copy a sample's tokenizer, cut down to the words that the shape has rows for."""
    from onnxopt.load.checkpoint.folder import read_checkpoint
    from onnxopt.load.source.source import resolve

    source = read_checkpoint(resolve(shape.tokenizer)).folder
    if source is None:
        raise SystemExit(f"{shape.tokenizer} has no folder with a tokenizer")
    settings = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    text = json.dumps(cut_down(settings, shape.words), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def cut_down(settings: Mapping[str, Any], words: int) -> dict[str, Any]:
    """Return a BPE tokenizer without the words of the last ids, and without the merges that need or make them.

    Args:
        settings: content of a `tokenizer.json`.
        words: ids below this one stay.
    """
    model = settings["model"]
    kept = {word: number for word, number in model["vocab"].items() if number < words}
    pairs = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    merges = [merge for merge, (left, right) in pairs if {left, right, left + right} <= kept.keys()]
    return {**settings, "model": {**model, "vocab": kept, "merges": merges}}

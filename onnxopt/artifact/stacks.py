"""Describe an artifact to the programs that people serve decoders with.

onnxruntime-genai reads `genai_config.json`, which is made here. Its model type `decoder` stands for any graph that
takes ids, a mask and a cache under the names of `onnxopt.graph.cache`, so no architecture is named. It refuses a file
with a key that it does not know, so only what it needs is written (tried with onnxruntime-genai 0.18.0).

transformers.js reads the checkpoint's own config.json, tokenizer.json and generation_config.json, which is made where
it is missing; it finds the graph when it is told where: `{ subfolder: "", dtype: "fp32" }`. For its sake the axis
`batch` of a decoder is called `batch_size` in the file (`onnxopt.graph.cache.served`), and weights beside the graph lie
in `model.onnx_data`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.graph import all_nodes, dims
from onnxopt.graph.cache import Cache, past_name, present_name, served
from onnxopt.records.manifest import DecodingRecord
from onnxopt.run.providers import EXACT_NORMS
from onnxopt.run.there import MODEL_NAME
from onnxopt.sizes.words import is_plain
from onnxopt.spec import Provider, Signature
from onnxopt.texts.tokenizer import TOKENIZER_NAME, read_settings, token_text

GENAI_NAME = "genai_config.json"
GENERATION_NAME = "generation_config.json"
MAX_LENGTH = 4096  # where past and present share a buffer, genai allocates it for `max_length` before the first token
UNKNOWN_LENGTH = 2048  # for models whose positions have no end: genai must be told one

_PLAIN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_LAYER = 7  # any number that is not in the names otherwise, to be replaced by genai's placeholder
_CUDA: list[dict[str, Any]] = [{"cuda": dict(EXACT_NORMS)}]
_PROVIDERS: Mapping[Provider, list[dict[str, Any]]] = {"cuda": _CUDA, "tensorrt": _CUDA}


@dataclass(frozen=True)
class Words:
    """What the files of a checkpoint say.

    Attributes:
        config: content of config.json.
        generation: content of generation_config.json.
        tokenizer: content of tokenizer_config.json.
        tokens: ids of the special tokens by their text.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Words:
        """Read them from the folder of a checkpoint or an artifact; a missing file says nothing.

        Raises:
            InputError: when a file is not a JSON object.
        """
        added = read_settings(folder, TOKENIZER_NAME).get("added_tokens")
        entries = [entry for entry in added if isinstance(entry, Mapping)] if isinstance(added, list) else []
        return cls(
            read_settings(folder, "config.json"),
            read_settings(folder, GENERATION_NAME),
            read_settings(folder, "tokenizer_config.json"),
            {
                entry["content"]: entry["id"]
                for entry in entries
                if isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)
            },
        )

    def ids(self, name: str) -> list[int]:
        """Return the ids of `bos`, `eos` or `pad`, as transformers' `generate` finds them; the tokenizer comes last."""
        key = f"{name}_token_id"
        for found in (self.generation.get(key), self.config.get(key), self._text_config.get(key)):
            listed = found if isinstance(found, list) else [found]
            ids = [one for one in listed if isinstance(one, int) and one >= 0]
            if ids and len(ids) == len(listed):
                return ids
        known = self.tokens.get(token_text(self.tokenizer.get(f"{name}_token")))
        return [] if known is None else [known]

    def token_ids(self) -> dict[str, int | list[int]]:
        """Return `bos_token_id`, `eos_token_id` (a list) and `pad_token_id` as far as they are known.

        Where no padding is named, a text that ended is filled up with its end.
        """
        ends = self.ids("eos")
        found: dict[str, list[int]] = {"bos": self.ids("bos")[:1], "eos": ends, "pad": (self.ids("pad") or ends)[:1]}
        return {f"{name}_token_id": ids if name == "eos" else ids[0] for name, ids in found.items() if ids}

    def size(self, *keys: str) -> int:
        """Return the first positive integer that config.json has under one of the keys; 0 when there is none."""
        found = [source.get(key) for source in (self.config, self._text_config) for key in keys]
        return next((one for one in found if isinstance(one, int) and one > 0), 0)

    @property
    def _text_config(self) -> Mapping[str, Any]:
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else {}


def genai_config(
    signature: Signature, decoding: DecodingRecord, words: Words, *, provider: Provider = "cpu"
) -> dict[str, Any] | None:
    """Return the content of `genai_config.json`; None for a graph that onnxruntime-genai cannot feed.

    Args:
        signature: inputs and outputs of the graph.
        decoding: how it is run.
        words: what its checkpoint says.
        provider: where it is meant to run.
    """
    cache = Cache.of(signature)
    names = [spec.name for spec in signature.inputs]
    if cache is None or not decoding.vocabulary or "logits" not in {spec.name for spec in signature.outputs}:
        return None
    if set(names) - {spec.name for spec in cache.inputs} - set(_PLAIN_INPUTS):
        return None
    length = decoding.context_length or words.size("max_position_embeddings", "n_positions") or UNKNOWN_LENGTH
    # it neither reads a text anew that grows beyond a crossing nor keeps long and short ones of a batch apart
    length = min(length, *decoding.crossings[:1]) if decoding.crossings else length
    model: dict[str, Any] = {"type": "decoder", "vocab_size": decoding.vocabulary, "context_length": length}
    model |= words.token_ids()
    model["decoder"] = {
        "filename": MODEL_NAME,
        **_sizes(cache, words),
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": _PROVIDERS.get(provider, [])},
        "inputs": {name: name for name in _PLAIN_INPUTS if name in names}
        | {f"past_{part}_names": _pattern(past_name(_LAYER, part)) for part in ("key", "value")},
        "outputs": {"logits": "logits"}
        | {f"present_{part}_names": _pattern(present_name(_LAYER, part)) for part in ("key", "value")},
    }
    return {"model": model, "search": _search(decoding, words, min(length, MAX_LENGTH))}


def served_model(model: ir.Model, signature: Signature, names: Mapping[str, str] | None = None) -> ir.Model:
    """Return the graph with the names of axes that a file has; the given one stays as it is.

    Args:
        model: the finished graph.
        signature: its inputs and outputs, with the names that axes have in here.
        names: of axes in the file that was imported, by their names in here.
    """
    written = served(signature, names)
    if written == signature:
        return model
    known = {
        axis: name
        for inner, outer in zip(signature.inputs, written.inputs, strict=True)
        for axis, name in zip(inner.axes, outer.axes, strict=True)
        if axis != name
    } | dict(names or {})
    words = sorted((re.escape(str(axis)) for axis in known), key=len, reverse=True)
    spelled = re.compile(rf"(?<![\w.])({'|'.join(words)})(?![\w.])")

    own = {axis for spec in signature.inputs for axis in spec.axes}
    taken = {axis for spec in written.inputs for axis in spec.axes}
    unclear = {axis for axis, name in known.items() if not is_plain(str(name))}

    def spell(axis: int | str | None) -> int | str | None:
        if not isinstance(axis, str):
            return axis
        if axis in own:
            return known.get(axis, axis)
        found = spelled.sub(lambda found: str(known[found.group()]), axis)
        # twice x beside an axis called `x*2`: who reads the file must not take one for the other
        return None if found in taken or unclear.intersection(spelled.findall(axis)) else found

    copy = model.clone()
    values = itertools.chain(copy.graph.inputs, *(node.outputs for node in all_nodes(copy)))
    for value in values:
        axes = dims(value)
        if axes is not None:  # an axis may be a product, such as batch*sequence
            value.shape = ir.Shape([spell(axis) for axis in axes])
    for ends, specs in ((copy.graph.inputs, written.inputs), (copy.graph.outputs, written.outputs)) if names else ():
        for value, spec in zip(ends, specs, strict=True):
            if value.shape is not None and len(value.shape) == len(spec.axes):
                value.shape = ir.Shape(spec.axes)
    return copy


def stack_files(
    folder: Path, signature: Signature, decoding: DecodingRecord | None, *, provider: Provider = "cpu"
) -> dict[str, bytes]:
    """Return the files, by name, that an artifact carries for other programs.

    Args:
        folder: the artifact so far, with the files of its checkpoint.
        signature: inputs and outputs of the graph.
        decoding: how a decoder is run; None for every other model, which needs no such file.
        provider: where it is meant to run.
    """
    if decoding is None:
        return {}
    words = Words.read(folder)
    made = {GENAI_NAME: genai_config(signature, decoding, words, provider=provider)}
    if not words.generation:
        made[GENERATION_NAME] = words.token_ids()
    return {
        name: (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
        for name, content in made.items()
        if content
    }


def _sizes(cache: Cache, words: Words) -> dict[str, int]:
    """Return the sizes of the attentions, as far as they are the same in every layer."""
    heads, sizes = {layer.heads for layer in cache.layers}, {layer.key_size for layer in cache.layers}
    found = {
        "hidden_size": words.size("hidden_size", "n_embd", "d_model"),
        "num_attention_heads": words.size("num_attention_heads", "n_head", "num_heads"),
        "num_hidden_layers": cache.layers[-1].index + 1,
        "num_key_value_heads": heads.pop() if len(heads) == 1 else 0,
        "head_size": sizes.pop() if len(sizes) == 1 else 0,
    }
    return {name: size for name, size in found.items() if size}


def _search(decoding: DecodingRecord, words: Words, length: int) -> dict[str, Any]:
    """Return how tokens are chosen unless the caller says otherwise: as the checkpoint says, else greedy."""
    said = words.generation
    search: dict[str, Any] = {"max_length": length, "num_beams": 1, "do_sample": said.get("do_sample") is True}
    for name in ("temperature", "top_p", "repetition_penalty"):
        number = said.get(name)
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number > 0:
            search[name] = float(number)
    for name in ("top_k", "no_repeat_ngram_size"):
        count = said.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            search[name] = count
    return {**search, "past_present_share_buffer": decoding.shared_buffers}


def _pattern(name: str) -> str:
    return name.replace(str(_LAYER), "%d")

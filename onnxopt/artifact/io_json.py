"""Say in `io.json` what a program without Python must know: tensors, padding, what is done before and after the graph.

Keys::

    format         1
    name, task     as in the manifest
    inputs         name, dtype, axes (a number, or the name of an open axis), meaning, pad: value at padded positions;
                   form where it is no plain tensor: `default` (may be left out), `sequence`, `optional`
    outputs        name, dtype, axes, meaning; form as well, also `any rank` (the number of axes differs)
    sizes          for each open axis the sizes at which the graph was proved: least, most, step, and promised: the
                   largest that the model takes (0: none is known)
    tokenizer      file, pad_id, padding_side, max_length (0: no limit), lowercase; absent without a tokenizer
    preprocessing  sentences in order
    postprocessing sentences in order
    pooling        how the sentence embedding in the graph is made, where there is one
    labels         names of classes by index, as config.json has them
    decoding       shared_buffers, logits, context_length, crossings, endless_from, eos_token_id and the contract of the
                   cache; of decoders only
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.artifact.stacks import Words
from onnxopt.errors import InputError
from onnxopt.graph.roles import fixed_length, input_meaning
from onnxopt.records.manifest import DecodingRecord
from onnxopt.records.record import ProvedRange
from onnxopt.spec import Signature, TensorSpec
from onnxopt.texts.tokenizer import TOKENIZER_NAME, read_settings, token_limit, tokenizer_pad

IO_NAME = "io.json"
_POOLINGS = ("mean", "cls", "max", "lasttoken")
_CROSSINGS = {
    "reread": "a text that grows beyond one of the crossings is read anew from its first token, with an empty past; "
    "rows of one batch lie on the same side of each",
    "continue": "rows of one batch lie on the same side of each of the crossings; a text that grows beyond one keeps "
    "its past",
}
_ENDLESS = (
    "context_length must be kept: the graph also runs beyond it, with rotary tables that are not those of such a text"
)
_AFTER = {
    "text-classification": "softmax over the last axis of logits; labels by index",
    "token-classification": "softmax over the last axis of logits, per token; labels by index",
    "fill-mask": "softmax over the last axis of logits at the position of the mask token",
    "question-answering": "the answer runs from the best start to the best end not before it",
    "image-classification": "softmax over the last axis of logits; labels by index",
}


def io_description(
    folder: Path,
    name: str,
    task: str,
    signature: Signature,
    decoding: DecodingRecord | None,
    *,
    proved: Mapping[str, ProvedRange] | None = None,
) -> dict[str, Any]:
    """Return the content of `io.json`.

    Args:
        folder: the artifact so far, with the files of its checkpoint.
        name: of the artifact.
        task: the transformers task name.
        signature: inputs and outputs of the graph as the file has them.
        decoding: how a decoder is run; None for every other model.
        proved: for each open axis between which sizes the graph was proved.
    """
    config = _settings(folder, "config.json")
    tokenizer = _tokenizer(folder, signature)
    pad = tokenizer["pad_id"] if tokenizer else 0
    content: dict[str, Any] = {
        "format": 1,
        "name": name,
        "task": task,
        "inputs": [_input(spec, pad) for spec in signature.inputs],
        "outputs": [_tensor(spec) | {"meaning": _output(spec)} for spec in signature.outputs],
    }
    if proved:
        content["sizes"] = {axis: found.model_dump() for axis, found in proved.items()}
    if tokenizer:
        content["tokenizer"] = tokenizer
    content["preprocessing"] = _before(folder, tokenizer)
    content["postprocessing"] = _after(task, signature, decoding)
    pooling = _pooling(folder, signature)
    if pooling:
        content["pooling"] = pooling
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and "classification" in task:
        content["labels"] = {str(index): str(label) for index, label in labels.items()}
    if decoding is not None:
        content["decoding"] = {
            **json.loads(decoding.model_dump_json()),
            "eos_token_id": Words.read(folder).ids("eos"),
            "cache": "present.N.key and .value of one call are past_key_values.N.key and .value of the next; the first "
            "past has 0 positions; attention_mask covers past and new positions",
            **({"crossing_contract": _CROSSINGS[decoding.crossing]} if decoding.crossings else {}),
            **({"limit_contract": _ENDLESS} if decoding.endless_from else {}),
        }
    return content


def io_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the file's bytes."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _settings(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of the checkpoint; nothing for a broken file, which says nothing to anyone."""
    try:
        return read_settings(folder, name)
    except InputError:
        return {}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    said = {"name": spec.name, "dtype": "string" if spec.dtype == "object" else spec.dtype, "axes": list(spec.axes)}
    return said | ({"form": spec.form} if spec.form else {})


def _input(spec: TensorSpec, pad: int) -> dict[str, Any]:
    meaning = input_meaning(spec.name)
    padded = {"ids": pad, "mask": 0, "types": 0, "positions": 0}
    return _tensor(spec) | {"meaning": meaning} | ({"pad": padded[meaning]} if meaning in padded else {})


def _output(spec: TensorSpec) -> str:
    known = {
        "sentence_embedding": "one vector per row, pooled and normalized in the graph",
        "last_hidden_state": "one vector per token; rows at padded positions mean nothing",
        "token_embeddings": "one vector per token; rows at padded positions mean nothing",
        "pooler_output": "one vector per row",
        "logits": "scores before softmax",
        "start_logits": "score of each token as the start of the answer",
        "end_logits": "score of each token as the end of the answer",
    }
    return "cache" if spec.name.startswith("present") else known.get(spec.name, "")


def _tokenizer(folder: Path, signature: Signature) -> dict[str, Any] | None:
    if not (folder / TOKENIZER_NAME).is_file():
        return None
    settings = _settings(folder, "tokenizer_config.json")
    try:
        pad, limit = tokenizer_pad(folder), fixed_length(signature.inputs) or token_limit(folder)
    except InputError:
        return None  # a tokenizer that the library cannot read is described by its own files alone
    return {
        "file": TOKENIZER_NAME,
        "pad_id": pad,
        "padding_side": "left" if settings.get("padding_side") == "left" else "right",
        "max_length": limit,
        "lowercase": bool(_settings(folder, "sentence_bert_config.json").get("do_lower_case", False)),
    }


def _before(folder: Path, tokenizer: Mapping[str, Any] | None) -> list[str]:
    if (folder / "preprocessor_config.json").is_file() and not tokenizer:
        return ["images or sound as preprocessor_config.json says: size, rescaling, mean and deviation"]
    if not tokenizer:
        return []
    steps = ["lower the text"] if tokenizer["lowercase"] else []
    steps.append(f"tokenize with {TOKENIZER_NAME}, special tokens added")
    if tokenizer["max_length"]:
        steps.append(f"cut to {tokenizer['max_length']} tokens")
    steps.append(f"pad rows of a batch with {tokenizer['pad_id']} on the {tokenizer['padding_side']}, mask 0 there")
    return steps


def _after(task: str, signature: Signature, decoding: DecodingRecord | None) -> list[str]:
    if decoding is not None:
        return ["take the best or a drawn token of the last position's logits", "feed it with the present as the past"]
    if "sentence_embedding" in {spec.name for spec in signature.outputs}:
        return ["none: sentence_embedding is ready to compare by dot product or cosine"]
    return [_AFTER[task]] if task in _AFTER else []


def _pooling(folder: Path, signature: Signature) -> str:
    if "sentence_embedding" not in {spec.name for spec in signature.outputs}:
        return ""
    said = _settings(folder, "1_Pooling/config.json")
    named = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
    return next((kind for kind in _POOLINGS if said.get(f"pooling_mode_{named[kind]}") is True), "mean")

"""Say in `io.json` what a program without Python must know: tensors, padding, what is done before and after the graph.

Keys::

    format         1
    name, task     as in the manifest
    inputs         name, dtype, axes (a number, or the name of an open axis), meaning, pad: value at padded positions;
                   form where it is no plain tensor: `default` (may be left out), `sequence`, `optional`
    outputs        name, dtype, axes, meaning; form as well, also `any rank` (the number of axes differs)
    sizes          for each open axis the sizes at which the graph was proved: least, most, step, and promised: the
                   largest that the model takes (0: none is known)
    tokenizer      file, pad_id, padding_side, max_length (0: no limit), lowercase; absent without a tokenizer; marks:
                   the special tokens around a text for who tokenizes without them: `single` [before, after], `pair`
                   [before, between, after], `second_type`: segment of the second text and its end; absent where the
                   tokenizer does more than put some around
    prompts        words in front of a text by name, of embeddings whose checkpoint has them; default_prompt: which one
                   where none is asked for, empty for none
    preprocessing  sentences in order
    postprocessing sentences in order
    pooling        how the sentence embedding in the graph is made, where there is one and its checkpoint says it
    normalized     whether that has length 1; only where its checkpoint says how it is made
    scores         what the logits of a classifier are made into: `softmax`, `sigmoid`, or `none`
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
from onnxopt.graph.cache import BATCH, SERVED_BATCH
from onnxopt.graph.roles import fixed_length, input_meaning
from onnxopt.load.checkpoint.pooling import described_pooling
from onnxopt.records.manifest import DecodingRecord
from onnxopt.records.record import ProvedRange
from onnxopt.run.inputs.sound import sound_settings
from onnxopt.run.inputs.waves import DEFAULT_RATE
from onnxopt.run.scores import Scores, scores_of
from onnxopt.run.sounds import WAVES
from onnxopt.spec import SENTENCE, SOUND_INPUTS, Signature, TensorSpec
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import SCORED
from onnxopt.texts.marks import marks_of
from onnxopt.texts.prompts import Prompts
from onnxopt.texts.tokenizer import TOKENIZER_NAME, open_tokenizer, read_settings, token_limit, tokenizer_pad

IO_NAME = "io.json"
REGION = "pixel_mask"
_CROSSINGS = {
    "reread": "a text that grows beyond one of the crossings is read anew from its first token, with an empty past; "
    "rows of one batch lie on the same side of each",
    "continue": "rows of one batch lie on the same side of each of the crossings; a text that grows beyond one keeps "
    "its past",
}
_ENDLESS = (
    "context_length must be kept: the graph also runs beyond it, with rotary tables that are not those of such a text"
)
_SCORES = {
    "softmax": "softmax over the last axis of logits; labels by index",
    "sigmoid": "sigmoid of each logit; labels by index, of which several may be right",
    "none": "none: the logits are the answer",
}
_COMPARED = {
    "softmax": "softmax over the last axis of logits_per_image; its columns are the texts",
    "sigmoid": "sigmoid of each of logits_per_image; its columns are the texts, of which several may be right",
}
_PIXELS = "pixel_values"


def io_description(
    folder: Path,
    name: str,
    task: str,
    signature: Signature,
    decoding: DecodingRecord | None,
    *,
    proved: Mapping[str, ProvedRange] | None = None,
    compared: str = "",
) -> dict[str, Any]:
    """Return the content of `io.json`.

    Args:
        folder: the artifact so far, with the files of its checkpoint.
        name: of the artifact.
        task: the transformers task name.
        signature: inputs and outputs of the graph as the file has them.
        decoding: how a decoder is run; None for every other model.
        proved: for each open axis between which sizes the graph was proved.
        compared: what the logits of a model that compares images with texts become, `softmax` or `sigmoid`.
    """
    config = settings_of(folder, "config.json")
    tokenizer = described_tokenizer(folder, signature)
    pad = tokenizer["pad_id"] if tokenizer else 0
    scores = _scores(task, config, signature)
    content: dict[str, Any] = {
        "format": 1,
        "name": name,
        "task": task,
        "inputs": [input_entry(spec, pad) for spec in signature.inputs],
        "outputs": [output_entry(spec, scores) for spec in signature.outputs],
    }
    if proved:
        content["sizes"] = {_axis_in_file(axis, signature): found.model_dump() for axis, found in proved.items()}
    if tokenizer:
        content["tokenizer"] = tokenizer
    prompts = _prompts(folder, signature)
    if prompts.named:
        content["prompts"], content["default_prompt"] = dict(prompts.named), prompts.default
    before = [*_before(folder, tokenizer, prompts, _whole_rows(signature)), *_before_pictures(signature, tokenizer)]
    content["preprocessing"] = _before_sound(folder, signature) or before
    pooling = _pooling(folder, signature)
    content["postprocessing"] = _after(task, signature, decoding, pooling, scores)
    if pooling is not None:
        content["pooling"], content["normalized"] = pooling
    if scores is not None:
        content["scores"] = scores
    elif compared:
        content["scores"], content["postprocessing"] = compared, [_COMPARED[compared]]
    own = TASKS[task].labels if task in TASKS else ()
    labels = dict(enumerate(own)) if own else config.get("id2label")
    labelled = task in TASKS and TASKS[task].answer in ("segments", "detections")
    if isinstance(labels, Mapping) and (own or "classification" in task or labelled):
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


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of the checkpoint; nothing for a broken file, which says nothing to anyone.

    Args:
        folder: of the artifact.
        name: of the file.
    """
    try:
        return read_settings(folder, name)
    except InputError:
        return {}


def _axis_in_file(axis: str, signature: Signature) -> str:
    """Return what the file calls an axis: the batch of a model with a cache has another name there."""
    open_axes = {found for spec in signature.inputs for found in spec.axes}
    return SERVED_BATCH if axis == BATCH and BATCH not in open_axes and SERVED_BATCH in open_axes else axis


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    said = {"name": spec.name, "dtype": "string" if spec.dtype == "object" else spec.dtype, "axes": list(spec.axes)}
    return said | ({"form": spec.form} if spec.form else {})


def input_entry(spec: TensorSpec, pad: int) -> dict[str, Any]:
    """Return the entry of an input.

    Args:
        spec: the input.
        pad: id at padded positions.
    """
    meaning = input_meaning(spec.name)
    padded = {"ids": pad, "mask": 0, "types": 0, "positions": 0}
    if spec.name == REGION:
        return _tensor(spec) | {"meaning": "1 where the image is, 0 where a smaller one was filled up to a batch"}
    return _tensor(spec) | {"meaning": meaning} | ({"pad": padded[meaning]} if meaning in padded else {})


def output_entry(spec: TensorSpec, scores: Scores | None) -> dict[str, Any]:
    """Return the entry of an output.

    Args:
        spec: the output.
        scores: what the logits of a classifier become; None for every other model.
    """
    return _tensor(spec) | {"meaning": _output(spec, scores)}


def _output(spec: TensorSpec, scores: Scores | None) -> str:
    known = {
        SENTENCE: "one vector per row, pooled in the graph",
        "last_hidden_state": "one vector per token; rows at padded positions mean nothing",
        "token_embeddings": "one vector per token; rows at padded positions mean nothing",
        "pooler_output": "one vector per row",
        "logits": "the answer" if scores == "none" else f"scores before {scores or 'softmax'}",
        "start_logits": "score of each token as the start of the answer",
        "end_logits": "score of each token as the end of the answer",
        "logits_per_image": "how well each text suits each image: a row per image, a column per text",
        "text_embeds": "one vector per text, in one space with those of images; divide by its length to compare",
        "image_embeds": "one vector per image, in one space with those of texts; divide by its length to compare",
        "pred_boxes": "a box for each query: middle across and down, width and height, as shares of the image",
        "class_queries_logits": "scores of each query before softmax; the last label is nothing",
        "masks_queries_logits": "a mask for each query before sigmoid, smaller than the image",
        "pred_masks": "a mask for each query before sigmoid, smaller than the image",
        "predicted_depth": "how far each pixel is, in the unit of the model",
        "reconstruction": "the image that is made, colours from 0 to 1",
        "heatmaps": "for each joint how likely it is at each place",
        "alphas": "share of foreground of each pixel, from 0 to 1",
    }
    return "cache" if spec.name.startswith("present") else known.get(spec.name, "")


def _scores(task: str, config: Mapping[str, Any], signature: Signature) -> Scores | None:
    """Return what the logits of a classifier of whole inputs become; None for every other model."""
    logits = next((spec for spec in signature.outputs if spec.name == "logits"), None)
    if task not in TASKS or TASKS[task].answer not in SCORED or logits is None or not logits.axes:
        return None
    last = logits.axes[-1]
    return scores_of(config, last if isinstance(last, int) else None)


def described_tokenizer(folder: Path, signature: Signature) -> dict[str, Any] | None:
    """Return the part `tokenizer`; None where there is none, or none that can be read.

    Args:
        folder: of the artifact.
        signature: of the graph that takes the text.
    """
    if not (folder / TOKENIZER_NAME).is_file():
        return None
    settings = settings_of(folder, "tokenizer_config.json")
    try:
        pad, limit = tokenizer_pad(folder), fixed_length(signature.inputs) or token_limit(folder)
        marks = marks_of(open_tokenizer(folder))
    except InputError:
        return None  # a tokenizer that the library cannot read is described by its own files alone
    said = {
        "file": TOKENIZER_NAME,
        "pad_id": pad,
        "padding_side": "left" if settings.get("padding_side") == "left" else "right",
        "max_length": limit,
        "lowercase": bool(settings_of(folder, "sentence_bert_config.json").get("do_lower_case", False)),
    }
    return said | ({} if marks is None else {"marks": marks.as_json()})


def _prompts(folder: Path, signature: Signature) -> Prompts:
    """Return the prompts of a model of embeddings; none where their tokens may not count, which they would."""
    if SENTENCE not in {spec.name for spec in signature.outputs}:
        return Prompts()
    try:
        found = Prompts.of(folder)
    except InputError:
        return Prompts()
    return found if found.pooled else Prompts()


def _whole_rows(signature: Signature) -> int:
    """Return how long every row is, padding read like any token, of a graph without a mask for one length; else 0."""
    masked = any(input_meaning(spec.name) == "mask" for spec in signature.inputs)
    return 0 if masked else fixed_length(signature.inputs)


def _before_pictures(signature: Signature, tokenizer: Mapping[str, Any] | None) -> list[str]:
    """Return how images become the input beside that of texts; nothing for a graph that takes no texts."""
    beside = tokenizer is not None and any(spec.name == _PIXELS for spec in signature.inputs)
    how = f"images for {_PIXELS} as preprocessor_config.json says: size, rescaling, mean and deviation"
    return [how] if beside else []


def _before(folder: Path, tokenizer: Mapping[str, Any] | None, prompts: Prompts, whole: int) -> list[str]:
    if (folder / "preprocessor_config.json").is_file() and not tokenizer:
        return ["images or sound as preprocessor_config.json says: size, rescaling, mean and deviation"]
    if not tokenizer:
        return []
    steps = []
    if prompts.named:
        kept = f"prompts.{prompts.default}, or another of the prompts," if prompts.default else "one of the prompts"
        asked = "" if prompts.default else ", where one is asked for"
        steps.append(f"put {kept} in front of the text{asked}")
    if tokenizer["lowercase"]:
        steps.append("lower the text")
    steps.append(f"tokenize with {TOKENIZER_NAME}, special tokens added")
    if tokenizer["max_length"]:
        steps.append(f"cut to {tokenizer['max_length']} tokens")
    padding = f"with {tokenizer['pad_id']} on the {tokenizer['padding_side']}"
    steps.append(
        f"pad every row {padding} to {whole} tokens" if whole else f"pad rows of a batch {padding}, mask 0 there"
    )
    return steps


def _before_sound(folder: Path, signature: Signature) -> list[str]:
    """Return how a sound becomes inputs; nothing for a graph that takes none."""
    names = {spec.name: spec for spec in signature.inputs}
    main = next((names[name] for name in SOUND_INPUTS if name in names), None)
    if main is None:
        return []
    try:
        settings = sound_settings(folder)
    except InputError:
        settings = {}
    rate = f"{settings.get('sampling_rate') or DEFAULT_RATE} samples a second, channels averaged"
    axis = next((axis for axis in main.axes[1:] if isinstance(axis, str)), "")
    alike = f"rows of a batch have the same number of {axis}; for sounds that differ, one row a call"
    if "attention_mask" in names:
        alike = "pad rows of a batch with 0 at the end, mask 0 there"
    steps = [rate]
    if main.name == WAVES and len(main.axes) == len((BATCH, axis)):
        if settings.get("do_normalize", True):
            steps.append("of each sound (x - mean) / sqrt(variance + 1e-7)")
    else:
        kind = settings.get("feature_extractor_type") or "the checkpoint's feature extractor"
        steps.append(f"features as {kind} makes them by preprocessor_config.json")
    return [*steps, alike] if axis else steps


def _after(
    task: str,
    signature: Signature,
    decoding: DecodingRecord | None,
    pooling: tuple[str, bool] | None,
    scores: Scores | None,
) -> list[str]:
    if decoding is not None:
        return ["take the best or a drawn token of the last position's logits", "feed it with the present as the past"]
    if SENTENCE in {spec.name for spec in signature.outputs}:
        if pooling is not None and pooling[1]:
            return [f"none: {SENTENCE} has length 1, ready to compare by dot product"]
        return [f"none: {SENTENCE} is ready to compare by cosine; divide by its length before a dot product"]
    if task not in TASKS:
        return [] if scores is None else [_SCORES[scores]]
    # of a task that is done in several ways, the one that answers at once
    ways = (head.after for head in TASKS[task].heads if not head.generates)
    after = TASKS[task].after or next(filter(None, ways), "")
    return [*([] if scores is None else [_SCORES[scores]]), *([after] if after else [])]


def _pooling(folder: Path, signature: Signature) -> tuple[str, bool] | None:
    """Return how a checkpoint says that the embedding in the graph is made, and whether it has length 1 then."""
    found = described_pooling(folder) if SENTENCE in {spec.name for spec in signature.outputs} else None
    return None if found is None else ("+".join(found.modes), found.normalize)

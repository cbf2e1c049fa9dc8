"""Say in the `io.json` of an encoder-decoder what a program without Python must know of its two graphs.

Keys::

    format         1
    name, task     as in the manifest
    graphs         encoder and decoder, each with its file, and inputs and outputs as in every `io.json`
    tokenizer      as in every `io.json`
    preprocessing  sentences in order
    postprocessing sentences in order
    decoding       as of every decoder; start_token_ids: what every answer begins with; from_encoder: the output of the
                   encoder that each input of the decoder takes, the same at every step; mask: the input that takes the
                   encoder's mask, where there is one; rules: what generation_config.json forces and forbids whatever
                   the logits are, by its own names
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.artifact.io_json import described_tokenizer, input_entry, output_entry, settings_of
from onnxopt.artifact.stacks import Words
from onnxopt.graph.cache import ENCODER_MASK, encoded_name
from onnxopt.graph.roles import input_meaning
from onnxopt.records.manifest import DecodingRecord, PartRecord
from onnxopt.run.generate.encoder_decoder import start_tokens
from onnxopt.texts.tokenizer import TOKENIZER_NAME

_COUNTS = frozenset({"no_repeat_ngram_size", "min_length", "min_new_tokens"})  # of these 0 asks for nothing
# of transformers' `generate`, as `onnxopt.run.generate.token_rules` follows them
_RULES = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
)
_TEXT = f"tokenize with {TOKENIZER_NAME}, special tokens added, for the encoder"
_SOUND = "features of sound as preprocessor_config.json says, for the encoder"
_CACHE = (
    "the encoder runs once; its outputs go into the decoder as from_encoder says, at every step. "
    "present.N.decoder.key and .value of one step are past_key_values.N.decoder.key and .value of the next; the first "
    "past has 0 positions"
)


def pair_description(
    folder: Path, name: str, task: str, parts: Mapping[str, PartRecord], decoding: DecodingRecord | None
) -> dict[str, Any]:
    """Return the content of `io.json` of an encoder-decoder.

    Args:
        folder: the artifact so far, with the files of its checkpoint.
        name: of the artifact.
        task: the transformers task name.
        parts: its graphs, `encoder` and `decoder`.
        decoding: how the decoder is run.
    """
    tokenizer = described_tokenizer(folder, parts["encoder"].signature)
    pad = tokenizer["pad_id"] if tokenizer else 0
    content: dict[str, Any] = {"format": 1, "name": name, "task": task}
    content["graphs"] = {
        part: {
            "file": record.file,
            "inputs": [input_entry(spec, pad) for spec in record.signature.inputs],
            "outputs": [output_entry(spec, None) for spec in record.signature.outputs],
        }
        for part, record in parts.items()
    }
    if tokenizer:
        content["tokenizer"] = tokenizer
    reads_text = any(input_meaning(spec.name) == "ids" for spec in parts["encoder"].signature.inputs)
    content["preprocessing"] = [_TEXT if reads_text else _SOUND]
    content["postprocessing"] = [
        "begin with decoding.start_token_ids",
        "take the best or a drawn token of the last position's logits, as far as decoding.rules leaves a choice",
        "feed it with the present as the past",
        *([f"{TOKENIZER_NAME} turns the tokens into text"] if tokenizer else []),
    ]
    if decoding is not None:
        content["decoding"] = _decoding(folder, parts["decoder"], decoding)
    return content


def _asks(rule: str, value: Any) -> bool:
    """Tell whether a rule asks for something: token 0 is a token, no tokens and a count of 0 are none."""
    return value is not None and value != [] and not (rule in _COUNTS and value == 0)


def _decoding(folder: Path, decoder: PartRecord, decoding: DecodingRecord) -> dict[str, Any]:
    inputs = [spec.name for spec in decoder.signature.inputs]
    settings = [settings_of(folder, name) for name in ("generation_config.json", "config.json")]
    found = {
        **json.loads(decoding.model_dump_json()),
        "start_token_ids": list(start_tokens(*settings)),
        "eos_token_id": Words.read(folder).ids("eos"),
        "from_encoder": {name: encoded_name(name) for name in inputs if encoded_name(name)},
        "rules": {rule: settings[0][rule] for rule in _RULES if _asks(rule, settings[0].get(rule))},
        "cache": _CACHE,
    }
    return found | ({"mask": ENCODER_MASK} if ENCODER_MASK in inputs else {})

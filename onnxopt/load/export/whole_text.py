"""Hold a decoder that goes on from its cache to the same network that reads the text whole, before it is exported.

The proof of an export compares the file with the network behind its flat face. Were that face wrong, both would be:
positions that begin elsewhere (RoBERTa's begin behind its padding id, though transformers' `generate` counts from 0),
or a cache behind which a network takes one token alone. So the face is tried on a text, in two steps, beside a plain
call that is given neither positions nor a cache. What was seen at one size is no proof; a face that fails is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from onnxopt.graph.cache import PARTS, Cache
from onnxopt.host.quiet import quiet
from onnxopt.spec import TensorSpec

logger = logging.getLogger(__name__)

_ROWS, _TOKENS, _FIRST = 2, 7, 4  # of the text; tokens of the first step
_ALIKE = 1e-4  # relative to the largest logit; as the proof of the axes has it
_KNOWN = ("input_ids", "attention_mask", "token_type_ids")


def first_position(
    network: Any, inputs: Sequence[TensorSpec], cache: Cache | None, face_of: Callable[[int], Any]
) -> int | None:
    """Return at which position texts begin, by trying: 0, or behind the id of the padding.

    Args:
        network: transformers' module, whose `forward` is called plainly.
        inputs: of its face besides the cache.
        cache: what it keeps; None for a face without.
        face_of: makes the face for a first position: ids, mask and past in, logits and present out.

    Returns:
        The position; None where the face gives what the plain call gives with neither.
    """
    import torch

    if any(spec.name not in _KNOWN for spec in inputs):
        return 0
    ids = text_for(network)
    named = {spec.name: _beside_ids(spec.name, ids) for spec in inputs}
    plain = {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}
    pad = getattr(network.config.get_text_config(), "pad_token_id", None)
    with torch.inference_mode(), quiet():
        expected = network(**named, **plain, return_dict=True).logits
        for first in dict.fromkeys((0, pad + 1 if isinstance(pad, int) and pad >= 0 else 0)):
            if _agrees(lambda at=first: _in_steps(face_of(at), named, cache), expected):  # type: ignore[misc]  # bound at once
                return first
    return None


def text_for(network: Any) -> Any:
    """Return int64 [2, 7] ids for a trial, none of them special."""
    import torch

    config = network.config.get_text_config()
    count = int(network.get_input_embeddings().weight.shape[0])
    special = {getattr(config, f"{one}_token_id", None) for one in ("pad", "bos", "eos", "decoder_start")}
    plain = [one for one in range(count - 1, -1, -1) if one not in special] or list(range(count))
    places = torch.arange(_ROWS * _TOKENS) * 5 % len(plain)
    return torch.tensor(plain)[places].reshape(_ROWS, _TOKENS)


def reads_in_steps(
    network: Any, source: dict[str, Any], encode: Callable[..., Any], decode: Callable[..., Any], cache: Cache
) -> bool:
    """Tell whether the decoder of a pair gives in two steps what the whole network gives for the whole text.

    Args:
        network: transformers' encoder-decoder, whose `forward` is called plainly.
        source: what the encoder takes, by name in the order of its face.
        encode: the face of the encoder: states, then keys and values of the cross-attention.
        decode: the face of the decoder: ids, the mask of the source where it has one, past and those keys and values.
        cache: of the decoder.
    """
    import torch

    rows = len(next(iter(source.values())))
    ids = text_for(network)[:1].expand(rows, -1)
    mask = [source["attention_mask"]] if "attention_mask" in source else []

    def in_steps() -> Any:
        _, *cross = encode(*source.values())
        seen = _nothing_seen(cache, rows)
        logits = None
        for step in (ids[:, :_FIRST], ids[:, _FIRST:]):
            logits, *seen = decode(step, *mask, *seen, *cross)
        return logits

    with torch.inference_mode(), quiet():
        expected = network(**source, decoder_input_ids=ids, use_cache=False, return_dict=True).logits
        return _agrees(in_steps, expected)


def _beside_ids(name: str, ids: Any) -> Any:
    import torch

    if name == "input_ids":
        return ids
    return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)


def _in_steps(face: Any, named: dict[str, Any], cache: Cache | None) -> Any:
    """Return the logits of the last tokens: of the second step, or of the whole where there is no cache."""
    if cache is None:
        return face(*named.values())[0]
    rows = len(named["input_ids"])
    seen = _nothing_seen(cache, rows)
    logits = None
    for start, stop in ((0, _FIRST), (_FIRST, _TOKENS)):
        step = [one[:, (0 if name == "attention_mask" else start) : stop] for name, one in named.items()]
        logits, *seen = face(*step, *seen)
    return logits


def _nothing_seen(cache: Cache, rows: int) -> list[Any]:
    """Return the past of a text's first step: tensors of no positions."""
    import torch

    shapes = [(rows, one.heads, 0, one.size(part)) for one in cache.layers for part in PARTS]
    return [torch.zeros(shape) for shape in shapes]


def _agrees(run: Callable[[], Any], expected: Any) -> bool:
    """Tell whether logits are those of the last tokens of a whole text."""
    try:
        found = run()
    except Exception as error:  # noqa: BLE001  whatever a network raises, it does not take what the file would
        logger.info("a face of the network does not run: %s", error)
        return False
    known = expected[:, -found.shape[1] :]
    scale = float(known.abs().max()) or 1.0
    return bool(float((found - known).abs().max()) <= _ALIKE * scale)

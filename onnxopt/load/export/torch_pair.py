"""Give the two parts of an encoder-decoder a flat face each: the encoder once a text, the decoder once a token.

The encoder gives its states and, for every layer of the decoder, the keys and values of the cross-attention. Those are
read off the cache that the whole network fills at its first step, so no architecture is named; the rest of that step is
dead code in the exported graph. The decoder takes them as they are, beside its own cache.

A decoder's rows begin together with the start token and have no padding; the encoder's texts are padded as they like.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onnxopt.errors import ExportError
from onnxopt.graph.cache import BATCH, ENCODED, ENCODER_MASK, PARTS, SEQUENCE, Cache, CacheLayer
from onnxopt.host.quiet import quiet
from onnxopt.load.export.whole_text import reads_in_steps
from onnxopt.spec import TensorSpec

SeqPart = Literal["encoder", "decoder"]
PAIR: tuple[SeqPart, ...] = ("encoder", "decoder")
STATES = "last_hidden_state"
_TRIED = (2, 3)  # batch and positions of a trial run


@dataclass(frozen=True)
class Face:
    """One part behind positional tensors.

    Attributes:
        flat: torch module.
        inputs: names, dtypes and axes.
        outputs: names.
        cache: of the decoder; None for the encoder.
        longest: the longest sequence it takes, or 0.
    """

    flat: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    cache: Cache | None
    longest: int


def is_pair(config: Any) -> bool:
    """Tell whether a config is that of an encoder-decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def face_of(network: Any, config: Any, part: SeqPart, *, last: bool, tried: bool, where: str) -> Face:
    """Return the encoder or the decoder of a network.

    Args:
        network: transformers' model.
        config: its config.
        part: which one.
        last: give the decoder's logits of the last position alone.
        tried: whether it is known already that the decoder goes on from its cache as it reads a text whole.
        where: the source, for messages.

    Raises:
        ExportError: when the network does not keep keys and values in the way of transformers' EncoderDecoderCache, or
            does not go on from them with several tokens.
    """
    source = _source(network, config)
    own, cross = _caches(network, source, where)
    if part == "decoder" and not tried:
        _require_steps(network, config, source, (own, cross), where)
    if part == "encoder":
        return _encoder(network, config, source, cross)
    return _decoder(network, config, own, cross, last=last)


def _require_steps(network: Any, config: Any, source: _Source, caches: tuple[Cache, Cache], where: str) -> None:
    """Refuse a decoder that answers otherwise when it goes on from what it has kept."""
    import torch

    own, cross = caches
    encoder, decoder = _encoder(network, config, source, cross), _decoder(network, config, own, cross, last=False)
    sizes = dict(zip((BATCH, SEQUENCE), _TRIED, strict=True))
    feeds = {spec.name: torch.ones(spec.shape(sizes), dtype=getattr(torch, spec.dtype)) for spec in source.inputs}
    if not reads_in_steps(network, feeds, encoder.flat, decoder.flat, own):
        raise ExportError(
            f"the decoder of {type(network).__name__} does not give, several tokens behind those it has kept, what it "
            "gives for the text whole: it was written for one token at a time",
            where=where,
            hint="export it to ONNX by other means, and give the .onnx file",
        )


@dataclass(frozen=True)
class _Source:
    """What the encoder takes: token ids with a mask, or features of sound of a fixed length."""

    inputs: tuple[TensorSpec, ...]

    @property
    def mask(self) -> str:
        return self.inputs[1].name if len(self.inputs) > 1 else ""


def _source(network: Any, config: Any) -> _Source:
    main = network.main_input_name
    bins = int(getattr(config, "num_mel_bins", 0) or 0)
    if main == "input_features" and bins and getattr(config, "max_source_positions", None):
        return _Source((TensorSpec(main, "float32", (BATCH, bins, _frames(network, config))),))
    if main != "input_ids":
        raise ExportError(
            f"{type(network).__name__} takes {main} of any length, of which its decoder must be told what is padding; "
            "encoder-decoders of sound are exported where the length is fixed, as Whisper's is",
            hint="export it to ONNX by other means, and give the .onnx file; heads of CTC take any length",
        )
    axes = (BATCH, SEQUENCE)
    return _Source((TensorSpec(main, "int64", axes), TensorSpec("attention_mask", "int64", axes)))


def _frames(network: Any, config: Any) -> int:
    """Return how many frames of sound the encoder takes: its positions, times the strides of its convolutions."""
    import torch

    strides = [int(one.stride[0]) for one in network.get_encoder().modules() if isinstance(one, torch.nn.Conv1d)]
    frames = int(config.max_source_positions)
    for stride in strides:
        frames *= stride
    return frames


def _caches(network: Any, source: _Source, where: str) -> tuple[Cache, Cache]:
    """Return what the decoder keeps of its own text and of the encoder's, found by running the network."""
    import torch

    sizes = dict(zip((BATCH, SEQUENCE), _TRIED, strict=True))
    feeds = {spec.name: torch.ones(spec.shape(sizes), dtype=getattr(torch, spec.dtype)) for spec in source.inputs}
    try:
        with torch.inference_mode(), quiet():
            kept = _first_step(network, feeds, source.mask)[1]
        own = Cache(tuple(_layer(i, one, "decoder") for i, one in enumerate(kept.self_attention_cache.layers)))
        cross = Cache(tuple(_layer(i, one, "encoder") for i, one in enumerate(kept.cross_attention_cache.layers)))
    except Exception as error:
        raise ExportError(
            f"{type(network).__name__} keeps no keys and values that can be handed over: {error}", where=where
        ) from error
    if not own.layers or len(own.layers) != len(cross.layers):
        raise ExportError(f"{type(network).__name__} has layers without cross-attention", where=where)
    return own, cross


def _layer(index: int, layer: Any, side: Literal["decoder", "encoder"]) -> CacheLayer:
    keys, values = layer.keys, layer.values
    return CacheLayer(index, keys.shape[1], keys.shape[3], values.shape[3], str(keys.dtype)[len("torch.") :], side)


def _first_step(network: Any, feeds: Mapping[str, Any], mask: str) -> tuple[Any, Any]:
    """Run the encoder and one step of the decoder; return the encoder's states and the filled cache."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    states = network.get_encoder()(**feeds, return_dict=True)
    hidden = states.last_hidden_state
    start = torch.zeros((hidden.shape[0], 1), dtype=torch.int64)
    kept = EncoderDecoderCache(DynamicCache(), DynamicCache())
    masked = {"attention_mask": feeds[mask]} if mask else {}
    network(
        encoder_outputs=states,
        decoder_input_ids=start,
        past_key_values=kept,
        use_cache=True,
        return_dict=True,
        **masked,
    )
    return hidden, kept


def _encoder(network: Any, config: Any, source: _Source, cross: Cache) -> Face:
    import torch

    names = tuple(spec.name for spec in source.inputs)

    class Encoder(torch.nn.Module):
        """The network behind positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hidden, kept = _first_step(self.network, dict(zip(names, tensors, strict=True)), source.mask)
            layers = kept.cross_attention_cache.layers
            return (hidden, *(getattr(layers[layer.index], f"{part}s") for layer in cross.layers for part in PARTS))

    outputs = (STATES, *(spec.name for spec in cross.outputs))
    longest = _positions(config, "max_position_embeddings") if source.mask else 0
    return Face(Encoder().eval(), source.inputs, outputs, None, longest)


def _decoder(network: Any, config: Any, own: Cache, cross: Cache, *, last: bool) -> Face:
    import torch
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    ids = TensorSpec("input_ids", "int64", (BATCH, SEQUENCE))
    masked = (
        network.main_input_name == "input_ids" and "attention_mask" in inspect.signature(network.forward).parameters
    )
    mask = (TensorSpec(ENCODER_MASK, "int64", (BATCH, ENCODED)),) if masked else ()
    width = int(_hidden_size(config))
    count = 1 + len(mask)

    class Decoder(torch.nn.Module):
        """The network behind positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rest = iter(tensors[count:])
            caches = (DynamicCache(), DynamicCache())
            for cache, layers in zip(caches, (own.layers, cross.layers), strict=True):
                for layer in layers:
                    cache.update(next(rest), next(rest), layer.index)
            kept = EncoderDecoderCache(*caches)
            kept.is_updated = {layer.index: True for layer in cross.layers}
            keys = caches[1].layers[0].keys
            unread = keys.new_zeros((keys.shape[0], keys.shape[2], width))  # its size is asked for, its numbers are not
            result = self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=unread),
                decoder_input_ids=tensors[0],
                past_key_values=kept,
                use_cache=True,
                return_dict=True,
                **({"attention_mask": tensors[1]} if masked else {}),
            )
            grown = kept.self_attention_cache.layers
            present = (getattr(grown[layer.index], f"{part}s") for layer in own.layers for part in PARTS)
            return (result.logits[:, -1:] if last else result.logits, *present)

    inputs = (ids, *mask, *own.inputs, *cross.inputs)
    outputs = ("logits", *(spec.name for spec in own.outputs))
    longest = _positions(config, "max_target_positions") or _positions(config, "max_position_embeddings")
    return Face(Decoder().eval(), inputs, outputs, own, longest)


def _positions(config: Any, name: str) -> int:
    return max(0, int(getattr(config, name, 0) or 0))


def _hidden_size(config: Any) -> int:
    found = getattr(config, "d_model", None) or getattr(config, "hidden_size", None)
    if found is None:
        raise ExportError(f"the config of {config.model_type} names no hidden size")
    return int(found)

"""Run an encoder-decoder: texts or sound through the encoder once, then tokens through the decoder step by step.

Keys and values of the cross-attention go from one graph to the other where the runtime put them, without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.cache import ENCODER_MASK, encoded_name
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate.cache_buffers import ROOM
from onnxopt.run.generate.decoder import Batch, Decoder
from onnxopt.run.intact import check_intact
from onnxopt.run.session import Session
from onnxopt.spec import Array, Target

if TYPE_CHECKING:
    import onnxruntime

Given = Sequence[int] | Array
FEATURES, _IDS, _MASK = "input_features", "input_ids", "attention_mask"


@dataclass(frozen=True)
class EncoderDecoder:
    """Both graphs, opened.

    Attributes:
        encoder: reads texts or features of sound.
        decoder: writes tokens.
        start: the tokens that every answer begins with.
        longest: tokens that the encoder takes; 0 when unknown.
    """

    encoder: Session
    decoder: Decoder
    start: tuple[int, ...]
    longest: int = 0

    @classmethod
    def open(
        cls, folder: Path, *, start: Sequence[int], target: Target | None = None, threads: int | None = None
    ) -> EncoderDecoder:
        """Open an artifact.

        Args:
            folder: as `onnxopt optimize` wrote it.
            start: the tokens that every answer begins with, at least one.
            target: where to run; the default is the artifact's own target.
            threads: threads of one operator.

        Raises:
            InputError: when it is no encoder-decoder, or there is no token to start with.
        """
        manifest = Manifest.read(folder)
        if not manifest.parts:
            raise InputError("is no encoder-decoder", where=str(folder), hint="open it with `onnxopt.Generator`")
        if not start:
            raise InputError(
                "the checkpoint does not say how an answer starts",
                where=str(folder),
                hint="write decoder_start_token_id into generation_config.json",
            )
        check_intact(folder, manifest)
        chosen = target or Target(manifest.target.provider)
        encoder, decoder = (
            Session(folder / manifest.parts[part].file, target=chosen, threads=threads)
            for part in ("encoder", "decoder")
        )
        longest = int(manifest.origin.get("encoder_context_length", 0))
        return cls(encoder, Decoder.of(decoder, manifest.decoding), tuple(start), longest)

    @property
    def hears(self) -> bool:
        """Whether it takes features of sound, not tokens."""
        return any(spec.name == FEATURES for spec in self.encoder.inputs)

    @property
    def context_length(self) -> int:
        """The most tokens of an answer; 0 when unknown."""
        return self.decoder.context_length

    def prefill(self, given: Sequence[Given], *, new_tokens: int = ROOM) -> Batch:
        """Read texts or sound and return what the decoder will write on from the start tokens.

        Args:
            given: token ids of each text, or float32 features [bins, frames] of each sound; at least one.
            new_tokens: how many tokens are going to follow, at most.

        Raises:
            InputError: when a text is empty or too long, or features do not have the shape that the model takes.
        """
        feeds = self._sound(given) if self.hears else self._texts(given)
        across = self._encode(feeds)
        batch = Batch(self.decoder, len(given), len(self.start) + new_tokens, across)
        ids = np.tile(np.array(self.start, np.int64), (len(given), 1))
        batch.feed(ids, np.ones_like(ids))
        return batch

    def _texts(self, given: Sequence[Given]) -> dict[str, Array]:
        for number, text in enumerate(given, start=1):
            if not len(text):
                raise InputError(f"prompt {number} has no tokens")
            if self.longest and len(text) > self.longest:
                raise InputError(
                    f"prompt {number} has {len(text)} tokens, the model takes {self.longest}", hint="shorten it"
                )
        width = max(map(len, given))
        ids = np.zeros((len(given), width), np.int64)  # id 0 exists in every vocabulary; the mask hides it
        mask = np.zeros_like(ids)
        for row, text in enumerate(given):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return {_IDS: ids, _MASK: mask}

    def _sound(self, given: Sequence[Given]) -> dict[str, Array]:
        axes = self.encoder.inputs[0].axes[1:]
        for number, features in enumerate(given, start=1):
            shape = np.shape(features)
            if len(shape) != 2 or any(isinstance(a, int) and a != b for a, b in zip(axes, shape, strict=True)):
                wanted = ", ".join(map(str, axes))
                raise InputError(f"sound {number} has features of shape {list(shape)}, the model takes [{wanted}]")
        return {FEATURES: np.stack([np.asarray(features, np.float32) for features in given])}

    def _encode(self, feeds: Mapping[str, Array]) -> dict[str, onnxruntime.OrtValue]:
        """Run the encoder and return the decoder's inputs that do not change from step to step."""
        import onnxruntime

        wanted = {spec.name: encoded_name(spec.name) for spec in self.decoder.across if encoded_name(spec.name)}
        binding = self.encoder.binding()
        for spec in self.encoder.inputs:
            binding.bind_cpu_input(spec.name, feeds[spec.name])
        for name in wanted.values():
            binding.bind_output(name, self.encoder.device)
        self.encoder.run_bound(binding)
        found: dict[str, Any] = dict(zip(wanted, binding.get_outputs(), strict=True))
        if any(spec.name == ENCODER_MASK for spec in self.decoder.across):
            found[ENCODER_MASK] = onnxruntime.OrtValue.ortvalue_from_numpy(feeds[_MASK], self.encoder.device, 0)
        return found


def start_tokens(settings: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that every answer begins with.

    Args:
        settings: content of generation_config.json, which comes first; pairs of place and token in its
            `forced_decoder_ids` follow the start token, as Whisper names language and task.
        config: content of config.json.
    """
    for key in ("decoder_start_token_id", "bos_token_id"):
        for source in (settings, config):
            found = source.get(key)
            if isinstance(found, int):
                forced = settings.get("forced_decoder_ids") or config.get("forced_decoder_ids") or []
                rest = [pair[1] for pair in forced if isinstance(pair, list) and len(pair) == 2]
                return (found, *(token for token in rest if isinstance(token, int)))
    return ()

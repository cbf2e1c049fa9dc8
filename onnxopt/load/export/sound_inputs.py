"""Find by trying what a model of sound takes: waves or features, their shape, their lengths, and a mask or none.

transformers calls waves `input_values` and features of them `input_features`; a spectrogram transformer takes features
under the first name. Which axis is open, and from which length on, no config says: convolutions need as many samples as
they look at together, statistics over frames need two. So shapes are tried, the open ones first.

A mask is an input where the processor makes one (`return_attention_mask`). Networks that normalize over a whole wave
(`feat_extract_norm` "group") were trained without one and answer otherwise with it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from onnxopt.errors import ExportError
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.mapped import MappedWeights
from onnxopt.load.export.forward_inputs import (
    FoundInputs,
    left_out_notes,
    optional_tensors,
    require_inputs,
)
from onnxopt.load.export.processors import made_by_processors
from onnxopt.load.export.shapes import shapes_alone
from onnxopt.spec import SOUND_AXES, SOUND_INPUTS, TensorSpec

MASK = "attention_mask"
_BATCH = "batch"
_SAMPLES, _FRAMES = SOUND_AXES
_LONGEST_TRIAL = {_SAMPLES: 1 << 16, _FRAMES: 1 << 10}  # four seconds of 16 kHz, ten of frames each 10 ms
_USUAL = 4  # times the least length: what a network is traced with, so that several frames come out of it
_TOP = 7  # the least length that is traced, below which layers have nothing to tell apart
_BINS = re.compile(r"mel_bins|input_dim|feat_per_channel|num_freq|feature_size")  # words for how wide a frame is
_FIXED = ("max_length", "max_source_positions", "num_frames")  # words for how many frames there are


@dataclass(frozen=True)
class Heard:
    """What a model of sound takes.

    Attributes:
        inputs: waves [batch, samples], or features [batch, frames, bins] or [batch, bins, frames], and a mask.
        least: the shortest that it answers, by open axis; a row of a batch has no fewer that are not masked.
        usual: a length to trace with, by open axis.
    """

    inputs: tuple[TensorSpec, ...]
    least: Mapping[str, int]
    usual: Mapping[str, int]


def sound_inputs(network: Any, config: Any, settings: Mapping[str, Any], weights: MappedWeights | None) -> Heard:
    """Find what a model of sound takes.

    Args:
        network: transformers' module, for inference.
        config: its config.
        settings: of its feature extractor; empty where nothing is known of it.
        weights: where its parameters lie; None where they are in memory.

    Raises:
        ExportError: no shape that is known of sound runs.
    """
    trial = _Trial(network, weights)
    for spec in _shapes(network.main_input_name, config):
        axis = next((one for one in spec.axes[1:] if isinstance(one, str)), "")
        if not axis:
            if trial.runs((spec,), {}):
                return Heard((spec,), {}, {})
            continue
        least = trial.least(spec, axis)
        if least:
            usual = _traced(least, config)
            mask = (TensorSpec(MASK, "int64", (_BATCH, axis)),) if _masked(network, config, settings) else ()
            return Heard((spec, *mask), {axis: least}, {axis: usual})
    raise ExportError(
        f"{type(network).__name__} runs on no waves and no features of a shape that is known: {trial.reason}"
    )


def left_out_of_sound(
    network: Any, taken: Iterable[TensorSpec], without: Iterable[str], *, where: str
) -> tuple[str, ...]:
    """Refuse a model whose processor makes more of a sound than the file takes, and say what a user leaves out.

    Args:
        network: transformers' module.
        taken: the inputs.
        without: inputs that its user leaves out.
        where: its source, for messages.

    Raises:
        InputError: names what would be left out, and the option that says so knowingly.
    """
    known = {MASK, *SOUND_INPUTS, *without, *(spec.name for spec in taken)}
    made = made_by_processors(network.config.model_type)
    lost = tuple(name for name in optional_tensors(network) if name in made and name not in known)
    title = type(network).__name__
    require_inputs(FoundInputs(unknown=lost), made=made, keeps=True, title=title, where=where)
    return tuple(left_out_notes(FoundInputs(), without))


@dataclass
class _Trial:
    """A network that is tried on sounds of many shapes.

    Attributes:
        network: transformers' module.
        weights: where its parameters lie; None where they are in memory.
        reason: why the last shape did not run.
    """

    network: Any
    weights: MappedWeights | None
    reason: str = "nothing was tried"

    def runs(self, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> bool:
        """Tell whether the network answers two rows of random numbers, with numbers and no empty tensor."""
        import torch

        full = {_BATCH: 2, **sizes}
        generator = torch.Generator().manual_seed(0)
        feeds = {spec.name: torch.randn(spec.shape(full), generator=generator) for spec in inputs}
        try:
            with torch.inference_mode(), quiet():
                found = shapes_alone(self.network, self.weights, lambda: self.network(**feeds, return_dict=True))
        except Exception as error:  # noqa: BLE001  whatever a model raises, it says no
            self.reason = str(error)
            return False
        values = [value for value in found.values() if isinstance(value, torch.Tensor)]
        if self.weights is not None:
            return all(value.numel() for value in values)
        return all(value.numel() and bool(value.isfinite().all()) for value in values)

    def least(self, spec: TensorSpec, axis: str) -> int:
        """Return the shortest length that runs, 0 where none of those does that are tried."""
        sizes = (1 << power for power in count())
        good = bad = 0
        for size in sizes:
            if size > _LONGEST_TRIAL[axis]:
                return 0
            if self.runs((spec,), {axis: size}) and self.runs((spec,), {axis: 2 * size + 1}):
                good = size
                break
            bad = size
        while good - bad > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.runs((spec,), {axis: middle}) else (good, middle)
        return good


def _shapes(name: str, config: Any) -> Iterator[TensorSpec]:
    """Yield shapes to try: waves, features of any number of frames, of as many as the config says, and turned."""
    if name == SOUND_INPUTS[0]:
        yield TensorSpec(name, "float32", (_BATCH, _SAMPLES))
    parts = [config.to_dict()]
    parts += [value for value in parts[0].values() if isinstance(value, dict)]
    sizes = [(key, value) for part in parts for key, value in part.items() if type(value) is int and value > 0]
    widths = list(dict.fromkeys(value for key, value in sizes if _BINS.search(key)))
    lengths = list(dict.fromkeys(value for key, value in sizes if key in _FIXED))
    for bins in widths:
        yield TensorSpec(name, "float32", (_BATCH, _FRAMES, bins))
    for bins in widths:
        for frames in lengths:
            yield TensorSpec(name, "float32", (_BATCH, frames, bins))
            yield TensorSpec(name, "float32", (_BATCH, bins, frames))
            yield TensorSpec(name, "float32", (_BATCH, bins, 2 * frames))  # Whisper halves them


def _masked(network: Any, config: Any, settings: Mapping[str, Any]) -> bool:
    """Tell whether the processor makes a mask that the network takes."""
    if MASK not in inspect.signature(network.forward).parameters:
        return False
    said = settings.get("return_attention_mask")
    return bool(said) if said is not None else getattr(config, "feat_extract_norm", "") != "group"


def _traced(least: int, config: Any) -> int:
    """Return a length to trace with: a prime that no size of the config equals, some times the least one."""
    taken = {value for value in config.to_dict().values() if type(value) is int}
    start = max(_TOP, _USUAL * least) + 1
    return next(size for size in count(start) if size not in taken and _is_prime(size))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % one for one in range(2, int(number**0.5) + 1))

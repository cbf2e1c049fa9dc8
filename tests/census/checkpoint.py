"""Write the tiny random checkpoint of a pair, as a person would find it on disk: config, weights, tokenizer, processor.

A config is made small in one way after another until the model can be built, is small, and answers what its kind of
model is asked, with numbers that are finite and not all alike. Where no
way does, what the first one raised says why.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.census.heads import Pair
from tests.census.shrink import SPECIAL, VOCABULARY, WAYS, Way, small
from tests.support.tiny import tiny_tokenizer

MOST_PARAMETERS = 30_000_000
SAMPLES = 4_000  # of sound, in a trial call
FRAMES = 100  # of a spectrogram: twice the positions of an encoder such as Whisper's
ORDINARY = 8  # ids from here on mean a word; those below are marks
PLACEHOLDERS = 20  # ids at the end of the table of words that may stand for pictures
CHOICES = 3


class NotMadeError(Exception):
    """No small checkpoint of a pair can be made by rule."""


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk.

    Attributes:
        folder: where it lies.
        way: how its config was made small.
        parameters: how many numbers its weights hold.
        inputs: names and shapes of what it was called with.
        task: as a person names it to onnxopt.
    """

    folder: Path
    way: str
    parameters: int
    inputs: dict[str, list[int]]
    task: str


def auto_class(pair: Pair) -> Any:
    """Return the class of transformers that builds models of a pair's head."""
    import transformers

    return getattr(transformers, pair.head.auto)


def class_names(pair: Pair) -> list[str]:
    """Return the classes that transformers' table has for a pair."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, pair.head.table)[pair.model_type]
    return [found] if isinstance(found, str) else list(found)


def make(pair: Pair, folder: Path) -> Made:
    """Write the checkpoint of a pair.

    Args:
        pair: what to make.
        folder: where; made when missing.

    Raises:
        NotMadeError: no way of making the config small gives a model that answers.
    """
    import torch

    torch.manual_seed(7)
    failed: list[str] = []
    for way in WAYS:
        try:
            network, config = _network(pair, way)
            inputs = _answering(pair, network, config)
        except Exception as error:  # noqa: BLE001  whatever it is, the next way may do
            failed.append(f"{type(error).__name__}: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(folder)
        if pair.head.kind != "image" and (_reads_text(network) or "vocab_size" in config.to_dict()):
            tiny_tokenizer(folder, gpt2=pair.head.name == "causal-lm")
        _write_processor(pair, folder, config, inputs)
        count = sum(parameter.numel() for parameter in network.parameters())
        shapes = {name: list(value.shape) for name, value in inputs.items()}
        task = "image-feature-extraction" if pair.head.name == "base" and list(shapes) == ["pixel_values"] else ""
        return Made(folder, way, count, shapes, task or pair.head.task)
    raise NotMadeError(" ".join(failed[0].split())[:300])


def small_config(pair: Pair, way: Way) -> Any:
    """Return the small config of a pair's model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[pair.model_type]
    config = kind(**small(pair.model_type, kind().to_dict(), way, pair.head.name))
    if pair.head.name == "causal-lm" and hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    config.architectures = class_names(pair)[
        :1
    ]  # where a table has several, an Auto class takes the one that the config names
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = SPECIAL["pad"]  # as the checkpoints of T5 have it, whose config class has none
    return config


def _network(pair: Pair, way: Way) -> tuple[Any, Any]:
    """Return the model with weights that are drawn, for inference.

    Raises:
        NotMadeError: it is not small.
    """
    import torch

    auto = auto_class(pair)
    config = small_config(pair, way)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise NotMadeError(f"{count:,} parameters are more than {MOST_PARAMETERS:,}")
    network = auto.from_config(small_config(pair, way)).float().eval()
    draw_weights(network)
    return network, network.config


def draw_weights(network: Any) -> None:
    """Draw all weights and biases, and the statistics of batch norms: fresh ones are zeros and ones, which hide errors.

    Matrices get a deviation that keeps the size of what goes through them, so that deep networks stay finite.
    """
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.is_floating_point():
                continue
            is_scale = parameter.ndim == 1 and ("norm" in name.lower() or name.endswith((".weight", ".gamma")))
            fan = parameter[0].numel() if parameter.ndim > 1 else 0
            deviation = min(0.2, 1.2 / fan**0.5) if fan else 0.1
            parameter.normal_(1.0 if is_scale and not name.endswith("bias") else 0.0, deviation)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.7, 1.4)


def _answering(pair: Pair, network: Any, config: Any) -> dict[str, Any]:
    """Return inputs that a model answers with finite numbers that differ.

    Raises:
        Exception: what the first call raised, the plainest, where none is answered so.
    """
    import torch

    failures: list[Exception] = []
    for inputs in calls(pair, network, config):
        try:
            with torch.no_grad():
                answers = tensors_of(network(**inputs))
        except Exception as error:  # noqa: BLE001  the next call may do
            failures.append(error)
            continue
        floats = {name: value for name, value in answers.items() if value.is_floating_point() and value.numel()}
        if not floats:
            failures.append(NotMadeError("no answer holds numbers"))
        elif not all(torch.isfinite(value).any() for value in floats.values()):
            failures.append(NotMadeError("an answer is not finite"))
        else:
            return inputs
    raise failures[0] if failures else NotMadeError("nothing to call it with")


def tensors_of(answer: Any) -> dict[str, Any]:
    """Return the tensors of a model's answer by their names; a nested one's by its path."""
    import torch

    found: dict[str, Any] = {}
    items = answer.items() if isinstance(answer, Mapping) else ()
    for name, value in items:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in tensors_of(value).items()}
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}.{index}": one for index, one in enumerate(value) if isinstance(one, torch.Tensor)}
    if isinstance(answer, torch.Tensor):
        return {"output": answer}
    if isinstance(answer, tuple):
        return {f"output.{index}": one for index, one in enumerate(answer) if isinstance(one, torch.Tensor)}
    return found


def _reads_text(network: Any) -> bool:
    return "input_ids" in inspect.signature(network.forward).parameters


def calls(pair: Pair, network: Any, config: Any) -> Iterator[dict[str, Any]]:
    """Yield what a model may be called with, the plainest first: its main input, then with what may go with it."""
    import torch

    accepted = inspect.signature(network.forward).parameters
    main = getattr(network, "main_input_name", "input_ids")
    text = _text(pair, accepted, config)
    decoder = {"decoder_input_ids": text["input_ids"][:, :5]} if "decoder_input_ids" in accepted and text else {}
    if main == "input_ids" or main not in accepted:
        yield text
        yield text | decoder
    images = list(_images(config)) if "pixel_values" in accepted else []
    for image in images:
        pixels = {"pixel_values": image}
        if main == "pixel_values":
            yield pixels
            yield pixels | text
        yield text | pixels
        yield {"pixel_values": image[:, None].repeat(1, 4, 1, 1, 1)}
    for name in ("input_features", "input_values"):
        if name in accepted:
            for sound in _sounds(config, name):
                yield {name: sound}
                yield {name: sound, "decoder_input_ids": torch.full((2, 5), ORDINARY)}
                yield text | {name: sound}
    if "bbox" in accepted and text:
        boxes = {"bbox": torch.zeros((*text["input_ids"].shape, 4), dtype=torch.long)}
        yield text | boxes
        for image in images:
            yield text | boxes | {"pixel_values": image}
    if "past_values" in accepted:
        yield {"past_values": torch.randn(2, int(getattr(config, "context_length", 32)), 1)}
        yield {"past_values": torch.randn(2, int(getattr(config, "context_length", 32)), 7)}


def _text(pair: Pair, accepted: Mapping[str, Any], config: Any) -> dict[str, Any]:
    import torch

    if "input_ids" not in accepted:
        return {}
    shape = (2, CHOICES, 11) if pair.head.name == "multiple-choice" else (2, 11)
    rng = np.random.default_rng(3)
    words = words_of(config)
    ids = torch.from_numpy(rng.integers(ORDINARY, words, shape))
    ids[..., -1] = end_of(config, ids[0, ..., -1].ravel()[0])
    text = {"input_ids": ids}
    if "attention_mask" in accepted:
        text["attention_mask"] = torch.ones_like(ids)
    if "token_type_ids" in accepted and int(getattr(config, "type_vocab_size", 0) or 0) > 1:
        text["token_type_ids"] = torch.zeros_like(ids)
    return text


def words_of(config: Any) -> int:
    """Return below which id every id means a word that may stand anywhere."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = int(getattr(inner, "vocab_size", None) or VOCABULARY)
    return max(ORDINARY + 1, min(count, VOCABULARY) - PLACEHOLDERS)


def end_of(config: Any, otherwise: Any = None) -> Any:
    """Return the id that ends a text, which some heads read their answer from; `otherwise` where there is none."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    ends = getattr(inner, "eos_token_id", None)
    ends = ends[0] if isinstance(ends, (list, tuple)) and ends else ends
    return ends if isinstance(ends, int) and 0 <= ends < VOCABULARY else otherwise


def _images(config: Any) -> Iterator[Any]:
    """Yield pictures of the sizes that a config names, its own first, then of the size that all are made small to."""
    import torch

    parts = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    sizes: list[tuple[int, int, int]] = []
    for part in parts:
        size = getattr(part, "image_size", None) or getattr(part, "img_size", None)
        pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(part, "num_channels", None) or 3
        if len(pair) == 2 and all(isinstance(one, int) and one > 0 for one in pair):
            sizes.append((int(channels), int(pair[0]), int(pair[1])))
    channels = getattr(config, "num_channels", None) or 3
    sizes.append((channels if isinstance(channels, int) else 3, 64, 64))
    for channels, height, width in dict.fromkeys(sizes):
        yield torch.randn(2, channels, height, width)


def _sounds(config: Any, name: str) -> Iterator[Any]:
    """Yield sound as a wave, or as a spectrogram with its bins last or first."""
    import torch

    inner = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    bins = next((int(b) for part in inner if (b := _bins(part))), 0)
    frames = next(
        (int(n) for part in inner if (n := getattr(part, "max_length", 0)) and "spectrogram" in part.model_type), FRAMES
    )
    if name == "input_values" and not bins:
        yield torch.randn(2, SAMPLES)
        yield torch.randn(2, 1, SAMPLES)
        return
    for shape in ((2, frames, bins or 80), (2, bins or 80, FRAMES), (2, 1, 1001, bins or 64)):
        yield torch.randn(shape)
    yield torch.randn(2, SAMPLES)


def _bins(part: Any) -> int:
    for name in ("num_mel_bins", "input_feat_per_channel", "feature_size", "num_mel_features", "input_dim"):
        if isinstance(value := getattr(part, name, None), int):
            return value
    return 0


def _write_processor(pair: Pair, folder: Path, config: Any, inputs: Mapping[str, Any]) -> None:
    """Write what turns pictures or sound into tensors, as the model type's own class writes it, at this size."""
    pixels = inputs.get("pixel_values")
    if pixels is not None and pixels.ndim >= 4:
        height, width = (int(size) for size in pixels.shape[-2:])
        content: dict[str, Any] = _processor_of(pair, "image") or {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "rescale_factor": 1 / 255,
        }
        content["size"] = {"height": height, "width": width}
        if content.get("crop_size"):
            content["crop_size"] = {"height": height, "width": width}
    elif any(name in inputs for name in ("input_values", "input_features")):
        content = _processor_of(pair, "sound") or {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
        if bins := next((one for part in (config,) if (one := _bins(part))), 0):
            content |= {key: bins for key in ("feature_size", "num_mel_bins") if key in content}
    else:
        return
    (folder / "preprocessor_config.json").write_text(json.dumps(content, default=str), encoding="utf-8")


def _processor_of(pair: Pair, kind: str) -> dict[str, Any]:
    """Return what the model type's own processor writes by itself; empty where it has none that does."""
    import transformers
    from transformers.models.auto import feature_extraction_auto, image_processing_auto

    table = (
        image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
        if kind == "image"
        else feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES
    )
    named = table.get(pair.model_type)
    names = list(named.values()) if isinstance(named, Mapping) else [named] if isinstance(named, str) else named or ()
    for name in names:
        try:
            content = getattr(transformers, name)().to_dict()
        except Exception:  # noqa: BLE001, S112  it needs an argument or a package; the next one, or a plain one, does
            continue
        key = "image_processor_type" if kind == "image" else "feature_extractor_type"
        return {one: value for one, value in content.items() if _is_json(value)} | {key: name}
    return {}


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))

"""Models that read texts and pictures: what they take together, and one of their towers alone.

CLIP and its kin compare every text with every picture, so there are as many of one as one likes, whatever the number of
the other: `input_ids` [batch, sequence] and `pixel_values` [image_batch, channels, height, width]. Each tower alone is
a method of transformers (`get_text_features`, `get_image_features`), the same for all architectures; none is named
here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.quiet import quiet
from onnxopt.load.export.images import PIXELS
from onnxopt.spec import TensorSpec
from onnxopt.tasks.task import Head, Task
from onnxopt.texts.tokenizer import token_ids

_TRIED = 3  # tokens of a text that is tried with padding
_SAME = 1e-4  # of the largest number: what rounding leaves of a difference


def reads_both(task: Task) -> bool:
    """Tell whether a task is about texts and pictures together."""
    return {"text", "image"} <= set(task.takes)


def tower_of(network: Any, head: Head) -> Any:
    """Return the part of a model that gives the features of texts, or of pictures, alone.

    Args:
        network: transformers' module.
        head: what is asked of it; its first output is that of the tower.

    Returns:
        A torch module with the signature of transformers' method; the network itself where it has no such method.
    """
    import torch

    method: Any = getattr(network, head.tower, None) if head.tower else None
    if method is None:
        return network
    name = head.outputs[0]

    class Tower(torch.nn.Module):
        """One method of the network as a module."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.config = network.config
            self.main_input_name = next(iter(inspect.signature(method).parameters))

        def forward(self, **feeds: Any) -> dict[str, Any]:
            found = method(**feeds)
            return {name: getattr(found, "pooler_output", found)}

    Tower.forward.__signature__ = _beside_self(method)  # type: ignore[attr-defined]  # what may be given is asked for
    Tower.__name__ = f"{type(network).__name__}.{head.tower}"
    return Tower().eval()


def _beside_self(method: Any) -> inspect.Signature:
    """Return the signature of a bound method as a function of its class has it."""
    given = list(inspect.signature(method).parameters.values())
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *given])


def picture_of(network: Any, config: Any, head: Head, size: Sequence[int], *, where: str) -> TensorSpec:
    """Return the input for pictures of a model that reads texts too.

    Args:
        network: transformers' module.
        config: its config.
        head: says what the first axis is.
        size: height and width.
        where: the source, for messages.

    Raises:
        InputError: the model takes no pictures as channels, rows and columns of one size.
    """
    if PIXELS not in inspect.signature(network.forward).parameters:
        raise InputError(f"{type(network).__name__} takes no {PIXELS} beside its text", where=where)
    seen = seen_config(config)
    if getattr(seen, "num_patches", None) and not getattr(seen, "image_size", None):
        raise InputError(
            f"{type(network).__name__} takes patches of pictures that each have a number of their own",
            where=where,
            hint="use a checkpoint of the family that takes pictures of one size",
        )
    return TensorSpec(PIXELS, "float32", (head.pictures, channels_of(config), *size))


def seen_config(config: Any) -> Any:
    """Return the part of a config that is about pictures: itself where it has none."""
    return getattr(config, "vision_config", None) or config


def channels_of(config: Any) -> int:
    """Return the channels of a model's pictures; three where its config does not say."""
    return int(getattr(seen_config(config), "num_channels", 3) or 3)


def text_config(config: Any) -> Any:
    """Return the part of a config that is about text: itself where it has none."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def always_padded(network: Any, config: Any, head: Head) -> int:
    """Return how long every text has to be for a model that was trained with texts padded to one length.

    SigLIP answers for the last position, padding or not: no mask makes two lengths of padding give the same. It is
    found by trying, on one text with and without padding behind it.

    Args:
        network: transformers' module, which has the features of texts as a method.
        config: its config.
        head: of the features of texts.

    Returns:
        Tokens of a row; 0 where padding that is masked changes nothing.
    """
    import torch

    method = getattr(network, head.tower, None)
    if method is None or "attention_mask" not in inspect.signature(method).parameters:
        return 0
    part = text_config(config)
    pad = next(iter(token_ids(getattr(part, "pad_token_id", None))), 0)
    ids = [one for one in range(3, 64) if one != pad][:_TRIED]
    longest = int(getattr(part, "max_position_embeddings", 0) or 0)

    def features(padding: int) -> Any:
        given = torch.tensor([[*ids, *[pad] * padding]])
        mask = torch.tensor([[1] * len(ids) + [0] * padding])
        with torch.inference_mode(), quiet():
            return method(input_ids=given, attention_mask=mask).pooler_output.float().numpy()

    try:
        alone, padded = features(0), features(2)
    except Exception:  # noqa: BLE001  whatever a model raises is said where it is run in earnest
        return 0
    same = float(np.max(np.abs(alone - padded))) <= _SAME * float(np.max(np.abs(alone)))
    return 0 if same else longest


def scores_of_compared(network: Any) -> Literal["softmax", "sigmoid"]:
    """Return what the logits of a model that compares become.

    What is trained with a sigmoid for every pair has a bias that moves them (Zhai et al. 2023, arXiv:2303.15343); with
    a softmax over all texts it would change nothing.

    Args:
        network: torch module with the parameters of transformers' model.
    """
    names = (name.rpartition(".")[2] for name, _ in network.named_parameters())
    return "sigmoid" if "logit_bias" in names else "softmax"

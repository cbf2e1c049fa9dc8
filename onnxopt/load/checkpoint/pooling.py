"""Turn token features into one vector per sentence, as a sentence-transformers checkpoint describes it.

Source: Reimers & Gurevych 2019, arXiv:1908.10084; `modules.json` and `N_Pooling/config.json` of such checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.folder import read_json_object
from onnxopt.texts.settings import check_settings

# The order in which several modes are concatenated, with the two ways in which checkpoints spell them.
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_SMALLEST_COUNT = 1e-9


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling.

    Attributes:
        weights: its safetensors file.
        activation: class name in torch.nn.
    """

    weights: Path
    activation: str


@dataclass(frozen=True)
class Pooling:
    """How a checkpoint makes a sentence embedding.

    Attributes:
        modes: names of `MODES`, concatenated in this order.
        dense: linear layers after pooling.
        normalize: whether the result has length 1.
    """

    modes: tuple[str, ...]
    dense: tuple[Dense, ...] = field(default=())
    normalize: bool = False

    def __str__(self) -> str:
        parts = [" + ".join(self.modes) + " pooling", *(f"dense {one.activation}" for one in self.dense)]
        return ", ".join([*parts, "L2 normalisation"] if self.normalize else parts)


class _UnsupportedError(Exception):
    """The embedding has a part that is not supported; the message says which."""


def read_pooling(folder: Path | None) -> tuple[Pooling | None, str]:
    """Read how a checkpoint pools.

    Returns:
        The description, or None; and a note that says why a described embedding is left out, or an empty string.
    """
    modules = folder / "modules.json" if folder else None
    if folder is None or modules is None or not modules.is_file():
        return None, ""
    try:
        return _read(folder, modules), ""
    except _UnsupportedError as reason:
        return None, f"no sentence_embedding output: {reason}"


def described_pooling(folder: Path) -> Pooling | None:
    """Read how a checkpoint pools where its weights may be gone; None where it does not say it.

    Args:
        folder: with the small files of a checkpoint, such as those of an artifact.
    """
    modules = folder / "modules.json"
    try:
        return _read(folder, modules, with_weights=False) if modules.is_file() else None
    except (_UnsupportedError, InputError):
        return None


def _read(folder: Path, modules: Path, *, with_weights: bool = True) -> Pooling | None:
    try:
        steps = json.loads(modules.read_text(encoding="utf-8"))
        kinds = [(str(step["type"]).rsplit(".", 1)[-1], str(step["path"])) for step in steps]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _UnsupportedError("modules.json cannot be read") from error
    modes: tuple[str, ...] = ()
    dense: list[Dense] = []
    normalize = False
    for kind, path in kinds:
        if kind == "Pooling":
            modes = _modes(_inside(folder, path) / "config.json")
        elif kind == "Dense" and modes and not normalize:
            dense.append(_dense(_inside(folder, path), with_weights=with_weights))
        elif kind == "Normalize" and modes:
            normalize = True
        elif kind != "Transformer":
            raise _UnsupportedError(f"modules.json has a {kind} step")
    return Pooling(modes, tuple(dense), normalize) if modes else None


def _inside(folder: Path, path: str) -> Path:
    """Return a module's folder; its path comes from the checkpoint and must stay inside."""
    parts = PurePosixPath(path).parts
    if len(parts) != 1 or parts[0] in ("..", "/") or "\\" in path:
        raise _UnsupportedError(f"modules.json names the path {path!r}")
    return folder / parts[0]


def _modes(path: Path) -> tuple[str, ...]:
    settings = read_json_object(path)
    check_settings(settings, str(path))
    named = settings.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        modes = tuple(mode for mode, key in MODES.items() if settings.get(key))
    unknown = [str(mode) for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise _UnsupportedError(f"pooling mode {unknown[0] if unknown else 'none'} is not supported")
    return tuple(mode for mode in MODES if mode in modes)


def _dense(folder: Path, *, with_weights: bool) -> Dense:
    settings = read_json_object(folder / "config.json")
    check_settings(settings, str(folder / "config.json"))
    weights = folder / "model.safetensors"
    if with_weights and not weights.is_file():
        raise _UnsupportedError(f"{folder.name} has no model.safetensors")
    activation = str(settings.get("activation_function", "torch.nn.modules.linear.Identity")).rsplit(".", 1)[-1]
    if activation not in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU"):
        raise _UnsupportedError(f"{folder.name} has the activation {activation}")
    return Dense(weights, activation)


def build_head(pooling: Pooling) -> Callable[[Any, Any], Any]:
    """Return a torch module that pools.

    It takes float32 [batch, sequence, width] and the mask, int64 [batch, sequence], and gives float32 [batch, width'].
    """
    import torch
    from safetensors.torch import load_file

    layers: list[torch.nn.Module] = []
    for dense in pooling.dense:
        tensors = load_file(dense.weights)
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight.float(), **({"bias": bias.float()} if bias is not None else {})})
        layers += [linear, getattr(torch.nn, dense.activation)()]

    class Head(torch.nn.Module):
        """Pool, then apply the dense layers, then normalise."""

        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Sequential(*layers)

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            pooled = torch.cat([_pool(mode, hidden, mask) for mode in pooling.modes], dim=-1)
            vector = self.dense(pooled)
            return torch.nn.functional.normalize(vector, p=2.0, dim=-1) if pooling.normalize else vector

    return Head().eval()


def _pool(mode: str, hidden: Any, mask: Any) -> Any:
    """Return one vector per row by one mode; positions whose mask is 0 do not count."""
    import torch

    if mode == "cls":
        return hidden[:, 0]
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "max":
        return hidden.masked_fill(kept == 0, torch.finfo(hidden.dtype).min).max(dim=1).values
    if mode == "lasttoken":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (positions * mask).argmax(dim=1)
        return hidden.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)
    if mode == "weightedmean":
        kept = kept * torch.arange(1, mask.shape[1] + 1, device=mask.device).to(hidden.dtype).reshape(1, -1, 1)
    total = (hidden * kept).sum(dim=1)
    count = kept.sum(dim=1).clamp(min=_SMALLEST_COUNT)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)

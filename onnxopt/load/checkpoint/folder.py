"""Read a checkpoint folder without trusting it: its config, its weight files, its tokenizer and processor files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError, word
from onnxopt.host.files import regular_size
from onnxopt.host.folders import sha256_of
from onnxopt.host.quiet import quiet
from onnxopt.load.source.source import Source
from onnxopt.records.events import Step
from onnxopt.texts.settings import PREPROCESSOR, check_settings
from onnxopt.texts.tokenizer import read_settings

MAX_JSON_BYTES = 16 << 20
MAX_ASSET_BYTES = 256 << 20

# Keys of a config by which a checkpoint can name code, kernels or files of other places (transformers CVE-2026-4372).
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "use_kernels", "kernel_config"})
PLACE_KEYS = frozenset({"_name_or_path", "transformers_weights"})

TOKENIZER_MODELS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_ASSETS = (
    *TOKENIZER_MODELS,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """What a source holds, read and cleaned.

    Attributes:
        source: where it came from.
        settings: content of config.json without the keys that can run code.
        removed: the keys that were taken out.
        weights: the weight files, by path.
    """

    source: Source
    settings: Mapping[str, Any]
    removed: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The folder, if there is one."""
        return self.source.path

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a file that a tokenizer can be made of."""
        return any(self.folder and (self.folder / name).is_file() for name in TOKENIZER_MODELS)

    @property
    def image_processor(self) -> Mapping[str, Any]:
        """The settings of its image processor, empty without one; raises InputError where they cannot be read."""
        return read_settings(self.folder, PREPROCESSOR) if self.folder else {}


def read_checkpoint(source: Source) -> Checkpoint:
    """Read a source's config and list its weights; nothing of the checkpoint is run.

    Raises:
        InputError: for a config that is no JSON object, an adapter, or quantized weights.
    """
    if source.path is None:
        settings = dict(source.recipe.architecture) if source.recipe else {}
        return Checkpoint(source, settings)
    folder = source.path
    settings = read_json_object(folder / "config.json")
    check_settings(settings, str(folder / "config.json"))
    if (folder / "adapter_config.json").is_file():
        raise InputError("is an adapter, not a model", where=str(folder), hint="merge it into its base model first")
    if "quantization_config" in settings:
        raise InputError("the weights are already quantized", where=str(folder), hint="give the float checkpoint")
    removed: list[str] = []
    kept = settings if source.trust_remote_code else _without_code(settings, "", removed)
    kept = _with_activation(kept, folder)
    weights = () if source.weights == "random" else tuple(sorted(folder.glob("*.safetensors")))
    for path in weights:
        regular_size(path)
        if path.is_dir():
            raise InputError("is a folder, not a file of weights", where=str(path), hint="put the file in its place")
    for index in folder.glob("*.safetensors.index.json"):
        _check_index(index)
    return Checkpoint(source, kept, tuple(removed), weights)


def _with_activation(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with what a cross-encoder says beside them of its scores, where older ones say it in them."""
    path = folder / "config_sentence_transformers.json"
    told = read_json_object(path) if path.is_file() else {}
    if told.get("model_type") != "CrossEncoder" or settings.get("sentence_transformers"):
        return settings
    return settings | {"sentence_transformers": {"activation_fn": str(told.get("activation_fn") or "")}}


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises InputError, in one line, for anything else."""
    try:
        if regular_size(path) > MAX_JSON_BYTES:
            raise InputError(f"is larger than {MAX_JSON_BYTES} bytes", where=str(path))
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise InputError(f"holds a {type(content).__name__}, expected an object", where=str(path))
    return content


def _without_code(settings: Mapping[str, Any], prefix: str, removed: list[str]) -> dict[str, Any]:
    """Return the settings without the keys that can name code or files; also those of nested configs."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if key in CODE_KEYS or "_implementation" in key:
            removed.append(f"{prefix}{key}")
        elif key not in PLACE_KEYS:
            kept[key] = _without_code(value, f"{prefix}{key}.", removed) if isinstance(value, dict) else value
    return kept


def _check_index(path: Path) -> None:
    """Refuse an index of weight shards that points out of its folder."""
    shards = read_json_object(path).get("weight_map", {})
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"names the shard {word(repr(name))}, expected a .safetensors file beside it", where=str(path)
            )


def load_config(checkpoint: Checkpoint) -> Any:
    """Return transformers' config object.

    Raises:
        InputError: for a model type that transformers does not know, or values that it refuses.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    where = checkpoint.source.text
    try:
        if checkpoint.source.trust_remote_code:
            with quiet():
                return transformers.AutoConfig.from_pretrained(
                    checkpoint.folder, trust_remote_code=True, local_files_only=True
                )
    except Exception as error:
        raise InputError(f"transformers cannot read the config: {error}", where=where) from error
    kind = checkpoint.settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own_code = any(key.endswith("auto_map") for key in checkpoint.removed)
        raise InputError(
            f"transformers {transformers.__version__} does not know the model type {kind!r}"
            + (", which comes with its own code (auto_map)" if own_code else ""),
            where=where,
            hint="allow its code with trust_remote_code if you trust where it comes from" if own_code else "",
        )
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(dict(checkpoint.settings))
    except Exception as error:
        raise InputError(f"transformers refuses the config: {error}", where=where) from error


def weights_digest(checkpoint: Checkpoint, say: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Return the SHA-256 of every file that decides what the model computes, by path relative to its folder.

    Args:
        checkpoint: whose files.
        say: told each file that is read, and how many of all bytes are done.
    """
    if checkpoint.folder is None:
        return {}
    files = [*checkpoint.weights, *assets_of(checkpoint.folder), checkpoint.folder / "config.json"]
    if checkpoint.source.trust_remote_code:
        files += sorted(checkpoint.folder.glob("*.py"))
    files += sorted(checkpoint.folder.glob("[0-9]_*/*.safetensors"))
    found: dict[str, str] = {}
    done, total = 0, sum(path.stat().st_size for path in files)
    for path in files:
        say(Step("hashing the weights", done=done, total=total))
        found[path.relative_to(checkpoint.folder).as_posix()] = sha256_of(path)
        done += path.stat().st_size
    return found


def assets_of(folder: Path) -> tuple[Path, ...]:
    """Return the tokenizer, processor and pooling files of a checkpoint folder.

    Raises:
        InputError: for a link that leaves the checkpoint (a Hub snapshot may link into its own cache), or a huge file.
    """
    found = sorted({path for pattern in _ASSETS for path in folder.glob(pattern) if path.is_file()})
    inside = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for path in found:
        real = path.resolve()
        if not any(real.is_relative_to(room) for room in inside):
            raise InputError("is a link out of the checkpoint", where=str(path), hint="copy the file in its place")
        if real.stat().st_size > MAX_ASSET_BYTES:
            raise InputError(f"is larger than {MAX_ASSET_BYTES} bytes", where=str(path))
    return tuple(found)


def write_assets(checkpoint: Checkpoint, config: Any, target: Path) -> None:
    """Copy what an artifact needs beside the graph: cleaned config.json, tokenizer, processor and pooling files.

    Args:
        checkpoint: where they come from.
        config: transformers' config object.
        target: folder to make.
    """
    target.mkdir(parents=True)
    if checkpoint.folder is None:
        settings = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    else:
        settings = _without_code(checkpoint.settings, "", [])
    (target / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if checkpoint.folder is None:
        return
    for path in assets_of(checkpoint.folder):
        copy = target / path.relative_to(checkpoint.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def relative_assets(assets: tuple[Path, ...]) -> dict[str, Path]:
    """Return the assets by the path they have in their checkpoint, such as `1_Pooling/config.json`.

    config.json is always among them, so the folder that all share is the checkpoint's.
    """
    if not assets:
        return {}
    root = Path(os.path.commonpath([path.parent for path in assets]))
    return {path.relative_to(root).as_posix(): path for path in assets}

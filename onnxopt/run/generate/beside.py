"""What lies beside a language model: its manifest, tokenizer, context and end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.records.manifest import MANIFEST_NAME, Manifest
from onnxopt.run.there import DECODER_NAME, MODEL_NAME, model_file
from onnxopt.spec import SOUND_INPUTS
from onnxopt.texts.tokenizer import TOKENIZER_NAME, tokenizer_file


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of an artifact; None for a plain .onnx file or a folder with nothing but one."""
    if (path / DECODER_NAME).is_file():
        return Manifest.read(path)
    file = model_file(path)
    own = file.name == MODEL_NAME and (file.parent / MANIFEST_NAME).is_file()
    return Manifest.read(file.parent) if own else None


def tokenizer_folder(path: Path, tokenizer: str | Path | None) -> Path:
    """Return the folder with the tokenizer: the one that was named, or the model's own."""
    if tokenizer is None:
        return path if (path / DECODER_NAME).is_file() else model_file(path).parent
    named = Path(tokenizer)
    return named.parent if named.name == TOKENIZER_NAME else named


def require_with_tokenizer(path: Path, tokenizer: str | Path | None) -> None:
    """Refuse what is no model that reads text, without opening it.

    Args:
        path: an artifact folder, or an .onnx file.
        tokenizer: what was named as its tokenizer; None for the one beside it.

    Raises:
        InputError: there is no such model, or no tokenizer.
    """
    require_writing(path, read_manifest(path))
    tokenizer_file(tokenizer_folder(path, tokenizer))


def require_writing(path: Path, manifest: Manifest | None) -> None:
    """Refuse an artifact that answers a sound at once, as a network of CTC does.

    Args:
        path: its folder.
        manifest: of it; None for a plain file, of which nothing is said.

    Raises:
        InputError: names the command that tries it.
    """
    if manifest is None or manifest.parts:
        return
    if any(spec.name in SOUND_INPUTS for spec in manifest.signature.inputs):
        what = f"a model for {manifest.task} that answers a sound at once writes no tokens one after the other"
        raise InputError(what, where=str(path), hint="try it with `onnxopt run`")


def context_length(config: Mapping[str, Any]) -> int:
    """Return the most positions that a config speaks of; 0 when it does not."""
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return found if isinstance(found, int) and found > 0 else 0


def end_ids(settings: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[int]:
    """Return the tokens that end a text.

    Args:
        settings: content of generation_config.json, which comes first.
        config: content of config.json.
    """
    return as_ids(settings.get("eos_token_id", config.get("eos_token_id")))


def as_ids(value: object) -> frozenset[int]:
    """Return the token ids in a setting that holds one or a list of them; anything else holds none."""
    if isinstance(value, int):
        return frozenset({value})
    return frozenset(one for one in value if isinstance(one, int)) if isinstance(value, list) else frozenset()

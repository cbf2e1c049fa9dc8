"""Turn a GGUF file into a checkpoint folder, once: safetensors, config and tokenizer, in the user's cache.

The weights are the numbers that the file stands for as float32, and lie in 16 bits where those hold them all.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.host.disk import code_of
from onnxopt.host.extras import lacking, require
from onnxopt.host.folders import CONTENTS_NAME, sealed, sha256_of
from onnxopt.host.quiet import quiet
from onnxopt.host.usercache import cache_root, make_entry, use_entry
from onnxopt.load.source.streamed import WeightStream

_FILES, _ORIGIN = "files", "origin.txt"
_TELLING = ("config.json", "tokenizer.json")
_MAGIC = b"GGUF"

logger = logging.getLogger(__name__)


def convert_gguf(path: Path, *, progress: Callable[[str], None] | None = None) -> Path:
    """Return a checkpoint folder with the dequantized weights of a GGUF file.

    Args:
        path: the file.
        progress: told what is being done.

    Returns:
        A folder in the user's cache with config.json, model.safetensors and the tokenizer's files.

    Raises:
        InputError: when the file is no GGUF, transformers cannot read it, or the packages that read it are missing.
    """
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise InputError("is no GGUF file", where=str(path))
    require("gguf", "reading a GGUF file", where=str(path))
    entry = cache_root() / "converted" / f"{path.stem}-{sha256_of(path)[:16]}"
    use_entry(entry)
    if sealed(entry, _FILES):
        _remember(entry, path)
        return entry / _FILES
    if progress:
        progress(f"dequantizing {path.name} to float32")
    entry, _ = make_entry(entry, lambda fresh: _convert(path, fresh / _FILES), inside=_FILES)
    _remember(entry, path)
    return entry / _FILES


def _remember(entry: Path, path: Path) -> None:
    """Say where the file lies now, for who wants its grids."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is still a cache
        (entry / _ORIGIN).write_text(str(path.resolve()), encoding="utf-8")


def gguf_behind(assets: Collection[Path]) -> Path | None:
    """Return the GGUF file that a checkpoint was converted from, while it lies where it lay.

    Args:
        assets: the checkpoint's small files, or copies of them; a converted one is known by their content.
    """
    known = {path.name: sha256_of(path) for path in assets if path.name in _TELLING}
    for entry in sorted((cache_root() / "converted").glob("*/")):
        try:
            recorded = json.loads((entry / CONTENTS_NAME).read_text(encoding="utf-8"))
            path = Path((entry / _ORIGIN).read_text(encoding="utf-8"))
            alike = len(known) == len(_TELLING) and all(recorded.get(name) == digest for name, digest in known.items())
            if alike and sha256_of(path)[:16] == entry.name.rpartition("-")[2]:
                return path
        except (OSError, ValueError):  # noqa: PERF203 - a damaged entry says nothing about the next
            continue
    return None


def _convert(path: Path, target: Path) -> None:
    """Read the file with transformers and write it as any other checkpoint, weight by weight."""
    import transformers

    from onnxopt.probe.memory import release_memory  # which takes a while

    folder, name = path.parent, path.name
    target.mkdir(parents=True, exist_ok=True)
    try:
        # the reader draws a progress bar of its own on stderr
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            model = _written(path, target / "model.safetensors")
            transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
    except ImportError as error:
        raise lacking("gguf", str(error), where=str(path)) from error
    except Exception as error:
        if code_of(error):  # a full disk
            raise
        raise InputError(f"transformers cannot read it: {error}", where=str(path)) from error
    skip = ("quantization_config", "id2label", "label2id")
    settings = {key: one for key, one in model.config.to_dict().items() if key not in skip and not key.startswith("_")}
    settings |= {"architectures": [type(model).__name__], "dtype": "float32"}
    text = json.dumps(settings, indent=2, sort_keys=True, default=str)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    del model
    release_memory()  # the reader makes objects for every word of the vocabulary, and the allocator keeps their room


def _written(path: Path, weights: Path) -> Any:
    """Write the weights as transformers loads them, or all together where that does not work; return the network.

    The network may hold stand-ins for its weights.
    """
    import torch
    import transformers

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    stream = WeightStream(weights)
    try:
        with stream.taking():
            model = load()
        stream.finish(model)
    except ImportError:
        raise
    except Exception as error:
        if code_of(error):  # a full disk
            raise
        logger.info("the weights of %s are not written as they are read: %s", path.name, error)
        model = load()
        stream = WeightStream(weights)
        stream.finish(model)
    return model

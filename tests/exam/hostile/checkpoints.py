"""Hostile checkpoints: settings of wrong types and sizes, damaged weights, indices and links that lead out."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.exam.hostile.cases import Case, checkpoint, edited, optimized

SEED = 16
CONFIG: dict[str, tuple[Any, ...]] = {
    "architectures": (5, "BertModel", {"a": 1}, [[]], [None], ["os.system"], []),
    "model_type": (7, ["bert"], "../../etc", "no-such-model", None),
    "hidden_size": ("32", -32, 0, 2**40, 33, [32], None),
    "num_attention_heads": (0, -4, "4", 2**31, 7),
    "num_hidden_layers": (-1, "1", 10**6, [1]),
    "intermediate_size": (0, 2**45, {}),
    "vocab_size": (0, -1, 2**50, "many", 3),
    "max_position_embeddings": (0, 2**50, "512", [1]),
    "type_vocab_size": (-2, 2**40),
    "hidden_act": (5, "os.system", ["gelu"], None),
    "layer_norm_eps": ("small", -1e9, {}),
    "initializer_range": ("x", -1),
    "pad_token_id": ("a", 10**9, [0, [1]]),
    "id2label": ([1], "x", {"0": ["a"]}),
    "torch_dtype": (5, "float1", "os", ["float16"]),
    "quantization_config": ({}, "int8"),
    "auto_map": ({"AutoModel": "evil.Model"}, [1]),
    "_attn_implementation": ("evil", 5),
    "chunk_size_feed_forward": (-1, "a"),
}


def _config(key: str, value: Any, folder: Path) -> list[str]:
    edited(checkpoint(folder) / "config.json", **{key: value})
    return optimized(folder / "checkpoint")


def _written(name: str, content: bytes, folder: Path) -> list[str]:
    (checkpoint(folder) / name).write_bytes(content)
    return optimized(folder / "checkpoint")


def _changed(name: str, change: Callable[[bytes], bytes], folder: Path) -> list[str]:
    path = checkpoint(folder) / name
    path.write_bytes(change(path.read_bytes()))
    return optimized(folder / "checkpoint")


def _done(change: Callable[[Path], object], folder: Path) -> list[str]:
    change(checkpoint(folder))
    return optimized(folder / "checkpoint")


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Change the header of a safetensors file."""

    def changed(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return changed


def _first(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for name, entry in header.items() if name != "__metadata__")
    return entry


def _flipped(content: bytes, seed: int) -> bytes:
    draw, made = random.Random(seed), bytearray(content)  # noqa: S311  damage, no secrets
    for _ in range(20):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _nan(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    return content[: 8 + length] + b"\xff" * (len(content) - 8 - length)


def _replaced_by(make: Callable[[Path], object], name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)


WEIGHTS = "model.safetensors"
CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "weights cut short": (WEIGHTS, lambda content: content[: len(content) // 2]),
    "weights of nothing": (WEIGHTS, lambda _: b""),
    "weights with a header of 2^62 bytes": (WEIGHTS, lambda content: struct.pack("<Q", 1 << 62) + content[8:]),
    "weights with a header that is no JSON": (WEIGHTS, lambda content: content[:8] + b"[" * 64 + content[72:]),
    "weights of a type that nobody knows": (WEIGHTS, _header(lambda header: _first(header).update(dtype="F1"))),
    "weights beyond the file": (WEIGHTS, _header(lambda header: _first(header).update(data_offsets=[0, 1 << 50]))),
    "weights of a negative shape": (WEIGHTS, _header(lambda header: _first(header).update(shape=[-1, 2]))),
    "weights of a shape of 2^80": (WEIGHTS, _header(lambda header: _first(header).update(shape=[2**40, 2**40]))),
    "a weight that is missing": (WEIGHTS, _header(lambda header: header.pop(next(iter(header))))),
    "weights of another name": (WEIGHTS, _header(lambda header: header.update(x=header.pop(next(iter(header)))))),
    "weights that are no numbers": (WEIGHTS, _nan),
    **{f"weights with flipped bits {seed}": (WEIGHTS, functools.partial(_flipped, seed=seed)) for seed in range(5)},
    "a config cut short": ("config.json", lambda content: content[:40]),
    "a config that is a list": ("config.json", lambda content: b"[" + content + b"]"),
    "a config in UTF-16": ("config.json", lambda content: content.decode().encode("utf-16")),
    "a config of a hundred thousand levels": ("config.json", lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a config of nothing": ("config.json", lambda _: b""),
    "a config with a number of a million digits": ("config.json", lambda _: b'{"hidden_size": ' + b"9" * 10**6 + b"}"),
    "a tokenizer cut short": ("tokenizer.json", lambda content: content[:100]),
    "a tokenizer that is a list": ("tokenizer.json", lambda _: b"[]"),
    "tokenizer settings that are a number": ("tokenizer_config.json", lambda _: b"5"),
}
INDICES: dict[str, Any] = {
    "that is a list": [],
    "whose map is a list": {"weight_map": ["a", ["b"]]},
    "whose map is a number": {"weight_map": 5},
    "that names lists": {"weight_map": {"a": ["model.safetensors"]}},
    "that leads out": {"weight_map": {"a": "../../secret.safetensors"}},
    "that names nothing": {"weight_map": {"a": ""}},
    "of a shard that is missing": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
}
POOLING: tuple[Any, ...] = (5, ["cls", 7], "evil", None, [])
MODULES: dict[str, Any] = {
    "that are an object": {"type": "x"},
    "that lead out": [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../../etc"}],
    "of wrong types": [{"type": 5, "path": []}],
    "of a kind that runs code": [{"type": "os.system", "path": "1_Pooling"}],
    "twice": [{"type": "a.Pooling", "path": "1_Pooling"}] * 50,
}


def _index(content: Any, folder: Path) -> list[str]:
    (checkpoint(folder) / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    return optimized(folder / "checkpoint")


def _modules(content: Any, folder: Path) -> list[str]:
    (checkpoint(folder) / "modules.json").write_text(json.dumps(content), encoding="utf-8")
    return optimized(folder / "checkpoint")


def _pooling(content: Any, folder: Path) -> list[str]:
    (checkpoint(folder) / "1_Pooling" / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return optimized(folder / "checkpoint")


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.")


def _crowded(folder: Path) -> None:
    for number in range(10_000):
        (folder / f"{number}.txt").touch()


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FOLDERS: dict[str, Callable[[Path], object]] = {
    "pickled weights": _pickled,
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}", encoding="utf-8"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights in a pipe": lambda folder: _replaced_by(os.mkfifo, WEIGHTS, folder),
    "weights that are a folder": lambda folder: _replaced_by(Path.mkdir, WEIGHTS, folder),
    "a config in a pipe": lambda folder: _replaced_by(os.mkfifo, "config.json", folder),
    "a tokenizer in a pipe": lambda folder: _replaced_by(os.mkfifo, "tokenizer.json", folder),
    "a vocabulary that is a link out": lambda folder: (folder / "vocab.txt").symlink_to("/etc/passwd"),
    "settings that are a link to themselves": lambda folder: (folder / "generation_config.json").symlink_to(
        "generation_config.json"
    ),
    "modules in a pipe": lambda folder: _replaced_by(os.mkfifo, "modules.json", folder),
    "code beside it": lambda folder: (folder / "modeling_evil.py").write_text("raise SystemExit(66)", encoding="utf-8"),
    "ten thousand files": _crowded,
    "an emptied folder": _emptied,
}


def cases() -> list[Case]:
    """All of them."""
    return [
        *(
            Case("checkpoint", f"{key} is {json.dumps(value)[:40]}", functools.partial(_config, key, value))
            for key, values in CONFIG.items()
            for value in values
        ),
        *(Case("checkpoint", name, functools.partial(_changed, *change)) for name, change in CHANGES.items()),
        *(
            Case("checkpoint", f"an index {name}", functools.partial(_index, content))
            for name, content in INDICES.items()
        ),
        *(
            Case("checkpoint", f"modules {name}", functools.partial(_modules, content))
            for name, content in MODULES.items()
        ),
        *(
            Case("checkpoint", f"pooling of {json.dumps(mode)}", functools.partial(_pooling, {"pooling_mode": mode}))
            for mode in POOLING
        ),
        *(Case("checkpoint", name, functools.partial(_done, change)) for name, change in FOLDERS.items()),
    ]

"""Add a small runnable client to an artifact, for programs that have no Python, and a Triton model repository.

A client lies in `clients/<stack>` of the artifact and repeats its golden cases and golden texts with the stack's own
ONNX Runtime; it exits with 0 when every case is reproduced, 1 when an output differs and 2 when it cannot run. Given
texts it says what the graph answers. Compiled languages read both from `golden.tsv` and `texts.tsv`
(`onnxopt.artifact.client_lines`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt.artifact.client_lines import golden_lines, text_lines
from onnxopt.artifact.client_words import RUN, asking, readme, takes_text
from onnxopt.artifact.golden import GOLDEN_FOLDER
from onnxopt.artifact.golden_texts import TEXTS_NAME, GoldenTexts, make_texts
from onnxopt.artifact.io_json import IO_NAME, io_bytes, io_description
from onnxopt.artifact.package import Artifact, file_record, read_golden
from onnxopt.artifact.place import resolved
from onnxopt.artifact.stacks import GENAI_NAME
from onnxopt.errors import InputError
from onnxopt.graph.files import DATA_NAME, SHARD
from onnxopt.host.claims import alone_in
from onnxopt.host.folders import staged, sync, write_whole
from onnxopt.records.manifest import MANIFEST_NAME, FileRecord, Manifest
from onnxopt.run.session import Session
from onnxopt.run.there import MODEL_NAME
from onnxopt.spec import TensorSpec
from onnxopt.texts.tokenizer import TOKENIZER_NAME, read_settings

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # Python 3.10 has it elsewhere

STACKS = ("node", "web", "genai", "triton", "cpp", "csharp", "java", "rust")
CLIENTS_FOLDER = "clients"
SHARD_BYTES = 2 << 30  # a browser's ArrayBuffer ends here
_COMPILED = frozenset({"cpp", "csharp", "java", "rust"})
_STORED = frozenset({"cpp", "java"})  # get a tokenizer of their own, in which nothing is stored but how to part text
# Triton's names of dtypes (model_config.proto, DataType)
_TRITON = {
    "bool": "TYPE_BOOL",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True)
class Client:
    """A client that was added.

    Attributes:
        stack: one of `STACKS`.
        folder: where it lies.
        command: how it is run there, to check the artifact.
        ask: how it is given texts there; empty where it takes none.
        files: what was written, by path in the artifact.
        notes: sentences a user should read.
    """

    stack: str
    folder: Path
    command: str
    ask: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def add_client(artifact: str | Path, stack: str) -> Client:
    """Add a client to an artifact and list its files in the manifest.

    At any moment, and whatever ends the process, the artifact is whole: as it was, or with the client.

    Args:
        artifact: the folder.
        stack: one of `STACKS`; one that is there already is replaced.

    Raises:
        InputError: when the artifact cannot be read or written, or the stack cannot serve it.
    """
    if stack not in STACKS:
        raise InputError(f"unknown stack {stack!r}", hint=f"use one of {', '.join(STACKS)}")
    folder = resolved(Path(artifact))
    inside = f"{CLIENTS_FOLDER}/{stack}"
    Artifact.open(folder, without=f"{inside}/")
    if os.path.ismount(folder):
        raise InputError("is a mount point, which cannot be replaced", where=str(folder), hint="package a folder in it")
    # the artifact is made anew, of links to its files, so that it is whole at any moment, with or without the client
    with alone_in(folder):
        manifest = Artifact.open(folder, without=f"{inside}/").manifest
        _check(stack, folder, manifest)
        with staged(folder) as fresh:
            _link_all(folder, fresh, leave=folder / inside)
            asked, notes = _write_client(fresh, folder, stack, manifest)
            files = tuple(sorted(_files_below(fresh / inside, fresh)))
            texts = f"{GOLDEN_FOLDER}/{TEXTS_NAME}"
            _record(fresh, manifest, stack, (*files, IO_NAME, *([texts] if (fresh / texts).is_file() else [])))
            sync(fresh)
    return Client(stack, Path(artifact) / inside, RUN[stack], asked, files, notes)


def _write_client(fresh: Path, folder: Path, stack: str, manifest: Manifest) -> tuple[str, tuple[str, ...]]:
    """Write a client, and what programs without Python must know, into an artifact that is being made.

    Args:
        fresh: where it is made.
        folder: the artifact as it is.
        stack: one of `STACKS`.
        manifest: of the artifact.

    Returns:
        The command that gives it texts, and sentences a user should read.
    """
    given = manifest.name, manifest.task, manifest.signature, manifest.decoding
    compared = str(manifest.origin.get("scores", ""))
    io = io_description(folder, *given, proved=manifest.proved, compared=compared)
    texts, notes = _texts(folder, manifest, io)
    if texts is not None:
        write_whole(fresh / GOLDEN_FOLDER / TEXTS_NAME, texts.to_json())
    place = fresh / CLIENTS_FOLDER / stack
    place.mkdir(parents=True)
    if stack == "triton":
        _write_triton(place, folder, manifest)
    else:
        _copy(resources.files("onnxopt.artifact") / "templates" / "clients" / stack, place)
    if stack in _COMPILED:
        _write_lines(place / "golden.tsv", golden_lines(folder))
        if texts is not None and takes_text(stack, io, texts):
            _write_lines(place / "texts.tsv", text_lines(folder, io, texts))
    if stack in _STORED and takes_text(stack, io, texts):
        # their libraries do what is stored there: cut, and pad to some length, before the marks are around a text
        content = read_settings(folder, TOKENIZER_NAME) | {"truncation": None, "padding": None}
        (place / TOKENIZER_NAME).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", newline="\n")
    write_whole(fresh / IO_NAME, io_bytes(io))
    (place / "README.md").write_text(readme(stack, manifest.name, io, texts, notes), encoding="utf-8", newline="\n")
    return asking(stack, io, texts), notes


def _texts(folder: Path, manifest: Manifest, io: Mapping[str, Any]) -> tuple[GoldenTexts | None, tuple[str, ...]]:
    """Return the golden texts of an artifact: those that it has, else new ones; none where it takes no text."""
    if "tokenizer" not in io:
        return None, ()
    path = folder / GOLDEN_FOLDER / TEXTS_NAME
    if f"{GOLDEN_FOLDER}/{TEXTS_NAME}" in manifest.files and path.is_file():
        return GoldenTexts.read(path), ()
    try:
        return make_texts(folder, manifest, Session(folder), read_golden(folder)), ()
    except InputError as error:
        return None, (f"there are no golden texts: {error.what}",)


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _link_all(source: Path, target: Path, *, leave: Path) -> None:
    """Give every file of a folder a second name in another one; `leave` is left out."""
    for path in sorted(source.iterdir()):
        there = target / path.name
        if path == leave:
            continue
        if path.is_symlink():
            there.symlink_to(path.readlink())
        elif path.is_dir():
            there.mkdir(exist_ok=True)
            _link_all(path, there, leave=leave)
        else:
            _link(path, there)


def _files_below(place: Path, folder: Path) -> Iterator[str]:
    """Yield the files below a place by their path in a folder."""
    for path in place.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _check(stack: str, folder: Path, manifest: Manifest) -> None:
    if manifest.parts:
        raise InputError(
            f"is made of {len(manifest.parts)} graphs, the clients run one",
            where=str(folder),
            hint=f"{IO_NAME} says how the two go together for a program of your own; in Python use Generator",
        )
    if stack == "genai" and not (folder / GENAI_NAME).is_file():
        raise InputError(
            f"has no {GENAI_NAME}: onnxruntime-genai runs language models with a cache",
            where=str(folder),
            hint="optimize a text-generation checkpoint",
        )
    if stack == "genai" and not (folder / TOKENIZER_NAME).is_file():
        raise InputError(f"has no {TOKENIZER_NAME}", where=str(folder), hint="copy it from the checkpoint")
    if stack == "web":
        shard = next((name for name in manifest.files if SHARD.fullmatch(name)), None)
        if shard:
            raise InputError(
                f"{shard} is one of several files of weights, of which a browser is told one",
                where=str(folder),
                hint="optimize the model without --shard-size",
            )
        large = next((name for name, record in manifest.files.items() if record.size_bytes >= SHARD_BYTES), None)
        if large:
            raise InputError(
                f"{large} is 2 GiB or more, which a browser cannot hold", where=str(folder), hint="quantize the model"
            )


def _copy(source: Traversable, place: Path) -> None:
    for entry in source.iterdir():
        if entry.is_dir():
            (place / entry.name).mkdir()
            _copy(entry, place / entry.name)
        else:
            (place / entry.name).write_bytes(entry.read_bytes())


def _record(folder: Path, manifest: Manifest, stack: str, names: tuple[str, ...]) -> None:
    """List files in the manifest, in place of those of an older client of the same stack."""
    beginning = f"{CLIENTS_FOLDER}/{stack}/"
    kept = {name: record for name, record in manifest.files.items() if not name.startswith(beginning)}
    added: dict[str, FileRecord] = {name: file_record(folder / name) for name in names}
    changed = manifest.model_copy(update={"files": dict(sorted({**kept, **added}.items()))})
    write_whole(folder / MANIFEST_NAME, changed.to_json())


# Triton


def _write_triton(place: Path, folder: Path, manifest: Manifest) -> None:
    name = triton_name(manifest.name)
    version = place / name / "1"
    version.mkdir(parents=True)
    for file in (MODEL_NAME, *(name for name in manifest.files if name == DATA_NAME or SHARD.fullmatch(name))):
        _link(folder / file, version / file)
    (place / name / "config.pbtxt").write_text(triton_config(manifest), encoding="utf-8", newline="\n")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def triton_name(name: str) -> str:
    """Return the name of a model as Triton's folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "model"


def triton_config(manifest: Manifest) -> str:
    """Return `config.pbtxt` of an artifact: tensors, dynamic batching, and for TensorRT the range of shapes.

    Source: Triton's model_config.proto, and the optimization parameters of its onnxruntime backend.
    """
    signature = manifest.signature
    specs = (*signature.inputs, *signature.outputs)
    batched = all(spec.axes and spec.axes[0] in {"batch", "batch_size"} for spec in specs) and not manifest.decoding
    largest = max((shape.get("batch", 1) for shape in manifest.workload.shapes), default=1)
    lines = [
        f'name: "{triton_name(manifest.name)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max(largest, 32) if batched else 0}",
    ]
    for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in tensors:
            lines += _triton_tensor(kind, spec, batched=batched)
    if batched:
        # Triton joins requests of equal shape; the others wait, or run alone when they have waited long enough
        lines += ["dynamic_batching {", "  max_queue_delay_microseconds: 2000", "}"]
    on_gpu = manifest.target.provider in {"cuda", "tensorrt"}
    lines += ["instance_group [", f"  {{ kind: {'KIND_GPU' if on_gpu else 'KIND_CPU'} count: 1 }}", "]"]
    if manifest.target.provider == "tensorrt":
        lines += _triton_tensorrt(manifest)
    return "\n".join(lines) + "\n"


def _triton_tensor(kind: str, spec: TensorSpec, *, batched: bool) -> list[str]:
    axes = spec.axes[1:] if batched else spec.axes
    sizes = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in axes)
    # a tensor with no axis but the batch is a vector of one element to Triton, which it turns back
    shape = [f"    dims: [ {sizes or 1} ]"] + ([] if axes else ["    reshape: { shape: [ ] }"])
    return [f"{kind} [", "  {", f'    name: "{spec.name}"', f"    data_type: {_triton_type(spec)}", *shape, "  }", "]"]


def _triton_type(spec: TensorSpec) -> str:
    if spec.dtype not in _TRITON:
        raise InputError(f"{spec.name!r} is {spec.dtype}, which Triton does not know")
    return _TRITON[spec.dtype]


def _triton_tensorrt(manifest: Manifest) -> list[str]:
    from onnxopt.run.providers import profiles

    found = profiles(manifest.signature.inputs, manifest.workload)
    parameters = {f"trt_profile_{kind}_shapes": shapes for kind, shapes in found.items()}
    parameters |= {"trt_engine_cache_enable": "true", "trt_engine_cache_path": "/tmp/tensorrt"}  # noqa: S108  # in Triton's container
    lines = ["optimization {", "  execution_accelerators {", "    gpu_execution_accelerator [", "      {"]
    lines.append('        name: "tensorrt"')
    lines += [f'        parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()]
    return [*lines, "      }", "    ]", "  }", "}"]

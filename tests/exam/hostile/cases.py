"""What a hostile input is: a name, and what writes it into a folder and says which command is given it."""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

QUIET = "--quiet"
OUT = "out"  # where a command writes to, inside the folder of its case
Build = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        group: `file`, `checkpoint`, `tokenizer`, `template`, `artifact`, `npz`, `text` or `image`.
        name: unique in its group.
        build: writes it into an empty folder, and returns the arguments of the command.
    """

    group: str
    name: str
    build: Build

    @property
    def title(self) -> str:
        """The group and the name."""
        return f"{self.group}: {self.name}"


def inspected(path: Path) -> list[str]:
    """The command that reads a file and runs it, and writes nothing."""
    return ["inspect", str(path), QUIET, "--json"]


def optimized(source: Path, *more: str) -> list[str]:
    """The command that takes a source the whole road."""
    out = source.parent / OUT if source.parent.is_dir() else Path(OUT)
    return ["optimize", str(source), "-o", str(out), "--no-measure", QUIET, *more]


def of_models(group: str, make: Mapping[str, Callable[[], onnx.ModelProto]], *, whole: bool = False) -> list[Case]:
    """Cases of graphs that are made in memory; `whole` takes them the whole road."""

    def build(made: Callable[[], onnx.ModelProto], folder: Path) -> list[str]:
        path = folder / "model.onnx"
        path.write_bytes(made().SerializeToString())
        return optimized(path) if whole else inspected(path)

    return [Case(group, name, functools.partial(build, made)) for name, made in make.items()]


def of_bytes(
    group: str, contents: Iterable[tuple[str, bytes]], file: str, command: Callable[[Path], list[str]]
) -> list[Case]:
    """Cases of one file of given bytes."""

    def build(content: bytes, folder: Path) -> list[str]:
        (folder / file).write_bytes(content)
        return command(folder / file)

    return [Case(group, name, functools.partial(build, content)) for name, content in contents]


# ------------------------------------------------------------------------------------------------------ sound things


@functools.cache
def _room() -> Path:
    return Path(tempfile.mkdtemp(prefix="hostile-sound-"))


@functools.cache
def sound_checkpoint(kind: str, task: str = "") -> Path:
    """A small checkpoint of an architecture, made once; whoever changes it works on a copy."""
    folder = _room() / f"{kind}{task}"
    _apart(_make_checkpoint, kind, task, folder)
    return folder


def _make_checkpoint(kind: str, task: str, folder: Path) -> None:
    from tests.support.tiny import tiny_checkpoint

    pooling = (
        {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32} if kind == "bert" and not task else None
    )
    tiny_checkpoint(kind, folder, layers=1, task=task or None, pooling=pooling)


@functools.cache
def sound_artifact(kind: str, task: str = "") -> Path:
    """The artifact of such a checkpoint, made once."""
    out = _room() / f"{kind}{task}-artifact"
    _apart(_make_artifact, sound_checkpoint(kind, task), out)
    return out


def _make_artifact(source: Path, out: Path) -> None:
    import onnxopt

    onnxopt.optimize(source, out=out, measure=False)


def _apart(make: Callable[..., None], *arguments: object) -> None:
    """Make something in a process of its own: commands are forked from this one, and torch does not survive that."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{make.__name__} failed")


def checkpoint(folder: Path, kind: str = "bert", task: str = "") -> Path:
    """A copy of a sound checkpoint."""
    return Path(shutil.copytree(sound_checkpoint(kind, task), folder / "checkpoint"))


def artifact(folder: Path, kind: str = "bert", task: str = "") -> Path:
    """A copy of a sound artifact."""
    return Path(shutil.copytree(sound_artifact(kind, task), folder / "artifact"))


def resealed(folder: Path) -> Path:
    """Write the hashes of an artifact anew, as the one who made it hostile would."""
    from onnxopt.host.folders import sha256_of

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"] = {
        name: {"sha256": sha256_of(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in manifest["files"]
        if (folder / name).is_file()
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def edited(path: Path, **entries: Any) -> None:
    """Change entries of a JSON object in a file; made where it is missing."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entries}), encoding="utf-8")

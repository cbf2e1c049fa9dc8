"""What a report says of using the artifact: commands to try, and one case with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.artifact.golden import Golden
from onnxopt.records.manifest import Manifest
from onnxopt.spec import Array, Feeds
from onnxopt.tasks.table import TASKS

SHOWN_NUMBERS = 6  # of a tensor
SHOWN_TENSORS = 4  # on each side; a decoder has two for each layer
_DIGITS = 5


@dataclass(frozen=True)
class Command:
    """A line for a terminal, in the folder that holds the artifact's.

    Attributes:
        line: what to type.
        what: what it does, in a few words.
    """

    line: str
    what: str


@dataclass(frozen=True)
class Tensor:
    """One tensor of a case.

    Attributes:
        name: input or output.
        shape: as `1 × 9`; `scalar` without axes.
        numbers: the first ones, in the order of memory, with dots where more follow.
    """

    name: str
    shape: str
    numbers: str


def commands_of(manifest: Manifest, folder: str) -> list[Command]:
    """Return what to try first with an artifact.

    Args:
        manifest: what the artifact says of itself.
        folder: its name.
    """
    reads_text = any(name.rpartition("/")[2].startswith("tokenizer") for name in manifest.files)
    has_image = any(name.endswith("preprocessor_config.json") for name in manifest.files)
    task = TASKS.get(manifest.task)
    found = []
    if manifest.decoding is not None and reads_text:
        found.append(Command(f'onnxopt generate {folder} "Once upon a time"', "writes on"))
    elif task is not None and task.takes == ("sound",):
        found.append(
            Command(f"onnxopt {'generate' if manifest.parts else 'run'} {folder} {task.example}", "a sound in")
        )
    elif reads_text:
        found.append(Command(f'onnxopt run {folder} "a first text"', "text in, answer out"))
    elif has_image:
        found.append(Command(f"onnxopt run {folder} picture.png", "an image in, answer out"))
    else:
        found.append(Command(f"onnxopt bench {folder}", "times it on this machine"))
    if reads_text:
        found.append(Command(f"onnxopt serve {folder}", "answers over HTTP"))
    found.append(
        Command(f"onnxopt package {folder} --for node", "adds a client without Python; also web, cpp, rust, …")
    )
    return found


def sample_of(golden: Sequence[Golden]) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the first golden case as it may be shown, inputs and outputs; None without one."""
    if not golden:
        return None
    return _shown(golden[0].feeds), _shown(golden[0].outputs)


def _shown(tensors: Feeds) -> list[Tensor]:
    """Return the first tensors; what holds no numbers, such as a cache at its start, is left out."""
    full = [(name, one) for name, one in tensors.items() if isinstance(one, np.ndarray) and one.size]
    return [Tensor(name, _shape(one), _numbers(one)) for name, one in full[:SHOWN_TENSORS]]


def _shape(array: Array) -> str:
    return " × ".join(str(size) for size in array.shape) or "scalar"


def _numbers(array: Array) -> str:
    """Write the first numbers of a tensor; floats with a few digits, text in quotes."""
    first = array.reshape(-1)[:SHOWN_NUMBERS]
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        words = [f"{float(one):.{_DIGITS}g}" for one in first]
    else:
        words = [repr(one) if isinstance(one, str) else str(one) for one in first.tolist()]
    return ", ".join(words) + (", …" if array.size > SHOWN_NUMBERS else "")

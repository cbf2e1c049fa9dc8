"""Answer sound files by what a model's task is: what is said, what it is, what is heard when, or a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.ctc import open_spelling
from onnxopt.run.inputs.sound import SoundReader, read_wave, sound_settings
from onnxopt.run.inputs.waves import prepare_wave
from onnxopt.run.labels import label_names
from onnxopt.run.results import FrameLabels, Span, Transcripts
from onnxopt.run.session import Session
from onnxopt.spec import SOUND_INPUTS, Array, Feeds, TensorSpec

WAVES = SOUND_INPUTS[0]
WAVE_RANK = 2  # [batch, samples]
_HEARD_FROM = 0.5  # the probability from which a label counts as heard, as the examples of transformers have it


@dataclass(frozen=True)
class Heard:
    """What a model says of one sound.

    Attributes:
        outputs: by name, without the axis of rows.
        seconds: how long the sound is.
    """

    outputs: Feeds
    seconds: float


def hears(inputs: Iterable[TensorSpec]) -> bool:
    """Tell whether a model takes sound, by its inputs."""
    return any(spec.name in SOUND_INPUTS for spec in inputs)


def hear(folder: Path, session: Session, paths: Sequence[Path]) -> list[Heard]:
    """Run a model on sound files, one at a time, since they differ in length and padding is no sound.

    Args:
        folder: the artifact.
        session: its model.
        paths: of PCM .wav files.

    Raises:
        InputError: nothing says how sound is prepared, a file cannot be read or is too short, or the model takes more
            than sound.
    """
    feed = _feeds(folder, session)
    found = []
    for path in paths:
        sound, rate = read_wave(path)
        feeds = feed(path)
        lacking = [spec.name for spec in session.inputs if spec.name not in feeds]
        if lacking:
            raise InputError(
                f"takes {', '.join(lacking)} too; only models that take sound alone can be tried",
                where=str(session.path),
            )
        outputs = session.run({spec.name: feeds[spec.name].astype(spec.dtype) for spec in session.inputs})
        found.append(Heard({name: array[0] for name, array in outputs.items()}, sound.size / rate))
    return found


def _feeds(folder: Path, session: Session) -> Callable[[Path], Feeds]:
    """Return a function from a path to all inputs, one row each."""
    main = next(spec for spec in session.inputs if spec.name in SOUND_INPUTS)
    if main.name != WAVES or len(main.axes) > WAVE_RANK:  # features, which transformers' own extractor makes
        return SoundReader(folder).inputs
    settings = sound_settings(folder)
    if not settings:
        raise InputError(
            "no preprocessor_config.json, so a sound cannot be prepared",
            where=str(folder),
            hint="copy it from the checkpoint",
        )

    def waves(path: Path) -> Feeds:
        wave = prepare_wave(path, settings)[None]
        return {main.name: wave, "attention_mask": np.ones(wave.shape, np.int64)}

    return waves


def transcripts(
    task: str, texts: Sequence[str], found: Sequence[Heard], folder: Path, config: Mapping[str, Any]
) -> Transcripts:
    """Return what is said, by the likeliest token of each frame.

    Args:
        task: what was done.
        texts: the files.
        found: what the model said of each.
        folder: the artifact, with its tokenizer.
        config: content of config.json.
    """
    spell = open_spelling(folder, config)
    return Transcripts(task=task, texts=tuple(texts), transcripts=tuple(spell(one.outputs["logits"]) for one in found))


def frame_labels(task: str, texts: Sequence[str], found: Sequence[Heard], config: Mapping[str, Any]) -> FrameLabels:
    """Return from when to when each label is heard; the arguments are those of `transcripts`."""
    return FrameLabels(task=task, texts=tuple(texts), spans=tuple(_spans(one, config) for one in found))


def _spans(heard: Heard, config: Mapping[str, Any]) -> tuple[Span, ...]:
    logits = heard.outputs["logits"].astype(np.float64)
    chances = 1 / (1 + np.exp(-logits))
    step = heard.seconds / len(chances)
    spans = []
    for label, column in zip(label_names(config, chances.shape[-1]), chances.T, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column > _HEARD_FROM, [0]]).astype(int)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            score = float(column[start:end].mean())
            spans.append(Span(label=label, start=round(start * step, 3), end=round(end * step, 3), score=score))
    return tuple(sorted(spans, key=lambda span: (span.start, span.label)))


def vectors(found: Sequence[Heard]) -> tuple[str, Array, list[str]]:
    """Return the output that is a vector of each sound, float32 [sounds, size], and what must be said of it.

    Args:
        found: what the model said of each.

    Raises:
        InputError: no output is one.
    """
    outputs = found[0].outputs
    name = next((name for name in ("embeddings", "pooler_output", "last_hidden_state") if name in outputs), "")
    if not name:
        raise InputError(f"no output is a vector per sound: {', '.join(outputs)}")
    rows = [one.outputs[name].astype(np.float32) for one in found]
    if rows[0].ndim == 1:
        return name, np.stack(rows), []
    notes = [f"the model has no embedding of a sound: this is the mean of {name} over its frames"]
    return name, np.stack([row.mean(axis=0) for row in rows]), notes

"""Tasks of models that hear sound, and of those that make it."""

from __future__ import annotations

from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)

SOUND_TASKS: tuple[Task, ...] = (
    Task(
        "automatic-speech-recognition",
        "the text that is spoken",
        (
            Head(
                "AutoModelForSpeechSeq2Seq",
                "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
                _LOGITS,
                generates=True,
                paired=True,
            ),
        ),
        ("sound",),
        "continuations",
        "speech.wav",
        synonyms=(
            *("speech2seq-lm", "speech2seq-lm-with-past", "audio-ctc"),
            "automatic-speech-recognition-with-past",
        ),
    ),
)

"""Tasks of models that hear sound, and of those that make it."""

from __future__ import annotations

from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)
_SPEECH = "speech.wav"

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
            Head(
                "AutoModelForCTC",
                "MODEL_FOR_CTC_MAPPING_NAMES",
                _LOGITS,
                answer="transcripts",
                after="of each frame the largest of logits; an id that follows itself counts once, and pad_token_id of "
                "the config, the blank, is left out; the tokenizer makes text of what remains",
            ),
        ),
        ("sound",),
        "continuations",
        _SPEECH,
        synonyms=(
            *("speech2seq-lm", "speech2seq-lm-with-past", "audio-ctc", "ctc"),
            "automatic-speech-recognition-with-past",
        ),
    ),
    Task(
        "audio-classification",
        "labels of sounds",
        (Head("AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
        ("sound",),
        "classification",
        _SPEECH,
        synonyms=("sound-classification",),
    ),
    Task(
        "audio-frame-classification",
        "what is heard when: who speaks, or whether anybody does",
        (
            Head(
                "AutoModelForAudioFrameClassification",
                "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",
                _LOGITS,
            ),
        ),
        ("sound",),
        "frame_labels",
        _SPEECH,
        after="sigmoid over logits, per frame and label: each label is there or not by itself",
    ),
    Task(
        "audio-xvector",
        "embeddings of voices, by which speakers are told apart",
        (Head("AutoModelForAudioXVector", "MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES", ("logits", "embeddings")),),
        ("sound",),
        "embeddings",
        _SPEECH,
        after="embeddings, compared by their cosine, say who speaks; logits are of the speakers seen in training",
    ),
    Task(
        "audio-feature-extraction",
        "embeddings of sounds",
        (Head("AutoModel", "MODEL_MAPPING_NAMES", ("last_hidden_state",)),),
        ("sound",),
        "embeddings",
        _SPEECH,
    ),
)

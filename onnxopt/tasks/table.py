"""The table of tasks.

transformers' own tables (one per head, from model type to class) say which classes exist; nothing here lists model
types. `onnxopt tasks` prints it.
"""

from __future__ import annotations

from onnxopt.errors import InputError
from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)
_QUOTED = '"..."'
_PICTURE = "picture.png"
_BEST_SPAN = "the answer runs from the best start to the best end not before it"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "feature-extraction",
            "embeddings of texts",
            (Head("AutoModel", "MODEL_MAPPING_NAMES", ("last_hidden_state",)),),
            ("text",),
            "embeddings",
            _QUOTED,
            endpoint="/v1/embeddings",
            synonyms=("sentence-similarity", "sentence-embedding", "default"),
        ),
        Task(
            "fill-mask",
            "the likeliest words for a hidden one",
            (Head("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", _LOGITS),),
            ("text",),
            "mask_fills",
            '"The capital of France is [MASK]."',
            after="softmax over the last axis of logits at the position of the mask token",
            synonyms=("masked-lm",),
        ),
        Task(
            "text-classification",
            "labels of texts, or of pairs of texts",
            (Head("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
            ("text",),
            "classification",
            _QUOTED,
            endpoint="/v1/classify",
            synonyms=("sentiment-analysis", "sequence-classification"),
        ),
        Task(
            "token-classification",
            "labels of words: names, places, things",
            (Head("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
            ("text",),
            "token_labels",
            _QUOTED,
            after="softmax over the last axis of logits, per token; labels by index",
            endpoint="/v1/classify",
            synonyms=("ner",),
        ),
        Task(
            "question-answering",
            "the piece of a text that answers a question",
            (
                Head(
                    "AutoModelForQuestionAnswering",
                    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
                    ("start_logits", "end_logits"),
                ),
            ),
            ("text",),
            "answers",
            '"Who?" --context "the text to look in"',
            after=_BEST_SPAN,
        ),
        Task(
            "text-generation",
            "a text that goes on from a prompt",
            (Head("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", _LOGITS, generates=True),),
            ("text",),
            "continuations",
            _QUOTED,
            endpoint="/v1/chat/completions",
            synonyms=("causal-lm", "causal-lm-with-past", "text-generation-with-past"),
        ),
        Task(
            "text2text-generation",
            "another text: a translation, a summary, an answer",
            (
                Head(
                    "AutoModelForSeq2SeqLM",
                    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
                    _LOGITS,
                    generates=True,
                    paired=True,
                ),
            ),
            ("text",),
            "continuations",
            _QUOTED,
            synonyms=(
                *("translation", "summarization", "seq2seq-lm", "seq2seq-lm-with-past"),
                "text2text-generation-with-past",
            ),
        ),
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
        Task(
            "image-classification",
            "labels of images",
            (Head("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
            ("image",),
            "classification",
            _PICTURE,
        ),
        Task(
            "image-feature-extraction",
            "embeddings of images",
            (Head("AutoModel", "MODEL_MAPPING_NAMES", ("last_hidden_state",)),),
            ("image",),
            "embeddings",
            _PICTURE,
        ),
    )
}
_NAMES = {synonym: task.name for task in TASKS.values() for synonym in (task.name, *task.synonyms)}


def parse_task(text: str) -> Task:
    """Return the task of that name, or of a synonym; raises InputError that lists the names when there is none."""
    task = TASKS.get(_NAMES.get(text.strip().lower(), ""))
    if task is None:
        raise InputError(
            f"task {text!r} is not supported", hint=f"use one of {', '.join(TASKS)}; `onnxopt tasks` says what they do"
        )
    return task

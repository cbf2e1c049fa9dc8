"""What there is to try: every model type with every head, from transformers' own tables from model type to class."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "image", "sound", "several", "series"]
KINDS: tuple[Kind, ...] = ("text", "image", "sound", "several", "series")


@dataclass(frozen=True)
class Head:
    """A table of transformers, and what its classes do.

    Attributes:
        name: the table's own name in short; `base` for models without a head.
        table: in `transformers.models.auto.modeling_auto`.
        auto: the class of transformers that builds its models.
        task: as a person names it to onnxopt.
        kind: what goes in.
    """

    name: str
    table: str
    auto: str
    task: str
    kind: Kind


@dataclass(frozen=True)
class Pair:
    """A model type with a head.

    Attributes:
        model_type: transformers' word for the architecture.
        head: what it does.
    """

    model_type: str
    head: Head

    @property
    def name(self) -> str:
        """Its name on the command line and in the record: `bert/masked-lm`."""
        return f"{self.model_type}/{self.head.name}"


def _head(table: str, auto: str, task: str, kind: Kind) -> Head:
    name = "base" if table == "MODEL_MAPPING_NAMES" else table[len("MODEL_FOR_") : -len("_MAPPING_NAMES")]
    return Head(name.lower().replace("_", "-"), table, auto, task, kind)


_TABLES: tuple[tuple[str, str, str, Kind], ...] = (
    ("MASKED_LM", "MaskedLM", "fill-mask", "text"),
    ("SEQUENCE_CLASSIFICATION", "SequenceClassification", "text-classification", "text"),
    ("TOKEN_CLASSIFICATION", "TokenClassification", "token-classification", "text"),
    ("QUESTION_ANSWERING", "QuestionAnswering", "question-answering", "text"),
    ("CAUSAL_LM", "CausalLM", "text-generation", "text"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM", "text2text-generation", "text"),
    ("MULTIPLE_CHOICE", "MultipleChoice", "multiple-choice", "text"),
    ("NEXT_SENTENCE_PREDICTION", "NextSentencePrediction", "next-sentence-prediction", "text"),
    ("TABLE_QUESTION_ANSWERING", "TableQuestionAnswering", "table-question-answering", "text"),
    ("IMAGE_CLASSIFICATION", "ImageClassification", "image-classification", "image"),
    ("OBJECT_DETECTION", "ObjectDetection", "object-detection", "image"),
    ("SEMANTIC_SEGMENTATION", "SemanticSegmentation", "image-segmentation", "image"),
    ("INSTANCE_SEGMENTATION", "InstanceSegmentation", "image-segmentation", "image"),
    ("UNIVERSAL_SEGMENTATION", "UniversalSegmentation", "image-segmentation", "image"),
    ("IMAGE_SEGMENTATION", "ImageSegmentation", "image-segmentation", "image"),
    ("DEPTH_ESTIMATION", "DepthEstimation", "depth-estimation", "image"),
    ("IMAGE_TO_IMAGE", "ImageToImage", "image-to-image", "image"),
    ("IMAGE_MATTING", "ImageMatting", "image-matting", "image"),
    ("MASKED_IMAGE_MODELING", "MaskedImageModeling", "masked-im", "image"),
    ("MASK_GENERATION", "MaskGeneration", "mask-generation", "image"),
    ("KEYPOINT_DETECTION", "KeypointDetection", "keypoint-detection", "image"),
    ("KEYPOINT_MATCHING", "KeypointMatching", "keypoint-matching", "image"),
    ("POSE_ESTIMATION", "PoseEstimation", "pose-estimation", "image"),
    ("VIDEO_CLASSIFICATION", "VideoClassification", "video-classification", "image"),
    ("TEXT_RECOGNITION", "TextRecognition", "text-recognition", "image"),
    ("TABLE_RECOGNITION", "TableRecognition", "table-recognition", "image"),
    ("CTC", "CTC", "automatic-speech-recognition", "sound"),
    ("SPEECH_SEQ_2_SEQ", "SpeechSeq2Seq", "automatic-speech-recognition", "sound"),
    ("AUDIO_CLASSIFICATION", "AudioClassification", "audio-classification", "sound"),
    ("AUDIO_FRAME_CLASSIFICATION", "AudioFrameClassification", "audio-frame-classification", "sound"),
    ("AUDIO_XVECTOR", "AudioXVector", "audio-xvector", "sound"),
    ("TEXT_TO_WAVEFORM", "TextToWaveform", "text-to-audio", "sound"),
    ("TEXT_TO_SPECTROGRAM", "TextToSpectrogram", "text-to-audio", "sound"),
    ("ZERO_SHOT_IMAGE_CLASSIFICATION", "ZeroShotImageClassification", "zero-shot-image-classification", "several"),
    ("ZERO_SHOT_OBJECT_DETECTION", "ZeroShotObjectDetection", "zero-shot-object-detection", "several"),
    ("VISUAL_QUESTION_ANSWERING", "VisualQuestionAnswering", "visual-question-answering", "several"),
    ("DOCUMENT_QUESTION_ANSWERING", "DocumentQuestionAnswering", "document-question-answering", "several"),
    ("IMAGE_TEXT_TO_TEXT", "ImageTextToText", "image-text-to-text", "several"),
    ("TIME_SERIES_PREDICTION", "TimeSeriesPrediction", "time-series-forecasting", "series"),
)
HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        _head("MODEL_MAPPING_NAMES", "AutoModel", "feature-extraction", "text"),
        *(
            _head(f"MODEL_FOR_{table}_MAPPING_NAMES", f"AutoModelFor{auto}", task, kind)
            for table, auto, task, kind in _TABLES
        ),
    )
}


def pairs() -> list[Pair]:
    """Return every pair of transformers' tables, head by head, in the order of the alphabet within each."""
    from transformers.models.auto import configuration_auto, modeling_auto

    return [
        Pair(model_type, head)
        for head in HEADS.values()
        for model_type in sorted(getattr(modeling_auto, head.table))
        if model_type in configuration_auto.CONFIG_MAPPING_NAMES
    ]


def named(names: Sequence[str]) -> list[Pair]:
    """Return the pairs that some names or patterns of names stand for (`bert/*`, `*/ctc`), all without any.

    Raises:
        ValueError: a name stands for none.
    """
    every = pairs()
    if not names:
        return every
    for name in names:
        if not any(fnmatch.fnmatchcase(pair.name, name) for pair in every):
            raise ValueError(f"no pair is called {name}")
    return [pair for pair in every if any(fnmatch.fnmatchcase(pair.name, name) for name in names)]


def in_turns(every: Sequence[Pair]) -> list[Pair]:
    """Return pairs so that every head has its turn: the first of each, then the second of each, kind by kind."""
    ranks: dict[str, int] = {}
    keyed: list[tuple[int, int, Pair]] = []
    for pair in every:
        rank = ranks[pair.head.name] = ranks.get(pair.head.name, -1) + 1
        keyed.append((KINDS.index(pair.head.kind), rank, pair))
    return [pair for _, _, pair in sorted(keyed, key=lambda item: item[:2])]

from types import SimpleNamespace

import pytest

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.classes import features_task, infer_task, model_class
from onnxopt.tasks.table import parse_task


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (["LevitForImageClassification"], "LevitForImageClassification"),
        (["LevitForImageClassificationWithTeacher"], "LevitForImageClassificationWithTeacher"),
        (None, "LevitForImageClassification"),
        (["LevitModel"], "LevitForImageClassification"),
    ],
)
def test_of_several_classes_of_a_task_the_saved_one_is_taken(saved: list[str] | None, expected: str) -> None:
    from transformers import LevitConfig

    config = LevitConfig(architectures=saved)
    assert model_class(config, parse_task("image-classification")).__name__ == expected
    assert features_task(config).name == "image-feature-extraction"


def test_a_table_with_one_class_gives_it_whatever_was_saved() -> None:
    from transformers import ViTConfig

    config = ViTConfig(architectures=["ViTModel"])
    assert model_class(config, parse_task("image-classification")).__name__ == "ViTForImageClassification"


def test_features_of_a_config_that_no_table_has_are_those_of_text() -> None:
    assert features_task(SimpleNamespace()).name == "feature-extraction"
    assert infer_task(SimpleNamespace(architectures=None)).name == "feature-extraction"


@pytest.mark.parametrize("saved", ["SiglipTextModel", "Siglip2TextModel"])
def test_half_of_a_pair_without_a_table_gives_features_of_text(saved: str) -> None:
    import transformers

    kind = getattr(transformers, saved)
    config = kind.config_class(architectures=[saved])
    task = infer_task(config)
    assert task.name == "feature-extraction"
    assert model_class(config, task) is kind


@pytest.mark.parametrize("saved", ["SiglipTextPretendedModel", "BertModel", "SiglipTextForSomething"])
def test_a_class_of_another_config_or_with_a_head_is_refused(saved: str) -> None:
    from transformers import SiglipTextConfig

    with pytest.raises(InputError, match="does a task that is not supported"):
        infer_task(SiglipTextConfig(architectures=[saved]))


@pytest.mark.parametrize(
    ("saved", "task"),
    [
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("Wav2Vec2BertForCTC", "automatic-speech-recognition"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("HubertForSequenceClassification", "audio-classification"),
        ("ASTForAudioClassification", "audio-classification"),
        ("WhisperForAudioClassification", "audio-classification"),
        ("UniSpeechSatForAudioFrameClassification", "audio-frame-classification"),
        ("WavLMForXVector", "audio-xvector"),
        ("SEWModel", "audio-feature-extraction"),
    ],
)
def test_a_class_that_reads_sound_has_a_task(saved: str, task: str) -> None:
    import transformers

    config = getattr(transformers, saved).config_class(architectures=[saved])
    found = infer_task(config)
    assert found.name == task
    assert model_class(config, found).__name__ == saved
    assert found.head.paired == (saved == "WhisperForConditionalGeneration")


@pytest.mark.parametrize("saved", ["PatchTSTForPrediction", "InformerForPrediction"])
def test_a_class_that_reads_something_else_is_refused_by_what_it_takes_and_no_task_is_advised(saved: str) -> None:
    import transformers

    config = getattr(transformers, saved).config_class(architectures=[saved])
    said = f"{saved} takes past_values; only text, images and sound are supported"
    with pytest.raises(InputError, match=said) as refusal:
        infer_task(config, where="here")
    assert "--task" not in str(refusal.value)
    assert "give the .onnx file" in str(refusal.value)


def test_a_task_that_is_asked_of_a_class_that_reads_something_else_is_no_better() -> None:
    from transformers import InformerConfig

    config = InformerConfig(architectures=["InformerForPrediction"], is_encoder_decoder=False)
    with pytest.raises(InputError, match="InformerForPrediction takes past_values; only text, images and") as refusal:
        model_class(config, parse_task("automatic-speech-recognition"))
    assert "--task" not in str(refusal.value)

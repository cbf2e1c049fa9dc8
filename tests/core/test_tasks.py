from types import SimpleNamespace

import pytest

from onnxopt.tasks import features_task, infer_task, model_class, parse_task


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

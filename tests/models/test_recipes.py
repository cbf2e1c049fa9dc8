"""Every recipe says what a recipe must say.

Covers: load/source/recipe.py, models/bert_base_uncased.py, models/distilbert_sst2.py, models/gpt2.py,
models/minilm.py, models/roberta_base.py, models/smollm2_135m.py, models/vit_base.py
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxopt.load.checkpoint.classes import infer_task, model_class
from onnxopt.load.source.recipe import Recipe, SampleFolder, SampleWheel, all_recipes
from onnxopt.tasks.table import TASKS, parse_task

RECIPES = all_recipes()


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


def test_expected_recipes_are_there() -> None:
    expected = {
        "minilm",
        "gpt2",
        "gpt2-mini",
        "bert-base-uncased",
        "smollm2-135m",
        "distilbert-sst2",
        "roberta-base",
        "vit-base",
    }
    assert expected <= set(RECIPES)


def test_file_is_named_after_the_recipe(recipe: Recipe) -> None:
    import onnxopt.models

    file = Path(onnxopt.models.__path__[0]) / f"{recipe.name.replace('-', '_')}.py"
    assert file.is_file()
    assert len(file.read_text(encoding="utf-8").splitlines()) < 60


def test_recipe_is_complete(recipe: Recipe) -> None:
    assert recipe.task in TASKS
    assert recipe.title
    assert "\n" not in recipe.title
    if isinstance(recipe.sample, SampleFolder):
        assert recipe.source == f"models/weights/{recipe.sample.name}"
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.source)
    assert recipe.expected
    assert set(recipe.expected) <= {"attention", "layer_norm", "rms_norm", "gelu"}
    assert recipe.workload.shapes


def test_architecture_builds_a_config_with_a_class_for_the_task(recipe: Recipe) -> None:
    from transformers import AutoConfig

    settings = dict(recipe.architecture)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    for key, value in settings.items():
        assert getattr(config, key) == value, key
    assert model_class(config, parse_task(recipe.task)) is not None
    layers = config.num_hidden_layers
    assert recipe.expected["attention"] == layers
    norms = recipe.expected.get("layer_norm", 0) + recipe.expected.get("rms_norm", 0)
    assert norms in (2 * layers + 1, 2 * layers + 2)


def test_sample_is_pinned_by_version_and_hash(recipe: Recipe) -> None:
    if recipe.sample is None:
        return
    digests = [recipe.sample.sha256]
    if isinstance(recipe.sample, SampleWheel):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", recipe.sample.requirement)
        digests.append(recipe.sample.member_sha256)
    for digest in digests:
        assert re.fullmatch(r"[0-9a-f]{64}", digest)


def test_a_stand_in_does_the_same_task_and_needs_no_hub(recipe: Recipe) -> None:
    if not recipe.stand_in:
        return
    other = RECIPES[recipe.stand_in]
    assert other.sample is not None
    assert other.task == recipe.task
    assert other.architecture["model_type"] == recipe.architecture["model_type"]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertModel", "feature-extraction"),
        (None, "feature-extraction"),
    ],
)
def test_task_comes_from_the_saved_class(architecture: str | None, task: str) -> None:
    from transformers import BertConfig

    assert infer_task(BertConfig(architectures=[architecture] if architecture else None)).name == task


def test_image_models_without_a_head_are_told_from_text_models() -> None:
    from transformers import ResNetConfig, ViTConfig

    assert infer_task(ViTConfig(architectures=["ViTModel"])).name == "image-feature-extraction"
    assert infer_task(ResNetConfig()).name == "image-feature-extraction"
    assert infer_task(ViTConfig(architectures=["ViTForImageClassification"])).name == "image-classification"


def test_synonyms_and_unknown_tasks() -> None:
    from onnxopt.errors import InputError

    assert parse_task("Sentence-Similarity").name == "feature-extraction"
    with pytest.raises(InputError, match="task 'juggling' is not supported; use one of feature-extraction, fill-mask"):
        parse_task("juggling")

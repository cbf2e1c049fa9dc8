"""The table of tasks says what transformers has, and its names are told apart.

Covers: tasks/task.py, tasks/listed.py, tasks/text.py, tasks/image.py, tasks/sound.py, tasks/several.py, cli/tasks.py
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.load.checkpoint.classes import fitting, infer_task, require_labels
from onnxopt.tasks.listed import command_of, listed
from onnxopt.tasks.table import TASKS, parse_task, trained_as
from onnxopt.tasks.task import Head, Task

HEADS = [(task.name, head) for task in TASKS.values() for head in task.heads]


@pytest.mark.parametrize(("name", "head"), HEADS, ids=[f"{name}-{head.auto_class}" for name, head in HEADS])
def test_every_head_is_one_of_transformers(name: str, head: Head) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, head.table)
    mapping = getattr(transformers, head.auto_class)._model_mapping._model_mapping
    assert dict(table) == dict(mapping), f"{name}: {head.table} is not the table of {head.auto_class}"


def test_names_and_synonyms_are_told_apart() -> None:
    names = [one for task in TASKS.values() for one in (task.name, *task.synonyms)]
    assert len(names) == len(set(names))
    assert all(parse_task(f" {synonym.upper()} ") is task for task in TASKS.values() for synonym in task.synonyms)
    with pytest.raises(InputError, match="'juggling' is not supported"):
        parse_task("juggling")


def test_a_task_is_done_as_the_saved_class_does_it() -> None:
    two = Task(
        "reading",
        "",
        (
            Head("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", ("logits",), generates=True),
            Head("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", ("logits",)),
        ),
        ("text",),
        "mask_fills",
        "",
    )

    def head_of(kind: str, *saved: str) -> str:
        return fitting(two, SimpleNamespace(model_type=kind, architectures=list(saved))).head.auto_class

    assert head_of("bert", "BertForMaskedLM") == "AutoModelForMaskedLM"
    assert head_of("bert", "BertLMHeadModel") == "AutoModelForCausalLM"
    assert head_of("bert", "BertModel") == head_of("gpt2") == head_of("none of these") == "AutoModelForCausalLM"
    assert head_of("distilbert") == "AutoModelForMaskedLM"  # the only one that it has


def config_of(kind: str, labels: tuple[str, ...], **more: Any) -> SimpleNamespace:
    names = dict(enumerate(labels))
    own = {"model_type": kind, "architectures": [f"{kind.title()}ForSequenceClassification"], "id2label": names}
    return SimpleNamespace(**own, num_labels=len(labels), **more)


def test_a_config_may_say_more_than_its_class() -> None:
    told = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    assert infer_task(config_of("bert", ("LABEL_0",), **told)).name == "text-ranking"
    older = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    assert infer_task(config_of("bert", ("LABEL_0",), **older)).name == "text-ranking"
    assert infer_task(config_of("bert", ("LABEL_0",))).name == "text-classification"
    nli = ("contradiction", "entailment", "neutral")
    assert infer_task(config_of("bert", nli, **told)).name == "text-classification"


def test_labels_that_a_model_lacks_are_told() -> None:
    nli = config_of("bert", ("No", "ENTAILMENT", "neutral"))
    require_labels(TASKS["zero-shot-classification"], nli)
    with pytest.raises(InputError, match="text-ranking wants one score for each input; its labels are No, ENTAILMENT"):
        require_labels(TASKS["text-ranking"], nli)
    with pytest.raises(InputError, match="a label that begins with 'entail'; its labels are LABEL_0"):
        require_labels(TASKS["zero-shot-classification"], config_of("bert", ("LABEL_0",)))
    require_labels(TASKS["text-ranking"], config_of("bert", ("LABEL_0",)))
    require_labels(TASKS["text-classification"], nli)


def test_what_is_asked_for_is_trained_as_what_has_the_same_classes() -> None:
    assert trained_as(TASKS["text-ranking"]).name == trained_as(TASKS["zero-shot-classification"]).name
    assert trained_as(TASKS["text-ranking"]).name == "text-classification"
    assert trained_as(TASKS["fill-mask"]) is TASKS["fill-mask"]


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TASKS) + 1
    assert next(line for line in lines if line.startswith("automatic-speech")).endswith("generate FOLDER speech.wav")
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert [row["name"] for row in rows] == list(TASKS)
    assert rows == [json.loads(row.model_dump_json()) for row in listed()]
    assert {command_of(task) for task in TASKS.values() if task.answer == "continuations"} == {"generate"}

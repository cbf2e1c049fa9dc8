"""The table of tasks says what transformers has, and its names are told apart.

Covers: tasks/task.py, tasks/listed.py, tasks/text.py, tasks/image.py, tasks/sound.py, tasks/several.py, cli/tasks.py
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.load.checkpoint.classes import fitting
from onnxopt.tasks.listed import command_of, listed
from onnxopt.tasks.table import TASKS, parse_task
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

"""What a model is asked to do: the task's name, the transformers class that does it, and what comes out.

transformers' own tables (one per task, from model type to class) say which classes exist; nothing here lists
model types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from onnxopt.errors import InputError


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: transformers' name of it.
        auto_class: the class of transformers that builds a model for it.
        table: transformers' table from model type to class name, in `transformers.models.auto.modeling_auto`.
        modality: what goes in.
        outputs: the outputs that the task is about; a model without them gives all of its own.
        generates: the answer is made token by token, so what was seen is kept in a cache.
        paired: an encoder reads what goes in, once, and a decoder writes.
    """

    name: str
    auto_class: str
    table: str
    modality: Literal["text", "image", "audio"]
    outputs: tuple[str, ...]
    generates: bool = False
    paired: bool = False


READ = ("input_ids", "pixel_values")  # what a model may take that reads alone
_LOGITS = ("logits",)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("feature-extraction", "AutoModel", "MODEL_MAPPING_NAMES", "text", ("last_hidden_state",)),
        Task("fill-mask", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "text", _LOGITS),
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
            "text",
            _LOGITS,
        ),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
            "text",
            _LOGITS,
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
            "text",
            ("start_logits", "end_logits"),
        ),
        Task(
            "text-generation",
            "AutoModelForCausalLM",
            "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
            "text",
            _LOGITS,
            generates=True,
        ),
        Task(
            "text2text-generation",
            "AutoModelForSeq2SeqLM",
            "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
            "text",
            _LOGITS,
            generates=True,
            paired=True,
        ),
        Task(
            "automatic-speech-recognition",
            "AutoModelForSpeechSeq2Seq",
            "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
            "audio",
            _LOGITS,
            generates=True,
            paired=True,
        ),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
            "image",
            _LOGITS,
        ),
        Task("image-feature-extraction", "AutoModel", "MODEL_MAPPING_NAMES", "image", ("last_hidden_state",)),
    )
}

# names of transformers' pipelines that optimum's table of synonyms does not have
SYNONYMS = {
    "sentence-embedding": "feature-extraction",
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
}


def parse_task(text: str) -> Task:
    """Return the task of that name; raises InputError that lists the names when there is none."""
    name = text.strip().lower()
    task = TASKS.get(SYNONYMS.get(name, name))
    if task is None:
        from optimum.exporters.tasks import TasksManager

        task = TASKS.get(TasksManager.map_from_synonym(name))
    if task is None:
        raise InputError(f"task {text!r} is not supported", hint=f"use one of {', '.join(TASKS)}")
    return task


def infer_task(config: Any, *, where: str = "") -> Task:
    """Find the task of a checkpoint by its config.

    Args:
        config: transformers' config object; `architectures` names the class that was saved.
        where: the checkpoint, for messages.

    Returns:
        The task whose table holds the saved class; plain features when the config names no class.

    Raises:
        InputError: for a class whose task is not supported.
    """
    saved = [name for name in getattr(config, "architectures", None) or () if isinstance(name, str)]
    if not saved:
        return features_task(config)
    # BART's class with a head is in the tables of masked words too
    both = getattr(config, "is_encoder_decoder", False)
    for task in sorted(TASKS.values(), key=lambda task: both and not task.paired):
        if saved[0] in _classes(task.table, config.model_type) or saved[0] == _own_class(config, task):
            return features_task(config) if task.auto_class == "AutoModel" else task
    if _bare_class(config) is not None:
        return features_task(config)
    require_readable(_class_of(saved[0]), where=where)
    raise InputError(
        f"{saved[0]} does a task that is not supported",
        where=where,
        hint=f"name one with --task: {', '.join(TASKS)}",
    )


def require_readable(kind: Any, *, where: str = "") -> None:
    """Refuse a class that reads neither text nor images, whatever it is asked to do.

    Args:
        kind: transformers' class, which says what it takes; None is not refused.
        where: the checkpoint, for messages.

    Raises:
        InputError: names what it takes, sound mostly, and the other way.
    """
    takes = getattr(kind, "main_input_name", READ[0])
    if takes not in READ:
        raise InputError(
            f"{kind.__name__} takes {takes}; only text and images are supported",
            where=where,
            hint="export it to ONNX by other means, and give the .onnx file",
        )


def features_task(config: Any) -> Task:
    """Return the task of a model without a head: features of text or of an image, by what its class takes."""
    import transformers

    table = transformers.AutoModel._model_mapping  # noqa: SLF001  the only table from config class to model class
    kind = _saved_class(config, table) if type(config) in table else _bare_class(config)
    takes_pixels = kind is not None and kind.main_input_name == "pixel_values"
    return TASKS["image-feature-extraction" if takes_pixels else "feature-extraction"]


def model_class(config: Any, task: Task, *, where: str = "") -> Any:
    """Return the transformers class that does `task` for a config object; raises InputError when there is none.

    For a checkpoint with its own code it is the Auto class, which finds that code by the config's `auto_map`.
    """
    import transformers

    auto = getattr(transformers, task.auto_class)
    if _own_class(config, task):
        return auto
    try:
        return _saved_class(config, auto._model_mapping)  # noqa: SLF001  the only table from config to model class
    except KeyError:
        bare = _bare_class(config) if task.auto_class == "AutoModel" else None
        if bare is not None:
            return bare
    if not getattr(config, "is_encoder_decoder", False):
        require_readable(_class_of(next(iter(getattr(config, "architectures", None) or ()), "")), where=where)
    kind = str(getattr(config, "model_type", ""))
    able = [other.name for other in TASKS.values() if _classes(other.table, kind)]
    raise InputError(
        f"transformers has no {kind} model for {task.name}",
        where=where,
        hint=f"name another with --task: {', '.join(able)}" if able else "this architecture does none of our tasks",
    )


def _saved_class(config: Any, table: Any) -> Any:
    """Return the class that a table has for a config; where it has several, the one that was saved, else the first.

    Raises:
        KeyError: it has none.
    """
    found = table[type(config)]
    if not isinstance(found, (list, tuple)):
        return found
    saved = getattr(config, "architectures", None) or ()
    return next((one for one in found if one.__name__ in saved), found[0])


def _bare_class(config: Any) -> Any:
    """Return the class without a head that was saved, for a config that no table has; None for every other.

    Half of a pair is such a class: a text encoder beside that of images.
    """
    import transformers

    saved = next(iter(getattr(config, "architectures", None) or ()), "")
    kind = getattr(transformers, saved, None) if isinstance(saved, str) and saved.endswith("Model") else None
    return kind if getattr(kind, "config_class", None) is type(config) else None


def _class_of(name: str) -> Any:
    """Return the class of transformers that has a name, None where it has no such class."""
    import transformers

    return getattr(transformers, name, None)


def _own_class(config: Any, task: Task) -> str:
    """Return the class of the checkpoint's own code that does a task; only trusted ones keep their `auto_map`."""
    named = (getattr(config, "auto_map", None) or {}).get(task.auto_class, "")
    return str(named).rsplit(".", 1)[-1]


def _classes(table: str, model_type: str) -> tuple[str, ...]:
    """Return the class names that a task's table gives for a model type."""
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, table).get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)

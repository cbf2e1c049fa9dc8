"""Which class of transformers does a task, and which task a saved class does."""

from __future__ import annotations

from typing import Any

from onnxopt.errors import InputError, word
from onnxopt.spec import SOUND_INPUTS
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import Given, Head, Task

READ = ("input_ids", "pixel_values", *SOUND_INPUTS)  # what a model may take that reads alone
_FEATURES = {  # the task of a model without a head, by what it takes; text else
    "pixel_values": "image-feature-extraction",
    **dict.fromkeys(SOUND_INPUTS, "audio-feature-extraction"),
}


def infer_task(config: Any, *, where: str = "") -> Task:
    """Find the task of a checkpoint by its config.

    Args:
        config: transformers' config object; `architectures` names the class that was saved.
        where: the checkpoint, for messages.

    Returns:
        The task whose table holds the saved class, as that class does it; plain features when the config names none.

    Raises:
        InputError: for a class whose task is not supported.
    """
    saved = [name for name in getattr(config, "architectures", None) or () if isinstance(name, str)]
    if not saved:
        return features_task(config, where=where)
    # BART's class with a head is in the tables of masked words too, and CLIP's without one in that of its task
    both = getattr(config, "is_encoder_decoder", False)
    able = [task.narrowed(head) for task in TASKS.values() if not task.asked for head in task.heads]
    for task in sorted(able, key=lambda task: (is_bare(task), both and not task.head.paired)):
        if saved[0] in _classes(task.head.table, config.model_type) or saved[0] == _own_class(config, task.head):
            return features_task(config, where=where) if is_bare(task) else _told(task, config)
    if _bare_class(config) is not None:
        return features_task(config, where=where)
    require_readable(_class_of(saved[0]), where=where)
    raise InputError(
        f"{saved[0]} does a task that is not supported",
        where=where,
        hint=f"name one with --task: {', '.join(TASKS)}",
    )


def _told(task: Task, config: Any) -> Task:
    """Return what a config says that a model is for, where it says more than the class of the model does.

    Args:
        task: by the class, narrowed to its head.
        config: transformers' config object.
    """
    for other in TASKS.values():
        able = task.head in other.heads and len(other.labels) == getattr(config, "num_labels", 0)
        if able and any(getattr(config, sign, None) for sign in other.signs):
            return other.narrowed(task.head)
    return task


def require_labels(task: Task, config: Any, *, where: str = "") -> None:
    """Refuse a task whose labels a model of the same class does not have.

    Args:
        task: what a user asks for.
        config: transformers' config object.
        where: the checkpoint, for messages.

    Raises:
        InputError: names the labels that it has.
    """
    if not task.asked:
        return
    names = [str(name) for name in (getattr(config, "id2label", None) or {}).values()]
    shown = word(", ".join(names)) if names else "none"
    hint = "leave --task out, to have its own labels"
    if task.labels and len(names) != len(task.labels):
        count = "one score" if len(task.labels) == 1 else f"{len(task.labels)} scores"
        raise InputError(f"{task.name} wants {count} for each input; its labels are {shown}", where=where, hint=hint)
    if task.needs and not any(name.lower().startswith(task.needs) for name in names):
        raise InputError(
            f"{task.name} wants a label that begins with {task.needs!r}; its labels are {shown}", where=where, hint=hint
        )


def require_readable(kind: Any, *, where: str = "") -> None:
    """Refuse a class that reads neither text nor images nor sound, whatever it is asked to do.

    Args:
        kind: transformers' class, which says what it takes; None is not refused.
        where: the checkpoint, for messages.

    Raises:
        InputError: names what it takes, and the other way.
    """
    takes = getattr(kind, "main_input_name", READ[0])
    if takes not in READ:
        raise InputError(
            f"{kind.__name__} takes {takes}; only text, images and sound are supported",
            where=where,
            hint="export it to ONNX by other means, and give the .onnx file",
        )


def features_task(config: Any, asked: Task | None = None, *, where: str = "") -> Task:
    """Return the task of a model without a head: features of text, an image or a sound, by what its class takes.

    A model that compares texts with images is asked to do so, or for the features of one of them.

    Args:
        config: transformers' config object.
        asked: what the user wants of it.
        where: the checkpoint, for messages.

    Raises:
        InputError: it was asked to compare, and reads one kind of input alone.
    """
    import transformers

    table = transformers.AutoModel._model_mapping  # noqa: SLF001  the only table from config class to model class
    kind = _saved_class(config, table) if type(config) in table else _bare_class(config)
    comparing = next(task for task in TASKS.values() if task.compares)
    if _towers(kind) >= set(comparing.takes):
        return fitting(comparing, config) if asked is None else asked
    if asked is not None and asked.compares:
        raise InputError(
            f"{kind.__name__ if kind else config.model_type} does not compare texts with images",
            where=where,
            hint="leave --task out, and it does what it was saved for",
        )
    return TASKS[_FEATURES.get(getattr(kind, "main_input_name", ""), "feature-extraction")]


def _towers(kind: Any) -> set[Given]:
    """Return the kinds of input of which a class gives features each by themselves."""
    heads = [(task, head) for task in TASKS.values() for head in task.heads if head.tower]
    return {task.takes[0] for task, head in heads if hasattr(kind, head.tower)}


def is_bare(task: Task) -> bool:
    """Tell whether a task is done by a model without a head: features, of whatever it takes."""
    return task.head.auto_class == "AutoModel"


def fitting(task: Task, config: Any) -> Task:
    """Return a task as the model of a config does it: with the saved class, else with the first that there is.

    Args:
        task: with one head or several.
        config: transformers' config object.
    """
    saved = [name for name in getattr(config, "architectures", None) or () if isinstance(name, str)]
    kind = str(getattr(config, "model_type", ""))
    able = [head for head in task.heads if _classes(head.table, kind) or _own_class(config, head)]
    own = (head for head in able if set(saved) & {*_classes(head.table, kind), _own_class(config, head)})
    return task.narrowed(next(own, (able or list(task.heads))[0]))


def model_class(config: Any, task: Task, *, where: str = "") -> Any:
    """Return the transformers class that does `task` for a config object; raises InputError when there is none.

    For a checkpoint with its own code it is the Auto class, which finds that code by the config's `auto_map`.
    """
    import transformers

    head = fitting(task, config).head
    auto = getattr(transformers, head.auto_class)
    if _own_class(config, head):
        return auto
    projecting = _bare_class(config) if is_bare(task) and _is_projecting(config) else None
    if projecting is not None:  # the tables have its class without the projection
        return projecting
    try:
        return _saved_class(config, auto._model_mapping)  # noqa: SLF001  the only table from config to model class
    except KeyError:
        bare = _bare_class(config) if is_bare(task) else None
        if bare is not None:
            return bare
    if not getattr(config, "is_encoder_decoder", False):
        require_readable(_class_of(next(iter(getattr(config, "architectures", None) or ()), "")), where=where)
    kind = str(getattr(config, "model_type", ""))
    able = [other.name for other in TASKS.values() if any(_classes(one.table, kind) for one in other.heads)]
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
    bare = isinstance(saved, str) and (saved.endswith("Model") or _is_projecting(config))
    kind = getattr(transformers, saved, None) if bare else None
    return kind if getattr(kind, "config_class", None) is type(config) else None


def _is_projecting(config: Any) -> bool:
    """Tell whether a tower was saved with its projection into the space where texts and images are compared."""
    saved = next(iter(getattr(config, "architectures", None) or ()), "")
    return isinstance(saved, str) and saved.endswith("ModelWithProjection")


def _class_of(name: str) -> Any:
    """Return the class of transformers that has a name, None where it has no such class."""
    import transformers

    return getattr(transformers, name, None)


def _own_class(config: Any, head: Head) -> str:
    """Return the class of the checkpoint's own code that does a task; only trusted ones keep their `auto_map`."""
    named = (getattr(config, "auto_map", None) or {}).get(head.auto_class, "")
    return str(named).rsplit(".", 1)[-1]


def _classes(table: str, model_type: str) -> tuple[str, ...]:
    """Return the class names that a table of transformers gives for a model type."""
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, table).get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)

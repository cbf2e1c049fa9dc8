"""Teacher and student behind one face, and the module that turns both into losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.distill.settings import Settings
from onnxopt.errors import InputError
from onnxopt.load.checkpoint.opened import Opened, answers

TAUGHT = ("logits", "best", "index")  # what a teacher says of tokens: all of them, or the likeliest

DEFAULT_LOSSES: dict[str, dict[str, float]] = {
    "text-generation": {"logits": 1.0},
    "fill-mask": {"logits": 1.0},
    "text-classification": {"logits": 1.0},
    "token-classification": {"logits": 1.0},
    "feature-extraction": {"embedding": 1.0, "hidden": 1.0},
}


def losses_of(settings: Settings, teacher: Opened) -> dict[str, float]:
    """Return the weights of the losses, by the task when the settings name none.

    Raises:
        InputError: for a loss that the task does not have.
    """
    name = teacher.task.name
    if name not in DEFAULT_LOSSES:
        raise InputError(f"task {name} cannot be distilled", hint=f"supported: {', '.join(DEFAULT_LOSSES)}")
    wanted = dict(settings.losses) or dict(DEFAULT_LOSSES[name])
    if not settings.losses and teacher.head is None:
        wanted.pop("embedding", None)
    if "embedding" in wanted and teacher.head is None:
        raise InputError("the teacher has no sentence embedding", where="--loss embedding", hint="use hidden")
    if name == "feature-extraction" and {"logits", "task"} & wanted.keys():
        raise InputError("the teacher has no logits", where="--loss", hint="use embedding or hidden")
    kept = {key: weight for key, weight in wanted.items() if weight > 0}
    if not kept:
        raise InputError("no loss is left", where="--loss")
    return kept


def show_attention(opened: Opened) -> None:
    """Let a network compute its attention so that it can tell where it looks.

    Raises:
        InputError: when it cannot.
    """
    try:
        opened.network.set_attn_implementation("eager")
    except (AttributeError, ValueError) as error:
        raise InputError(f"does not tell where it looks ({error})", where=str(opened.folder)) from error


def make_learner(student: Opened, teacher: Opened, weights: Mapping[str, float], settings: Settings) -> Any:
    """Return a module that holds the student and the projections of its hidden states, and gives sums of losses.

    Its forward takes the feeds, the teacher's answers (with `top_k` its likeliest tokens, as `best` and `index`), what
    counts (`tokens`: bool [rows, positions], `labels`: int64) and returns a dict of scalars, one per loss.
    """
    import torch

    from onnxopt.distill import losses

    theirs, ours = teacher.config.get_text_config(), student.config.get_text_config()
    project = "hidden" in weights and ours.hidden_size != theirs.hidden_size
    pairs = [
        (j, round(j * theirs.num_hidden_layers / ours.num_hidden_layers)) for j in range(ours.num_hidden_layers + 1)
    ]

    class Learner(torch.nn.Module):
        """The student with its projections."""

        def __init__(self) -> None:
            super().__init__()
            self.student = student.network
            self.head = student.head
            self.projections = torch.nn.ModuleList(
                [torch.nn.Linear(ours.hidden_size, theirs.hidden_size, bias=False) for _ in pairs] if project else []
            )

        def forward(
            self, feeds: dict[str, Any], taught: dict[str, Any], tokens: Any, wanted: Any
        ) -> dict[str, torch.Tensor]:
            found = answers(
                self.student, self.head, feeds, hidden="hidden" in weights, attention="attention" in weights
            )
            sums: dict[str, torch.Tensor] = {}
            if {"logits", "task"} & weights.keys():
                mine, given = found["logits"], {name: taught[name] for name in TAUGHT if name in taught}
                if mine.ndim == 3:
                    mine, given = mine[tokens], {name: one[tokens] for name, one in given.items()}
                    wanted = None if wanted is None else wanted[tokens]
                if "logits" in weights:
                    sums["logits"] = losses.distribution(mine, **given, temperature=settings.temperature)
                if "task" in weights:
                    sums["task"] = losses.labels(mine, wanted)
            if "attention" in weights:
                real = feeds["attention_mask"].bool()
                sums["attention"] = losses.attentions(found["attention"][real], taught["attention"][real])
            if "hidden" in weights:
                real = feeds["attention_mask"].bool()
                parts = []
                for place, (j, k) in enumerate(pairs):
                    rows = found["hidden"][j][real]
                    rows = self.projections[place](rows) if project else rows
                    parts.append(losses.hidden_states(rows, taught["hidden"][k][real]))
                sums["hidden"] = torch.stack(parts).mean()
            if "embedding" in weights:
                sums["embedding"] = losses.embeddings(found["embedding"], taught["embedding"])
            return sums

    return Learner()

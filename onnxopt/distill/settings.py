"""What decides a distillation, and what it leaves as its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from onnxopt.errors import InputError
from onnxopt.records.record import Record

Schedule = Literal["cosine", "linear", "constant"]
Mixed = Literal["no", "bf16", "fp16"]
LOSSES = ("logits", "hidden", "attention", "embedding", "task")
RECORD_NAME = "distillation.json"


class Settings(Record):
    """Everything that decides the outcome.

    Attributes:
        teacher: source of the teacher.
        student: folder of the student's checkpoint to start from.
        student_name: what records and messages call it, as its folder may be gone afterwards; its folder when empty.
        task: transformers task name of both.
        data: `builtin`, or files of text or JSON entries.
        steps: weight updates.
        batch: rows of an update, over all processes and accumulated pieces.
        length: tokens of a row.
        accumulate: pieces that a process cuts its rows of an update into.
        learning_rate: the highest one.
        schedule: how it falls after the warm-up.
        warmup: share of the steps in which it rises.
        weight_decay: of matrices; tables, gains and biases have none.
        clip: longest gradient.
        losses: weight of each part: `logits`, `hidden`, `attention`, `embedding`, `task`.
        temperature: softens both distributions.
        top_k: logits of the teacher that count one by one, the rest as one; 0 for all.
        cache_teacher: keep those of every row on disk, so that later epochs do not ask the teacher again.
        mixed_precision: what accelerate multiplies in.
        evaluate_every: updates between looks at held-out text; 0 for a tenth of the steps.
        patience: looks without a better metric after which it stops; 0 never stops early.
        save_every: updates between saved states; 0 saves none.
        hold_out: share of the rows that are held out.
        evaluate: what to look at instead, `builtin` or a text file; then no row of the data is held out.
        most_rows: rows that are read at most; 0 for all.
        seed: of the order of the rows and of new projections.
        threads: of the processor, for each process; 0 leaves it to torch.
    """

    teacher: str
    student: str
    student_name: str = ""
    task: str = ""
    data: tuple[str, ...] = ("builtin",)
    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=16, ge=1)
    length: int = Field(default=128, ge=2)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    losses: dict[str, float] = Field(default_factory=dict)
    temperature: float = Field(default=2.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    cache_teacher: bool = False
    mixed_precision: Mixed = "no"
    evaluate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=0, ge=0)
    save_every: int = Field(default=0, ge=0)
    hold_out: float = Field(default=0.05, gt=0, lt=0.9)
    evaluate: str = ""
    most_rows: int = Field(default=0, ge=0)
    seed: int = 0
    threads: int = Field(default=0, ge=0)

    def named(self) -> Settings:
        """Return these as a record keeps them: the student by its name."""
        return self.model_copy(update={"student": self.student_name or self.student, "student_name": ""})

    @classmethod
    def made(cls, **values: Any) -> Settings:
        """Make settings of what a user gave; raises InputError in one line."""
        try:
            found = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{name}: {first['msg']}", where="distill") from error
        unknown = [name for name in found.losses if name not in LOSSES]
        if unknown:
            raise InputError(f"unknown loss {unknown[0]!r}", where="--loss", hint=f"use {', '.join(LOSSES)}")
        if any(not weight >= 0 for weight in found.losses.values()):
            raise InputError("the weight of a loss is below 0", where="--loss")
        if found.cache_teacher and not found.top_k:
            raise InputError(
                "all logits of every row are too many to keep", where="--cache-teacher", hint="add --top-k 64"
            )
        return found

    def write(self, path: Path) -> None:
        """Write the settings as a job for `python -m onnxopt.distill.worker`."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read what `write` wrote."""
        try:
            return cls.made(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot be read as a job ({error})", where=str(path)) from error


class Point(Record):
    """One look at the curve.

    Attributes:
        step: updates so far.
        loss: mean loss since the point before; None for the first, before any update.
        parts: the parts of it, unweighted.
        metric: on held-out rows; None where it was not taken.
        learning_rate: at that step.
    """

    step: int
    loss: float | None = None
    parts: dict[str, float] = Field(default_factory=dict)
    metric: float | None = None
    learning_rate: float = 0.0


class Distillation(Record):
    """`distillation.json`: how a student was taught.

    Attributes:
        settings: what decided it.
        metric: name of the held-out metric.
        better: whether more of it is better.
        teacher_metric: of the teacher, on the same rows.
        before: of the student before.
        after: of the student as written, which is the best that was seen.
        best_step: when that was.
        steps: updates made.
        stopped_early: whether patience ended it.
        resumed_at: the step it went on from, 0 when from the start.
        curve: the points.
        rows: rows to learn from.
        held_out: rows held out.
        teacher_parameters: how many.
        student_parameters: how many.
        processes: how many took part.
        device: what they ran on.
        samples_per_second: rows a second, over all processes, evaluation not counted.
        tokens_per_second: real tokens a second.
        seconds: in all.
        versions: of the libraries.
        notes: sentences a user should read.
    """

    settings: Settings
    metric: str
    better: Literal["lower", "higher"]
    teacher_metric: float
    before: float
    after: float
    best_step: int
    steps: int
    stopped_early: bool = False
    resumed_at: int = 0
    curve: tuple[Point, ...] = ()
    rows: int
    held_out: int
    teacher_parameters: int
    student_parameters: int
    processes: int = 1
    device: str = "cpu"
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the result for people."""
        gap = self.before - self.teacher_metric  # below or above 0 by which way is better
        lost = abs(gap) > 1e-9 and (gap > 0) == (self.better == "lower")
        share = f", {100 * (self.before - self.after) / gap:.0f} % of the gap closed" if lost else ""
        return [
            (
                f"{self.metric} on {self.held_out} held-out rows: teacher {self.teacher_metric:.4g}, "
                f"student {self.before:.4g} before, {self.after:.4g} after{share}"
            ),
            f"{self.student_parameters / 1e6:.1f} of {self.teacher_parameters / 1e6:.1f} million parameters",
            f"{self.steps} steps"
            + (", stopped early" if self.stopped_early else "")
            + f", {self.samples_per_second:.1f} rows/s, {self.tokens_per_second:.0f} tokens/s, {self.seconds:.0f} s on "
            f"{self.processes} × {self.device}",
            *(f"note: {note}" for note in self.notes),
        ]

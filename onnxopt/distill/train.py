"""Teach: the loop, on one process or on those that accelerate started.

Every process sees the same order of rows and takes its share of each update, so that the same global batch gives the
same loss curve however many there are. Losses are sums divided by what counts in the whole update.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.distill import losses
from onnxopt.distill.batches import Batches
from onnxopt.distill.data import Order
from onnxopt.distill.look import METRICS, Look
from onnxopt.distill.memory import Memory
from onnxopt.distill.models import losses_of, make_learner, show_attention
from onnxopt.distill.settings import RECORD_NAME, Distillation, Point, Settings
from onnxopt.errors import InputError
from onnxopt.host.disk import needing
from onnxopt.host.extras import require
from onnxopt.host.folders import staged, write_whole, writing
from onnxopt.host.kept import keep
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.folder import assets_of
from onnxopt.load.checkpoint.opened import Opened, answers, open_checkpoint
from onnxopt.records.events import Step
from onnxopt.spec import Array, Say
from onnxopt.texts.rows import IGNORED, Rows, read_rows
from onnxopt.version import __version__

MOST_HELD_OUT = 256  # rows; more would only cost time
_VERSIONED = ("torch", "transformers", "accelerate", "tokenizers")


def train(settings: Settings, out: Path, *, resume: bool = False, say: Say | None = None) -> Distillation:
    """Teach a student and write its checkpoint.

    Args:
        settings: what decides the outcome.
        out: folder of the finished checkpoint; states are kept in `<out>.state` beside it until then.
        resume: go on from the last saved state.
        say: told what happens, on the main process.

    Returns:
        The record, which also lies in the folder as `distillation.json`.

    Raises:
        InputError: when teacher, student, data or settings do not fit.
    """
    require("hf", "distilling")
    import accelerate

    accelerate.utils.set_seed(settings.seed)
    engine = accelerate.Accelerator(mixed_precision=settings.mixed_precision)
    tell = say if say is not None and engine.is_main_process else _silent
    if settings.batch % (engine.num_processes * settings.accumulate):
        raise InputError(
            f"a batch of {settings.batch} does not divide into {engine.num_processes} processes of "
            f"{settings.accumulate} pieces",
            hint="choose another --batch",
        )
    with _threads(settings.threads), quiet():
        tell("loading the teacher")
        teacher = open_checkpoint(settings.teacher, settings.task)
        tell("loading the student")
        student = open_checkpoint(settings.student, teacher.task.name)
        return _Run(settings, out, engine, teacher, student, tell).go(resume=resume)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads, or as many as before for 0."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _silent(_: str) -> None:
    pass


@dataclass
class _Run:
    settings: Settings
    out: Path
    engine: Any
    teacher: Opened
    student: Opened
    say: Say
    curve: list[Point] = field(default_factory=list)
    best: tuple[float, int] = (math.nan, 0)
    weights: dict[str, Any] = field(default_factory=dict)
    since: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    sign: float = 1.0
    teacher_head: Any = None
    memory: Memory | None = None
    batches: Batches = field(init=False)
    busy: float = 0.0
    seen_rows: int = 0
    seen_tokens: int = 0

    @property
    def state_folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.state")

    def go(self, *, resume: bool) -> Distillation:
        """Run the whole."""
        started = time.perf_counter()
        settings, engine = self.settings, self.engine
        self.parts = losses_of(settings, self.teacher)
        self._check()
        self.batches = Batches(settings.seed, self.teacher, engine.device)
        rows, held = self._read()
        self._check_labels(rows)
        if len(rows) < settings.batch:
            raise InputError(f"{len(rows)} rows are fewer than a batch of {settings.batch}", hint="give more text")
        teacher = self.teacher.network.to(engine.device).requires_grad_(requires_grad=False)
        self.teacher_head = self.teacher.head.to(engine.device) if self.teacher.head is not None else None
        learner = make_learner(self.student, self.teacher, self.parts, settings)
        learner.requires_grad_(requires_grad=True)
        learner.to(engine.device)
        if settings.cache_teacher:
            self.memory = Memory(len(rows), rows.ids.shape[1], min(settings.top_k, self._vocabulary()))
        self._freeze_unused(learner, rows)
        optimizer, schedule = self._optimizer(learner)
        learner, optimizer = engine.prepare(learner, optimizer)
        metric, better = METRICS[self.teacher.task.name]
        if self._narrower():
            metric = "correlation of similarities with the teacher's"
        self.sign = 1.0 if better == "higher" else -1.0
        self.say("the teacher on held-out rows")
        look = Look(engine, self.batches, held, self.teacher, self.teacher_head)
        of_teacher = look.metric(teacher, self.teacher_head)
        before = look.metric(self._inner(learner).student, self.student.head)
        begin = self._resume(learner, optimizer, schedule) if resume else 0
        if not begin:
            self._look(learner, Point(step=0, metric=before))
        stopped = self._steps(begin, rows, look, (learner, optimizer, schedule))
        last = self.curve[-1].step
        record = Distillation(
            settings=settings.named().model_copy(update={"losses": self.parts}),
            metric=metric,
            better=better,  # type: ignore[arg-type]  # one of the two
            teacher_metric=of_teacher,
            before=self.curve[0].metric if self.curve[0].metric is not None else before,
            after=self.best[0],
            best_step=self.best[1],
            steps=last,
            stopped_early=stopped,
            resumed_at=begin,
            curve=tuple(self.curve),
            rows=len(rows),
            held_out=len(held),
            teacher_parameters=self.teacher.parameters,
            student_parameters=sum(one.numel() for one in self.student.network.parameters()),
            processes=engine.num_processes,
            device=str(engine.device.type),
            samples_per_second=self.seen_rows / self.busy if self.busy else 0.0,
            tokens_per_second=self.seen_tokens / self.busy if self.busy else 0.0,
            seconds=time.perf_counter() - started,
            versions={"onnxopt": __version__, **{name: metadata.version(name) for name in _VERSIONED}},
            notes=tuple(self._notes()),
        )
        if engine.is_main_process:
            self._write(record)
        engine.wait_for_everyone()
        return record

    def _read(self) -> tuple[Rows, Rows]:
        """Return the rows to learn from and those to look at."""
        settings, teacher = self.settings, self.teacher
        options: dict[str, Any] = {
            "length": self._length(),
            "running": teacher.task.name in ("text-generation", "fill-mask"),
            "pad": teacher.pad,
        }
        rows = read_rows(settings.data, teacher.folder, **options, most=settings.most_rows)
        if settings.evaluate:
            held = read_rows([settings.evaluate], teacher.folder, **options, most=MOST_HELD_OUT)
        else:
            rows, held = rows.split(settings.hold_out)
        return rows, held.take_whole(np.arange(min(len(held), MOST_HELD_OUT)))

    # What fits

    def _check(self) -> None:
        theirs, ours = (one.config.get_text_config().vocab_size for one in (self.teacher, self.student))
        if theirs != ours:
            raise InputError(
                f"the student has a vocabulary of {ours}, the teacher of {theirs}",
                where=self.settings.student_name or self.settings.student,
                hint="both must read the same tokens; cut the vocabulary after distilling",
            )
        if self.settings.cache_teacher and (
            self.teacher.task.name != "text-generation" or not self.parts.keys() <= {"logits", "task"}
        ):
            raise InputError(
                "only what a language model says of tokens can be kept",
                where="--cache-teacher",
                hint="use --loss logits",
            )
        if "attention" in self.parts:
            theirs, ours = (one.config.get_text_config().num_attention_heads for one in (self.teacher, self.student))
            if theirs != ours:
                raise InputError(
                    f"the student's layers have {ours} heads, the teacher's {theirs}",
                    where="--loss attention",
                    hint="use hidden",
                )
            show_attention(self.teacher)
            show_attention(self.student)
        if "embedding" in self.parts and self._narrower():
            raise InputError(
                "embeddings of teacher and student have different widths", where="--loss embedding", hint="use hidden"
            )

    def _vocabulary(self) -> int:
        return int(self.teacher.config.get_text_config().vocab_size)

    def _narrower(self) -> bool:
        """Tell whether features of teacher and student have different widths, so that no cosine compares them."""
        theirs, ours = (one.config.get_text_config().hidden_size for one in (self.teacher, self.student))
        return self.teacher.task.name == "feature-extraction" and bool(theirs != ours)

    def _check_labels(self, rows: Rows) -> None:
        name = self.teacher.task.name
        if "task" not in self.parts or name == "text-generation":
            return
        if name != "text-classification" or rows.labels is None:
            raise InputError(
                f"the loss `task` of {name} needs labels", where="--loss", hint='give .jsonl with {"text", "label"}'
            )
        classes = int(self.teacher.config.num_labels)
        if rows.labels.min() < 0 or rows.labels.max() >= classes:
            raise InputError(f"a label is outside 0 to {classes - 1}", where=", ".join(self.settings.data))

    def _length(self) -> int:
        taken = int(getattr(self.teacher.config.get_text_config(), "max_position_embeddings", 0) or 0)
        if taken and self.settings.length > taken:
            raise InputError(
                f"rows of {self.settings.length} tokens are longer than the teacher's {taken} positions",
                hint="choose a smaller --length",
            )
        return self.settings.length

    def _notes(self) -> list[str]:
        notes = []
        if self.best[1] != self.curve[-1].step:
            notes.append(f"the weights are those of step {self.best[1]}, where the held-out metric was best")
        if self.settings.data == ("builtin",):
            notes.append("taught on the builtin text; give your own with --data")
        return notes

    # The teacher's answers

    def _teach(self, feeds: Mapping[str, Any], index: Array | None = None) -> dict[str, Any]:
        """Return what the teacher says to a batch; with `index`, rows that it knows are not asked again."""
        import torch

        if self.memory is not None and index is not None:
            known = self.memory.recall(index, feeds["input_ids"].shape[1], self.engine.device)
            if known is not None:
                return known
        with torch.no_grad(), self.engine.autocast():
            given = answers(
                self.teacher.network,
                self.teacher_head,
                feeds,
                hidden="hidden" in self.parts,
                attention="attention" in self.parts,
            )
            if self.settings.top_k and "logits" in self.parts:
                best, places = losses.likeliest(
                    given.pop("logits"), temperature=self.settings.temperature, top_k=self.settings.top_k
                )
                given |= {"best": best, "index": places}
        if self.memory is not None and index is not None:
            self.memory.keep(index, given)
        return given

    def _freeze_unused(self, learner: Any, rows: Rows) -> None:
        """Leave out of training what no loss depends on, which processes that add up gradients must know."""
        batch = self.batches.make(rows, np.arange(min(2, len(rows))), 0)
        sums = learner(batch.feeds, self._teach(batch.feeds), batch.tokens, batch.wanted)
        sum(sums.values()).backward()
        for one in learner.parameters():
            if one.grad is None:
                one.requires_grad_(requires_grad=False)
            one.grad = None

    def _optimizer(self, learner: Any) -> tuple[Any, Any]:
        import torch
        from transformers import get_scheduler

        taught = [one for one in learner.parameters() if one.requires_grad]
        tables = {
            id(one)
            for module in learner.modules()
            if isinstance(module, torch.nn.Embedding)
            for one in module.parameters(recurse=False)
        }
        decayed = [one for one in taught if one.ndim >= 2 and id(one) not in tables]
        others = [one for one in taught if one.ndim < 2 or id(one) in tables]
        settings = self.settings
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)
        warm = max(1, round(settings.warmup * settings.steps)) if settings.warmup else 0
        return optimizer, get_scheduler(
            settings.schedule, optimizer, num_warmup_steps=warm, num_training_steps=settings.steps
        )

    def _inner(self, learner: Any) -> Any:
        return self.engine.unwrap_model(learner)

    # The loop

    def _steps(self, begin: int, rows: Rows, look: Look, taught: tuple[Any, Any, Any]) -> bool:
        settings, (learner, optimizer, schedule) = self.settings, taught
        every = settings.evaluate_every or max(1, settings.steps // 10)
        order = Order(len(rows), settings.batch, settings.seed)
        totals: dict[str, float] = {}
        counted = 0
        for step in range(begin + 1, settings.steps + 1):
            began = time.perf_counter()
            index = order.batch(step - 1)
            parts = self._update(index, step, rows, learner, optimizer)
            schedule.step()
            self.busy += time.perf_counter() - began
            self.seen_rows += len(index)
            self.seen_tokens += int(rows.mask[index].sum())
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value
            counted += 1
            self._tell(step)
            if step % every == 0 or step == settings.steps:
                loss = sum(self.parts[name] * value for name, value in totals.items()) / counted
                metric = look.metric(self._inner(learner).student, self.student.head)
                mean = {name: value / counted for name, value in totals.items()}
                rate = float(schedule.get_last_lr()[0])
                self._look(learner, Point(step=step, loss=loss, parts=mean, metric=metric, learning_rate=rate))
                totals, counted = {}, 0
                if settings.patience and self.since >= settings.patience and step < settings.steps:
                    return True
            if settings.save_every and step % settings.save_every == 0:
                self._save(step, learner, schedule)
        return False

    def _update(self, index: Array, step: int, rows: Rows, learner: Any, optimizer: Any) -> dict[str, float]:
        """Make one update with this process's share of the rows; return the losses of the whole batch."""
        import torch

        engine, settings = self.engine, self.settings
        own = index[engine.process_index :: engine.num_processes]
        shares = np.array_split(own, settings.accumulate)
        pieces = [self.batches.make(rows, part, step) for part in shares]
        # what is divided by: tokens or rows of the whole update
        counts = torch.tensor(
            [
                sum(one.count for one in pieces),
                sum(int(one.feeds["attention_mask"].sum()) for one in pieces),
                len(own),
                sum(0 if one.wanted is None else int((one.wanted != IGNORED).sum()) for one in pieces),
            ],
            device=engine.device,
            dtype=torch.float64 if engine.device.type == "cpu" else torch.float32,
        )
        counts = engine.reduce(counts, "sum").clamp(min=1)
        divisors = {
            "logits": counts[0],
            "hidden": counts[1],
            "attention": counts[1],
            "embedding": counts[2],
            "task": counts[3],
        }
        sums = torch.zeros(len(self.parts), device=engine.device)
        for number, (one, share) in enumerate(zip(pieces, shares, strict=True), start=1):
            taught = self._teach(one.feeds, share)
            apart = engine.no_sync(learner) if number < len(pieces) else nullcontext()
            with apart, engine.autocast():
                found = learner(one.feeds, taught, one.tokens, one.wanted)
                means = {name: found[name] / divisors[name].to(found[name].dtype) for name in self.parts}
                loss = sum(self.parts[name] * mean for name, mean in means.items())
                # gradients of processes are averaged; the divisors are those of all of them
                engine.backward(loss * engine.num_processes)
            sums += torch.stack([means[name].detach().float() for name in self.parts])
        engine.clip_grad_norm_(learner.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        total = engine.reduce(sums, "sum")
        return {name: float(value) for name, value in zip(self.parts, total, strict=True)}

    def _tell(self, step: int, found: str = "") -> None:
        """Say how far it is, and what was found there."""
        steps = self.settings.steps
        self.say(Step(f"step {step} of {steps}{found}", work="step", done=step, total=steps))

    def _look(self, learner: Any, point: Point) -> None:
        """Add a point to the curve, and keep the weights if none before was better."""
        self.curve.append(point)
        step, metric = point.step, float(point.metric or 0.0)
        name = METRICS[self.teacher.task.name][0]
        shown = "" if point.loss is None else f", loss {point.loss:.4f}"
        self._tell(step, f"{shown}, {name} {metric:.4g}")
        if math.isnan(self.best[0]) or self.sign * metric > self.sign * self.best[0]:
            self.best, self.since = (metric, step), 0
            full = self.engine.get_state_dict(learner)
            if self.engine.is_main_process:
                own = {name[8:]: one for name, one in full.items() if name.startswith("student.")}
                self.weights = {name: one.detach().cpu().clone() for name, one in own.items()}
        else:
            self.since += 1

    # States

    def _save(self, step: int, learner: Any, schedule: Any) -> None:
        """Keep all that is needed to go on, in place of what was kept before."""
        del learner
        folder = self.state_folder / f"step-{step}"
        with writing(folder):
            self.engine.save_state(str(folder))
        if self.engine.is_main_process:
            self._save_progress(folder, step, schedule)
        self.engine.wait_for_everyone()

    def _save_progress(self, folder: Path, step: int, schedule: Any) -> None:
        """Write what only one process knows, the file that makes the state whole last; older states go then."""
        from safetensors.torch import save_file

        with writing(folder):
            save_file({name: one.contiguous() for name, one in self._untied().items()}, folder / "best.safetensors")
            state = {
                "step": step,
                "best": list(self.best),
                "since": self.since,
                "schedule": schedule.state_dict()["last_epoch"],
                "curve": [point.model_dump() for point in self.curve],
                "settings": self.settings.model_dump(mode="json"),
            }
            write_whole(folder / "progress.json", json.dumps(state))
        keep(self.state_folder, f"the state of step {step} in {self.state_folder}: --resume goes on from there")
        for old in self.state_folder.glob("step-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def _untied(self) -> dict[str, Any]:
        return {name: one.clone() for name, one in self.weights.items()}

    def _resume(self, learner: Any, optimizer: Any, schedule: Any) -> int:
        from safetensors.torch import load_file

        del learner, optimizer
        found = sorted(self.state_folder.glob("step-*/progress.json"), key=lambda path: int(path.parent.name[5:]))
        if not found:
            where = str(self.state_folder)
            raise InputError("there is no saved state to go on from", where=where, hint="drop --resume")
        state = json.loads(found[-1].read_text(encoding="utf-8"))
        free = {"student_name", "evaluate_every", "patience", "save_every", "threads"}
        now = {key: value for key, value in self.settings.model_dump(mode="json").items() if key not in free}
        changed = [key for key, value in now.items() if state["settings"].get(key) != value]
        if changed:
            raise InputError(
                f"the saved state was made with another {', '.join(changed)}",
                where=str(found[-1].parent),
                hint="use the same options, or drop --resume",
            )
        self.engine.load_state(str(found[-1].parent))
        self.curve = [Point(**point) for point in state["curve"]]
        self.best, self.since = (float(state["best"][0]), int(state["best"][1])), int(state["since"])
        self.weights = load_file(found[-1].parent / "best.safetensors")
        for _ in range(int(state["schedule"])):
            schedule.step()
        self.say(f"going on from step {state['step']}")
        return int(state["step"])

    def _write(self, record: Distillation) -> None:
        """Write the checkpoint folder: config, weights in float32, tokenizer and pooling as the teacher has them."""
        self.say(f"writing {self.out}")
        network = self.student.network
        network.load_state_dict(self.weights)
        with staged(self.out) as folder, needing(4 * sum(one.numel() for one in network.parameters())):
            for path in assets_of(self.teacher.folder):
                copy = folder / path.relative_to(self.teacher.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            network.save_pretrained(folder)
            (folder / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
        shutil.rmtree(self.state_folder, ignore_errors=True)

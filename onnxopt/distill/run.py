"""Start a distillation: make the student, then teach it here or in processes that accelerate starts."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from onnxopt.calibrate.sources import require_there
from onnxopt.distill.settings import RECORD_NAME, Distillation, Settings
from onnxopt.errors import InputError
from onnxopt.host.extras import require
from onnxopt.host.folders import check_writable, write_whole, writing
from onnxopt.host.scratch import scratch_folder
from onnxopt.load.checkpoint.opened import open_checkpoint
from onnxopt.load.source.source import require_known
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.events import Step
from onnxopt.records.notebook import steps_shown
from onnxopt.spec import Say

logger = logging.getLogger(__name__)


def distill(
    teacher: str,
    out: Path,
    *,
    student: str,
    processes: int = 1,
    resume: bool = False,
    align: int = 16,
    progress: Say | None = None,
    **options: Any,
) -> Distillation:
    """Teach a student what a teacher does and write its checkpoint.

    Args:
        teacher: sample, recipe, Hub id or checkpoint folder.
        out: folder to write.
        student: what to make of the teacher, such as `layers=6` or `ffn=25%,layers=2:last`, or a checkpoint folder.
            In a student `layers` is how many stay; in `--prune` it is how many go, so both can be written here:
            `layers=6` keeps six, `ffn=25%` removes a quarter.
        processes: of accelerate, on this machine.
        resume: go on from the last saved state.
        align: sizes of a pruned student are multiples of this.
        progress: told what happens; in a notebook a line below the cell when None.
        options: fields of `Settings`.

    Returns:
        The record, which also lies in the folder.

    Raises:
        InputError: when something does not fit; nothing is written.
    """
    require("hf", "distilling")
    for text in filter(None, (*options.get("data", ()), options.get("evaluate", ""))):
        require_there(text)
    check_folder(out)
    require_known(teacher)
    with scratch_folder() as scratch, steps_shown("distill", progress) as tell:
        folder = Path(student).expanduser()
        if not (folder / "config.json").is_file():
            if "=" not in student:
                raise InputError(
                    "is neither a checkpoint folder nor a way to make one",
                    where=student,
                    hint='write --student "layers=6", --student "ffn=25%", or name a folder',
                )
            folder = out.with_name(f"{out.name}.student") if options.get("save_every") else scratch / "student"
            if not (resume and folder.is_dir()):
                make_student(teacher, student, folder, task=options.get("task", ""), align=align, say=tell)
        settings = Settings.made(teacher=teacher, student=str(folder), **{"student_name": student, **options})
        if processes == 1:
            from onnxopt.distill.train import train

            return train(settings, out, resume=resume, say=tell)
        return _launch(settings, out, scratch / "job.json", processes, resume=resume, say=tell)


def check_folder(out: Path) -> None:
    """Refuse to replace a folder that no distillation wrote, and one that cannot be written."""
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD_NAME).is_file():
        raise InputError("is a folder with other content", where=str(out), hint="name a new folder with --out")
    if out.exists() and not out.is_dir():
        raise InputError("is a file", where=str(out), hint="name a new folder with --out")
    check_writable(out)


def make_student(teacher: str, text: str, folder: Path, *, task: str, align: int, say: Say) -> None:
    """Write the checkpoint of a student made from its teacher: `layers` is how many stay, the rest as in `--prune`."""
    from onnxopt.prune.checkpoint.student import prune_opened, write_opened

    opened = open_checkpoint(teacher, task)
    parts = []
    for part in text.split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "layers":
            value, mark, order = value.partition(":")
            have = int(getattr(opened.config, "num_hidden_layers", 0) or 0)
            if not value.isdigit() or not 0 < int(value) <= have:
                raise InputError(f"layers={value} of {have}", where="--student", hint="name how many layers stay")
            if int(value) == have:
                continue
            parts.append(f"layers={have - int(value)}{mark}{order}")
        else:
            parts.append(part)
    if parts:
        spec = PruneSpec.parse(",".join(parts), align=align)
        say(f"making the student: {spec}")
        from onnxopt.prune.judging import read_samples

        prune_opened(opened, spec, read_samples(opened).fit, say)
    write_opened(opened, folder)


def write_job(settings: Settings, out: Path, path: Path) -> None:
    """Write a job that every process of `onnxopt.distill.worker` reads."""
    content = {"settings": settings.model_dump(mode="json"), "out": str(out.absolute())}
    with writing(path):
        write_whole(path, json.dumps(content, indent=2) + "\n")


def _launch(settings: Settings, out: Path, job: Path, processes: int, *, resume: bool, say: Say) -> Distillation:
    """Start the processes and hand on what the main one says."""
    import torch

    write_job(settings, out, job)
    worker = ["onnxopt.distill.worker", str(job), *(["--resume"] if resume else [])]
    if torch.cuda.is_available():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", settings.mixed_precision]
        command += ["--multi_gpu", "-m", *worker]
    else:
        command = [sys.executable, "-m", *worker, "--processes", str(processes)]
    say(f"accelerate starts {processes} processes")
    failure, tail = "", ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:  # noqa: S603  our own command
        try:
            for line in running.stdout or ():
                try:
                    told = json.loads(line)
                except ValueError:
                    logger.debug("%s", line.rstrip())
                    tail = line.strip() or tail
                    continue
                if isinstance(told, dict) and "step" in told:
                    counted = {name: told[name] for name in ("work", "done", "total") if name in told}
                    say(Step(str(told["step"]), **counted))
                elif isinstance(told, dict):
                    failure = str(told.get("error", ""))
        except BaseException:
            running.terminate()  # the end of the block waits for it
            raise
    if running.returncode:
        raise InputError(f"distilling failed: {failure or tail or f'exit code {running.returncode}'}")
    return Distillation.model_validate_json((out / RECORD_NAME).read_text(encoding="utf-8"))

"""One process of a distillation, for accelerate's launchers.

On GPUs and on several machines: `accelerate launch --config_file fsdp.yaml -m onnxopt.distill.worker job.json`. Several
processes of this machine's processor: `python -m onnxopt.distill.worker job.json --processes 2`, which starts them by
accelerate's own launcher for that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from onnxopt.distill.settings import Settings
from onnxopt.errors import OnnxoptError
from onnxopt.records.events import Step


def main() -> int:
    """Take part in the job of a file; the main process writes what happens as JSON lines."""
    parser = argparse.ArgumentParser(description="Take part in a distillation.")
    parser.add_argument("job", type=Path, help="a file that `onnxopt distill --write-job` wrote")
    parser.add_argument("--processes", type=int, default=1, help="processes on this machine's processor")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    arguments = parser.parse_args()
    if arguments.processes > 1:
        from accelerate import debug_launcher
        from torch.multiprocessing.spawn import ProcessRaisedException

        try:
            debug_launcher(_work, (arguments.job, arguments.resume), arguments.processes)
        except ProcessRaisedException:
            return 2  # the process has said why
        return 0
    return _work(arguments.job, arguments.resume)


def _work(job: Path, resume: bool) -> int:  # noqa: FBT001  called by launchers, by position
    from onnxopt.distill.train import train

    content = json.loads(job.read_text(encoding="utf-8"))
    try:
        train(Settings.made(**content["settings"]), Path(content["out"]), resume=resume, say=_say)
    except OnnxoptError as error:
        _tell({"error": str(error)})
        raise SystemExit(error.exit_code) from error
    return 0


def _say(step: str) -> None:
    counted: dict[str, str | int] = (
        {"work": step.work, "done": step.done, "total": step.total} if isinstance(step, Step) else {}
    )
    _tell({"step": step, **counted})


def _tell(content: dict[str, str | int]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

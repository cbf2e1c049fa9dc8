"""The image: no daemon builds it here, so its file is read: what is copied is there, who runs it is nobody's root."""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.cli.serving import serve
from onnxopt.host.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
KNOWN = {
    *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE"),
    *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
}


@dataclass(frozen=True)
class Step:
    """An instruction of the file, on one line."""

    word: str
    rest: str


def stages() -> list[list[Step]]:
    """Return the instructions behind each FROM, that one first."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    steps = [Step(*line.split(maxsplit=1)) for line in joined]
    assert {step.word for step in steps} <= KNOWN
    starts = [place for place, step in enumerate(steps) if step.word == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)]


def copied(stage: list[Step]) -> list[str]:
    """Return what a stage takes out of the repository."""
    words = [shlex.split(step.rest) for step in stage if step.word == "COPY"]
    return [name for parts in words if not parts[0].startswith("--from") for name in parts[:-1]]


def is_sent(name: str) -> bool:
    """Tell whether .dockerignore lets a name at the top of the repository through: the last line that fits decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = True
    for line in filter(lambda line: line and not line.startswith("#"), lines):
        if fnmatch.fnmatchcase(name, line.removeprefix("!")):
            sent = line.startswith("!")
    return sent


def test_what_is_copied_is_there_and_is_sent() -> None:
    names = copied(stages()[0])
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert [name for name in names if not is_sent(name)] == []
    assert not is_sent("tests")
    assert not is_sent(".git")


def test_all_that_the_wheel_is_built_from_is_copied() -> None:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", settings["project"]["readme"], *settings["project"]["license-files"]}
    needed |= {*settings["tool"]["setuptools"]["package-dir"].values()}
    assert needed <= {*copied(stages()[0])}


def test_the_second_stage_has_the_environment_alone() -> None:
    build, final = stages()
    assert copied(final) == []
    (made,) = [shlex.split(step.rest) for step in final if step.word == "COPY"]
    assert made[0] == f"--from={build[0].rest.split()[-1]}"
    install = next(step.rest for step in build if step.word == "RUN")
    assert f"python -m venv {made[1]}" in install
    assert "--no-cache-dir" in install
    (asked,) = re.findall(r"'\.\[(.*?)\]'", install)
    assert {*asked.split(",")} <= {*EXTRAS} - {"hf", "gguf"}


def test_it_runs_as_no_root_and_is_asked_how_it_is() -> None:
    final = {step.word: step.rest for step in stages()[-1]}
    assert final["USER"] not in {"0", "root"}
    words = [step.word for step in stages()[-1]]
    assert max(place for place, word in enumerate(words) if word == "RUN") < words.index("USER")
    port = inspect.signature(serve).parameters["port"].default
    assert final["EXPOSE"] == str(port)
    command = json.loads(final["HEALTHCHECK"].partition("CMD ")[2])
    assert f":{port}/healthz" in command[-1]
    compile(command[-1], "healthcheck", "exec")
    assert json.loads(final["ENTRYPOINT"]) == ["onnxopt"]

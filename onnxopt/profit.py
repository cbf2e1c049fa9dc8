"""Choose the form of a region by measuring it: on this machine, on the workload's shapes, with the real weights.

A rule that offers several forms names the recorded winner first. The region as it stands and every form of it become
small models,
each timed in a process of its own, in turns; another form takes the winner's place only when it is faster by more than
the
noise. Regions of one class (same operators, same shapes) are measured once, and the result is kept in the user's cache
under what it depends on: runtime version, provider, machine, threads, region, shapes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import Region, detach, dims
from onnxopt.machine import describe_machine, versions
from onnxopt.model import Array, Feeds
from onnxopt.observe import Observation
from onnxopt.probe import MAX_IR_VERSION, GraphRunner
from onnxopt.spec import Target
from onnxopt.timing import run_rounds, write_job
from onnxopt.usercache import cache_root

logger = logging.getLogger(__name__)

AS_IS = "as it is"
ROUNDS = 4
SECONDS_PER_MODEL = 0.6  # one start of one form, all shapes together
CLEARLY_FASTER = 0.95  # a form must save at least 5 %, whatever the spread says
_FORMAT = 1

Source = Literal["measured", "cache", "recorded"]


@dataclass(frozen=True)
class Choice:
    """The form that a class of regions gets.

    Attributes:
        form: its name; `AS_IS` keeps the region.
        source: measured now, measured before, or the recorded winner.
        times_ms: median milliseconds of each form, one per shape of the workload; empty when not measured.
        disagree: the fastest form is not the same for all shapes.
    """

    form: str
    source: Source
    times_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    disagree: bool = False

    def __str__(self) -> str:
        if not self.times_ms:
            return f"{self.form} (recorded)"
        times = "; ".join(f"{form} {' '.join(f'{t:.3g}' for t in series)}" for form, series in self.times_ms.items())
        split = ", shapes disagree" if self.disagree else ""
        return f"{self.form} ({self.source}, ms per shape: {times}{split})"


@dataclass
class Profit:
    """Measures alternatives.

    Attributes:
        target: provider and threads.
        requests: inputs of the whole model in the shapes of the workload; activations are captured from them.
        measure: False takes recorded winners and what the cache knows.
        seconds: time left for measuring; when it is used up, recorded winners are taken.
        progress: told what is measured.
    """

    target: Target
    requests: Sequence[Observation]
    measure: bool = True
    seconds: float = 60.0
    progress: Callable[[str], None] | None = None
    choices: dict[str, Choice] = field(default_factory=dict)

    def choose_region(self, kind: str, forms: Mapping[str, Region], model: ir.Model) -> Choice:
        """Choose among forms of one region; the first is the recorded winner.

        Args:
            kind: what the region is, for messages and the cache: a rule's name.
            forms: by name, with equal outputs; `AS_IS` among them.
            model: where the region lies; activations are captured from it.
        """
        key = self._key(kind, [f"{name}={signature(part)}" for name, part in forms.items()])
        known = self._known(key, next(iter(forms)))
        if known is not None:
            return known

        def models(folder: Path) -> dict[str, tuple[Path, list[Feeds]]]:
            inputs = {value for part in forms.values() for value in part.inputs}
            runner = GraphRunner(model, inputs)
            captured: list[dict[ir.Value, Array]] = []
            for request in self.requests:
                values = runner.run(request.feeds)[1]
                values.update({v: request.feeds[v.name or ""] for v in inputs if v.is_graph_input()})
                captured.append(values)
            return {
                name: _write_region(part, model, captured, folder / f"{index}.onnx")
                for index, (name, part) in enumerate(forms.items())
            }

        return self._measure(kind, key, models)

    def choose_model(self, kind: str, forms: Mapping[str, ir.Model]) -> Choice:
        """Choose among whole models with one signature; the first is the recorded winner."""
        texts = [f"{name}={[(n.op_type, n.domain) for n in model.graph]}" for name, model in forms.items()]
        key = self._key(kind, texts)
        known = self._known(key, next(iter(forms)))
        if known is not None:
            return known

        def models(folder: Path) -> dict[str, tuple[Path, list[Feeds]]]:
            written = {}
            for index, (name, model) in enumerate(forms.items()):
                path = folder / f"{index}.onnx"
                model.ir_version = min(model.ir_version, MAX_IR_VERSION)
                ir.save(model, path, external_data=f"{index}.data")
                written[name] = (path, [request.feeds for request in self.requests])
            return written

        return self._measure(kind, key, models)

    def _key(self, kind: str, parts: Sequence[str]) -> str:
        shapes = [sorted(request.sizes.items()) for request in self.requests]
        fills = [_fill(request.feeds) for request in self.requests]
        machine = describe_machine()
        where = [self.target.provider, self.target.threads, machine.get("cpu"), machine.get("isa")]
        facts = [_FORMAT, kind, list(parts), shapes, fills, versions().get("onnxruntime"), where]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def _known(self, key: str, recorded: str) -> Choice | None:
        """Return what was chosen in this run or before, or the recorded winner when nothing may be measured."""
        if key in self.choices:
            return self.choices[key]
        path = _cache_file(key)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            times = {str(form): tuple(float(t) for t in series) for form, series in data["times_ms"].items()}
            choice = Choice(str(data["form"]), "cache", times, bool(data["disagree"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if self.measure and self.seconds > 0:
                return None
            choice = Choice(recorded, "recorded")
        self.choices[key] = choice
        return choice

    def _measure(self, kind: str, key: str, make: Callable[[Path], dict[str, tuple[Path, list[Feeds]]]]) -> Choice:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="onnxopt-profit-") as name:
            folder = Path(name)
            written = make(folder)
            forms = list(written)
            jobs = [write_job(path, feeds, self.target, folder / "feeds") for path, feeds in written.values()]
            try:
                starts = run_rounds(
                    jobs,
                    [f"{kind}: {form}" for form in forms],
                    rounds=ROUNDS,
                    seconds=SECONDS_PER_MODEL * len(forms) * (ROUNDS + 1),
                    progress=self.progress,
                )
            except InputError as error:
                logger.warning("%s could not be measured: %s", kind, error)
                starts = []
        choice = (
            decide(forms, [[start.times_ms for start in own] for own in starts])
            if starts
            else Choice(forms[0], "recorded")
        )
        self.seconds -= time.perf_counter() - started
        self.choices[key] = choice
        if starts:
            _remember(key, choice)
        logger.info("%s: %s", kind, choice)
        return choice


def decide(forms: Sequence[str], times: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Choice:
    """Pick a form from measured times.

    The cost of a form in a round is the mean over shapes of its median time divided by that of the recorded winner in
    the same
    round, so every shape of the workload weighs the same. Another form must cost less in every quartile of the rounds.

    Args:
        forms: names, the recorded winner first.
        times: milliseconds by form, round, shape, run.
    """
    medians = np.array(
        [[[float(np.median(shape)) for shape in one] for one in own] for own in times]
    )  # [form, round, shape]
    relative = medians / medians[:1]
    cost = relative.mean(axis=2)  # [form, round]
    best = 0
    for index in range(1, len(forms)):
        clear = float(np.percentile(cost[index], 75)) < 1.0 and float(np.median(cost[index])) < CLEARLY_FASTER
        if clear and float(np.median(cost[index])) < float(np.median(cost[best])):
            best = index
    typical = np.median(medians, axis=1)  # [form, shape]
    fastest = set(typical.argmin(axis=0).tolist())
    shown = {form: tuple(round(float(t), 4) for t in typical[index]) for index, form in enumerate(forms)}
    return Choice(forms[best], "measured", shown, len(fastest) > 1)


def signature(part: Region) -> str:
    """Describe a region by operators, attributes, dtypes and dimensions; weights count by shape only."""
    names: dict[ir.Value, str] = {value: f"in{index}" for index, value in enumerate(part.inputs)}
    lines = [f"{name}:{value.dtype}{dims(value)}" for value, name in names.items()]
    for index, node in enumerate(part.nodes):
        for position, value in enumerate(node.outputs):
            names[value] = f"n{index}.{position}"
        inputs = [names.get(v) or f"const:{v.dtype}{dims(v)}" if v is not None else "-" for v in node.inputs]
        attributes = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
        lines.append(f"{node.domain}:{node.op_type}({','.join(inputs)}){attributes}")
    return "|".join(lines)


def _fill(feeds: Feeds) -> float:
    masks = [array for name, array in feeds.items() if "mask" in name]
    return round(float(np.mean([float((mask != 0).mean()) for mask in masks])), 2) if masks else 1.0


def _write_region(
    part: Region, model: ir.Model, captured: Sequence[Mapping[ir.Value, Array]], path: Path
) -> tuple[Path, list[Feeds]]:
    cut = detach([part], model.opset_imports, list(model.functions.values()), model.ir_version, feed_constants=False)
    cut.model.ir_version = min(cut.model.ir_version, MAX_IR_VERSION)
    ir.save(cut.model, path)
    return path, [{f"in_{index}": values[value] for index, value in enumerate(cut.inputs)} for values in captured]


def _cache_file(key: str) -> Path:
    return cache_root() / "profit" / f"{key[:40]}.json"


def _remember(key: str, choice: Choice) -> None:
    """Keep a choice for the next run; a cache that cannot be written is no failure."""
    path = _cache_file(key)
    data = {"form": choice.form, "times_ms": choice.times_ms, "disagree": choice.disagree}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{time.time_ns()}")
        aside.write_text(json.dumps(data), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        logger.info("the profit cache cannot be written: %s", error)

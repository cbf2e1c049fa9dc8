"""Choose the forms of regions by measuring whole models: on this machine, on the workload's shapes, with real weights.

A region's cost is paid at its edges too: a form that saves a Transpose inside may ask for a Reshape in front. So forms
are not measured on regions cut out, but as models that differ in one class of regions only, each timed in a process of
its own, in turns. A form takes the place of the recorded one only when it is faster by more than the noise. What was
found is kept in the user's cache under what it depends on: runtime version, provider, machine, threads, model, shapes.
Where nothing may be measured, a table of what was found before, which ships with the package, decides.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.roles import input_meaning
from onnxopt.host.machine import describe_machine, versions
from onnxopt.host.usercache import cache_root, keep_file
from onnxopt.probe.observe import Observation
from onnxopt.rewrite import Choice, Key, Source
from onnxopt.spec import Array, Feeds, Target
from onnxopt.timing.rounds import Start, is_noisy, median_interval, start, write_job

logger = logging.getLogger(__name__)

ROUNDS = 6
FEWEST_ROUNDS = 3
SECONDS = 60.0
SLICE_SECONDS = 0.12  # of one shape in one start
CLEARLY_FASTER = 0.985  # a form must save at least 1.5 %, whatever the spread says
CLEARLY_SLOWER = 1.04  # after two rounds a form that costs so much more in both is measured no further
LONGER = 2  # times the rounds, where the machine is too busy to tell by the usual number
RECORDS = "profits.json"
_FORMAT = 2

Times = Mapping[str, Sequence[Sequence[float]]]  # milliseconds by form, round, shape


@dataclass
class Profit:
    """Knows and finds out what is faster.

    Attributes:
        target: provider and threads.
        requests: inputs of the whole model in the shapes of the workload.
        weights: of the shapes; equal when empty.
        measure: False takes what is known.
        seconds: time left for measuring.
        fresh: takes nothing for known, neither from the user's cache nor from the shipped table.
        progress: told what is measured.
        pinned: forms that another build has; they go before everything else that is known, and nothing is measured.
        trouble: why the last race told nothing; empty when it did.
    """

    target: Target
    requests: Sequence[Observation]
    weights: Sequence[float] = ()
    measure: bool = True
    seconds: float = SECONDS
    fresh: bool = False
    progress: Callable[[str], None] | None = None
    pinned: Mapping[Key, str] | None = None
    trouble: str = field(default="", init=False)

    def digest(self, facts: Sequence[object]) -> str:
        """Return the key of a model on this machine and workload.

        Args:
            facts: what tells the model from others.
        """
        machine = describe_machine()
        where = [self.target.provider, self.target.threads, machine.get("cpu"), machine.get("isa")]
        asked = [self.shapes(), [_fill(request.feeds) for request in self.requests], list(self.weights)]
        told = [_FORMAT, list(facts), asked, versions().get("onnxruntime"), where]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()

    def shapes(self) -> list[list[list[object]]]:
        """Return the sizes of each request, sorted by axis."""
        return [[[axis, size] for axis, size in sorted(request.sizes.items())] for request in self.requests]

    def recorded(self, key: Key, forms: Sequence[str]) -> Choice | None:
        """Return what the shipped table says of a class of regions, or of the one that is most alike.

        Args:
            key: pass and class.
            forms: what it can become.
        """
        if self.pinned is not None and self.pinned.get(key) in forms:
            return Choice(self.pinned[key], "pinned")
        if self.fresh:
            return None
        best: tuple[tuple[float, ...], Choice] | None = None
        for record in records():
            if record["provider"] != self.target.provider:
                continue
            for entry in record["choices"]:
                if entry["pass"] != key[0] or entry["form"] not in forms:
                    continue
                distance = (float(entry["kind"] != key[1]), *self._distance(record))
                if best is None or distance < best[0]:
                    best = (distance, _choice_of(entry, "recorded", _where(record)))
        return best[1] if best else None

    def _distance(self, record: Mapping[str, Any]) -> tuple[float, ...]:
        """Return how unlike a record's machine and workload are; the first number that differs decides."""
        machine = describe_machine()
        ours, theirs = (sorted(map(_positions, shapes)) for shapes in (self.shapes(), record["shapes"]))
        work = abs(float(np.mean(ours)) - float(np.mean(theirs))) if ours and theirs else 0.0
        fill = abs(
            float(np.mean([_fill(request.feeds) for request in self.requests] or [1.0]))
            - float(np.mean(record["fills"] or [1.0]))
        )
        return (
            float(record["isa"] != machine.get("isa")),
            round(fill, 1),
            abs(math.log2(record["threads"]) - math.log2(self.target.threads)),
            work,
            float(record["onnxruntime"] != versions().get("onnxruntime")),
        )

    def known(self, digest: str) -> dict[Key, Choice] | None:
        """Return what was found for exactly this model, workload and machine, here or in the shipped table."""
        if self.fresh or self.pinned is not None:
            return None
        path = _cache_file(digest)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("sum", "") == _sum(data):  # else it is damaged
                return {(str(e["pass"]), str(e["kind"])): _choice_of(e, "cache", "") for e in data["choices"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        for record in records():
            if record["digest"] == digest:
                where = _where(record)
                return {(e["pass"], e["kind"]): _choice_of(e, "recorded", where) for e in record["choices"]}
        return None

    def remember(self, digest: str, choices: Mapping[Key, Choice], title: str) -> None:
        """Keep choices for the next run; a cache that cannot be written is no failure."""
        path = _cache_file(digest)
        machine = describe_machine()
        data = {
            "digest": digest,
            "model": title,
            "provider": self.target.provider,
            "cpu": machine.get("cpu"),
            "isa": machine.get("isa"),
            "threads": self.target.threads,
            "onnxruntime": versions().get("onnxruntime"),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "shapes": self.shapes(),
            "fills": [_fill(request.feeds) for request in self.requests],
            "weights": list(self.weights),
            "choices": [
                {
                    "pass": name,
                    "kind": kind,
                    "form": choice.form,
                    "disagree": choice.disagree,
                    "times_ms": {form: list(times) for form, times in choice.times_ms.items()},
                }
                for (name, kind), choice in choices.items()
            ],
        }
        text = json.dumps({**data, "sum": _sum(data)})
        keep_file(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))

    def race(self, models: Mapping[str, Path], seconds: float) -> dict[str, list[list[float]]]:
        """Time models with one signature in turns, and drop those that are clearly slower than the first on the way.

        Args:
            models: files by name.
            seconds: about how long it may take; with no time for three rounds nothing is measured.

        Returns:
            Median milliseconds by name, round, shape; empty when it could not be measured.
        """
        begin, self.trouble = time.perf_counter(), ""
        jobs = {
            name: write_job(path, [r.feeds for r in self.requests], self.target, path.parent / "feeds")
            for name, path in models.items()
        }
        found: dict[str, list[list[float]]] = {}
        for name, job in jobs.items():
            try:
                self._start(f"trying {name}", job, 0.0)
            except InputError as error:
                logger.warning("%s is not measured: %s", name, error)
                if not found:  # what all others are compared with
                    return {}
                continue
            found[name] = []
            if not self._has_time(begin, seconds, len(models), len(found)):
                self.trouble = f"starting the model {len(found)} times took {time.perf_counter() - begin:.0f} s already"
                return {}
        first, running = next(iter(found)), list(found)
        for number in range(LONGER * ROUNDS):
            if number >= ROUNDS and not is_noisy(found[first]):
                break
            started = time.perf_counter()
            for name in running if number % 2 == 0 else reversed(running):
                result = self._start(f"round {number + 1} of {ROUNDS}, {name}", jobs[name], SLICE_SECONDS)
                found[name].append([float(np.median(times)) for times in result.times_ms])
            if number:
                costs = {name: _costs(found[name], found[first], self.weights) for name in running}
                running = [name for name in running if name == first or costs[name].min() < CLEARLY_SLOWER]
            left = seconds - (time.perf_counter() - begin)
            if len(running) < 2 or (number + 1 >= FEWEST_ROUNDS and left < time.perf_counter() - started):
                break
        if is_noisy(found[first]):
            self.trouble = "the machine is too busy to tell: times of the same graph differ by a quarter and more"
            logger.warning("%s", self.trouble)
            return {}
        return found

    def _has_time(self, begin: float, seconds: float, models: int, tried: int) -> bool:
        """Tell whether three rounds of all models fit, given what a start has cost so far."""
        spent = time.perf_counter() - begin
        return spent / tried * (models - tried + FEWEST_ROUNDS * min(models, 3)) < seconds - spent

    def _start(self, step: str, job: Mapping[str, Any], seconds: float) -> Start:
        if self.progress is not None:
            self.progress(step)
        return start({**job, "seconds": seconds})


def decide(forms: Sequence[str], times: Times, weights: Sequence[float] = ()) -> Choice:
    """Pick a form from measured times.

    The cost of a form in a round is the weighted mean over shapes of its time divided by that of the first form in the
    same round. Another form must cost 1.5 % less in the median, and be told apart from the first: the interval of the
    median, at least 95 %, lies below 1; with too few rounds for one, it must cost 1.5 % less in every round.

    Args:
        forms: names, the recorded winner first; those without times were not measured.
        times: milliseconds by form, round, shape.
        weights: of the shapes; equal when empty.
    """
    first = times[forms[0]]
    best, least = forms[0], 1.0
    for form in forms[1:]:
        if len(times.get(form, ())) < FEWEST_ROUNDS:
            continue
        costs = _costs(times[form], first, weights)
        median = float(np.median(costs))
        if _is_told_apart(costs) and median < min(CLEARLY_FASTER, least):
            best, least = form, median
    typical = {form: np.median(np.asarray(own), axis=0) for form, own in times.items() if form in forms and len(own)}
    shown = {form: tuple(round(float(t), 4) for t in own) for form, own in typical.items()}
    least_by_shape = np.array(list(typical.values())).min(axis=0)
    return Choice(best, "measured", shown, bool((least_by_shape < CLEARLY_FASTER * typical[best]).any()))


def _is_told_apart(costs: Array) -> bool:
    """Tell whether costs, float64 [rounds], are below 1 by more than chance has it."""
    _, high = median_interval(costs.tolist())
    return high < 1.0 or (math.isinf(high) and float(costs.max()) < CLEARLY_FASTER)


def _costs(own: Sequence[Sequence[float]], first: Sequence[Sequence[float]], weights: Sequence[float]) -> Array:
    """Return the cost of each round, float64 [rounds]."""
    rounds = min(len(own), len(first))
    relative = np.asarray(own[:rounds]) / np.asarray(first[:rounds])
    return np.average(relative, axis=1, weights=weights or None)


@cache
def records() -> tuple[Mapping[str, Any], ...]:
    """Return the shipped table: what was measured before, one entry per model, workload and machine."""
    file = resources.files("onnxopt.pipeline").joinpath(RECORDS)
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()


def _choice_of(entry: Mapping[str, Any], source: Source, where: str) -> Choice:
    times = {str(form): tuple(float(t) for t in series) for form, series in entry["times_ms"].items()}
    return Choice(str(entry["form"]), source, times, bool(entry["disagree"]), where)


def _where(record: Mapping[str, Any]) -> str:
    threads = f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}"
    return f"{record['cpu']}, {threads}, onnxruntime {record['onnxruntime']}, {record['date']}"


def _positions(shape: Sequence[Sequence[Any]]) -> float:
    """Return the logarithm of how many positions a request has."""
    return sum(math.log2(max(1, size)) for axis, size in shape if "past" not in axis and "total" not in axis)


def _fill(feeds: Feeds) -> float:
    masks = [array for name, array in feeds.items() if input_meaning(name) == "mask" and array.size]
    return round(float(np.mean([float((mask != 0).mean()) for mask in masks])), 2) if masks else 1.0


def _sum(data: Mapping[str, Any]) -> str:
    """Return a digest of what is kept, by which a flipped bit is seen."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _cache_file(digest: str) -> Path:
    return cache_root() / "profit" / f"{digest[:40]}.json"

"""Lower a model to its target's kernels, in the forms that are fastest for the workload.

The model is first lowered in the forms that are known to be good. Where measuring is allowed and nothing is known of
just this model, workload and machine, it is lowered once more per alternative, differing in one class of regions each;
all of them race, what wins is put together, and only the result is proved and kept.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.graph import SMALL_CONSTANT_BYTES, dims
from onnxopt.graph.files import MAX_IR_VERSION
from onnxopt.host.scratch import scratch_folder
from onnxopt.pipeline.orders import WITHOUT_PADDING
from onnxopt.pipeline.profit import Profit, decide
from onnxopt.probe.program import ProbeError
from onnxopt.proof.driver import Driver
from onnxopt.records.ledger import Ledger
from onnxopt.rewrite import Choice, Forms, Key
from onnxopt.rewrite.registry import get
from onnxopt.spec import Workload

logger = logging.getLogger(__name__)

PADDING: Key = ("remove-padding", "")
KEPT, REMOVED = "padding kept", "padding removed"
RECORDED_FILL = 0.8  # when nothing is known, padding is removed when less than this share of positions is real
RECORDED = "as recorded"
COMBINED = "winners together"
SHARE_FOR_COMBINED = 0.3  # of the time, kept for a race of several winners together


def lower(driver: Driver, names: Sequence[str], workload: Workload | None, profit: Profit | None, title: str) -> None:
    """Lower the driver's model in place.

    Args:
        driver: its model, its ledger and what rewrites are proved on.
        names: the passes, in order.
        workload: padding in it makes the removal of padding a choice.
        profit: what is known of forms, and how others are measured; None takes those that passes name first.
        title: of the model, for the records.
    """
    _Lowering(driver, names, workload, profit, title).run()


class _Lowering:
    """One model on its way to a target."""

    def __init__(
        self, driver: Driver, names: Sequence[str], workload: Workload | None, profit: Profit | None, title: str
    ) -> None:
        self._driver = driver
        self._before = driver.model  # a copy, where it is lowered more than once: two sets of weights are kept then
        self._names = {KEPT: tuple(names), REMOVED: WITHOUT_PADDING}
        self._profit = profit
        self._title = title
        fills = workload.fills if workload is not None else ()
        self._ragged = bool(fills)
        thin = self._ragged and sum(fills) / len(fills) < RECORDED_FILL
        self._ways = (REMOVED, KEPT) if thin else (KEPT, REMOVED)

    def run(self) -> None:
        """Find the forms, prove the result, put it in the driver's place."""
        profit = self._profit
        digest = profit.digest(self._facts()) if profit is not None else ""
        known = profit.known(digest) if profit is not None else None
        may_measure = profit is not None and profit.measure and profit.seconds > 0 and profit.pinned is None
        to_measure = known is None and may_measure
        if not to_measure and not self._ragged:
            self._driver.forms = Forms(profit, known)
            self._driver.apply_all(map(get, self._names[KEPT]))
            self._record()
            return
        self._before = self._driver.model.clone()
        result = self._lowered(Forms(profit, known))
        if to_measure and profit is not None:
            started = time.perf_counter()
            result, measured = self._measured(result, profit)
            profit.seconds -= time.perf_counter() - started
            if measured:
                profit.remember(digest, result.forms.chosen, self._title)
        self._adopt(result)

    def _facts(self) -> list[object]:
        """Return what tells this model and its alternatives from others; weights count by shape only."""
        names = sorted({name for way in self._names.values() for name in way})
        kinds = [(name, forms) for name in names if (forms := get(name).forms)]
        sizes = [(tensor.name, dims(tensor)) for tensor in self._before.graph.initializers.values()]
        nodes = [
            (n.domain, n.op_type, sorted((k, str(a.value)) for k, a in n.attributes.items())) for n in self._nodes()
        ]
        return [hashlib.sha256(repr([kinds, sizes, nodes, self._ragged]).encode()).hexdigest()]

    def _nodes(self) -> list[ir.Node]:
        return list(self._before.graph)

    def _lowered(self, forms: Forms) -> Driver:
        """Lower in the forms that are known or named first, with proof."""
        if self._ragged:
            way = forms.of(*PADDING, self._ways).form
            made = self._make(way, forms, prove=True)
            if made is not None:
                return made
            self._driver.ledger.notes.append("padding stays: no padding mask could be followed through the model")
            self._ragged = False
            forms.met.pop(PADDING)
        made = self._make(KEPT, forms, prove=True)
        if made is None:
            raise AssertionError("only the removal of padding may find nothing to do")
        return made

    def _make(self, way: str, forms: Forms, *, prove: bool) -> Driver | None:
        """Lower a copy of the model; None when padding cannot be removed from it."""
        driver = replace(
            self._driver,
            model=self._before.clone(),
            ledger=Ledger(),
            forms=forms,
            prove=prove,
            repro_folder=self._driver.repro_folder if prove else None,
            progress=self._driver.progress if prove else None,
        )
        for name in self._names[way]:
            entry = driver.apply(get(name))
            if name == PADDING[0] and not entry.applied:
                return None
        return driver

    def _measured(self, first: Driver, profit: Profit) -> tuple[Driver, bool]:
        """Return the fastest of all that was lowered, and whether anything was measured."""
        with scratch_folder() as name:
            folder = name
            measured = False
            if self._ragged:
                first, measured = self._padding(first, profit, folder / "padding")
            begin, seconds = time.perf_counter(), profit.seconds
            others = self._alternatives(first)
            if not others:
                return first, measured
            shown = {_label(*what): driver for what, driver in others.items()}
            files = _Store(folder / "forms").write({RECORDED: first, **shown})
            times = profit.race(files, (seconds - (time.perf_counter() - begin)) * (1 - SHARE_FOR_COMBINED))
            if not times:
                return self._untold(first, profit), measured
            choices = self._decide(first, times, profit)
            wins = {key: c for key, c in choices.items() if c.form != first.forms.chosen[key].form}
            if len(wins) > 1:
                left = seconds - (time.perf_counter() - begin)
                wins = self._together(first, wins, profit, folder / "together", left)
            for key, choice in choices.items():
                if key not in wins and choice.form != first.forms.chosen[key].form:
                    choices[key] = replace(choice, form=first.forms.chosen[key].form)
        forms = Forms(profit, {**first.forms.chosen, **choices})
        if wins:
            way = forms.of(*PADDING, self._ways).form if self._ragged else KEPT
            first = self._make(way, forms, prove=True) or first
        else:
            forms.met.update(first.forms.met)
            first.forms = forms
        return first, True

    def _padding(self, first: Driver, profit: Profit, folder: Path) -> tuple[Driver, bool]:
        """Return the faster of both ways, and whether they were measured."""
        way = first.forms.chosen[PADDING].form
        other = next(name for name in self._ways if name != way)
        forms = first.forms.but(PADDING, other)
        forms.of(*PADDING, self._ways)
        made = self._attempt(other, forms)
        if made is None:
            return first, False
        begin = time.perf_counter()
        times = profit.race(_Store(folder).write({way: first, other: made}), profit.seconds / 2)
        profit.seconds -= time.perf_counter() - begin
        if not times:
            return self._untold(first, profit), False
        choice = decide([way, other], times, profit.weights)
        forms = Forms(profit, {**first.forms.chosen, PADDING: choice})
        forms.of(*PADDING, self._ways)
        if choice.form == way:
            forms.met.update(first.forms.met)
            first.forms = forms
            return first, True
        return self._make(other, forms, prove=True) or first, True

    def _untold(self, first: Driver, profit: Profit) -> Driver:
        """Say that a choice was left as it was, and not measured."""
        note = f"kernels were not chosen by measure: {profit.trouble}; forms are those that were recorded"
        if profit.trouble and note not in first.ledger.notes:
            first.ledger.notes.append(note)
        return first

    def _alternatives(self, first: Driver) -> dict[tuple[Key, str], Driver]:
        """Lower once more for every other form of every class of regions; what comes out the same is left out."""
        seen = {_spelled(first.model)}
        found: dict[tuple[Key, str], Driver] = {}
        way = first.forms.chosen[PADDING].form if self._ragged else KEPT
        for key, forms in first.forms.met.items():
            for form in forms:
                if key == PADDING or form == first.forms.chosen[key].form:
                    continue
                varied = first.forms.but(key, form)
                if self._ragged:
                    varied.of(*PADDING, self._ways)
                made = self._attempt(way, varied)
                if made is not None and (spelled := _spelled(made.model)) not in seen:
                    seen.add(spelled)
                    found[key, form] = made
        return found

    def _attempt(self, way: str, forms: Forms) -> Driver | None:
        """Lower without proof: a form that does not even run is no alternative."""
        try:
            return self._make(way, forms, prove=False)
        except ProbeError as error:
            logger.info("an alternative does not run: %s", error)
            return None

    def _decide(self, first: Driver, times: Mapping[str, list[list[float]]], profit: Profit) -> dict[Key, Choice]:
        choices = {}
        for key, forms in first.forms.met.items():
            if key == PADDING:
                continue
            usual = first.forms.chosen[key].form
            own = {form: times[label] for form in forms if (label := _label(key, form)) in times}
            if own:
                choices[key] = decide([usual, *own], {usual: times[RECORDED], **own}, profit.weights)
        return choices

    def _together(
        self, first: Driver, wins: dict[Key, Choice], profit: Profit, folder: Path, seconds: float
    ) -> dict[Key, Choice]:
        """Winners may be in each other's way: put them together only where that is measured, else take the best one."""
        usual = {key: first.forms.chosen[key].form for key in wins}
        best = min(wins, key=lambda key: _gain(wins[key], usual[key]))
        alone = {best: wins[best]}
        way = first.forms.chosen[PADDING].form if self._ragged else KEPT
        forms = Forms(profit, {**first.forms.chosen, **wins})
        if self._ragged:
            forms.of(*PADDING, self._ways)
        made = self._attempt(way, forms)
        if made is None:
            return alone
        single = self._attempt(way, Forms(profit, {**first.forms.chosen, **alone}))
        entrants = {"best alone": single, COMBINED: made} if single is not None else {}
        if not entrants:
            return alone
        times = profit.race(_Store(folder).write({n: d for n, d in entrants.items() if d is not None}), seconds)
        if not times:
            return alone
        return wins if decide(list(times), times, profit.weights).form == COMBINED else alone

    def _adopt(self, made: Driver) -> None:
        driver = self._driver
        driver.model.graph = made.model.graph
        driver.model.opset_imports.update(made.model.opset_imports)
        driver.forms = made.forms
        chosen = made.forms.chosen
        for entry in made.ledger.entries:
            told = [
                f"{kind}: {choice}" if kind else str(choice) for (n, kind), choice in chosen.items() if n == entry.name
            ]
            entry.choices[:] = told if entry.applied or entry.choices else []
        driver.ledger.entries.extend(made.ledger.entries)
        driver.ledger.notes.extend(made.ledger.notes)
        if PADDING in chosen and chosen[PADDING].form == KEPT:
            driver.ledger.notes.append(f"remove-padding: {chosen[PADDING]}")
        driver.forget()
        self._record()

    def _record(self) -> None:
        """Write down which forms the lowered graph has, for who repeats this build."""
        self._driver.ledger.forms = {key: choice.form for key, choice in self._driver.forms.chosen.items()}


def _label(key: Key, form: str) -> str:
    return f"{key[0]}{f' ({key[1]})' if key[1] else ''}: {form}"


def _gain(choice: Choice, usual: str) -> float:
    own, first = choice.times_ms[choice.form], choice.times_ms[usual]
    return float(np.mean([a / b for a, b in zip(own, first, strict=True)]))


def _spelled(model: ir.Model) -> str:
    return repr([(node.domain, node.op_type, [dims(value) for value in node.outputs]) for node in model.graph])


class _Store:
    """Writes models beside each other; a weight that several of them share lies there once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._placed: dict[int, ir.ExternalTensor] = {}
        self._kept: list[ir.TensorProtocol] = []  # alive, so that no other tensor gets their id
        self._end = 0

    def write(self, models: Mapping[str, Driver]) -> dict[str, Path]:
        """Return the file of each model."""
        files = {}
        with (self._folder / "weights.bin").open("wb") as stream:
            for index, (name, driver) in enumerate(models.items()):
                model = driver.model.clone()
                model.ir_version = min(model.ir_version, MAX_IR_VERSION)
                for value in model.graph.initializers.values():
                    tensor = value.const_value
                    if tensor is None or tensor.nbytes <= SMALL_CONSTANT_BYTES:
                        continue
                    if id(tensor) not in self._placed:
                        tensor.tofile(stream)  # type: ignore[attr-defined]  # every tensor of the library has it
                        self._place(tensor)
                    value.const_value = self._placed[id(tensor)]
                path = self._folder / f"{index}.onnx"
                ir.save(model, path)
                files[name] = path
        return files

    def _place(self, tensor: ir.TensorProtocol) -> None:
        self._placed[id(tensor)] = ir.ExternalTensor(
            "weights.bin",
            self._end,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,  # type: ignore[arg-type]  # a tensor's shape has numbers only
            name=tensor.name or "weight",
            base_dir=self._folder,
        )
        self._kept.append(tensor)
        self._end += tensor.nbytes

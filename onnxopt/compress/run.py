"""Run a recipe: every step from the result of the one before, every result made into an artifact and judged alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.artifact.package import Artifact
from onnxopt.compress.ahead import look_ahead
from onnxopt.compress.recipe import CompressRecipe
from onnxopt.compress.report import Compression, Step, record_of
from onnxopt.distill.run import distill
from onnxopt.errors import InputError
from onnxopt.host.folders import write_whole, writing
from onnxopt.host.scratch import scratch_folder
from onnxopt.judge.metrics import cosine
from onnxopt.judge.perplexity import measure_perplexity
from onnxopt.load.source.source import Source, resolve
from onnxopt.prune.run import prune as prune_source
from onnxopt.prune.run import split
from onnxopt.records.events import Event, Listener
from onnxopt.records.notebook import shown
from onnxopt.road.asked import left_of, spec_of
from onnxopt.road.optimize import make
from onnxopt.road.options import Options, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.session import Session
from onnxopt.spec import SENTENCE, Array, Workload
from onnxopt.texts.files import is_json, read_labelled, read_text, read_texts
from onnxopt.timing.bench import bench

HELD_OUT = 0.1  # of the data, at its end, when nothing else is named
WINDOW, WINDOWS = 128, 24  # of a language model's perplexity
TEXTS = 256  # of everything else
ROUNDS, SECONDS = 3, 12.0


def compress(
    recipe: CompressRecipe, out: Path, *, measure: bool = True, progress: Listener | None = None
) -> Compression:
    """Run a recipe and write its artifact, with `<out>.compression.json` and `.html` beside it.

    Args:
        recipe: what to do.
        out: folder of the artifact.
        measure: time the steps' artifacts.
        progress: told what happens; in a notebook a line below the cell when None.

    Returns:
        The record.

    Raises:
        InputError: when a step does not fit the source.
        ProofError: when a step's artifact is not within its budget.
    """
    look_ahead(recipe, out)
    with scratch_folder() as scratch, shown(progress) as say:
        work = _Work(recipe, out, scratch, say)
        return work.go(measure=measure)


def parted(data: str) -> tuple[str, str]:
    """Part texts into what steps may see and what judges them, at the end of a line.

    Args:
        data: `builtin`, or a file of text or JSON entries.

    Returns:
        The two parts as the content of files: of text, or of JSON entries with their labels, one per line.

    Raises:
        InputError: when the data cannot be read, or are a single line or entry.
    """
    if is_json(data):
        pairs = read_labelled(data)
        lines = [json.dumps({"text": text} | ({} if label is None else {"label": label})) for text, label in pairs]
        text = "\n".join(lines)
    else:
        text = read_text(data)
    body = text.rstrip()
    at = body.find("\n", int(len(text) * (1 - HELD_OUT)))
    at = at if at >= 0 else body.rfind("\n")  # a long last line is held out alone
    if at < 0 or not text[:at].strip():
        raise InputError("is one line or entry, so no part can be held out", where=data, hint="name a file in evaluate")
    return text[:at], text[at:]


@dataclass
class _Work:
    recipe: CompressRecipe
    out: Path
    scratch: Path
    say: Listener
    data: str = ""
    held: Path = Path()
    original: Artifact | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    metric: tuple[str, str] = ("", "")
    pruning: PruneOptions = field(default_factory=PruneOptions)  # what the graph of every artifact loses on its way

    def go(self, *, measure: bool) -> Compression:
        """Run the steps in order."""
        recipe = self.recipe
        self._texts()
        source = current = resolve(recipe.source)
        asked = recipe.prune or PruneOptions()
        spec, left = None if asked.what is None else spec_of(asked.what, asked), left_of(asked)
        on_graph = spec is not None and split(spec, source)[1] is not None
        if recipe.distill is not None and spec is not None and (on_graph or spec.vocabulary):
            raise InputError(
                "heads, channels, zeros and the vocabulary cannot go before a model is taught",
                where="[prune]",
                hint="prune layers and ffn, or leave [distill] out",
            )
        self._step("original", recipe.source, current, {}, time.perf_counter())
        if spec is not None:
            started = time.perf_counter()
            details: dict[str, Any] = {}
            if not on_graph:
                folder = self.scratch / "prune"
                record = prune_source(
                    recipe.source,
                    spec,
                    folder,
                    data=self._calibration(),
                    budget=left,
                    progress=lambda step: self.say(Event("prune", step)),
                )
                current, details = source.after("pruned", folder), json.loads(record.to_json())
            else:
                # on the graph, on its way to the artifact
                self.pruning = PruneOptions(what=spec, data=self._calibration(), budget=left)
            self._step("prune", str(spec), current, details, started)
        if recipe.distill is not None:
            started = time.perf_counter()
            folder = self.scratch / "distill"
            options = dict(recipe.distill)
            if "student" not in options and current is not source:  # it is what pruning left
                options |= {"student": str(current.path), "student_name": str(spec)}
            data = tuple(options.pop("data", ()))
            taught = distill(
                recipe.source,
                folder,
                student=options.pop("student", recipe.source),
                data=data or (self.data,),
                progress=lambda step: self.say(Event("distill", step)),
                **options,
            )
            current = source.after("distilled", folder)
            details = json.loads(taught.to_json())
            details["settings"]["data"] = data or [recipe.data]  # and not the folder in which its first part lay
            self._step("distill", f"{taught.steps} steps", current, details, started)
        if recipe.quantize is not None:
            started = time.perf_counter()
            self._step("quantize", recipe.quantize.precision, current, {}, started, quantize=recipe.quantize)
        return self._finish(measure=measure)

    def _calibration(self) -> str:
        """What pruning is calibrated with: its own data, or those of the recipe that no step is judged on."""
        return (self.recipe.prune.data if self.recipe.prune is not None else "") or self.data

    def _texts(self) -> None:
        """Part the data into what steps may see and what judges them."""
        recipe = self.recipe
        if recipe.evaluate:
            self.held, self.data = Path(recipe.evaluate).expanduser(), recipe.data
            read_text(self.held)
            return
        # entries stay entries, so that their texts are told apart and their labels are taught
        ending = ".jsonl" if is_json(recipe.data) else ".txt"
        seen, held = parted(recipe.data)
        places = [self.scratch / f"{name}{ending}" for name in ("seen", "held-out")]
        for place, text in zip(places, (seen, held), strict=True):
            place.write_text(text, encoding="utf-8")
        self.data, self.held = str(places[0]), places[1]

    def _step(
        self,
        name: str,
        what: str,
        current: Source,
        details: dict[str, Any],
        started: float,
        *,
        quantize: PrecisionOptions | None = None,
    ) -> None:
        """Make an artifact of what a step left, and judge it."""
        recipe, last = self.recipe, self._is_last(name)
        options = Options(
            package=recipe.package,
            quantize=quantize or PrecisionOptions(),
            load=recipe.load,
            tune=recipe.tune if recipe.tune is not None and last else TuneOptions(measure=False),
            prune=self.pruning,
        )
        out = self.out if last else self.scratch / f"artifact-{name}"
        artifact = make(current, options, out=out, progress=self.say)
        self.artifacts.append(artifact)
        self.original = self.original or artifact
        self.say(Event("judge", f"{name} on held-out text"))
        self.steps.append(
            Step(
                name=name,
                what=what,
                size_bytes=artifact.manifest.bytes_after,
                value=self._judge(artifact),
                seconds=time.perf_counter() - started,
                details=details,
            )
        )

    def _is_last(self, name: str) -> bool:
        recipe = self.recipe
        order = ["original"]
        order += ["prune"] if recipe.prune else []
        order += ["distill"] if recipe.distill is not None else []
        order += ["quantize"] if recipe.quantize else []
        return name == order[-1]

    def _judge(self, artifact: Artifact) -> float:
        if artifact.manifest.decoding is not None:
            self.metric = "perplexity", "lower"
            found = measure_perplexity(
                artifact.path,
                text=str(self.held),
                window=WINDOW,
                max_windows=WINDOWS,
                progress=lambda step: self.say(Event("judge", step)),
            )
            return found.scores[0].perplexity
        texts = [line for line in read_texts(self.held, "line") if len(line.split()) > 2][:TEXTS]
        if not texts:
            raise InputError("the held-out text has no lines of words", where=str(self.held))
        if self.original is None:
            raise InputError("there is no original to compare with")
        ours, theirs = _answers(artifact, texts), _answers(self.original, texts)
        self.metric = "cosine with the original", "higher"
        return float(np.mean([cosine(a, b).mean() for a, b in zip(ours, theirs, strict=True)]))

    def _finish(self, *, measure: bool) -> Compression:
        found = Compression(
            source=self.recipe.source, metric=self.metric[0], better=self.metric[1], steps=tuple(self.steps)
        )
        if measure:
            found = self._timed(found)
        record = record_of(self.out)
        with writing(record):
            write_whole(record, found.to_json())
            write_whole(record.with_suffix(".html"), found.to_html())
        return found

    def _timed(self, found: Compression) -> Compression:
        """Time the artifacts of all steps, in turns where they take the same inputs."""
        asked = self.recipe.package.workload
        workload = Workload.parse(asked) if isinstance(asked, str) else asked
        shapes = workload.shapes if workload else self.artifacts[0].manifest.workload.shapes
        paths = [artifact.path for artifact in self.artifacts]
        same = len({artifact.manifest.signature for artifact in self.artifacts}) == 1
        groups = [paths] if same else [[path] for path in paths]
        stats, machine, versions = [], {}, {}
        for group in groups:
            self.say(Event("measure", ", ".join(path.name for path in group)))
            result = bench(
                group,
                shapes=shapes,
                rounds=ROUNDS,
                seconds=SECONDS * len(group),
                progress=lambda step: self.say(Event("measure", step)),
            )
            stats += list(result.candidates)
            machine, versions = result.machine, result.versions
        steps = []
        for step, one in zip(found.steps, stats, strict=True):
            times = {
                " ".join(f"{axis} {size}" for axis, size in shape.sizes.items()): shape.p50_ms for shape in one.shapes
            }
            steps.append(step.model_copy(update={"latency_ms": times}))
        return found.model_copy(update={"steps": tuple(steps), "machine": machine, "versions": versions})


def _answers(artifact: Artifact, texts: list[str]) -> Iterator[Array]:
    """Yield the main output for each text: the embedding, or else the first output."""
    model = TextModel.open(artifact.path, Session(artifact.path))
    for start in range(0, len(texts), 16):
        encodings = model.encode(texts[start : start + 16])
        for encoding in encodings:
            outputs = model.run([encoding]).outputs
            name = SENTENCE if SENTENCE in outputs else next(iter(outputs))
            yield outputs[name].reshape(-1, outputs[name].shape[-1])

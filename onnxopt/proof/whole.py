"""Prove a whole model against its reference, and compare any two models.

Layer one, region against region, is the driver's. This module is layer two, the whole graph at several sizes and
paddings, and
layer three, what a user of the outputs would notice: the cosine of each row and whether the largest entry stayed the
largest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxopt.errors import InputError, ProofError
from onnxopt.graph import is_op
from onnxopt.graph.cache import PAST, SEQUENCE, TOTAL, Cache, complete, complete_all, keeps_packed
from onnxopt.graph.kept_rows import ending_last, rows_that_matter
from onnxopt.graph.roles import mask_of
from onnxopt.graph.weight_files import is_large, tensor_of
from onnxopt.load.loaded import Loaded
from onnxopt.probe.memory import release_memory
from onnxopt.proof.cases import SEED, Case, case_text, padded_batches
from onnxopt.proof.compare import is_container
from onnxopt.proof.observations import paddings_of
from onnxopt.proof.tolerance import FACTOR, WIDEST, Moved, moved_by_itself, precision_error
from onnxopt.qmath.compare import worst_error
from onnxopt.records.events import Step
from onnxopt.records.rewrites import ProofRecord
from onnxopt.spec import PADDINGS, Budget, Feeds, Padding, Signature

logger = logging.getLogger(__name__)

STEPS = 4  # tokens that are generated one by one behind a padded prompt
PROMPTS = 3
SAME_COLUMN = 1e-3  # relative: rounding moves logits by far less, another token by far more
_LOGITS = "logits"


def prove(
    run: Callable[[Feeds], Feeds],
    loaded: Loaded,
    budget: Budget,
    cases: Sequence[Case],
    progress: Callable[[str], None] | None = None,
    *,
    packed: bool = False,
    notes: list[str] | None = None,
) -> list[ProofRecord]:
    """Compare a candidate with the reference; with a cache also step by step, each on the cache it made itself.

    Args:
        run: the candidate, inputs by name to outputs by name.
        loaded: reference, feeder and signature.
        budget: the limit.
        cases: sizes and paddings.
        progress: told each case.
        packed: the candidate keeps a row's real tokens at the front of its cache.
        notes: told what was widened, and why.

    Returns:
        One record per case and output; of the layers of a cache, the worst in each case. Errors are relative to the
        largest magnitude of the output over all cases, a single logit close to zero is no scale to measure by; those
        of what a Sigmoid gives are relative to 1.

    Raises:
        ProofError: at the first output beyond the budget, with the case. Where the original itself moves further than
            that, by rounding alone, twice its own movement is allowed, up to `WIDEST`.
    """
    measured: list[tuple[Case, str, float, float]] = []
    moved: dict[tuple[str, str], Moved] = {}
    # a map of chances is nearly 0 everywhere on made-up inputs, which is no scale to measure by
    chances = {value.name or "" for value in loaded.model.graph.outputs if is_op(value.producer(), "Sigmoid")}
    scales: dict[str, float] = dict.fromkeys(chances, 1.0)
    held = max(budget.relative_error, precision_error(loaded.model))
    for (sizes, padding), feeds, expected, found in _answers(run, loaded, cases, progress):
        beyond: dict[str, float] = {}
        for spec in (one for one in loaded.signature.outputs if one.name in expected):
            relative, absolute = _error(loaded.signature, feeds, spec.name, expected, found, packed=packed)
            measured.append(((dict(sizes), padding), spec.name, relative, absolute))
            if math.isfinite(absolute) and relative > 0:
                scales[spec.name] = max(scales.get(spec.name, 0.0), absolute / relative)
            if math.isfinite(absolute) and not relative <= held:
                beyond[spec.name] = absolute / FACTOR
        if beyond:
            own = moved_by_itself(loaded, feeds, expected, beyond)
            moved |= {(name, case_text(sizes, padding)): own.get(name, Moved(0.0, "")) for name in beyond}
    records = [
        ProofRecord(
            sizes=dict(sizes),
            padding=padding,
            output=name,
            worst_relative_error=absolute / scales[name] if math.isfinite(absolute) and name in scales else relative,
            worst_absolute_error=absolute,
        )
        for (sizes, padding), name, relative, absolute in measured
    ]
    for record in records:
        case = case_text(loaded.shown(record.sizes), record.padding)
        if record.worst_relative_error <= held:
            continue
        by_itself = moved.get((record.output, case_text(record.sizes, record.padding)), Moved(0.0, ""))
        limit = max(held, min(WIDEST, FACTOR * by_itself.absolute / scales.get(record.output, 1.0)))
        if not record.worst_relative_error <= limit:
            raise ProofError(
                f"output {record.output} differs from {loaded.reference.name} by {record.worst_relative_error:.3g} "
                f"(relative) at {case}; the budget is {limit:.3g}",
                where=loaded.name,
                hint="nothing was written; run with --verbose to see each pass, or raise the budget with --budget",
            )
        if notes is not None:
            notes.append(
                f"output {record.output} is held to {limit:.2g} (relative) in place of {budget.relative_error:g} at "
                f"{case}: {by_itself.why} move the original there by half of that or more"
            )
    if notes is not None and held > budget.relative_error:
        notes.append(f"the graph computes in 16 bits: outputs are held to {held:.2g} (relative), four of its roundings")
    return _without_layers(records, loaded.signature)


def _without_layers(records: Sequence[ProofRecord], signature: Signature) -> list[ProofRecord]:
    """Keep of each case's keys and values the worst alone: a decoder has two outputs for every layer."""
    cache = Cache.of(signature)
    if cache is None:
        return list(records)
    layers = {spec.name for spec in cache.outputs}
    kept: list[ProofRecord] = []
    for record in records:
        last = kept[-1] if kept else None
        if last is None or last.output not in layers or record.output not in layers:
            kept.append(record)
        elif record.worst_relative_error > last.worst_relative_error:
            kept[-1] = record
    return kept


Answer = tuple[Case, Feeds, Feeds, Feeds]


@dataclass(frozen=True)
class _Turn:
    """A run of the reference, which the candidate repeats.

    Attributes:
        case: sizes and padding.
        feeds: the inputs.
        expected: the outputs.
        follows: keys and values are those of the turn before, each side its own.
        compared: whether outputs are; what a prompt gives is compared by the tokens behind it.
        moved: the inputs with the tokens of each row moved to its end; None where there is nothing to be moved.
        column: the reference's outputs for those; None where the candidate's answer decides whether they are asked for.
    """

    case: Case
    feeds: Feeds
    expected: Feeds
    follows: bool = False
    compared: bool = True
    moved: Feeds | None = None
    column: Feeds | None = None


def _answers(
    run: Callable[[Feeds], Feeds],
    loaded: Loaded,
    cases: Sequence[Case],
    progress: Callable[[str], None] | None,
) -> Iterator[Answer]:
    """Yield case, inputs, the reference's outputs and the candidate's; of a large model one side runs behind the other.

    In turns they would push each other's weights out of the system's cache.
    """
    say = progress or (lambda _: None)
    turns: Iterable[_Turn] = _turns(loaded, cases, say)
    if is_large(loaded.model):
        release_memory()
        turns = _told([_laid(turn) for turn in turns], loaded, say)
        release_memory()
    cache, before = Cache.of(loaded.signature), Feeds()
    for turn in turns:
        feeds = turn.feeds
        if turn.follows and cache is not None:
            feeds = feeds | {a.name: before[b.name] for a, b in zip(cache.inputs, cache.outputs, strict=True)}
        before = found = _answer(run, feeds, loaded, case_text(loaded.shown(turn.case[0]), turn.case[1]))
        if turn.compared:
            yield turn.case, turn.feeds, turn.expected, found
        if turn.moved is not None and not _keeps_column(loaded, turn.expected, found):
            column = turn.column or loaded.reference.run(turn.moved)
            yield turn.case, turn.moved, {_LOGITS: column[_LOGITS]}, {_LOGITS: found[_LOGITS]}


def _laid(turn: _Turn) -> _Turn:
    """Return a turn whose large arrays lie in a file, where those of constants do."""

    def laid(feeds: Feeds) -> Feeds:
        return {n: tensor_of(one, n).numpy() if isinstance(one, np.ndarray) else one for n, one in feeds.items()}

    moved, column = (feeds and laid(feeds) for feeds in (turn.moved, turn.column))
    return replace(turn, feeds=laid(turn.feeds), expected=laid(turn.expected), moved=moved, column=column)


def _told(turns: Sequence[_Turn], loaded: Loaded, say: Callable[[str], None]) -> Iterator[_Turn]:
    """Yield turns that the reference has taken, and tell each that the candidate takes."""
    for number, turn in enumerate(turns):
        label = case_text(loaded.shown(turn.case[0]), turn.case[1])
        say(Step(f"the result, {label}", work="results", done=number, total=len(turns)))
        yield turn


def _turns(loaded: Loaded, cases: Sequence[Case], say: Callable[[str], None]) -> Iterator[_Turn]:
    """Yield what the reference answers, case by case, then step by step."""
    cache = Cache.of(loaded.signature)
    refused: list[InputError] = []
    for index, (sizes, padding) in enumerate(cases):
        label = case_text(loaded.shown(sizes), padding)
        say(Step(label, work="cases", done=index, total=len(cases)))
        try:
            feeds = loaded.feeder.make(sizes, padding, seed=SEED + index)
            if cache is not None and sizes[PAST]:
                feeds |= _past(loaded, cache, sizes, _across(loaded.signature, cache, feeds))
            expected = loaded.reference.run(feeds)
        except InputError as error:  # the file itself does not run there: nothing is promised
            logger.info("not compared at %s: %s", label, error)
            refused.append(error)
            continue
        moved = ending_last(loaded.signature, feeds) if cache is not None else None
        column = loaded.reference.run(moved) if moved is not None and _asks_for_column(loaded) else None
        yield _Turn((sizes, padding), feeds, expected, moved=moved, column=column)
    if cases and len(refused) == len(cases):
        raise refused[0]
    if cache is None:
        return
    # behind padding on the right, generated tokens make it padding in the middle
    batches: list[tuple[int, Padding]] = [(PROMPTS, "none"), (PROMPTS, "left")]
    if paddings_of(loaded) == PADDINGS:
        batches = padded_batches(loaded, PROMPTS)
    for seed, (rows, padding) in enumerate(batches):
        say(f"{STEPS} tokens behind prompts with {padding} padding")
        yield from _steps(loaded, cache, (rows, padding), seed)


def _gives_one_position(loaded: Loaded) -> bool:
    """Tell whether logits are those of one position."""
    return any(one.name == _LOGITS and SEQUENCE not in one.axes for one in loaded.signature.outputs)


def _asks_for_column(loaded: Loaded) -> bool:
    """Tell whether the reference is asked for the last real token's logits in any case: of an export, the last ones."""
    return _gives_one_position(loaded) and bool(loaded.origin.get("exporter"))


def _keeps_column(loaded: Loaded, expected: Feeds, found: Feeds) -> bool:
    """Tell whether the answer for a row that ends with padding is the reference's own, and that is what is wanted.

    Logits of all positions have one for the last real token among them. Those of one position must be that token's,
    though transformers, which pads prompts on the left, takes the last column. A file that someone else made may keep
    to the last column.
    """
    if not _gives_one_position(loaded):
        return True
    return not _asks_for_column(loaded) and worst_error(found[_LOGITS], expected[_LOGITS])[0] <= SAME_COLUMN


def _answer(run: Callable[[Feeds], Feeds], feeds: Feeds, loaded: Loaded, label: str) -> Feeds:
    """Return the candidate's outputs where the reference runs.

    Raises:
        ProofError: it does not run there; what it says of the file it lies in is of no use to anyone.
    """
    try:
        return run(feeds)
    except InputError as error:
        raise ProofError(
            f"the result does not run at {label}, where {loaded.reference.name} does: {error.what}",
            where=loaded.name,
            hint="nothing was written; run with --verbose to see each pass",
        ) from error


def _across(signature: Signature, cache: Cache, feeds: Feeds) -> Feeds:
    """Return what stays the same from step to step: what the encoder of an encoder-decoder gave."""
    grows = {spec.name for spec in cache.inputs}
    fixed = (spec for spec in signature.inputs if spec.name not in grows and {SEQUENCE, TOTAL}.isdisjoint(spec.axes))
    return {spec.name: feeds[spec.name] for spec in fixed}


def _past(loaded: Loaded, cache: Cache, sizes: Mapping[str, int], across: Feeds) -> Feeds:
    """Return keys and values that the reference itself made of a text.

    Random ones put a model into a state that no text does, in which rounding grows without a limit.
    """
    before = complete({**sizes, SEQUENCE: sizes[PAST], PAST: 0})
    seen = loaded.reference.run(loaded.feeder.make(before, "none", seed=400) | across)
    return {past.name: seen[present.name] for past, present in zip(cache.inputs, cache.outputs, strict=True)}


def _steps(loaded: Loaded, cache: Cache, prompts: tuple[int, Padding], seed: int) -> Iterator[_Turn]:
    """Take prompts, then one token at a time; reference and candidate go on from their own caches."""
    axes, (rows, padding) = loaded.signature.axes, prompts
    sizes = complete_all({"batch": rows, SEQUENCE: 9, PAST: 0}, axes, seed)
    feeds = loaded.feeder.make(sizes, padding, seed=200 + seed)
    across = _across(loaded.signature, cache, feeds)
    mask = mask_of(loaded.signature)
    for step in range(STEPS):
        expected = loaded.reference.run(feeds)
        yield _Turn((dict(sizes), padding), feeds, expected, follows=step > 0, compared=step > 0)
        sizes = complete({**sizes, SEQUENCE: 1, PAST: sizes[TOTAL]})
        fresh = loaded.feeder.make(sizes, "none", seed=300 + step) | across
        if mask is not None and mask.axes[1] == TOTAL:
            seen = feeds[mask.name]
            fresh[mask.name] = np.concatenate([seen, np.ones((len(seen), 1), seen.dtype)], axis=1)
        feeds = fresh | {a.name: expected[b.name] for a, b in zip(cache.inputs, cache.outputs, strict=True)}


def _error(
    signature: Signature, feeds: Feeds, name: str, expected: Feeds, found: Feeds, *, packed: bool
) -> tuple[float, float]:
    """Return the worst (relative, absolute) error of an output over the rows that matter."""
    left, right = found[name], expected[name]
    if is_container(right) or is_container(left):
        return worst_error(left, right)
    if left.shape != right.shape:
        return math.inf, math.inf
    rows = rows_that_matter(signature, feeds, name, right)
    if rows is None:
        return worst_error(left, right)
    own = rows_that_matter(signature, feeds, name, left, packed=packed)
    return worst_error(left[own], right[rows])


def is_packed(loaded: Loaded) -> bool:
    """Tell whether a graph keeps a row's real tokens at the front of its cache."""
    return keeps_packed(loaded.model)

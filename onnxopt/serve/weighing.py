"""Weigh a model when it is opened: how much memory a row takes, on inputs that its artifact makes or brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxopt.artifact.package import read_golden
from onnxopt.errors import InputError
from onnxopt.graph.cache import BATCH, PAST, Cache
from onnxopt.run.cost import Cost, measure_cost, measure_whole, unknown_cost
from onnxopt.run.generate.decoder import Decoder
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.padding import Filler
from onnxopt.run.session import Session
from onnxopt.spec import Array, TensorSpec

LONG = 256  # tokens: long enough for the scores of attention to be seen, and soon run
_SHORTER = 16


def weigh_encoder(session: Session, text: TextModel | None) -> Cost:
    """Return what a run of a model takes that is no decoder.

    Args:
        session: the model.
        text: with its tokenizer, where it has one; else the golden cases of its artifact are what it is run on.
    """
    if session.device != "cpu":
        return Cost(1.0, measured=False)  # activations lie in the memory of the device
    filler = Filler(session.inputs, session.outputs)
    if text is not None and filler.batch:
        long = min(text.limit or LONG, LONG)
        row = [0] * long  # every vocabulary has it
        return measure_cost(
            session,
            lambda rows, length: _repeated(text.feeds(row[:length]), rows),
            short=max(1, long // _SHORTER),
            long=long,
        )
    feeds = _golden(session.path.parent)
    if feeds is None:
        return unknown_cost(session)
    if not filler.batch:
        return measure_whole(session, feeds)
    first = {name: array[:1] for name, array in feeds.items()}
    return measure_cost(session, lambda rows, _: _repeated(first, rows), short=1, long=1)


def weigh_decoder(decoder: Decoder) -> Cost:
    """Return what reading prompts takes; the elements of a row are those of its ids, mask and positions."""
    if decoder.session.device != "cpu":
        return Cost(1.0, measured=False)
    long = min(decoder.context_length or LONG, LONG)
    cached = {spec.name for spec in decoder.cache.inputs}
    others = [spec for spec in decoder.session.inputs if spec.name not in cached]

    def make(rows: int, length: int) -> Mapping[str, Array]:
        sizes = {BATCH: rows, PAST: 0}
        past = {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in decoder.cache.inputs}
        return past | {spec.name: np.ones((rows, length), spec.dtype) for spec in others}

    return measure_cost(decoder.session, make, short=max(1, long // _SHORTER), long=long)


def token_bytes(cache: Cache) -> int:
    """Return the bytes that a column of one row of a cache takes."""
    return sum(_column(spec) for spec in cache.inputs)


def _column(spec: TensorSpec) -> int:
    fixed = [axis for axis in spec.axes if isinstance(axis, int)]
    itemsize = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    return int(np.prod(fixed)) * itemsize


def _repeated(feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    return {name: np.repeat(array[:1], rows, axis=0) for name, array in feeds.items()}


def _golden(folder: Path) -> dict[str, Array] | None:
    """Return the inputs of the largest golden case; None where there is none."""
    try:
        cases = [case.feeds for case in read_golden(folder)]
    except InputError:
        return None
    plain = [dict(case) for case in cases if all(isinstance(value, np.ndarray) for value in case.values())]
    return max(plain, key=lambda case: sum(array.size for array in case.values()), default=None)

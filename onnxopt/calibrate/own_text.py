"""Let a language model write its own calibration text: what it is likely to say is what it will be asked to read.

Source: Liu et al. 2023, arXiv:2305.17888, section 3.1: the first token is drawn at random, the next few are the
likeliest, so that the text finds a subject, and the rest is drawn from the model's own distribution.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxopt.calibrate.data import WINDOW, CalibrationData, of_rows, prefix_of
from onnxopt.calibrate.sources import SELF
from onnxopt.errors import InputError
from onnxopt.graph.cache import Cache
from onnxopt.load.loaded import Loaded
from onnxopt.records.events import Step
from onnxopt.run.generate.decoder import Decoder
from onnxopt.run.generate.sampling import Sampler, Sampling
from onnxopt.run.session import Session
from onnxopt.spec import Say

ROWS = 64  # texts when nobody asks for a number: 16 thousand tokens
TOGETHER = 16  # texts that are written in one batch
GREEDY = 4  # tokens at the beginning of a text that are the likeliest


def write_own(loaded: Loaded, path: Path, *, samples: int | None = None, say: Say, seed: int = 0) -> CalibrationData:
    """Return calibration samples that a model wrote.

    Args:
        loaded: the model.
        path: a finished graph of it, with a cache.
        samples: how many texts; 64 when not given.
        say: told what is done.
        seed: same seed, same texts.

    Raises:
        InputError: the model writes no text.
    """
    limit = int(loaded.origin.get("context_length", 0) or 0)
    if Cache.of(loaded.signature) is None:
        raise InputError(
            "only a language model with a cache writes its own calibration text",
            where=loaded.name,
            hint="give --calibration a file, or builtin",
        )
    decoder = Decoder.of(Session(path), context_length=limit)
    prefix, window, count = prefix_of(loaded), min(WINDOW, limit or WINDOW), samples or ROWS
    rows: list[tuple[int, ...]] = []
    for start in range(0, count, TOGETHER):
        words = f"calibration text {start} of {count}, written by the model"
        say(Step(words, work="calibration text", done=start, total=count))
        rows.extend(_texts(decoder, prefix, window, range(start, min(start + TOGETHER, count)), seed))
    return of_rows(loaded, rows, SELF)


def _texts(decoder: Decoder, prefix: tuple[int, ...], window: int, numbers: range, seed: int) -> list[tuple[int, ...]]:
    vocabulary = next(spec for spec in decoder.session.outputs if spec.name == "logits").axes[-1]
    draws = np.random.default_rng([seed, numbers.start])
    starts = [(*prefix, int(draws.integers(int(vocabulary)))) for _ in numbers]
    batch = decoder.prefill(starts, new_tokens=window)
    greedy = [Sampler(Sampling()) for _ in numbers]
    drawn = [Sampler(Sampling(temperature=1.0, seed=seed), stream=number) for number in numbers]
    rows = [list(start) for start in starts]
    while len(rows[0]) < window:
        samplers = greedy if len(rows[0]) - len(prefix) <= GREEDY else drawn
        chosen = [sampler.next_id(logits) for sampler, logits in zip(samplers, batch.logits, strict=True)]
        for row, token in zip(rows, chosen, strict=True):
            row.append(token)
        if len(rows[0]) < window:
            batch.step(chosen)
    return [tuple(row) for row in rows]

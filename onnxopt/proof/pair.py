"""Prove an encoder-decoder as a whole: a text through both parts, then token by token.

Each part is proved alone first. Here the original and the result go on from their own encoder and their own caches, as
they do when text is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxopt.errors import ProofError
from onnxopt.graph.cache import ENCODED, PAST, SEQUENCE, Cache, complete, encoded_name
from onnxopt.graph.roles import mask_of
from onnxopt.load.loaded import Loaded
from onnxopt.proof.cases import case_text
from onnxopt.qmath.compare import worst_error
from onnxopt.records.events import Step
from onnxopt.records.rewrites import ProofRecord
from onnxopt.spec import PADDINGS, Array, Budget, Feeds

Run = Callable[[Feeds], Feeds]
BATCH, LENGTH, STEPS = 3, 11, 6


def prove_pair(
    first: tuple[Loaded, Run],
    second: tuple[Loaded, Run],
    budget: Budget,
    *,
    progress: Callable[[str], None] | None = None,
) -> list[ProofRecord]:
    """Compare the logits of an encoder-decoder with the original's over some steps, with every kind of padding.

    Args:
        first: the encoder's reference and feeder, and the finished graph: inputs by name to outputs by name.
        second: the decoder's, likewise.
        budget: the limit.
        progress: told each case.

    Returns:
        One record per padding and step.

    Raises:
        ProofError: at the first step beyond the budget.
    """
    (encoder, encode), (decoder, decode) = first, second
    records: list[ProofRecord] = []
    masked = mask_of(encoder.signature) is not None
    paddings = PADDINGS if masked else PADDINGS[:1]
    for seed, padding in enumerate(paddings):
        sizes = {axis: BATCH if axis == "batch" else LENGTH for axis in encoder.signature.axes}
        feeds = encoder.feeder.make(sizes, padding, seed=500 + seed)
        sides = [
            _Side(decoder, answer, feeds, give(feeds))
            for answer, give in ((decoder.reference.run, encoder.reference.run), (decode, encode))
        ]
        for step in range(STEPS):
            ids = decoder.feeder.make(complete({"batch": BATCH, SEQUENCE: 1, PAST: step}), seed=600 + step)["input_ids"]
            expected, found = (side.step(ids) for side in sides)
            relative, absolute = worst_error(found, expected)
            shown = {**sizes, PAST: step}
            if progress is not None:
                words, done = f"both parts: {case_text(shown, padding)}", seed * STEPS + step
                progress(Step(words, work="both parts", done=done, total=len(paddings) * STEPS))
            if not relative <= budget.relative_error:
                raise ProofError(
                    f"output logits differs from {decoder.reference.name} by {relative:.3g} (relative) "
                    f"behind the encoder at {case_text(shown, padding)}; the budget is {budget.relative_error:g}",
                    where=decoder.name,
                    hint="nothing was written",
                )
            records.append(
                ProofRecord(
                    sizes=shown,
                    padding=padding,
                    output="logits",
                    worst_relative_error=relative,
                    worst_absolute_error=absolute,
                )
            )
    return records


class _Side:
    """A decoder going on from its own cache."""

    def __init__(self, decoder: Loaded, answer: Run, feeds: Feeds, encoded: Mapping[str, Array]) -> None:
        cache = Cache.of(decoder.signature)
        assert cache is not None  # noqa: S101  # for the type checker; an exported decoder has one
        self._cache, self._answer = cache, answer
        given = [spec.name for spec in decoder.signature.inputs if ENCODED in spec.axes]
        self._fixed = {
            name: encoded[encoded_name(name)] if encoded_name(name) else feeds["attention_mask"] for name in given
        }
        sizes = {"batch": BATCH, PAST: 0}
        self._past = {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in cache.inputs}

    def step(self, ids: Array) -> Array:
        """Return the logits after one more token in each row."""
        found = self._answer({"input_ids": ids, **self._fixed, **self._past})
        names = zip(self._cache.inputs, self._cache.outputs, strict=True)
        self._past = {past.name: found[present.name] for past, present in names}
        return found["logits"][:, -1]

"""Inputs in the shapes of a workload, ragged where it says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.cache import ENCODED, PAST, SEQUENCE, TOTAL, complete
from onnxopt.graph.roles import mask_of, role_of
from onnxopt.load.loaded import Loaded
from onnxopt.probe.observe import Observation
from onnxopt.proof.cases import promised_size
from onnxopt.spec import Array, Feeds, Workload

SPREAD = 0.75  # of the logarithm of text lengths; a few long texts among many short ones
SEED = 7
# what generating text asks for when nobody says: a prompt, then tokens one by one, alone and in a batch
GENERATION = Workload(
    (
        {"batch": 1, SEQUENCE: 128, PAST: 0},
        {"batch": 1, SEQUENCE: 1, PAST: 128},
        {"batch": 8, SEQUENCE: 1, PAST: 128},
    )
)


# what writing an answer to a text asks of the decoder of an encoder-decoder
ANSWERING = Workload(
    (
        {"batch": 1, SEQUENCE: 1, PAST: 0, ENCODED: 128},
        {"batch": 1, SEQUENCE: 1, PAST: 32, ENCODED: 128},
        {"batch": 8, SEQUENCE: 1, PAST: 32, ENCODED: 128},
    )
)


def fit_workload(workload: Workload, loaded: Loaded) -> Workload:
    """Give every axis of the model a size in every shape, and drop axes that the model does not have.

    A model with a cache takes a workload that knows of none for prompts; the default workload becomes `GENERATION`. The
    decoder of an encoder-decoder always takes `ANSWERING`: shapes that are asked for are those of texts to be read. The
    default workload is moved into what the model takes; of another one only the axes that it does not name.

    Raises:
        InputError: the workload names a size that the model does not take.
    """
    axes = loaded.signature.axes
    is_default = workload == Workload()
    if ENCODED in axes:
        workload = ANSWERING
    elif PAST in axes and workload == Workload():
        workload = GENERATION
    masked = mask_of(loaded.signature) is not None
    shapes: dict[tuple[tuple[tuple[str, int], ...], float], Mapping[str, int]] = {}
    weights: dict[tuple[tuple[tuple[str, int], ...], float], float] = {}
    for index, asked in enumerate(workload.shapes):
        shape = loaded.known(asked)
        sizes = complete({axis: shape.get(axis, _default(axis, shape, loaded)) for axis in axes})
        sizes = _fitted(loaded, sizes) if is_default else _taken(loaded, sizes, shape)
        key = (tuple(sizes.items()), workload.fill(index) if masked else 1.0)
        shapes.setdefault(key, sizes)
        weights[key] = weights.get(key, 0.0) + (workload.weights[index] if workload.weights else 1.0)
    fills = tuple(fill for _, fill in shapes)
    return Workload(
        tuple(shapes.values()),
        fills if any(fill < 1.0 for fill in fills) else (),
        tuple(weights.values()) if workload.weights else (),
    )


def _default(axis: str, shape: Mapping[str, int], loaded: Loaded) -> int:
    if axis == PAST:
        return 0
    if "sequence" in axis:
        return shape.get("sequence", 1)
    batch = shape.get("batch", 1)
    return loaded.usual(axis, batch) if role_of(axis) == "other" else batch  # the height of an image, say


def _fitted(loaded: Loaded, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes within what the model takes: rows no longer than its positions, images of sides that run."""
    longest = promised_size(loaded, TOTAL if PAST in sizes else SEQUENCE)
    fitted = dict(sizes)
    if longest and PAST in sizes:
        past = min(sizes[PAST], longest - 1)
        fitted |= {PAST: past, SEQUENCE: min(sizes[SEQUENCE], longest - past)}
    elif longest and SEQUENCE in sizes:
        fitted[SEQUENCE] = min(sizes[SEQUENCE], longest)
    return complete(loaded.runnable(fitted))


def _taken(loaded: Loaded, sizes: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """Return sizes in which only the axes that nobody asked for are moved.

    Raises:
        InputError: a size that was asked for is none at which the model runs.
    """
    fitted = complete(loaded.runnable(sizes))
    for axis, size in asked.items():
        if axis in sizes and fitted[axis] != size:
            known = loaded.range_of(axis)
            ends = f"from {known.least} to {known.most}" if known.most else f"from {known.least} on"
            steps = f", in steps of {known.step}" if known.step > 1 else ""
            tied = ", and as long as the axes that it is tied to" if any(axis in group for group in loaded.tied) else ""
            shown = loaded.names.get(axis, axis)
            raise InputError(
                f"the workload asks for axis '{shown}' at {size}; the model runs {ends}{steps}{tied}",
                hint=f"give it a size that runs, such as {fitted[axis]}, with --workload",
            )
    return fitted


def requests_of(loaded: Loaded, workload: Workload) -> list[Observation]:
    """Make one request per shape of a workload that fits the model.

    Raises:
        InputError: a size is beyond what the model takes.
    """
    requests = []
    for index, sizes in enumerate(workload.shapes):
        feeds = loaded.feeder.make(sizes, "none", seed=SEED + index)
        mask = mask_of(loaded.signature)
        if mask is not None and workload.fill(index) < 1.0 and mask.name in feeds:
            feeds = _thin(feeds, mask.name, workload.fill(index))
        requests.append(Observation(sizes, feeds))
    return requests


def _thin(feeds: Feeds, mask: str, fill: float) -> Feeds:
    """Return the inputs with right padding, so that a share `fill` of all positions stays."""
    batch, longest = feeds[mask].shape  # with a cache, all of it counts
    lengths = ragged_lengths(batch, longest, fill)
    rows = (np.arange(longest) < lengths[:, None]).astype(feeds[mask].dtype)
    return {**feeds, mask: rows}


def ragged_lengths(batch: int, longest: int, fill: float, seed: int = SEED) -> Array:
    """Return int64 [batch], log-normal lengths between 1 and `longest` whose mean is about `fill * longest`.

    One row has the full length, as the longest text of a padded batch has.
    """
    draws = np.exp(np.random.default_rng(seed).normal(0.0, SPREAD, batch))

    def lengths(scale: float) -> Array:
        found = np.clip(np.rint(draws * scale), 1, longest).astype(np.int64)
        found[int(draws.argmax())] = longest
        return found

    low, high = 0.0, longest / float(draws.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths(middle).mean() < fill * longest else (low, middle)
    return lengths(high)

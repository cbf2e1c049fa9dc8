"""Choose the next token from a row of logits: greedy, or drawn after temperature, top-k, top-p and min-p.

Pure NumPy. The steps run in this order, each only when asked for:

1. repetition penalty θ: s > 0 → s / θ, s ≤ 0 → s · θ, for every token that the text already has
   (Keskar et al. 2019, arXiv:1909.05858, section 4.1; for s ≤ 0 as RepetitionPenaltyLogitsProcessor of transformers);
2. temperature T: s → s / T (Ackley, Hinton & Sejnowski 1985);
3. top-k: the k largest scores stay, and those equal to the k-th (Fan et al. 2018, arXiv:1805.04833);
4. top-p: the fewest most likely tokens whose probability reaches p (Holtzman et al. 2020, arXiv:1904.09751, eq. 2);
5. min-p: tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082);
6. one draw by inversion of the cumulative distribution.

Greedy takes the largest score after step 1, the lowest id among equals. Probabilities are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError

_FIRST_NUCLEUS = 512  # candidates sorted at first for top-p; usually enough, so that a vocabulary is not sorted whole
_GROWTH = 8


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; 1 draws from the model's own distribution.
        top_k: how many of the likeliest tokens may be drawn; 0 is all.
        top_p: share of probability that the likeliest tokens together must reach; 1 is all.
        min_p: least probability relative to the likeliest token; 0 is none.
        repetition_penalty: 1 is none; above 1 makes tokens that the text already has less likely.
        seed: same seed, same text; None takes a new one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0.0 <= self.temperature < math.inf, "0 (greedy) or more")
        _require("top-k", self.top_k, self.top_k >= 0, "a count of tokens, or 0 for all")
        _require("top-p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _require("min-p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1")
        penalty = self.repetition_penalty
        _require("repetition penalty", penalty, 1e-6 <= penalty <= 1e6, "from 1e-6 to 1e6, and 1 for none")
        _require("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **given: float | None) -> Sampling:
        """Return the sampling that a checkpoint's generation_config.json suggests.

        Args:
            settings: content of the file; a temperature that it does not name is 1, all other steps are off.
            given: attributes by name that come before the file's; None leaves the file's.

        Raises:
            InputError: when the file or a given value is out of range.
        """
        values: dict[str, Any] = {"temperature": 1.0}
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            found = settings.get(name)
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                values[name] = int(found) if name == "top_k" else float(found)
        return cls(**values | {name: value for name, value in given.items() if value is not None})


def _require(name: str, value: object, fits: bool, wanted: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not fits:
        raise InputError(f"the {name} is {value}", hint=f"it must be {wanted}")


class Sampler:
    """Choose the next token of one text, again and again.

    Args:
        sampling: how.
        prompt: ids that the text starts with; they count for the repetition penalty.
        stream: number of the text among those that share a seed; each has its own random numbers, so that what is
            drawn for one does not depend on its neighbours in a batch.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = (), *, stream: int = 0) -> None:
        self._how = sampling
        self._random = np.random.default_rng(None if sampling.seed is None else [sampling.seed, stream])
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else None

    def next_id(self, logits: npt.NDArray[Any]) -> int:
        """Return the next token.

        Args:
            logits: float [vocabulary].

        Raises:
            InputError: when a logit is not a number, or none is finite.
        """
        scores = logits if self._seen is None else penalize(logits, self._seen, self._how.repetition_penalty)
        if self._how.greedy:
            chosen = int(scores.argmax())  # of not-a-numbers and a number, argmax takes the first not-a-number
            if not np.isfinite(scores[chosen]):
                raise InputError("the model gives logits that are not finite", hint="verify the artifact")
        else:
            ids, chances = distribution(scores, self._how)
            chosen = draw(ids, chances, float(self._random.random()))
        if self._seen is not None:
            self._seen.add(chosen)
        return chosen


def penalize(logits: npt.NDArray[Any], seen: set[int], penalty: float) -> npt.NDArray[Any]:
    """Return logits with those of seen tokens made less likely.

    Args:
        logits: float [vocabulary].
        seen: ids of tokens in the text; those beyond the vocabulary are left out.
        penalty: θ of step 1.
    """
    ids = np.fromiter((one for one in seen if one < len(logits)), np.int64)
    scores = logits.astype(np.float32)  # 16 bits hold no large multiple
    found = scores[ids]
    scores[ids] = np.where(found > 0, found / penalty, found * penalty)
    return scores


def distribution(scores: npt.NDArray[Any], how: Sampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the tokens that may be drawn and their probabilities, likeliest first where top-p sorted them.

    Args:
        scores: float [vocabulary].
        how: temperature, top-k, top-p and min-p.

    Raises:
        InputError: when a score is not a number, or none is finite.
    """
    best = float(scores.max())
    if not math.isfinite(best):
        raise InputError("the model gives logits that are not finite", hint="verify the artifact")
    ids = np.arange(len(scores), dtype=np.int64)
    if 0 < how.top_k < len(scores):
        ids = np.flatnonzero(scores >= np.partition(scores, -how.top_k)[-how.top_k])
    # the largest score is taken off before dividing, so that a small temperature cannot overflow
    weights = np.exp((scores[ids].astype(np.float64) - best) / how.temperature)
    chances = weights / weights.sum()
    if how.top_p < 1.0:
        kept = _nucleus(chances, how.top_p)
        ids, chances = ids[kept], chances[kept]
    if how.min_p > 0.0:
        likely = chances >= how.min_p * chances.max()
        ids, chances = ids[likely], chances[likely]
    return ids, chances / chances.sum()


def _nucleus(chances: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.int64]:
    """Return the places of the fewest most likely tokens that together reach `share`, likeliest first."""
    count = _FIRST_NUCLEUS
    while True:
        whole = count >= len(chances)
        places = np.arange(len(chances)) if whole else np.argpartition(chances, -count)[-count:]
        places = places[np.argsort(-chances[places], kind="stable")]
        reached = np.cumsum(chances[places])
        if whole or reached[-1] >= share:
            return np.asarray(places[: int(np.searchsorted(reached, share)) + 1], np.int64)
        count *= _GROWTH


def draw(ids: npt.NDArray[np.int64], chances: npt.NDArray[np.float64], point: float) -> int:
    """Return the token at a point of the cumulative distribution.

    Args:
        ids: int64 [tokens].
        chances: float64 [tokens], which sum to 1.
        point: uniform in [0, 1).
    """
    cumulative = np.cumsum(chances)
    # rounding may leave the last sum below 1 or above it
    place = int(np.searchsorted(cumulative, point * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


GREEDY = Sampling()


def choose_sampling(
    settings: Mapping[str, Any], *, sample: bool, temperature: float | None, **given: float | None
) -> Sampling:
    """Return how tokens are chosen, by the options of the command line.

    Args:
        settings: content of generation_config.json; without `sample` only its repetition penalty counts.
        sample: start from the checkpoint's own settings.
        temperature: 0 or None without `sample` is greedy.
        given: `top_k`, `top_p`, `min_p`, `repetition_penalty` and `seed`; None where nothing was said.

    Raises:
        InputError: when a value is out of range, or has no meaning for greedy decoding.
    """
    if sample:
        return Sampling.from_settings(settings, temperature=temperature, **given)
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "repetition_penalty" not in chosen and settings.get("repetition_penalty"):
        chosen["repetition_penalty"] = float(settings["repetition_penalty"])  # so does transformers
    pointless = [name for name in ("top_k", "top_p", "min_p") if name in chosen and not temperature]
    if pointless:
        option = pointless[0].replace("_", "-")
        raise InputError(f"--{option} means nothing to greedy decoding", hint="add --sample or --temperature")
    return Sampling(temperature=temperature or 0.0, **chosen)

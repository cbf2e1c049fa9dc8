"""Choosing the next token: exact where it is deterministic, distributed as the formulas say where it is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.run.generate.sampling import Sampler, Sampling, distribution, draw, penalize

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0], np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


def shares(sampling: Sampling, logits: np.ndarray, draws: int = 20_000) -> np.ndarray:
    sampler = Sampler(sampling)
    counts = np.zeros(len(logits))
    for _ in range(draws):
        counts[sampler.next_id(logits)] += 1
    return counts / draws


def test_greedy_takes_the_largest_and_the_first_among_equals() -> None:
    assert Sampler(Sampling()).next_id(LOGITS) == 1


def test_temperature_one_draws_from_the_models_own_distribution() -> None:
    found = shares(Sampling(temperature=1.0, seed=0), LOGITS)
    assert np.abs(found - softmax(LOGITS)).max() < 0.015


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        found = shares(Sampling(temperature=temperature, seed=0), LOGITS)
        assert np.abs(found - softmax(LOGITS / temperature)).max() < 0.015


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    ids, chances = distribution(np.array([5e4, 1e4, -5e4], np.float32), Sampling(temperature=1e-300))
    assert (ids[chances > 0].tolist(), chances.max()) == ([0], 1.0)


def test_top_k_keeps_the_k_largest_and_those_equal_to_the_last() -> None:
    assert distribution(LOGITS, Sampling(temperature=1.0, top_k=1))[0].tolist() == [1, 3]
    assert distribution(LOGITS, Sampling(temperature=1.0, top_k=3))[0].tolist() == [1, 2, 3]
    assert len(distribution(LOGITS, Sampling(temperature=1.0, top_k=99))[0]) == len(LOGITS)


def test_top_p_keeps_the_fewest_that_reach_the_share() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.25, 0.15]))
    for share, expected in ((0.4, [1]), (0.6, [1, 2]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        ids, chances = distribution(logits, Sampling(temperature=1.0, top_p=share))
        assert sorted(ids.tolist()) == expected
        assert math.isclose(chances.sum(), 1.0)


def test_top_p_of_a_large_flat_vocabulary_looks_beyond_its_first_candidates() -> None:
    ids, chances = distribution(np.zeros(5_000, np.float32), Sampling(temperature=1.0, top_p=0.4999))
    assert len(ids) == 2_500
    assert np.allclose(chances, 1 / 2_500)


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.25, 0.2]))
    assert distribution(logits, Sampling(temperature=1.0, min_p=0.3))[0].tolist() == [1, 2, 3]
    assert distribution(logits, Sampling(temperature=1.0, min_p=1.0))[0].tolist() == [1]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    found = penalize(LOGITS, {1, 4, 99}, 2.0)
    assert found.tolist() == [1.0, 1.5, 2.0, 3.0, -2.0]
    assert LOGITS[1] == 3.0


def test_the_penalty_counts_the_prompt_and_what_was_chosen() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), prompt=[1])
    assert [sampler.next_id(LOGITS) for _ in range(3)] == [3, 2, 1]


def test_steps_agree_with_transformers() -> None:
    import torch
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(3)
    for _ in range(10):
        logits, seen = rng.standard_normal(300).astype(np.float32) * 3, rng.integers(0, 300, 20)
        chain = [
            theirs.RepetitionPenaltyLogitsProcessor(1.3),
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(40),
            theirs.TopPLogitsWarper(0.8),
            theirs.MinPLogitsWarper(0.05),
        ]
        scores = torch.from_numpy(logits)[None]
        for step in chain:
            scores = step(torch.from_numpy(seen)[None], scores)
        expected = scores.softmax(-1)[0].numpy()
        how = Sampling(temperature=0.7, top_k=40, top_p=0.8, min_p=0.05)
        ids, chances = distribution(penalize(logits, set(seen.tolist()), 1.3), how)
        assert sorted(ids.tolist()) == np.flatnonzero(expected).tolist()
        assert np.allclose(chances, expected[ids], rtol=1e-4)


def test_same_seed_same_draws_and_each_text_has_its_own() -> None:
    def some(seed: int, stream: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), stream=stream)
        return [sampler.next_id(np.zeros(1000, np.float32)) for _ in range(5)]

    assert some(7, 0) == some(7, 0)
    assert some(7, 0) != some(7, 1)
    assert some(7, 0) != some(8, 0)


@settings(max_examples=50, deadline=None)
@given(point=st.floats(0, 1, exclude_max=True), weights=st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_a_draw_lies_where_the_cumulative_distribution_passes_the_point(point: float, weights: list[float]) -> None:
    chances = np.array(weights) / np.sum(weights)
    chosen = draw(np.arange(len(weights)), chances, point)
    assert chances[:chosen].sum() <= point + 1e-9
    assert point <= chances[: chosen + 1].sum() + 1e-9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"repetition_penalty": 0.0}, "penalty"),
        ({"repetition_penalty": 1e-143}, "penalty"),
        ({"repetition_penalty": 1e300}, "penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Sampling(**options)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_no_numbers_are_refused(sampling: Sampling) -> None:
    for bad in (np.array([1.0, math.nan]), np.array([-math.inf, -math.inf]), np.array([1.0, math.inf])):
        with pytest.raises(InputError, match="not finite"):
            Sampler(sampling).next_id(bad)


def test_the_checkpoints_settings_are_taken_unless_something_was_said() -> None:
    found = Sampling.from_settings({"top_k": 5, "top_p": 0.5, "do_sample": True}, top_p=0.9, seed=None)
    assert found == Sampling(temperature=1.0, top_k=5, top_p=0.9)

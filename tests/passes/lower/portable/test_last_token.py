from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxopt.errors import ProofError
from onnxopt.graph.cache import complete
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Feeds
from tests.support.cached import CAUSAL, VOCABULARY, WINDOW, Decoder, Lowered, lower

FORMS = {
    "Slice": Decoder(),
    "Gather": Decoder(end="rows = Gather<axis=1>(x, minus_one)"),
    "Gather, without its axis": Decoder(
        end="rows = Gather<axis=1>(x, place)",
        outputs=f"float[batch,{VOCABULARY}] logits",
        weights={"place": np.array(-1)},
    ),
}


@pytest.mark.parametrize("decoder", FORMS.values(), ids=FORMS.keys())
def test_the_answer_is_that_of_the_last_real_token(decoder: Decoder) -> None:
    """Behind padding on the right the last column answers for nobody; a row alone answers for itself."""
    found = lower(decoder.model(), "lower-last-token", "lower-last-token")
    assert [entry.applied for entry in found.entries] == [1, 0]
    assert found.entries[0].rolled_back == []
    found.prove()
    sizes = complete({"batch": 3, "sequence": 9, "past_sequence": 0})
    feeds = found.loaded.feeder.make(sizes, "right", seed=3)
    check_alone(decoder, found, feeds)


# What adds something to the scores of each head, the same for every row of a batch: it has no axis for the rows.
DISTANCES = (
    "away = Sub(keys, queries) apart = Cast<to=1>(away) spread = Mul(apart, slopes)"
    " shown = Where(allowed, spread, lowest) mask = Identity(shown)"
)
TRIMMED = {
    "one mask": (CAUSAL, {}),
    "a mask and positions": (WINDOW, {}),
    "distances by head": (
        f"{CAUSAL.replace('mask = And', 'allowed = And')} {DISTANCES}",
        {"slopes": np.array([0.5, 0.25, 0.1, 0.7], np.float32).reshape(4, 1, 1)},
    ),
}


@pytest.mark.parametrize(("mask", "weights"), TRIMMED.values(), ids=TRIMMED.keys())
@pytest.mark.parametrize("turn", ["", None])
def test_everything_of_the_token_is_that_of_the_last_real_one(
    mask: str, weights: dict[str, np.ndarray], turn: str | None
) -> None:
    """Rows are picked ahead of the last attention: its queries, its mask, its tables, and the state around it."""
    decoder = Decoder(joined=True, mask=mask, weights=weights, heads=(4, 4), turn=turn)
    found = lower(decoder.model(), "trim-rows", "lower-last-token", "lower-last-token")
    assert found.rolled_back == []
    assert found.applied[0] > 0
    assert found.applied[1] > 1
    assert found.applied[2] == 0
    found.prove()
    for padding in ("right", "left"):
        feeds = found.loaded.feeder.make(complete({"batch": 4, "sequence": 12, "past_sequence": 0}), padding, seed=8)
        check_alone(decoder, found, feeds)


def check_alone(decoder: Decoder, found: Lowered, feeds: Feeds) -> None:
    """Hold the logits of each row to those of its real tokens alone."""
    together, original = found.run(feeds)["logits"], GraphRunner(decoder.model())
    for row, mask in enumerate(feeds["attention_mask"] != 0):
        alone = {name: array[row : row + 1] for name, array in feeds.items()}
        alone = {name: array[:, mask] if array.ndim == 2 else array for name, array in alone.items()}
        assert np.abs(original.run(alone)[0]["logits"] - together[row : row + 1]).max() < 2e-5


def test_an_export_that_answers_for_padding_is_not_proved() -> None:
    """A file that someone else made may keep to the last column; ours answers for the last real token."""
    found = lower(Decoder().model())
    found.prove()
    found.loaded.origin = {"exporter": "dynamo"}
    with pytest.raises(ProofError, match=r"output logits differs .* right padding"):
        found.prove()
    mended = lower(Decoder().model(), "lower-last-token")
    mended.loaded.origin = {"exporter": "dynamo"}
    mended.prove()


def test_a_packed_cache_needs_none_of_it() -> None:
    found = lower(Decoder().model(), "lower-cached-attention", "lower-last-token")
    assert found.packed
    assert found.applied == [2, 0]


def test_logits_of_all_positions_stay() -> None:
    every = replace(Decoder(), end="rows = Identity(x)", outputs=f"float[batch,sequence,{VOCABULARY}] logits")
    assert [entry.applied for entry in lower(every.model(), "lower-last-token").entries] == [0]

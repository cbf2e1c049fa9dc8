from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxopt.cache import complete
from onnxopt.probe import GraphRunner
from tests.support.cached import VOCABULARY, Decoder, lower

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
    together = found.run(feeds)["logits"]
    original = GraphRunner(decoder.model())
    for row in range(3):
        length = int(feeds["attention_mask"][row].sum())
        alone = {name: array[row : row + 1] for name, array in feeds.items()}
        alone = {name: array[:, :length] if array.ndim == 2 else array for name, array in alone.items()}
        assert np.abs(original.run(alone)[0]["logits"] - together[row : row + 1]).max() < 1e-5


def test_logits_of_all_positions_stay() -> None:
    every = replace(Decoder(), end="rows = Identity(x)", outputs=f"float[batch,sequence,{VOCABULARY}] logits")
    assert [entry.applied for entry in lower(every.model(), "lower-last-token").entries] == [0]

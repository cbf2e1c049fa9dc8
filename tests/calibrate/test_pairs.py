"""Pairs of texts for models that read two: half of them belong together, and each keeps its segments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from onnxopt.calibrate.data import feeds_of
from onnxopt.calibrate.pairs import paired_rows, pairs_of
from onnxopt.load.loaded import Loaded
from onnxopt.spec import Signature, TensorSpec
from tests.run.test_answers import tokenizer

TEXTS = [f"good film {place}. who lives in paris? bad" for place in range(8)]


def test_a_sentence_stands_before_its_own_paragraph_or_another() -> None:
    made = pairs_of([*TEXTS, "one sentence"])
    assert made[0] == ("good film 0.", "who lives in paris? bad")
    assert made[1] == ("good film 1.", TEXTS[4])
    assert made[8] == ("one sentence", "one sentence")
    assert len(made) == 9


def test_rows_keep_the_segments_of_their_tokens() -> None:
    plain = tokenizer()
    plain.no_padding()
    rows = paired_rows(plain, ["good film. who lives in paris", "bad film. in paris", "who. good"], 7)
    assert rows
    for ids, types in rows.items():
        assert len(ids) == len(types) <= 7
        assert sorted(types) == list(types) and set(types) == {0, 1}
        assert types.count(0) == ids.index(3) + 1  # up to the first mark between them


def test_feeds_have_the_segments_that_are_given() -> None:
    inputs = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "token_type_ids"))
    loaded = cast("Loaded", SimpleNamespace(signature=Signature(inputs, ()), name="made up"))
    ids, types = np.array([[2, 5, 3, 6, 3]]), np.array([[0, 0, 0, 1, 1]])
    found: dict[str, Any] = feeds_of(loaded, ids, types)
    assert found["token_type_ids"].tolist() == types.tolist()
    assert not feeds_of(loaded, ids)["token_type_ids"].any()

"""Which input is the mask is known in one place: by trying, or by its name."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.graph.roles import fixed_length, input_meaning, mask_of, meanings_of
from onnxopt.run.padding import Filler
from onnxopt.spec import Signature, TensorSpec

ROW = ("batch", "sequence")
IDS, MASK, VALID = (TensorSpec(name, "int64", ROW) for name in ("input_ids", "Attention_Mask", "valid"))
DEEP = TensorSpec("mask4d", "float32", ("batch", 1, "sequence", "sequence"))
PAST = TensorSpec("past_mask", "int64", ROW)
ANSWER = TensorSpec("y", "float32", (*ROW, 8))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("input_ids", "ids"),
        ("decoder_input_ids", "ids"),
        ("attention_mask", "mask"),
        ("Token_Type_IDs", "types"),
        ("position_ids", "positions"),
        ("past_key_values.0.key", "past"),
        ("pixel_values", ""),
    ],
)
def test_a_name_says_what_an_input_stands_for(name: str, meaning: str) -> None:
    assert input_meaning(name) == meaning


def test_the_mask_is_the_one_that_was_found_or_the_one_that_is_called_so() -> None:
    named = Signature((IDS, DEEP, PAST, MASK, VALID), (ANSWER,))
    assert mask_of(named) == MASK
    assert mask_of(Signature(named.inputs, (ANSWER,), mask="valid")) == VALID
    assert mask_of(Signature(named.inputs, (ANSWER,), mask="")) is None
    assert mask_of(Signature((IDS, DEEP), (ANSWER,))) is None


def test_a_mask_of_any_name_is_one_of_the_meanings() -> None:
    assert meanings_of(Signature((IDS, VALID), (ANSWER,))) == {"input_ids": "ids", "valid": ""}
    assert meanings_of(Signature((IDS, VALID), (ANSWER,), mask="valid")) == {"input_ids": "ids", "valid": "mask"}


def test_the_length_of_a_row_may_be_fixed() -> None:
    assert fixed_length((MASK, IDS)) == 0
    assert fixed_length((TensorSpec("x", "int64", (1, 9)), TensorSpec("tokens", "int64", ("n", 64)))) == 64


def test_padding_is_used_where_a_mask_hides_it() -> None:
    ids = np.array([[5, 6, 7]])
    filler = Filler((IDS, MASK), (ANSWER,), pad=1)
    assert filler.length == "sequence"
    filled = filler.fill({"input_ids": ids, "Attention_Mask": np.ones_like(ids)}, {"batch": 1, "sequence": 5})
    assert filled["input_ids"].tolist() == [[5, 6, 7, 1, 1]]
    assert filled["Attention_Mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert Filler((IDS, VALID), (ANSWER,)).length == ""

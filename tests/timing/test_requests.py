"""What will be asked of a model: how it is written, and how it fits a model with a cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.graph.cache import Cache, CacheLayer
from onnxopt.load.feeds import TextFeeder, Tokens
from onnxopt.load.loaded import Loaded
from onnxopt.spec import Signature, TensorSpec, Workload
from onnxopt.timing.requests import GENERATION, fit_workload, ragged_lengths, requests_of
from tests.support.loaded import loaded

CACHE = Cache((CacheLayer(0, 2, 8, 8, "float32"),))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "total_sequence"))
CACHED = Signature((IDS, MASK, *CACHE.inputs), CACHE.outputs)
PLAIN = Signature((IDS, TensorSpec("attention_mask", "int64", IDS.axes)), ())


def model(signature: Signature, longest: int = 0) -> Loaded:
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    made = loaded(empty, signature=signature)
    made.feeder = TextFeeder(signature.inputs, Tokens(40, longest=longest))
    return made


def test_a_token_behind_others_is_written_with_a_plus() -> None:
    workload = Workload.parse("1x1+256, 8X16+0,2x128")
    assert workload.shapes == (
        {"batch": 1, "sequence": 1, "past_sequence": 256},
        {"batch": 8, "sequence": 16, "past_sequence": 0},
        {"batch": 2, "sequence": 128},
    )
    assert workload.fills == ()
    assert str(workload).startswith("batch 1 sequence 1 past_sequence 256, ")


def test_a_past_may_be_ragged() -> None:
    workload = Workload.parse("4x1+32@0.5")
    assert workload.shapes == ({"batch": 4, "sequence": 1, "past_sequence": 32},)
    assert workload.fills == (0.5,)


@given(batch=st.integers(1, 99), sequence=st.integers(1, 9999), past=st.integers(0, 9999))
def test_any_sizes(batch: int, sequence: int, past: int) -> None:
    found = Workload.parse(f"{batch}x{sequence}+{past}").shapes
    assert found == ({"batch": batch, "sequence": sequence, "past_sequence": past},)
    assert found == Workload.parse(f"batch={batch}:sequence={sequence}:past_sequence={past}").shapes


@pytest.mark.parametrize("text", ["1x1+", "1x1+a", "1+1x1", "1x1+-1", "1x0+5", "0x1+5", "1x1+5+5", "x1+5"])
def test_what_is_no_shape_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Workload.parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_generating_text_is_what_a_decoder_is_asked_for() -> None:
    found = fit_workload(Workload(), model(CACHED))
    assert [dict(shape) for shape in found.shapes] == [
        {**shape, "total_sequence": shape["sequence"] + shape["past_sequence"]} for shape in GENERATION.shapes
    ]
    assert any(shape["past_sequence"] and shape["sequence"] == 1 for shape in found.shapes)


def test_a_workload_that_knows_of_no_past_asks_for_prompts() -> None:
    found = fit_workload(Workload.parse("2x7,3x1+9"), model(CACHED))
    assert [dict(shape) for shape in found.shapes] == [
        {"batch": 2, "sequence": 7, "total_sequence": 7, "past_sequence": 0},
        {"batch": 3, "sequence": 1, "total_sequence": 10, "past_sequence": 9},
    ]


def test_a_model_without_a_cache_drops_the_past() -> None:
    found = fit_workload(Workload.parse("2x7+9,2x7"), model(PLAIN))
    assert [dict(shape) for shape in found.shapes] == [{"batch": 2, "sequence": 7}]
    assert fit_workload(Workload(), model(PLAIN)) == Workload()


def test_requests_have_the_sizes_that_were_asked_for() -> None:
    decoder = model(CACHED)
    first, second = requests_of(decoder, fit_workload(Workload.parse("2x7,3x1+9"), decoder))
    assert first.feeds["attention_mask"].shape == (2, 7)
    assert first.feeds["past_key_values.0.key"].shape == (2, 2, 0, 8)
    assert second.feeds["input_ids"].shape == (3, 1)
    assert second.feeds["attention_mask"].shape == (3, 10)
    assert second.feeds["past_key_values.0.value"].shape == (3, 2, 9, 8)


def test_a_ragged_past_counts_all_positions() -> None:
    decoder = model(CACHED)
    workload = fit_workload(Workload.parse("16x1+63@0.5"), decoder)
    assert workload.fills == (0.5,)
    mask = requests_of(decoder, workload)[0].feeds["attention_mask"]
    assert mask.shape == (16, 64)
    assert np.array_equal(mask.sum(axis=1), ragged_lengths(16, 64, 0.5))
    assert mask.sum(axis=1).max() == 64
    assert np.all(np.diff(mask, axis=1) <= 0)
    assert abs(mask.mean() - 0.5) < 0.05


def test_a_request_beyond_what_the_model_takes_is_refused() -> None:
    decoder = model(CACHED, longest=64)
    with pytest.raises(InputError, match="sequence 65 is longer than the model's 64 positions"):
        requests_of(decoder, fit_workload(Workload.parse("1x1+64"), decoder))

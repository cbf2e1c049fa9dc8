"""The contract of the cache: names, shapes, sizes, and where a packed one holds what."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxopt.graph.cache import Cache, CacheLayer, complete, packed_rows, past_name, present_name, served
from onnxopt.spec import Array, Signature, TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))


def test_names_are_those_of_other_tools() -> None:
    assert past_name(3, "key") == "past_key_values.3.key"
    assert present_name(3, "value") == "present.3.value"


LAYERS = st.builds(
    CacheLayer,
    st.integers(0, 99),
    st.integers(1, 64),
    st.integers(1, 256),
    st.integers(1, 256),
    st.sampled_from(("float32", "float16")),
)


@given(layers=st.lists(LAYERS, min_size=1, max_size=12, unique_by=lambda layer: layer.index), order=st.randoms())
def test_a_cache_is_read_off_what_it_says_of_itself(layers: list[CacheLayer], order: Random) -> None:
    """In any order of inputs; layers may be missing, as those that share another's cache are."""
    cache = Cache(tuple(sorted(layers, key=lambda layer: layer.index)))
    inputs = [IDS, *cache.inputs]
    order.shuffle(inputs)
    assert Cache.of(Signature(tuple(inputs), cache.outputs)) == cache


def test_what_goes_in_comes_out_longer_and_in_the_same_order() -> None:
    cache = Cache((CacheLayer(0, 2, 8, 4, "float32"), CacheLayer(2, 1, 8, 8, "float16")))
    assert [spec.name for spec in cache.inputs] == [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.2.key",
        "past_key_values.2.value",
    ]
    assert [spec.name for spec in cache.outputs] == [
        "present.0.key",
        "present.0.value",
        "present.2.key",
        "present.2.value",
    ]
    assert cache.inputs[1] == TensorSpec(past_name(0, "value"), "float32", ("batch", 2, "past_sequence", 4))
    assert cache.outputs[2] == TensorSpec(present_name(2, "key"), "float16", ("batch", 1, "total_sequence", 8))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("past_key_values.0.key",),
        ("past_key_values.0.key", "past_key_values.1.value"),
        ("past_key_values.0.key.bias", "past_key_values.0.value.bias"),
        ("past_key_values.x.key", "past_key_values.x.value"),
        ("present.0.key", "present.0.value"),
        ("my.past_key_values.0.key", "my.past_key_values.0.value"),
    ],
)
def test_a_model_without_keys_and_values_has_no_cache(names: tuple[str, ...]) -> None:
    specs = tuple(TensorSpec(name, "float32", ("batch", 2, "past_sequence", 4)) for name in names)
    assert Cache.of(Signature((IDS, *specs), specs)) is None


def test_half_a_layer_is_none() -> None:
    whole = Cache((CacheLayer(1, 2, 8, 8, "float32"),))
    half = TensorSpec("past_key_values.0.key", "float32", ("batch", 2, "past_sequence", 8))
    assert Cache.of(Signature((IDS, half, *whole.inputs), ())) == whole


def test_total_is_past_and_new() -> None:
    assert complete({"batch": 2, "sequence": 3, "past_sequence": 4})["total_sequence"] == 7
    assert complete({"sequence": 3, "past_sequence": 0, "total_sequence": 99})["total_sequence"] == 3
    assert complete({"past_sequence": 4})["total_sequence"] == 4
    assert complete({"batch": 2, "sequence": 3}) == {"batch": 2, "sequence": 3}
    given_sizes = {"sequence": 1, "past_sequence": 1}
    complete(given_sizes)
    assert given_sizes == {"sequence": 1, "past_sequence": 1}


@given(mask=arrays.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(0, 12)), elements=st.integers(0, 2)))
def test_packed_rows_hold_as_many_in_front_as_are_real(mask: Array) -> None:
    found = packed_rows(mask)
    assert found.dtype == np.bool_
    assert found.shape == mask.shape
    for row, real in zip(found, mask, strict=True):
        count = int((real != 0).sum())
        assert row.tolist() == [True] * count + [False] * (len(row) - count)


def test_files_call_the_batch_as_other_tools_do() -> None:
    cache = Cache((CacheLayer(0, 2, 8, 8, "float32"),))
    ours = Signature((IDS, *cache.inputs), cache.outputs)
    theirs = served(ours)
    assert theirs.inputs[0].axes == ("batch_size", "sequence")
    assert theirs.outputs[0].axes == ("batch_size", 2, "total_sequence", 8)
    assert "batch" not in theirs.axes
    assert served(theirs) == theirs
    plain = Signature((IDS,), (IDS,))
    assert served(plain) == plain


def test_files_keep_the_names_that_an_import_had() -> None:
    cache = Cache((CacheLayer(0, 2, 8, 8, "float32"),))
    theirs = served(Signature((IDS, *cache.inputs), cache.outputs), {"batch": "N", "total_sequence": "past + new"})
    assert theirs.inputs[0].axes == ("N", "sequence")
    assert theirs.outputs[0].axes == ("N", 2, "past + new", 8)

"""Stepping a decoder: equal to the same network in NumPy, whatever the padding, the cache or the batch.

Covers: run/generate/cache_buffers.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.errors import InputError
from onnxopt.records.manifest import DecodingRecord
from onnxopt.run.generate import cache_buffers as stores
from onnxopt.run.generate.decoder import Batch, Decoder, pays
from onnxopt.run.session import Session
from tests.support.decoder import CONTEXT, FORMS, VOCABULARY, Form, Positions, TinyDecoder, decoder_model, file_of

TINY = TinyDecoder()
ROWS = ([5, 9, 200], [1, 2, 3, 4, 5, 6, 7, 8], [77])


def opened(tmp_path: Path, form: Form, logits: Positions = "last") -> Decoder:
    model = decoder_model(TINY, form, logits)
    session = Session(file_of(tmp_path, model, f"{form}-{logits}.onnx"), threads=1)
    record = DecodingRecord(
        shared_buffers=form != "growing", logits=logits, context_length=CONTEXT, vocabulary=VOCABULARY
    )
    return Decoder.of(session, record)


@pytest.fixture(scope="module", params=[(form, logits) for form in FORMS for logits in ("last", "all")])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return opened(tmp_path_factory.mktemp("decoder"), *request.param)


def check(batch: Batch, rows: Sequence[Sequence[int]]) -> None:
    expected = np.stack([TINY.logits(row)[-1] for row in rows])
    assert batch.logits.shape == expected.shape
    assert np.abs(batch.logits - expected).max() < 1e-4
    assert batch.lengths.tolist() == [len(row) for row in rows]


def test_padded_rows_equal_single_ones_at_every_step(decoder: Decoder) -> None:
    rows = [list(row) for row in ROWS]
    batch = decoder.prefill(rows, new_tokens=12)
    check(batch, rows)
    for step in range(12):
        new = [(31 * step + 7 * number) % 256 for number in range(len(rows))]
        batch.step(new)
        for row, token in zip(rows, new, strict=True):
            row.append(token)
        check(batch, rows)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_prompts_may_be_read_in_pieces(decoder: Decoder, chunk: int) -> None:
    """Also in a batch, where GroupQueryAttention takes several tokens behind a past for one row at a time."""
    rows = [list(row) for row in ROWS]
    batch = decoder.prefill(rows, new_tokens=4, chunk=chunk)
    check(batch, rows)
    batch.step([7, 8, 9])
    rows = [[*row, token] for row, token in zip(rows, (7, 8, 9), strict=True)]
    check(batch, rows)
    batch.feed(np.array([[1, 2], [0, 3], [4, 5]]), np.array([[1, 1], [0, 1], [1, 1]]))
    check(batch, [[*rows[0], 1, 2], [*rows[1], 3], [*rows[2], 4, 5]])


def test_a_single_row_may_get_padding_among_new_tokens(decoder: Decoder) -> None:
    batch = decoder.prefill([[3, 1, 4, 1]], new_tokens=8)
    batch.feed(np.array([[0, 0, 5, 9]]), np.array([[0, 0, 1, 1]]))
    check(batch, [[3, 1, 4, 1, 5, 9]])
    batch.step([2])
    check(batch, [[3, 1, 4, 1, 5, 9, 2]])


def test_whether_tokens_are_appended_together_is_found_by_trying(tmp_path: Path) -> None:
    found = {form: opened(tmp_path, form).appends_together for form in FORMS}
    assert found == {"shared": False, "packed": False, "growing": True}


def test_rows_that_leave_do_not_change_the_others(decoder: Decoder) -> None:
    rows = [list(row) for row in ROWS]
    batch = decoder.prefill(rows, new_tokens=8)
    batch.step([1, 2, 3])
    batch.keep([2, 0])
    rows = [[*rows[2], 3], [*rows[0], 1]]
    check(batch, rows)
    assert batch.mask.shape[1] == 4  # the columns that only the long row had are gone
    for token in (50, 60, 70):
        batch.step([token, token + 1])
        rows = [[*rows[0], token], [*rows[1], token + 1]]
        check(batch, rows)


def test_the_layout_of_the_cache_is_found_by_trying(tmp_path: Path) -> None:
    for form in FORMS:
        decoder = opened(tmp_path, form)
        assert (decoder.packed, decoder.takes_padding) == (form == "packed", True)


def test_a_graph_that_wants_padding_behind_runs_equal_lengths_only(tmp_path: Path) -> None:
    decoder = opened(tmp_path, "right")
    check(decoder.prefill([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="takes no padding before a prompt"):
        decoder.prefill([[1, 2], [3]])


def test_a_row_that_has_ended_gets_no_token_while_it_waits(decoder: Decoder) -> None:
    batch = decoder.prefill([[1] * CONTEXT, [2, 3]], new_tokens=4)
    batch.step([9, 4], live=[False, True])  # the first row is full: a position more would not exist
    assert batch.lengths.tolist() == [CONTEXT, 3]
    assert np.abs(batch.logits[1] - TINY.logits([2, 3, 4])[-1]).max() < 1e-4


def test_several_tokens_can_follow_at_once_in_a_growing_cache(tmp_path: Path) -> None:
    decoder = opened(tmp_path, "growing")
    batch = decoder.prefill([[1, 2]], new_tokens=9)
    batch.feed(np.array([[3, 4, 5]]), np.ones((1, 3), np.int64))
    check(batch, [[1, 2, 3, 4, 5]])


def test_shared_buffers_stay_where_they_are(tmp_path: Path) -> None:
    batch = opened(tmp_path, "shared").prefill([[1, 2, 3]], new_tokens=30)
    store = batch._store
    assert isinstance(store, stores.SharedStore)
    before = {name: value.data_ptr() for name, value in store._buffers.items()}
    for token in range(30):
        batch.step([token])
    assert before == {name: value.data_ptr() for name, value in store._buffers.items()}
    assert {value.shape()[2] for value in store._buffers.values()} == {33}


def test_a_growing_cache_is_handed_on_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = opened(tmp_path, "growing").prefill([[1, 2, 3]])
    store = batch._store
    assert isinstance(store, stores.GrowingStore)
    assert {value.shape()[2] for value in store._past.values()} == {3}
    monkeypatch.setattr(stores, "_value", None)  # what makes a tensor of an array; a step has no use for it
    batch.step([4])
    assert {value.shape()[2] for value in store._past.values()} == {4}
    check(batch, [[1, 2, 3, 4]])


def test_buffers_grow_by_doubling_when_more_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ROOM", 4)
    batch = opened(tmp_path, "shared").prefill([[1, 2, 3]], new_tokens=40)
    store, row, seen = batch._store, [1, 2, 3], []
    assert isinstance(store, stores.SharedStore)
    for token in range(40):
        row.append(token)
        batch.step([token])
        seen.append(store._capacity)
    check(batch, [row])
    assert sorted(set(seen)) == [7, 14, 28, 43]


def test_more_tokens_than_announced_still_fit(tmp_path: Path) -> None:
    batch, row = opened(tmp_path, "shared").prefill([[1]], new_tokens=2), [1]
    for token in range(10):
        row.append(token)
        batch.step([token])
    check(batch, [row])


def test_an_empty_and_an_overlong_prompt_are_refused(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="prompt 2 has no tokens"):
        decoder.prefill([[1], []])
    with pytest.raises(InputError, match=f"prompt 1 has {CONTEXT + 1} tokens, the model takes {CONTEXT}"):
        decoder.prefill([[1] * (CONTEXT + 1)])


def test_rows_leave_when_a_quarter_has_finished() -> None:
    assert [pays(finished, 8) for finished in (1, 2, 8)] == [False, True, True]
    assert pays(1, 2)


def test_positions_are_made_for_graphs_that_take_them(tmp_path: Path) -> None:
    model = decoder_model(TINY, "growing")
    node = next(one for one in model.graph.node if one.op_type == "Slice")
    given = onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["batch", "sequence"])
    model.graph.input.insert(2, given)
    for other in model.graph.node:
        other.input[:] = ["position_ids" if name == node.output[0] else name for name in other.input]
    batch = Decoder.of(Session(file_of(tmp_path, model))).prefill([list(row) for row in ROWS])
    check(batch, ROWS)
    batch.step([1, 2, 3])
    check(batch, [[*row, number] for number, row in enumerate(ROWS, start=1)])


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return model


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("attention_mask", "mask", "input 'mask' is none of a decoder's"),
        ("logits", "scores", "no output 'logits'"),
        ("present.1.value", "present.9.value", r"no output 'present\.1\.value'"),
    ],
)
def test_other_graphs_are_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    session = Session(file_of(tmp_path, renamed(decoder_model(TINY, "growing"), old, new)))
    with pytest.raises(InputError, match=reason):
        Decoder.of(session)


def test_a_cache_of_open_sizes_is_refused(tmp_path: Path) -> None:
    model = decoder_model(TINY, "growing")
    for value in model.graph.input[2:]:
        value.type.tensor_type.shape.dim[1].dim_param = "heads"
    with pytest.raises(InputError, match="not fixed"):
        Decoder.of(Session(file_of(tmp_path, model)))

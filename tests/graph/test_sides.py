"""Texts on two sides of a crossing of tables never share a batch, and one that grows across is what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.records.manifest import DecodingRecord
from onnxopt.run.generate.decoder import Batch, Decoder, SidedBatch
from onnxopt.run.session import Session
from tests.support.cached import LONGEST, VOCABULARY, lower
from tests.support.crossing import COUNTED, SPELLINGS, TURNED, TWICE, crossing_decoder

LIMIT, FURTHER = 13, 29
LENGTHS = (3, 12, 13, 14, 40, 9, 28)
FORMS = ("growing", "shared")
STARTS = {**SPELLINGS, "two crossings": f"{COUNTED} {TWICE} {TURNED}"}
Crossing = Literal["reread", "continue"]


def opened(folder: Path, form: str, start: str, crossing: Crossing = "reread") -> Decoder:
    decoder = crossing_decoder(STARTS[start], LIMIT, further=FURTHER)
    model = lower(decoder.model(), *(["lower-cached-attention"] if form == "shared" else ["lower-last-token"])).model
    ir.save(model, folder / f"{form}.onnx")
    at = (LIMIT, FURTHER) if start == "two crossings" else (LIMIT,)
    record = DecodingRecord(
        shared_buffers=form == "shared",
        logits="last",
        context_length=LONGEST,
        vocabulary=VOCABULARY,
        crossings=at,
        crossing=crossing,
    )
    return Decoder.of(Session(folder / f"{form}.onnx", threads=1), record)


@pytest.fixture(scope="module", params=[(form, start) for form in FORMS for start in STARTS], ids="-".join)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return opened(tmp_path_factory.mktemp("sides"), *request.param)


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 5) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]


def check(decoder: Decoder, batch: Batch, rows: Sequence[Sequence[int]]) -> None:
    """Hold the logits to those of each whole text, read alone at once."""
    expected = np.concatenate([decoder.read([row], new_tokens=1).logits for row in rows])
    assert np.abs(batch.logits - expected).max() < 2e-4
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert batch.mask.shape[1] == max(map(len, rows))


def test_the_sides_of_a_text_are_counted(decoder: Decoder) -> None:
    sides = [decoder.side(length) for length in (1, LIMIT, LIMIT + 1, FURTHER, FURTHER + 1)]
    assert sides == ([0, 0, 1, 1, 2] if len(decoder.crossings) == 2 else [0, 0, 1, 1, 1])


def test_every_row_is_what_it_is_alone_while_rows_grow_across(decoder: Decoder) -> None:
    rows = prompts()
    batch = decoder.prefill(rows, new_tokens=20)
    assert isinstance(batch, SidedBatch)
    check(decoder, batch, rows)
    for step in range(20):
        new = [(7 * step + 3 * number) % VOCABULARY for number in range(len(rows))]
        batch.step(new)
        for row, token in zip(rows, new, strict=True):
            row.append(token)
        check(decoder, batch, rows)


def test_the_tables_of_a_long_neighbour_would_be_others(tmp_path: Path) -> None:
    """What the others of this file show would be nothing otherwise."""
    decoder = opened(tmp_path, "growing", "the largest position")
    short, long = prompts((LIMIT, LIMIT + 4))
    mixed, alone = decoder.read([short, long]).logits[0], decoder.read([short]).logits[0]
    assert np.abs(mixed - alone).max() > 0.05
    grown = decoder.read([short])
    grown.step([4])
    assert np.abs(grown.logits[0] - decoder.read([[*short, 4]]).logits[0]).max() > 0.05


def test_rows_leave_and_join_on_every_side(decoder: Decoder) -> None:
    rows = prompts((12, 30, 5))
    batch = decoder.prefill(rows, new_tokens=9)
    batch.step([1, 2, 3])
    batch.keep([2, 0])
    rows = [[*rows[2], 3], [*rows[0], 1]]
    check(decoder, batch, rows)
    others = prompts((31, 11, 13), seed=6)
    batch.join(decoder.prefill(others, new_tokens=9))
    rows += others
    check(decoder, batch, rows)
    for token in (9, 8, 7):
        batch.step([token] * 5)
        rows = [[*row, token] for row in rows]
        check(decoder, batch, rows)
    batch.keep([4])
    check(decoder, batch, rows[4:])


def test_rows_that_have_ended_do_not_carry_the_others_across(decoder: Decoder) -> None:
    """Columns are counted by some graphs: a short row beside one that ended at the limit would get long tables."""
    rows = prompts((4, LIMIT))
    batch = decoder.prefill(rows, new_tokens=6)
    for token in range(6):
        batch.step([token, 0], live=[True, False])
        rows[0].append(token)
        expected = decoder.read([rows[0]], new_tokens=1).logits[0]
        assert np.abs(batch.logits[0] - expected).max() < 2e-4
    assert batch.lengths.tolist() == [10, LIMIT]


def test_a_row_that_rested_goes_on(decoder: Decoder) -> None:
    rows = prompts((5, LIMIT))
    batch = decoder.prefill(rows, new_tokens=12)
    for token in range(4):
        batch.step([token, 0], live=[True, False])
        rows[0].append(token)
    for token in range(8):
        batch.step([token, token])
        rows = [[*row, token] for row in rows]
    expected = np.concatenate([decoder.read([row], new_tokens=1).logits for row in rows])
    assert np.abs(batch.logits - expected).max() < 2e-4


def test_prompts_in_pieces_and_several_tokens_at_once(decoder: Decoder) -> None:
    rows = prompts((11, 25))
    batch = decoder.prefill(rows, new_tokens=8, chunk=3)
    check(decoder, batch, rows)
    batch.feed(np.array([[1, 2, 3, 4], [0, 0, 5, 6]]), np.array([[1, 1, 1, 1], [0, 0, 1, 1]]))
    rows = [[*rows[0], 1, 2, 3, 4], [*rows[1], 5, 6]]
    expected = np.concatenate([decoder.read([row], new_tokens=1).logits for row in rows])
    assert np.abs(batch.logits - expected).max() < 2e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("start", ["the largest position", "the length of the mask", "two crossings"])
def test_where_a_text_goes_on_it_keeps_its_keys(form: str, start: str, tmp_path: Path) -> None:
    """As transformers does for architectures that do not drop the cache: alone, and beside others."""
    decoder = opened(tmp_path, form, start, "continue")
    rows = prompts((10, 12, 13, 20))
    singles = [decoder.read([row], new_tokens=9) for row in rows]
    batch = decoder.prefill(rows, new_tokens=9)
    for step in range(9):
        expected = np.concatenate([single.logits for single in singles])
        assert np.abs(batch.logits - expected).max() < 2e-4
        new = [(5 * step + number) % VOCABULARY for number in range(4)]
        batch.step(new)
        for single, token in zip(singles, new, strict=True):
            single.step([token])
    read = decoder.read([[*rows[0], *((5 * step) % VOCABULARY for step in range(9))]], new_tokens=1)
    assert np.abs(batch.logits[0] - read.logits[0]).max() > 0.01  # its first keys are those of the short tables

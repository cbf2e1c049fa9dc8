"""Marks put around texts by hand give the rows that the tokenizer gives, whole or cut.

Covers: texts/marks.py
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxopt.texts.marks import Marks, kept_sizes, marks_of

WORDS = ["[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "a", "cat", "sleeps", "one", "day", "x", "y"]


def tokenizer(processor: Any = None) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        made.post_processor = processor
    return made


BERT = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
ROBERTA = processors.RobertaProcessing(("</s>", 4), ("<s>", 3))
START_ONLY = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 3)])
SWAPPED = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $B $A", special_tokens=[("<s>", 3)]
)  # the second text first
KINDS = {"bert": BERT, "roberta": ROBERTA, "start": START_ONLY, "none": None}


@pytest.mark.parametrize(
    ("kind", "marks"),
    [
        ("bert", Marks((1,), (2,), ((1,), (2,), (2,)), 1)),
        ("roberta", Marks((3,), (4,), ((3,), (4, 4), (4,)), 0)),
        ("none", Marks((), (), ((), (), ()), 0)),
    ],
)
def test_marks_are_found(kind: str, marks: Marks) -> None:
    found = marks_of(tokenizer(KINDS[kind]))
    assert found is not None
    assert (found.before, found.after, found.pair) == (marks.before, marks.after, marks.pair)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0, 4, 6, 7, 9, 64])
def test_rows_are_those_of_the_tokenizer(kind: str, limit: int) -> None:
    given = tokenizer(KINDS[kind])
    marks = marks_of(given)
    assert marks is not None
    for sizes in itertools.product((1, 3, 6, 20), repeat=2):
        texts = [" ".join("xy"[place % 2] for place in range(size)) for size in sizes]
        bare = [given.encode(text, add_special_tokens=False).ids for text in texts]
        if limit:
            given.enable_truncation(limit)
        for second in (None, texts[1]):
            if second is not None and marks.pair is None:
                continue
            whole = given.encode(texts[0], second)
            row = marks.row(bare[0], None if second is None else bare[1], limit=limit)
            assert row == (whole.ids, whole.type_ids), (sizes, second)
        given.no_truncation()


def test_a_pair_that_is_not_simply_marked_is_not_offered() -> None:
    found = marks_of(tokenizer(SWAPPED))
    assert found is not None
    assert found.pair is None
    assert "pair" not in found.as_json()


def test_types_of_a_single_text_that_are_not_zero_are_no_plain_marks() -> None:
    odd = processors.TemplateProcessing(single="<s> $A:1", pair="$A $B:1", special_tokens=[("<s>", 3)])
    assert marks_of(tokenizer(odd)) is None


@pytest.mark.parametrize(("sizes", "room", "kept"), [((3, 9), 8, (3, 5)), ((9, 3), 8, (5, 3)), ((9, 9), 7, (3, 4))])
def test_the_longer_text_is_cut_first(sizes: tuple[int, int], room: int, kept: tuple[int, int]) -> None:
    assert kept_sizes(*sizes, room) == kept


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_that_the_marks_alone_fill_keeps_nothing(limit: int) -> None:
    marks = Marks((1,), (2,), ((1,), (2,), (2,)), 1)
    assert marks.row([5, 6, 7], [8, 9], limit=limit) == ([1, 2, 2], [0, 0, 1])
    assert marks.row([5, 6, 7], [8, 9]) == ([1, 5, 6, 7, 2, 8, 9, 2], [0] * 5 + [1] * 3)
    assert kept_sizes(5, 7, 0) == (0, 0)
    assert kept_sizes(5, 7, None) == (5, 7)

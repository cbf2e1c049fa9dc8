"""A tokenizer is opened in one way, and what it puts around a text is found in one way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from onnxopt.errors import InputError
from onnxopt.texts.tokenizer import encoded, marks_around, open_encoder, open_tokenizer, prefix_ids, tokenizer_pad

WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "<unk>": 5}
UNKNOWN, PADDING = "<unk>", "b"


def saved(folder: Path, template: str = "<s> $A </s>") -> Tokenizer:
    """Write a tokenizer of words that pads to eight tokens and cuts behind four, and return it."""
    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.WordLevel(WORDS, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(word, WORDS[word]) for word in WORDS if word in template.split()]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    made.enable_padding(length=8, pad_id=WORDS[PADDING], pad_token=PADDING)
    made.enable_truncation(4)
    made.save(str(folder / "tokenizer.json"))
    return made


def test_a_text_is_given_whole_whatever_the_file_says(tmp_path: Path) -> None:
    saved(tmp_path)
    assert open_tokenizer(tmp_path).encode("a b a b a").ids == [1, 3, 4, 3, 4, 3, 2]
    assert open_encoder(tmp_path)("a b a b a", marks=True) == [1, 3, 4, 3, 4, 3, 2]
    assert open_encoder(tmp_path)("a", marks=False) == [3]


def test_what_was_saved_can_be_kept(tmp_path: Path) -> None:
    saved(tmp_path)
    assert open_tokenizer(tmp_path, as_saved=True).encode("a b a b a").ids == [1, 3, 4, 2, 4, 4, 4, 4]
    assert tokenizer_pad(tmp_path) == 4


@pytest.mark.parametrize(
    ("template", "prefix"), [("<s> $A </s>", (1,)), ("$A </s>", ()), ("</s> <s> $A", (2, 1)), ("$A", ())]
)
def test_the_prefix_is_what_stands_before_a_text(template: str, prefix: tuple[int, ...], tmp_path: Path) -> None:
    saved(tmp_path, template)
    assert prefix_ids(open_tokenizer(tmp_path)) == prefix


def test_a_text_is_found_whole_not_by_its_first_token() -> None:
    assert marks_around([7, 8], [7, 1, 7, 8, 2]) == ((7, 1), (2,))
    assert marks_around([7], [1, 2]) == ((), ())
    assert marks_around([], [1, 2]) == ((), (1, 2))


@pytest.mark.parametrize("open_it", [open_tokenizer, open_encoder])
def test_a_broken_tokenizer_is_one_line(open_it: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read") as caught:
        open_it(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_pattern_that_backtracks_without_end_is_an_error_of_the_user(pattern: str) -> None:
    """Its native code panics over it, which Python sees as no `Exception`."""
    made = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106  no password
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    with pytest.raises(InputError, match=r"the text cannot be tokenized \(.*; use another tokenizer\.json"):
        encoded(made, ["a" * 60 + "!"])
    assert [one.ids for one in encoded(made, ["a", "b"])] == [[0], [1]]


def test_what_only_transformers_can_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers, which is not installed; pip install 'onnxopt\[hf\]'"):
        open_encoder(tmp_path)

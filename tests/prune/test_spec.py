"""What to prune, as it is typed: amounts, orders, texts; and one line for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.prune.spec import Amount, PruneSpec


@pytest.mark.parametrize(
    "text", ["ffn=25%", "heads=2,layers=1", "layers=3:last", "ffn=auto,channels=12.5%", "zeros=2:4", "zeros=50%"]
)
def test_what_is_read_is_written_again(text: str) -> None:
    assert str(PruneSpec.parse(text)) == text
    assert str(PruneSpec.parse(f" {text.replace(',', ' , ').replace('=', ' = ')} ")) == text


def test_parts_are_read_apart(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("words")
    found = PruneSpec.parse(f"ffn=auto,layers=2:random,vocab=keep:{tmp_path / 'texts.txt'}", importance="magnitude")
    assert found.amounts == {"ffn": Amount(auto=True), "layers": Amount(count=2)}
    assert (found.layer_order, found.importance, found.searched) == ("random", "magnitude", ("ffn",))
    assert found.vocabulary == tmp_path / "texts.txt"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to prune is named"),
        ("ffn", "cannot read 'ffn'"),
        ("ffn=", "cannot read 'ffn='"),
        ("ffn=0", "--prune ffn: cannot read the amount '0'"),
        ("heads=-1", "cannot read the amount '-1'"),
        ("ffn=100%", "cannot read the amount '100%'"),
        ("ffn=half", "write a count (2), a share (25%) or auto"),
        ("ffn=10%,ffn=20%", "ffn is named twice"),
        ("layers=auto", "layers are counted, not searched"),
        ("layers=2:first", "unknown choice of layers 'first'; use one of importance, random, last"),
        ("words=2", "unknown part 'words'"),
        ("vocab=drop:a.txt", "write vocab=keep:texts.txt"),
        ("vocab=keep:absent.txt", "absent.txt: no such file"),
        ("zeros=1:4", "write zeros=50% or zeros=2:4"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        PruneSpec.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_beside_it_are_checked_too() -> None:
    with pytest.raises(InputError, match="unknown importance 'guess'; use one of magnitude, activation, error"):
        PruneSpec.parse("ffn=25%", importance="guess")
    with pytest.raises(InputError, match="unknown allocation 'greedy'; use one of uniform, sensitivity"):
        PruneSpec.parse("ffn=25%", allocation="greedy")
    with pytest.raises(InputError, match="the alignment is 0"):
        PruneSpec.parse("ffn=25%", align=0)


@pytest.mark.parametrize(
    ("amount", "members", "align", "gone"),
    [
        ("25%", 64, 1, 16),
        ("25%", 768, 16, 192),
        ("33%", 1536, 16, 512),
        ("33%", 1536, 64, 512),
        ("25%", 100, 16, 36),  # 75 would stay; 64 is the multiple below
        ("1%", 64, 16, 16),
        ("90%", 64, 16, 48),  # one block stays
        ("3", 12, 1, 3),
        ("3", 12, 16, 3),  # fewer than a block
        ("1%", 12, 1, 0),
    ],
)
def test_what_stays_is_a_multiple_of_the_alignment(amount: str, members: int, align: int, gone: int) -> None:
    assert Amount.parse(amount, "").of(members, align) == gone

"""A part of the census on every run, all of it under `make test-slow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.census.architectures import ARCHITECTURES
from tests.census.run import EXPORTERS, KINDS, MARKS, Record, census, table, write_results, write_table

FAST = ("bert", "gpt2", "llama", "gemma", "t5-encoder", "deberta", "swin", "wav2vec2")
WORST_ERROR = 1e-4
# Torch cannot write these, or writes a file that is not equal to the model; the road takes another exporter then.
NOT_EXPORTED = {
    ("layoutlm", "dynamo-23"),
    ("fnet", "torchscript-17"),
    ("falcon", "dynamo-23"),
    ("falcon-alibi", "dynamo-23"),
    ("falcon-alibi", "dynamo-18"),
    ("falcon-alibi", "torchscript-17"),
    ("cohere", "torchscript-17"),
    ("glm", "torchscript-17"),
    ("helium", "torchscript-17"),
    ("ernie4_5", "torchscript-17"),
    ("hubert", "dynamo-23"),
    ("hubert", "dynamo-18"),
    ("unispeech", "dynamo-23"),
    ("unispeech", "dynamo-18"),
}


def check(record: Record) -> None:
    assert record.failed == ""
    assert record.rolled_back == []
    assert record.worst_error is not None
    assert record.worst_error < WORST_ERROR
    assert record.expected == record.fused


def test_there_are_forty_architectures_of_every_family() -> None:
    assert len(ARCHITECTURES) >= 40
    assert {one.family for one in ARCHITECTURES.values()} == {"encoder", "decoder", "pair", "vision", "audio"}


def test_blocks_of_eight_architectures_are_fused_from_both_exporters() -> None:
    records = census(FAST, ("dynamo-23", "torchscript-17"))
    assert len(records) == 2 * len(FAST)
    for record in records:
        check(record)


@pytest.mark.slow
def test_blocks_of_every_architecture_are_fused_from_every_exporter() -> None:
    records = census(list(ARCHITECTURES), EXPORTERS)
    failed = {(record.architecture, record.exporter) for record in records if record.failed}
    assert failed <= NOT_EXPORTED
    for record in records:
        if (record.architecture, record.exporter) not in failed:
            check(record)


def made(architecture: str, **facts: Any) -> Record:
    counts = ARCHITECTURES[architecture].expected
    return Record(
        architecture, "dynamo-23", expected=counts, fused=dict(counts), total=dict(counts), worst_error=1e-7, **facts
    )


def test_the_table_shows_what_is_missing_and_why(tmp_path: Path) -> None:
    results, readme = tmp_path / "results" / "census.json", tmp_path / "README.md"
    missing = made("gpt2")
    missing.fused["attention"], missing.missed = 1, {"attention": ["softmax: Sin odd: expected MatMul, found Sin"]}
    failed = Record("fnet", "torchscript-17", failed="export: no fft", expected=ARCHITECTURES["fnet"].expected)
    write_results([made("bert"), missing, failed], results)
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n", encoding="utf-8")
    write_table(readme, results)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| bert | 2/2 · 5/5 · – · 2/2 | – |" in text
    assert "| gpt2 | **1/2 · 5/5 · – · 2/2** | – |" in text
    assert "✗ export" in text
    assert "expected MatMul, found Sin" in text
    write_results([made("gpt2")], results)  # one more run of one architecture replaces its row only
    assert "found Sin" not in table(results)
    assert "no fft" in table(results)


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    results, readme = tmp_path / "census.json", tmp_path / "README.md"
    write_results([made("bert")], results)
    readme.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no <!-- census -->"):
        write_table(readme, results)
    assert readme.read_text(encoding="utf-8") == "nothing"


def test_kinds_are_those_of_the_records() -> None:
    assert set(KINDS) == set(made("bert").expected)

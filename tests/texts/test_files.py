"""A file of texts means the same wherever it is given: formats, keys, sizes, encodings and messages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxopt.compress.run import parted
from onnxopt.errors import InputError
from onnxopt.texts import files
from onnxopt.texts.files import (
    PROMPT_KEYS,
    TEXT_KEYS,
    gather_prompts,
    read_labelled,
    read_prompts,
    read_text,
    read_texts,
)

ROWS = ["the first row", "two\nlines", "a mark\u2028inside", "größer"]
READERS: dict[str, Callable[[Path], object]] = {
    "paragraphs": read_texts,
    "lines": lambda path: read_texts(path, "line"),
    "one text": read_text,
    "prompts": read_prompts,
    "rows with labels": read_labelled,
    "data in two parts": lambda path: parted(str(path)),
}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(key: str) -> str:
    return "\n\n".join(json.dumps({"id": 3, key: row}, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "ROWS.JSONL", "rows.json"])
@pytest.mark.parametrize("key", TEXT_KEYS)
def test_every_reader_takes_entries_of_every_key(name: str, key: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, lines_of(key))
    assert read_texts(path) == read_texts(path, "line") == read_texts(path, "whole") == ROWS
    assert read_prompts(path) == ROWS
    assert read_labelled(path) == [(row, None) for row in ROWS]
    assert read_text(path) == "\n\n".join(ROWS)
    assert [json.loads(line)["text"] for part in parted(str(path)) for line in part.split("\n") if line] == ROWS


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps([{"question": row} for row in ROWS], indent=2),
        "\n".join(json.dumps(row) for row in ROWS),
    ],
)
def test_a_json_file_is_a_list_or_an_entry_per_line(content: str, tmp_path: Path) -> None:
    assert read_texts(written(tmp_path / "rows.json", content)) == ROWS


def test_a_json_file_may_be_a_single_entry(tmp_path: Path) -> None:
    entry = json.dumps({"content": "alone"}, indent=2)
    assert read_texts(written(tmp_path / "one.json", entry), "line") == ["alone"]


def test_the_first_key_that_has_a_text_is_taken(tmp_path: Path) -> None:
    entry = {"prompt": "asked", "text": "told", "sentence": "  "}
    path = written(tmp_path / "rows.jsonl", json.dumps(entry))
    assert (read_texts(path), read_prompts(path)) == (["told"], ["asked"])
    assert set(PROMPT_KEYS) == set(TEXT_KEYS)
    path = written(
        path, json.dumps(entry | {"text": "", "prompt": 7}) + '\n{"text": "", "document": "long"}\n{"text": "x"}'
    )
    assert read_texts(path) == ["long", "x"]


def test_half_a_character_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", '"half \\ud83d"\n"whole \\ud83d\\ude00"')
    assert read_texts(path) == ["half ?", "whole \U0001f600"]


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.ndjson", '{"sentence": "a", "label": 2}\n{"text": "b", "label": 1.0}\n"c"')
    assert read_labelled(path) == [("a", 2), ("b", 1), ("c", None)]
    for label in ('"1"', "1.5", "NaN", "[1]"):
        path = written(path, f'{{"text": "a", "label": 0}}\n{{"text": "b", "label": {label}}}')
        with pytest.raises(InputError, match=r"rows\.ndjson, line 2: the label is .*; write a whole number"):
            read_labelled(path)
        assert read_texts(path) == ["a", "b"], "who needs no labels reads none"


def test_plain_text_has_paragraphs_lines_or_is_one(tmp_path: Path) -> None:
    content = "".join(f" part {number}\r\n  of two lines \r\n \t\r\n\r\n" for number in range(9))
    path = written(tmp_path / "t", "\ufeff" + content)
    assert read_texts(path) == [f"part {number}\n  of two lines" for number in range(9)]
    assert read_texts(path, "line")[:3] == [" part 0", "  of two lines ", " part 1"]
    assert read_texts(path, "whole") == [content.replace("\r\n", "\n")]


def test_few_paragraphs_are_read_by_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "few.txt", "one \n two\n\nthree\u2028and\x0bmore\n")
    assert read_texts(path) == ["one", "two", "three\u2028and\x0bmore"]


def test_the_builtin_prose_is_a_source_of_each_unit() -> None:
    assert read_text("builtin") == read_text(Path("builtin")) == read_texts("builtin", "whole")[0]
    assert len(read_texts("builtin", "line")) > len(read_texts("builtin")) > 1000


def test_a_stream_is_read_as_plain_text() -> None:
    assert read_texts(io.StringIO("\ufeffone\n\n two\n"), "line") == ["one", " two"]
    with pytest.raises(InputError, match="standard input: holds no text"):
        read_texts(io.StringIO(" \n"), "line")


def test_prompts_are_read_from_lines_and_from_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone  \r\n\n two\u2028half\nthree".encode())
    assert read_prompts(tmp_path / "a.txt") == ["one  ", " two\u2028half", "three"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\\ntwo", "id": 3}\n\n{"prompt": "é"}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "a.jsonl") == ["one\ntwo", "é"]


def test_prompts_are_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert read_prompts(Path("-")) == ["one", "two"]


def test_prompts_come_from_one_place(tmp_path: Path) -> None:
    assert gather_prompts(["a"], None) == ["a"]
    for given, file in (([], None), (["a"], tmp_path)):
        with pytest.raises(InputError):
            gather_prompts(given, file)
    with pytest.raises(InputError, match="cannot be read"):
        gather_prompts([], tmp_path)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "mine.txt", "here\nand there")
    for read in READERS.values():
        assert read(Path("~/mine.txt"))


REFUSED = {
    "nothing": ("a.txt", b"\n \t\n", "a.txt: holds no text"),
    "no entries": ("a.jsonl", b"\n", "holds no text"),
    "an empty list": ("a.json", b"[]", "holds no text"),
    "blank entries": ("a.jsonl", b'{"text": " "}\n""', "holds no text"),
    "another encoding": ("a.txt", b"\xff\xfea\x00", "is not UTF-8 text; save it as UTF-8"),
    "another encoding of JSON": ("a.ndjson", b'"\xe4"', "is not UTF-8 text"),
    "no JSON": ("a.ndjson", b'"a"\n\nplain', "a.ndjson, line 3: is not valid JSON"),
    "a broken list": ("a.json", b'["a",\n"b"', "a.json: is not valid JSON"),
    "a deep list": ("a.json", b"[" * 200_000, "a.json: is not valid JSON"),
    "a number": ("a.jsonl", b"[1]", "a.jsonl, line 1: holds no text; write a string, or an object with one of"),
    "another key": ("a.json", b'[{"text": "a"}, {"label": 3}]', "a.json, entry 2: holds no text"),
    "a list as text": ("a.jsonl", b'{"text": ["a"]}', "line 1: holds no text"),
    "too much": ("a.txt", b"x" * 65, "is larger than 64 bytes; give a part of it"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_every_reader_refuses_alike(
    reader: str, case: tuple[str, bytes, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, reason = case
    monkeypatch.setattr(files, "MAX_DATA_BYTES", 64 if name == "a.txt" else 1 << 20)
    with pytest.raises(InputError) as caught:
        READERS[reader](written(tmp_path / name, content))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_by_name(reader: str, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.txt", "No such file"), (tmp_path, "directory"), (Path("a\0b"), "null")):
        with pytest.raises(InputError, match=reason):
            READERS[reader](path)


def test_data_are_parted_with_their_labels(tmp_path: Path) -> None:
    rows = [{"content": f"row {number}", "label": number % 3} for number in range(30)]
    path = written(tmp_path / "rows.json", json.dumps(rows))
    parts = [[json.loads(line) for line in part.split("\n") if line] for part in parted(str(path))]
    assert parts[0] + parts[1] == [{"text": one["content"], "label": one["label"]} for one in rows]
    assert 1 <= len(parts[1]) <= 4


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "one line only\n\n"), ("a.jsonl", '{"text": "one\\nentry"}\n')]
)
def test_a_single_text_cannot_be_parted(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is one line or entry"):
        parted(str(written(tmp_path / name, content)))


def test_a_long_last_line_is_held_out_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", f"short\nshort\n{'long ' * 50}\n")
    seen, held = parted(str(path))
    assert (seen, held.strip()) == ("short\nshort", ("long " * 50).strip())

"""Prompts are read as a checkpoint has them, and nothing is made of what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.texts.prompts import SETTINGS, Prompts


def read(folder: Path, **settings: Any) -> Prompts:
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return Prompts.of(folder)


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert Prompts.of(tmp_path) == Prompts()
    assert Prompts().before() == ""


def test_names_and_the_default_are_those_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, prompts={"ask": "question: ", "tell": "answer: "}, default_prompt_name="tell")
    assert (found.before(), found.before("ask"), found.before("")) == ("answer: ", "question: ", "")


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": None},
        {"prompts": ["query"]},
        {"prompts": {"query": 3}},
        {"prompts": {}, "default_prompt_name": "query"},
        {"prompts": {}, "default_prompt_name": 7},
    ],
)
def test_what_is_no_prompt_is_left_out(settings: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, **settings)
    assert (found.named, found.default) == ({}, "")
    with pytest.raises(InputError, match=r"has no prompt 'query'; it comes without prompts"):
        found.before("query")


def test_a_prompt_whose_tokens_do_not_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"include_prompt": false}', encoding="utf-8")
    found = read(tmp_path, prompts={"ask": "question: ", "plain": ""})
    with pytest.raises(InputError, match="do not count in the embedding"):
        found.before("ask")
    assert found.before("plain") == ""

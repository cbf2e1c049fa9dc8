r"""What a client of a compiled language reads, in lines of tab-separated fields: such languages have no JSON reader.

`golden.tsv`, the golden cases::

    case    number
    input   name  dtype  file  sizes
    output  name  dtype  file  sizes  limit

`texts.tsv`, how text becomes an answer, and the golden texts; in a field a tab, line break or backslash is written
`\t`, `\n`, `\r`, `\\`::

    set     key  value      answer (of `golden/texts.json`; `next_token` in place of `tokens`), output, scores, limit
                            (of a row; 0: none), width and rows (that the graph prescribes; 0: any), pad_id, side,
                            lowercase (0 or 1), prompt (in front of a text), tokenizer (its kind, `bert` for WordPiece
                            as BERT has it), lowers, accents, cjk (that one lowers text, strips accents, parts Chinese
                            characters; 0 or 1)
    marks   single  before  after
    marks   pair    before  between  after  second_type
    feed    name  meaning  dtype  axes                  an input; -1 is an open axis
    label   index  name
    text    text  second  ids  expected  limit          `second` is empty for a single text
    bare    the same, of a text in its chat template, which writes the marks itself: it is tokenized without

Lists of numbers are joined by commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxopt.artifact.golden_texts import GoldenTexts, TextCase
from onnxopt.artifact.package import read_golden
from onnxopt.errors import InputError
from onnxopt.texts.tokenizer import TOKENIZER_NAME, read_settings

_BERT_MARKS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # what Microsoft's BertTokenizer wants to find
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def golden_lines(folder: Path) -> Iterator[str]:
    """Yield the lines of `golden.tsv`.

    Args:
        folder: the artifact.

    Raises:
        InputError: when its golden cases cannot be read, or the name of a tensor cannot stand in a line.
    """
    for number, case in enumerate(read_golden(folder)):
        yield f"case\t{number}"
        for kind in ("input", "output"):
            for entry in case.entries[f"{kind}s"]:
                name = str(entry["name"])
                if re.search(r"[\t\r\n]", name):
                    raise InputError(f"the tensor name {name!r} cannot stand in a line", where=str(folder))
                fields = [kind, name, str(entry["dtype"]), str(entry["file"]), ",".join(map(str, entry["shape"]))]
                yield "\t".join(fields + ([repr(float(entry["max_absolute_error"]))] if kind == "output" else []))


def text_lines(folder: Path, io: Mapping[str, Any], texts: GoldenTexts) -> Iterator[str]:
    """Yield the lines of `texts.tsv`.

    Args:
        folder: the artifact.
        io: content of its `io.json`.
        texts: its golden texts.
    """
    for key, value in _settings(folder, io, texts).items():
        yield _line("set", key, str(value))
    marks = io["tokenizer"].get("marks", {})
    if "single" in marks:
        yield _line("marks", "single", *map(_listed, marks["single"]))
    if "pair" in marks:
        yield _line("marks", "pair", *map(_listed, marks["pair"]), str(marks["second_type"]))
    for spec in io["inputs"]:
        axes = [axis if isinstance(axis, int) else -1 for axis in spec["axes"]]
        yield _line("feed", spec["name"], spec["meaning"], spec["dtype"], _listed(axes))
    for index, label in sorted(io.get("labels", {}).items(), key=lambda entry: int(entry[0])):
        yield _line("label", index, label)
    for case in texts.cases:
        yield _text_line(case, first_only=texts.answer == "tokens")


def _text_line(case: TextCase, *, first_only: bool) -> str:
    """Return the line of a text, or of what came out of its chat template.

    Args:
        case: the text.
        first_only: of the tokens that a model writes the client repeats the first alone.
    """
    kind = "text" if case.written is None else "bare"
    expected = [str(int(case.expected[0]))] if first_only else [repr(number) for number in case.expected]
    text = case.text if case.written is None else case.written
    return _line(kind, text, case.pair or "", _listed(case.ids), ",".join(expected), repr(case.limit))


def _settings(folder: Path, io: Mapping[str, Any], texts: GoldenTexts) -> dict[str, Any]:
    tokenizer = io["tokenizer"]
    ids = next((spec["axes"] for spec in io["inputs"] if spec["meaning"] == "ids" and len(spec["axes"]) == 2), [0, 0])
    kind, lowers, accents, cjk = tokenizer_kind(folder)
    return {
        "answer": "next_token" if texts.answer == "tokens" else texts.answer,
        "output": texts.output,
        "scores": io.get("scores", "softmax" if texts.answer == "token_scores" else "none"),
        "limit": tokenizer["max_length"],
        "width": ids[1] if isinstance(ids[1], int) else 0,
        "rows": ids[0] if isinstance(ids[0], int) else 0,
        "pad_id": tokenizer["pad_id"],
        "side": tokenizer["padding_side"],
        "lowercase": int(tokenizer["lowercase"]),
        "prompt": io.get("prompts", {}).get(io.get("default_prompt", ""), ""),
        "tokenizer": kind,
        "lowers": int(lowers),
        "accents": int(accents),
        "cjk": int(cjk),
    }


def tokenizer_kind(folder: Path) -> tuple[str, bool, bool, bool]:
    """Return what a tokenizer is to a library that does not read tokenizer.json.

    Args:
        folder: has tokenizer.json.

    Returns:
        `bert` for WordPiece with the steps of BERT around it, else the model's kind; whether those lower text, strip
        accents and part Chinese characters.
    """
    content = read_settings(folder, TOKENIZER_NAME)
    model, normal, before = (content.get(part) or {} for part in ("model", "normalizer", "pre_tokenizer"))
    kind = str(model.get("type", ""))
    plain = normal.get("type") == "BertNormalizer" and before.get("type") == "BertPreTokenizer"
    known = set(_BERT_MARKS) <= set(model.get("vocab") or {}) and model.get("continuing_subword_prefix", "##") == "##"
    if kind != "WordPiece" or not plain or not known:
        return kind, False, False, False
    lowers = bool(normal.get("lowercase"))
    accents = normal.get("strip_accents")
    return "bert", lowers, lowers if accents is None else bool(accents), bool(normal.get("handle_chinese_chars"))


def _line(*fields: str) -> str:
    return "\t".join("".join(_ESCAPES.get(letter, letter) for letter in field) for field in fields)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))

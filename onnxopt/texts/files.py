"""Read what people write: texts, rows, prompts and words, from files of any usual kind.

Every option that takes texts reads them here, so a file means the same wherever it is given:

* `.jsonl` and `.ndjson` hold an entry per line, `.json` a list of entries, a single one, or an entry per line. An entry
  is a string, or an object that has the text under one of `TEXT_KEYS`.
* Everything else is plain text, and the one who asks says what a text is: a paragraph, a line, or the whole.

Files are UTF-8, with or without a mark at the beginning, of at most 1 GiB. What is blank is left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from onnxopt.errors import InputError
from onnxopt.host.files import regular_size
from onnxopt.texts.builtin import manual_text

Unit = Literal["paragraph", "line", "whole"]

BUILTIN = "builtin"
HUB_PREFIX = "hf:"
TEXT_KEYS = ("text", "sentence", "content", "prompt", "question", "document")
PROMPT_KEYS = ("prompt", *(key for key in TEXT_KEYS if key != "prompt"))
LINES_TYPES = (".jsonl", ".ndjson")  # an entry per line
JSON_TYPES = (".json", *LINES_TYPES)
TEXT_TYPES = ", ".join((".txt", *JSON_TYPES))  # for hints and help
LEAST_SAMPLES = 8  # fewer say nothing about ranges
MAX_DATA_BYTES = 1 << 30

Source = str | Path | TextIO


def read_texts(source: Source, unit: Unit = "paragraph", *, keys: Sequence[str] = TEXT_KEYS) -> list[str]:
    """Return the texts of one source.

    Args:
        source: a file, an open stream, or `builtin` for the help texts of CPython, which differ by its version.
        unit: what a text is in a file of plain text: a `paragraph`, between empty lines, or a line where there are
            fewer than eight of them; a `line`; or the `whole`. An entry of JSON is a text whatever the unit.
        keys: where the text of an entry is looked for; the first that holds one is taken.

    Returns:
        Texts that are not blank, at least one; lines and the whole as they are written, paragraphs without blanks
        around them.

    Raises:
        InputError: the source cannot be read, is too large, is no UTF-8 or no JSON, an entry has no text, or there is
            none at all.
    """
    return [one.text for one in _texts(source, unit, keys)]


def read_labelled(source: Source, unit: Unit = "paragraph") -> list[tuple[str, int | None]]:
    """Return the texts of one source as `read_texts` does, each with its `label`, None where an entry has none.

    Raises:
        InputError: as `read_texts`, or a label is no whole number.
    """
    return [(one.text, _label_of(one)) for one in _texts(source, unit, TEXT_KEYS)]


def read_text(source: Source) -> str:
    """Return one source as a single text: a file of plain text as it is, entries with empty lines between them.

    Raises:
        InputError: as `read_texts`.
    """
    return "\n\n".join(read_texts(source, "whole"))


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file: one per line, or one per entry of JSON; `-` is standard input.

    Raises:
        InputError: as `read_texts`.
    """
    return read_texts(sys.stdin if str(path) == "-" else path, "line", keys=PROMPT_KEYS)


def gather_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the prompts that were written on the command line, or those of a file.

    Raises:
        InputError: when there are none, or both.
    """
    if given and file is not None:
        raise InputError("there are prompts and a file of prompts", hint="give one of them")
    if file is not None:
        return read_prompts(file)
    if not given:
        raise InputError("there is no prompt", hint="write it in quotes, or name a file with --prompts")
    return list(given)


def is_json(source: Source) -> bool:
    """Tell whether a source holds entries of JSON, by the ending of its name in any case."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in JSON_TYPES


@dataclass(frozen=True)
class _Text:
    """A text with its label as it is written, and where that is."""

    text: str
    label: Any = None
    where: str = ""


def _texts(source: Source, unit: Unit, keys: Sequence[str]) -> list[_Text]:
    where = _name_of(source)
    content = _content_of(source, where)
    if is_json(source):
        found = [_text_of(entry, place, keys) for entry, place in _entries(content, where)]
    else:
        found = [_Text(part) for part in _parts(content, unit)]
    kept = [one for one in found if one.text.strip()]
    if not kept:
        raise InputError("holds no text", where=where, hint="write some, or name another file")
    return kept


def _name_of(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "standard input"


def require_text(source: str | Path) -> None:
    """Refuse a file of texts that is not there, is none, or is too large; what it holds is not read.

    Args:
        source: as `read_texts` takes it.

    Raises:
        InputError: as `read_texts` does.
    """
    if str(source) != BUILTIN:
        where = str(source)
        with _reading(where):
            _file_of(source, where)


def _content_of(source: Source, where: str) -> str:
    if str(source) == BUILTIN:
        return manual_text()
    with _reading(where):
        if not isinstance(source, (str, Path)):
            content = source.read(MAX_DATA_BYTES + 1)
            if len(content) > MAX_DATA_BYTES:
                raise _too_large(where)
            return content.removeprefix("\ufeff")
        return _file_of(source, where).read_text(encoding="utf-8-sig")


def _file_of(source: str | Path, where: str) -> Path:
    """Return a file that is there and no larger than what is read; raises OSError where it is not."""
    path = Path(source).expanduser()
    if regular_size(path, where) > MAX_DATA_BYTES:
        raise _too_large(where)
    return path


def _too_large(where: str) -> InputError:
    return InputError(f"is larger than {MAX_DATA_BYTES} bytes", where=where, hint="give a part of it")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Say in one line why a source cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where, hint=f"name a {TEXT_TYPES} file") from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=where, hint="save it as UTF-8") from error
    except (ValueError, RuntimeError) as error:  # a name with a zero in it; a home folder that nobody has
        raise InputError(f"cannot be read ({error})", where=where) from error


def _parts(content: str, unit: Unit) -> list[str]:
    """Return the texts of plain text; only line feeds part lines, since others may stand inside a text."""
    if unit == "whole":
        return [content]
    lines = content.split("\n")
    if unit == "line":
        return lines
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", content)]
    paragraphs = [part for part in paragraphs if part]
    return paragraphs if len(paragraphs) >= LEAST_SAMPLES else [line.strip() for line in lines]


def _entries(content: str, where: str) -> Iterator[tuple[Any, str]]:
    """Yield the entries of JSON with the place of each: those of one list, a single one, or one per line."""
    if not where.lower().endswith(LINES_TYPES):
        try:
            whole = json.loads(content)
        except (ValueError, RecursionError) as error:
            if content.lstrip().startswith("["):  # no entry of a line does
                raise InputError(f"is not valid JSON ({error})", where=where) from error
        else:
            entries = whole if isinstance(whole, list) else [whole]
            yield from ((entry, f"{where}, entry {number}") for number, entry in enumerate(entries, start=1))
            return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _parsed(line, f"{where}, line {number}"), f"{where}, line {number}"


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error})", where=where) from error


def _text_of(entry: Any, where: str, keys: Sequence[str]) -> _Text:
    """Return the text of an entry; where several keys have one, the first that is not blank."""
    fields = entry if isinstance(entry, dict) else {keys[0]: entry}
    texts = [fields[key] for key in keys if isinstance(fields.get(key), str)]
    if not texts:
        hint = f"write a string, or an object with one of {', '.join(keys)}"
        raise InputError("holds no text", where=where, hint=hint)
    text = next((text for text in texts if text.strip()), "")
    # JSON can spell half of a pair of UTF-16, which is no character and which no tokenizer takes
    return _Text(text.encode("utf-8", "replace").decode("utf-8"), fields.get("label"), where)


def _label_of(one: _Text) -> int | None:
    """Return a label as a whole number, also where it is written as 1.0."""
    label = one.label
    if label is None or isinstance(label, int):
        return label
    if isinstance(label, float) and label.is_integer():
        return int(label)
    raise InputError(f"the label is {label!r}", where=one.where, hint="write a whole number")


def read_data_set(name: str, most: int) -> list[str]:
    """Stream the first texts of a data set of the Hub, or of a local folder that `datasets` reads."""
    try:
        import datasets
    except ImportError as error:
        raise InputError("a data set needs the package datasets", hint="pip install datasets") from error
    path, _, rest = name.partition(":")
    split, _, column = rest.partition(":")
    try:
        rows = datasets.load_dataset(path, split=split or "train", streaming=True)
        texts = []
        for row in rows:
            texts.append(str(row[column]) if column else _text_of(row, f"{HUB_PREFIX}{name}", TEXT_KEYS).text)
            if len(texts) >= most * 4:
                break
    except InputError:
        raise
    except Exception as error:  # the library raises whatever its readers do
        raise InputError(
            f"the data set cannot be read: {' '.join(str(error).split())[:200]}",
            where=f"{HUB_PREFIX}{name}",
            hint="check the name, or give a local text file",
        ) from error
    return texts

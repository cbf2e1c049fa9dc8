"""Read what people write: texts, rows, prompts and words, from files of any usual kind."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError

_MAX_ROWS_BYTES = 1 << 30
_MAX_PROMPT_BYTES = 64 << 20
BUILTIN = "builtin"
_MAX_TEXT_BYTES = 1 << 30
HUB_PREFIX = "hf:"
TEXT_KEYS = ("text", "sentence", "content", "prompt", "question", "document")
LEAST_SAMPLES = 8  # fewer say nothing about ranges
MAX_DATA_BYTES = 1 << 30


def rows_of(name: str, *, whole: bool) -> Iterator[tuple[str, int | None]]:
    """Yield the texts of one source with the label of each, None where it has none."""
    path = Path(name).expanduser()
    if name == BUILTIN or path.suffix not in (".jsonl", ".ndjson"):
        text = read_text(BUILTIN if name == BUILTIN else path)
        yield from ((part, None) for part in ([text] if whole else _paragraphs(text)))
        return
    try:
        if path.stat().st_size > _MAX_ROWS_BYTES:
            raise InputError(f"is larger than {_MAX_ROWS_BYTES} bytes", where=name)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", where=name) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(line, f"{name}:{number}")


def _row(line: str, where: str) -> tuple[str, int | None]:
    try:
        content: Any = json.loads(line)
        text, label = content["text"], content.get("label")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError('is not {"text": "...", "label": 0}', where=where) from error
    if not isinstance(text, str) or not (label is None or isinstance(label, int)):
        raise InputError("text must be a string and label a whole number", where=where)
    return text, label


def _paragraphs(text: str) -> list[str]:
    """Return the texts of a file: its paragraphs, or its lines when it has no empty ones."""
    parts = text.split("\n\n") if "\n\n" in text else text.split("\n")
    joined = (" ".join(part.split()) for part in parts)
    return [part for part in joined if len(part) > 1]


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


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a file: one per line, or with the ending .jsonl an object per line with the key `prompt`.

    Args:
        path: the file; `-` is standard input. Empty lines are left out.

    Raises:
        InputError: when it cannot be read, a line is not what it should be, or there is no prompt in it.
    """
    where = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) != "-" and path.stat().st_size > _MAX_PROMPT_BYTES:
            raise InputError(f"is larger than {_MAX_PROMPT_BYTES} bytes", where=where)
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from error
    except ValueError as error:
        raise InputError("is not UTF-8 text", where=where) from error
    # only line feeds part lines: `splitlines` would also cut at separators that a prompt may hold
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError("holds no prompt", where=where, hint="write one per line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_json_prompt(line, f"{where}, line {number}") for number, line in lines]


def _json_prompt(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error})", where=where) from error
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError('holds no text under "prompt"', where=where, hint='write {"prompt": "..."}')
    return prompt


def read_text(text: str | Path) -> str:
    """Return the text to measure on.

    Args:
        text: a UTF-8 file, or `builtin`: the help texts of CPython's standard library, which differ by its version.

    Raises:
        InputError: when the file cannot be read or is empty.
    """
    if str(text) == BUILTIN:
        from pydoc_data.topics import topics

        return "\n\n".join(str(topics[key]) for key in sorted(topics))
    path = Path(text)
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f"is larger than {_MAX_TEXT_BYTES} bytes", where=str(path), hint="give a part of it")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), hint=f"name a text file, or {BUILTIN}"
        ) from error
    except ValueError as error:
        raise InputError("is not UTF-8 text", where=str(path)) from error
    if not content.strip():
        raise InputError("the text is empty", where=str(path))
    return content


def read_kept(path: Path) -> list[str]:
    """Return the texts of a file, a line each, or the `text` of each line of a .jsonl file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix in (".jsonl", ".ndjson"):
            return [str(json.loads(line)["text"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read as texts ({error})", where=str(path)) from error
    return [line for line in lines if line.strip()]


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or those of a JSON or JSON-lines file."""
    try:
        if path.stat().st_size > MAX_DATA_BYTES:
            raise InputError(f"is larger than {MAX_DATA_BYTES} bytes", where=str(path), hint="give a part of it")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:
        raise InputError("is not UTF-8 text", where=str(path), hint="give text, .jsonl or .npz") from error
    if path.suffix != ".jsonl":
        parts = re.split(r"\n\s*\n", content)
        parts = parts if len(parts) >= LEAST_SAMPLES else content.splitlines()
        return [part.strip() for part in parts if part.strip()]
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} is not JSON ({error})", where=str(path)) from error
        texts.append(_text_of(entry, f"{path}, line {number}"))
    return texts


def _text_of(entry: Any, where: str) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, dict):
        known = next((entry[key] for key in TEXT_KEYS if isinstance(entry.get(key), str)), None)
        if known is not None:
            return str(known)
    raise InputError("has no text", where=where, hint=f"write a string, or an object with {', '.join(TEXT_KEYS)}")


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
            texts.append(str(row[column]) if column else _text_of(row, f"{HUB_PREFIX}{name}"))
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

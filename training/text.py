"""English text that lies beside every onnxopt: topics, docstrings and comments of CPython and of three packages.

Code, tables, grammar and markup are dropped, paragraph by paragraph; no paragraph comes twice. What is held out for
evaluation is chosen by a hash of each document, so it is the same documents whatever else there is.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import pydoc_data.topics
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_ONE_IN = 20

# Installed with onnxopt, written in good English, free to use with attribution: BSD-3-Clause, PSF-like, BSD-3-Clause.
PACKAGES = ("numpy", "matplotlib", "networkx")

# Words by which a line of prose is told from a line of anything else.
_COMMON_WORDS = """
    a all an and any are as at be been but by can do does for from has have if in into is it its may not of on one only
    or should so than that the their then there these they this to use used was when which will with you
"""
_COMMON = frozenset(_COMMON_WORDS.split())
_LEAST_WORDS = 6
_LEAST_COMMON = 0.2
_MOST_SIGNS = 0.06
_SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "pyconfig", "lib-dynload"})
_MARKUP = (
    (re.compile(r":[a-z:+-]+:`~?\.?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),  # :class:`X`
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_+"), r"\1"),  # `title <address>`_
    (re.compile(r"``?([^`]+?)``?_*"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w[^*\n]*?)\*(?![\w*])"), r"\1"),
    (re.compile(r'"([\w.()]+)"'), r"\1"),  # the topics quote every name
    (re.compile(r"\s*\[\d+\]_?"), ""),
    (re.compile(r"::\s*$"), ":"),
    (re.compile(r"\s+"), " "),
)
_BULLET = re.compile(r"\s*(?:[*+•-]|\(?\d{1,2}[.)]|#\.)\s+")
_SIGN = re.compile(r"[^\w\s.,;:'’\"()?!-]|_|\(\)|\d{3}")
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": "...", "\u00a0": " "})


@dataclass(frozen=True)
class Document:
    """Paragraphs of one origin.

    Attributes:
        origin: where they come from, such as `topics/import` or `asyncio/base_events.py`.
        paragraphs: plain prose, one line each.
    """

    origin: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The paragraphs, one a line."""
        return "\n".join(self.paragraphs)

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training."""
        return _is_held_out(self.origin)


def documents(*, held_out_only: bool = False) -> list[Document]:
    """Return all documents of this interpreter, always in the same order.

    Args:
        held_out_only: leave out what is trained on; takes seconds instead of a minute. A paragraph that stands in
            several documents is then in the first that is held out, though training may have seen it.
    """
    seen: set[str] = set()
    found: list[Document] = []
    for origin, pieces in _sources():
        if held_out_only and not _is_held_out(origin):
            continue
        fresh = [line for piece in pieces for line in paragraphs(piece) if _once(line, seen)]
        if fresh:
            found.append(Document(origin, tuple(fresh)))
    return found


def _is_held_out(origin: str) -> bool:
    return int(hashlib.sha256(origin.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text that are prose, one line each, without markup."""
    block: list[str] = []
    item = False
    for line in [*text.translate(_PLAIN).splitlines(), ""]:
        bullet = _BULLET.match(line)
        if line.strip() and not bullet and not _is_rule(line):
            block.append(line.strip())
            continue
        if block and (plain := _prose(block, item=item)):
            yield plain
        item = bool(bullet)
        block = [line[bullet.end() :].strip()] if bullet else []


def _is_rule(line: str) -> bool:
    """Return whether a line underlines a title."""
    return len(set(line.strip())) == 1 and not line.strip().isalnum()


def _prose(block: list[str], *, item: bool) -> str:
    """Return the lines of a paragraph as one line when they are English sentences, else nothing.

    Args:
        block: the lines.
        item: whether it is an item of a list, which may end like a part of a sentence.
    """
    if any(line.startswith((">>>", "...", "..", "@", "|")) for line in block):
        return ""
    line = " ".join(block)
    for pattern, plain in _MARKUP:
        line = pattern.sub(plain, line)
    line = line.strip()
    if item and re.search(r"[\w)][,;]?$", line):
        line = re.sub(r"[,;]?(?: and| or)?$", ".", line, count=1)
    words = re.findall(r"[A-Za-z']+", line)
    if len(words) < _LEAST_WORDS or not line.isascii() or not line[0].isalpha() or line[-1] not in ".:!?)":
        return ""
    common = sum(word.lower() in _COMMON for word in words) / len(words)
    if common < _LEAST_COMMON or len(_SIGN.findall(line)) > _MOST_SIGNS * len(words) + 1:
        return ""
    return line[0].upper() + line[1:]


def _once(line: str, seen: set[str]) -> bool:
    """Return whether a paragraph is new, whatever its case and signs."""
    key = re.sub(r"\W+", "", line).lower()
    if key in seen:
        return False
    seen.add(key)
    return True


def _sources() -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the pieces of text of each document; nothing is read before they are asked for."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield f"topics/{name}", [text]
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from _files(library, library, _SKIPPED_FOLDERS, ("*.py", "*.txt", "*.rst"))
    for name in sorted(set(sys.builtin_module_names) | {"builtins", *_extensions(library)}):
        yield f"builtin/{name}", _compiled(name)
    site = Path(sysconfig.get_paths()["purelib"])
    for package in PACKAGES:
        yield from _files(site, site / package, _SKIPPED_FOLDERS | {"tests"}, ("*.py",))


def _files(
    root: Path, folder: Path, skipped: frozenset[str], kinds: tuple[str, ...]
) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the pieces of text of each file of a folder, named by its path from the root."""
    for path in sorted(path.relative_to(root) for kind in kinds for path in folder.rglob(kind)):
        if not skipped & set(path.parts):
            yield path.as_posix(), _pieces(root / path)


def _pieces(path: Path) -> Iterator[str]:
    """Yield what of a file may be prose; nothing of the broken files that the standard library has among its tests."""
    try:
        text = path.read_text(encoding="utf-8")
        yield from list(_python(text)) if path.suffix == ".py" else [text]
    except (UnicodeDecodeError, SyntaxError, ValueError, tokenize.TokenError):
        return


def _python(text: str) -> Iterator[str]:
    """Yield docstrings and blocks of comments of a Python file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            if token.start[0] != last + 1:
                yield "\n".join(block)
                block = []
            block.append(token.string.lstrip("#"))
            last = token.start[0]
    yield "\n".join(block)


def _extensions(library: Path) -> Iterator[str]:
    for path in (library / "lib-dynload").glob("*.so"):
        name = path.name.split(".")[0]
        if "test" not in name and name != "_tkinter":
            yield name


def _compiled(name: str) -> Iterator[str]:
    """Yield the docstrings of a module written in C."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    yield inspect.getdoc(module) or ""
    for _, thing in sorted(vars(module).items()):
        yield _docstring(thing)
        if isinstance(thing, type) and thing.__module__ in {name, "builtins"}:
            for _, member in sorted(vars(thing).items()):
                yield _docstring(member)


def _docstring(thing: object) -> str:
    doc = getattr(thing, "__doc__", None)
    return textwrap.dedent(doc) if isinstance(doc, str) else ""

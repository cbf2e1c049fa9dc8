"""Golden texts: what a program must get from text, so that a wrong tokenizer is told apart from a wrong graph.

`golden/texts.json`, written when the first client is added::

    format    1
    answer    what a case expects: `embedding` (one vector), `scores` (one number per label, made as `io.json` says),
              `token_scores` (tokens, special ones too, times labels, row by row), `tokens` (ids that the model writes,
              greedily, until the first that ends a text), `ids` (nothing more than the ids)
    output    the output of the graph that it comes from
    rule      how answers are compared
    cases     text; pair: a second one that is read with it; chat: whether it goes through the chat template, written is
              what comes out of that, tokenized without special tokens; ids and types: the row of the model, with the
              default prompt, lowered and cut as `io.json` says; expected; max_absolute_error

Each row is run alone, without padding unless the graph has a fixed length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onnxopt.artifact.golden import GoldenCase, GoldenDifference
from onnxopt.errors import InputError
from onnxopt.host.files import regular_size
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.chat import TEMPLATE_NAME
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.scores import as_scores, scores_of
from onnxopt.run.session import Session
from onnxopt.spec import SENTENCE, Array, Signature
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import SCORED
from onnxopt.texts.marks import marks_of
from onnxopt.texts.tokenizer import encoded, open_tokenizer, read_settings

TEXTS_NAME = "texts.json"
Kind = Literal["embedding", "scores", "token_scores", "tokens", "ids"]
NEW_TOKENS = 12

_RULE = "ids are equal; per number |got - expected| <= max_absolute_error; tokens are equal up to the first end"
_FORMAT = 1
_TEXTS = (
    "A cat sleeps on the warm windowsill.",
    "Don't STOP  here: 12,50 € for two coffees?",
    "Zürich lies in Switzerland; Anna Kowalski works there for Example Corp.",
    "a",
)
_PAIRS = (
    ("How many people live in Berlin?", "Berlin has a population of about 3.6 million people."),
    ("How many people live in Berlin?", "A cat sleeps on the warm windowsill."),
)
_PROMPTS = ("The capital of France is", "def main():", "One")
_LONGEST = 512  # a text that is cut is tried where a row is no longer than this
_CLOCK = "strftime_now"  # what a chat template writes the day with: tomorrow it gives other tokens


@dataclass(frozen=True)
class TextCase:
    """A text with what comes of it.

    Attributes:
        text: what the user writes.
        ids: the row of the model.
        types: segment of each token.
        expected: numbers of the answer; ids for `tokens`.
        limit: how far a number may be off.
        pair: a second text.
        written: the text in the chat template; None where it does not go through one.
    """

    text: str
    ids: tuple[int, ...]
    types: tuple[int, ...]
    expected: tuple[float, ...] = ()
    limit: float = 0.0
    pair: str | None = None
    written: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as the file has it."""
        pair = {} if self.pair is None else {"pair": self.pair}
        chat = {} if self.written is None else {"chat": True, "written": self.written}
        answer = {"expected": list(self.expected), "max_absolute_error": self.limit}
        return {"text": self.text, **pair, **chat, "ids": list(self.ids), "types": list(self.types), **answer}


@dataclass(frozen=True)
class GoldenTexts:
    """The golden texts of an artifact.

    Attributes:
        answer: what the cases expect.
        output: where it comes from.
        cases: in order.
    """

    answer: Kind
    output: str
    cases: tuple[TextCase, ...]

    def to_json(self) -> bytes:
        """Return the file's bytes, one case to a line."""
        head = {"format": _FORMAT, "answer": self.answer, "output": self.output, "rule": _RULE}
        words = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
        lines = ",\n".join(
            "    " + json.dumps(case.as_json(), ensure_ascii=False, allow_nan=False) for case in self.cases
        )
        return f'{words},\n  "cases": [\n{lines}\n  ]\n}}\n'.encode()

    @classmethod
    def read(cls, path: Path) -> GoldenTexts:
        """Read the file.

        Raises:
            InputError: when it is damaged or of another format.
        """
        try:
            regular_size(path)
            content = json.loads(path.read_text(encoding="utf-8"))
            known = content["format"] == _FORMAT and content["answer"] in get_args(Kind)
            found = cls(content["answer"], str(content["output"]), tuple(map(_case_of, content["cases"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = f"the golden texts cannot be read ({error or type(error).__name__})"
            raise InputError(said, where=str(path), hint="make the artifact again") from error
        if not known:
            raise InputError("the golden texts have another format", where=str(path), hint="make the artifact again")
        return found


def _case_of(entry: Mapping[str, Any]) -> TextCase:
    return TextCase(
        text=str(entry["text"]),
        ids=tuple(map(int, entry["ids"])),
        types=tuple(map(int, entry["types"])),
        expected=tuple(map(float, entry["expected"])),
        limit=float(entry["max_absolute_error"]),
        pair=entry.get("pair"),
        written=entry.get("written"),
    )


def make_texts(folder: Path, manifest: Manifest, session: Session, cases: Sequence[GoldenCase]) -> GoldenTexts:
    """Run an artifact on some texts.

    Args:
        folder: the artifact.
        manifest: of it.
        session: its model.
        cases: its golden cases, whose tolerance is that of the texts.

    Raises:
        InputError: when it has no tokenizer that can be read, its inputs are not made from text, or its answer to one
            is NaN or infinite.
    """
    error = max((float(case.entries["relative_error"]) for case in cases), default=1e-4)
    if manifest.decoding is not None:
        return GoldenTexts("tokens", "logits", tuple(_written(folder, session)))
    model = TextModel.open(folder, session)
    answer, output = answer_of(manifest.task, manifest.signature)
    return GoldenTexts(answer, output, tuple(_answered(model, answer, output, error)))


def answer_of(task: str, signature: Signature) -> tuple[Kind, str]:
    """Return what a graph answers to a text, and the output that it comes from.

    Args:
        task: the transformers task name.
        signature: inputs and outputs of the graph.
    """
    names = {spec.name for spec in signature.outputs}
    if SENTENCE in names:
        return "embedding", SENTENCE
    made = TASKS[task].answer if task in TASKS else ""
    kind: Kind = "scores" if made in SCORED else "token_scores" if made == "token_labels" else "ids"
    return (kind, "logits") if kind != "ids" and "logits" in names else ("ids", "")


def texts_differences(texts: GoldenTexts, folder: Path, session: Session) -> list[GoldenDifference]:
    """Repeat golden texts and return what differs.

    Args:
        texts: of the artifact.
        folder: the artifact.
        session: its model.
    """
    if texts.answer == "tokens":
        return list(_writing_differs(texts, Generator(folder, session=session)))
    return list(_answers_differ(texts, TextModel.open(folder, session)))


def _writing_differs(texts: GoldenTexts, generator: Generator) -> Iterator[GoldenDifference]:
    for number, case in enumerate(texts.cases):
        # people may change the chat template, which no one proved: what it once wrote is tokenized
        written = None if case.written is None else encoded(generator.tokenizer, [case.written], marks=False)[0].ids
        ids = generator.encode(case.text, chat=False) if written is None else list(written)
        if tuple(ids) != case.ids:
            yield GoldenDifference(number, "ids", f"{ids}, expected {list(case.ids)}", kind="text")
            continue
        found = generator.generate([ids], max_new_tokens=NEW_TOKENS).results[0].tokens
        if found != tuple(map(int, case.expected)):
            yield GoldenDifference(number, texts.output, f"tokens {found}, expected {case.expected}", kind="text")


def _answers_differ(texts: GoldenTexts, model: TextModel) -> Iterator[GoldenDifference]:
    for number, case in enumerate(texts.cases):
        row = _row(model, texts.answer, texts.output, case.text, case.pair)
        if row.ids != case.ids or row.types != case.types:
            yield GoldenDifference(number, "ids", f"{list(row.ids)}, expected {list(case.ids)}", kind="text")
            continue
        found, wanted = row.numbers, np.array(case.expected)
        if found.shape != wanted.shape or not (np.abs(found - wanted) <= case.limit).all():
            worst = float(np.abs(found - wanted).max(initial=0)) if found.shape == wanted.shape else np.inf
            said = f"{len(found)} numbers, worst error {worst:.3g}, allowed {case.limit:.3g}"
            yield GoldenDifference(number, texts.output, said, kind="text")


def _written(folder: Path, session: Session) -> Iterator[TextCase]:
    """Yield what a decoder writes, without the chat template and, where it has one, with it."""
    generator = Generator(folder, session=session)
    template = None if _tells_time(folder) else generator.template
    for text in _PROMPTS:
        for chat in (False, True) if template is not None else (False,):
            whole = template.render([{"role": "user", "content": text}]) if chat and template is not None else None
            ids = generator.encode(text, chat=chat)
            found = generator.generate([ids], max_new_tokens=NEW_TOKENS).results[0].tokens
            if found:
                tokens = tuple(map(float, found))
                yield TextCase(text, tuple(ids), (0,) * len(ids), tokens, written=whole)


def _answered(model: TextModel, answer: Kind, output: str, error: float) -> Iterator[TextCase]:
    limit = model.limit
    # clients cut between the marks: where nobody knows those, a text that is cut is not tried
    cuts = 0 < limit <= _LONGEST and marks_of(open_tokenizer(model.folder)) is not None
    long = (" ".join([_TEXTS[0]] * limit),) if cuts else ()
    pairs: list[tuple[str, str]] = []
    if answer == "scores":
        pairs = [*_PAIRS, *((_PAIRS[0][0], text) for text in long)]
    for text, pair in [*((text, None) for text in (*_TEXTS, *long)), *pairs]:
        row = _row(model, answer, output, text, pair)
        if not (np.isfinite(row.numbers).all() and np.isfinite(row.largest)):
            raise InputError(f"{output} holds NaN or infinity for the text {text!r:.60}", hint="use other weights")
        # a number may be off by a share of the output's largest, as in the other cases; a score moves less than that
        expected = tuple(map(_short, row.numbers))
        yield TextCase(text, row.ids, row.types, expected, error * row.largest, pair)


@dataclass(frozen=True)
class _Row:
    """A text as the model reads it, run alone.

    Attributes:
        ids: its tokens.
        types: segment of each.
        numbers: float64 [numbers] of the answer.
        largest: magnitude of the largest number of the output; of one that is nothing but zeros 1.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    numbers: Array
    largest: float = 1.0


def _row(model: TextModel, answer: Kind, output: str, text: str, pair: str | None) -> _Row:
    """Return what comes of a text or pair."""
    whole = f"{model.prompts.before()}{text}" if answer == "embedding" else text
    (encoding,) = model.encode([whole]) if pair is None else model.encode_pairs([(whole, pair)])
    ids, types = tuple(encoding.ids), tuple(encoding.type_ids)
    if answer == "ids":
        return _Row(ids, types, np.empty(0))
    answered = model.run([encoding])
    values = answered.outputs[output][0].astype(np.float64)
    values = values[answered.mask[0]] if answer == "token_scores" else values
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    if answer != "embedding":
        how = "softmax" if answer == "token_scores" else scores_of(model.config, values.shape[-1])
        with np.errstate(invalid="ignore"):  # of infinite logits the scores are NaN
            values = as_scores(values, how)
    return _Row(ids, types, values.reshape(-1), largest)


def _short(number: float) -> float:
    """Return a number with the nine digits that a float32 has."""
    return float(f"{number:.9g}")


def _tells_time(folder: Path) -> bool:
    """Tell whether the chat template writes the day, so that its tokens are others tomorrow."""
    sources = [str(read_settings(folder, name)) for name in ("tokenizer_config.json", "chat_template.json")]
    path = folder / TEMPLATE_NAME
    if path.is_file():
        sources.append(path.read_text(encoding="utf-8"))
    return any(_CLOCK in source for source in sources)

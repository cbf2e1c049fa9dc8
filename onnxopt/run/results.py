"""The answers of a model by task, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onnxopt.records.record import Record

TOP = 5
OUTSIDE, BEGINS, INSIDE = "O", "B-", "I-"  # labels of words, Ramshaw & Marcus 1995, arXiv:cmp-lg/9505040


class Result(Record):
    """What every answer has.

    Attributes:
        task: what was done.
        texts: what went in.
        notes: sentences a user should read.
    """

    task: str
    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the answer for people, one line per thing."""
        return [f"note: {note}" for note in self.notes]


class Embeddings(Result):
    """A vector per text.

    Attributes:
        output: the output it comes from.
        vectors: float32 [texts, dimension].
        cosine: cosine similarity of each pair of texts; empty for a single text.
    """

    kind: Literal["embeddings"] = "embeddings"
    output: str
    vectors: tuple[tuple[float, ...], ...]
    cosine: tuple[tuple[float, ...], ...] = ()

    def lines(self) -> list[str]:
        """Return the first numbers of each vector, and the similarities."""
        shown = []
        for text, vector in zip(self.texts, self.vectors, strict=True):
            first = ", ".join(f"{number:.4f}" for number in vector[:6])
            shown.append(
                f"{text!r}: {self.output} of {len(vector)} numbers [{first}{', ...' if len(vector) > 6 else ''}]"
            )
        for row, similarities in enumerate(self.cosine):
            shown += [
                f"cosine {self.texts[row]!r} · {self.texts[column]!r}: {similarities[column]:.4f}"
                for column in range(row + 1, len(similarities))
            ]
        return shown + super().lines()


class Label(Record):
    """A label with its probability (or plain number, for a regression)."""

    label: str
    score: float


class Classification(Result):
    """The labels of each text, most likely first."""

    kind: Literal["classification"] = "classification"
    labels: tuple[tuple[Label, ...], ...]

    def lines(self) -> list[str]:
        """Return the most likely labels of each text."""
        shown = []
        for text, labels in zip(self.texts, self.labels, strict=True):
            shown.append(f"{text!r}: " + ", ".join(f"{label.label} {label.score:.4f}" for label in labels[:TOP]))
        return shown + super().lines()


class Ranking(Result):
    """How well documents answer queries.

    Attributes:
        pairs: a query and a document each, in the order in which they were given.
        scores: of each pair.
    """

    kind: Literal["ranking"] = "ranking"
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]

    def lines(self) -> list[str]:
        """Return each query with its documents, the best first; equal ones keep their order."""
        shown = []
        for query in dict.fromkeys(first for first, _ in self.pairs):
            own = [(score, pair[1]) for pair, score in zip(self.pairs, self.scores, strict=True) if pair[0] == query]
            shown.append(f"{query!r}:")
            ranked = enumerate(sorted(own, key=lambda one: -one[0]), start=1)
            shown += [f"{place}. {score:.4f} {document!r}" for place, (score, document) in ranked]
        return shown + super().lines()


class Word(Record):
    """A word with the label of its first token; `start` and `end` count characters of the text."""

    word: str
    label: str
    score: float
    start: int
    end: int


class Entity(Record):
    """Words side by side that are one thing, with the mean of their scores; `start` and `end` count characters."""

    text: str
    label: str
    score: float
    start: int
    end: int


def joined(text: str, words: Sequence[Word]) -> tuple[Entity, ...]:
    """Join the words that belong together, as transformers does (`aggregation_strategy="first"`).

    `B-` in front of a label begins a new thing, `I-` goes on with the one before where that has the same label; a label
    without either goes on, too. `O` is nothing.

    Args:
        text: what the words are of.
        words: in the order of the text.
    """
    groups: list[list[Word]] = []
    before = OUTSIDE
    for word in words:
        label = _bare(word.label)
        if label != OUTSIDE and (label != before or word.label.startswith(BEGINS)):
            groups.append([word])
        elif label != OUTSIDE:
            groups[-1].append(word)
        before = label
    return tuple(
        Entity(
            text=text[group[0].start : group[-1].end],
            label=_bare(group[0].label),
            score=sum(word.score for word in group) / len(group),
            start=group[0].start,
            end=group[-1].end,
        )
        for group in groups
    )


def _bare(label: str) -> str:
    """Return a label without the mark of where in a thing it stands."""
    return label.removeprefix(BEGINS).removeprefix(INSIDE)


class TokenLabels(Result):
    """The words of each text with their labels, and the things that they make up."""

    kind: Literal["token_labels"] = "token_labels"
    words: tuple[tuple[Word, ...], ...]
    entities: tuple[tuple[Entity, ...], ...] = ()

    def lines(self) -> list[str]:
        """Return what has a label other than O, words that belong together as one."""
        shown = []
        for text, entities in zip(self.texts, self.entities, strict=True):
            found = [f"{one.text} = {one.label} {one.score:.4f}" for one in entities]
            shown.append(f"{text!r}: {', '.join(found) or 'no labels'}")
        return shown + super().lines()


class Fill(Record):
    """A token for a hidden word, with its probability."""

    token: str
    score: float


class MaskFills(Result):
    """For each text and each hidden word in it, the likeliest tokens."""

    kind: Literal["mask_fills"] = "mask_fills"
    fills: tuple[tuple[tuple[Fill, ...], ...], ...]

    def lines(self) -> list[str]:
        """Return the likeliest tokens."""
        shown = []
        for text, places in zip(self.texts, self.fills, strict=True):
            shown += [f"{text!r}: " + ", ".join(f"{fill.token} {fill.score:.4f}" for fill in place) for place in places]
        return shown + super().lines()


class Continuations(Result):
    """What the model writes after each text, always taking the likeliest token."""

    kind: Literal["continuations"] = "continuations"
    continuations: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return text and continuation."""
        return [f"{text}{more}" for text, more in zip(self.texts, self.continuations, strict=True)] + super().lines()


class Transcripts(Result):
    """What is said in each sound, the likeliest token of each frame."""

    kind: Literal["transcripts"] = "transcripts"
    transcripts: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return file and text."""
        return [f"{text}: {said}" for text, said in zip(self.texts, self.transcripts, strict=True)] + super().lines()


class Span(Record):
    """A label that is heard from `start` to `end`, in seconds, with its mean probability."""

    label: str
    start: float
    end: float
    score: float


class FrameLabels(Result):
    """What is heard when in each sound; labels may be heard together."""

    kind: Literal["frame_labels"] = "frame_labels"
    spans: tuple[tuple[Span, ...], ...]

    def lines(self) -> list[str]:
        """Return the spans in the order of their beginnings."""
        shown = []
        for text, spans in zip(self.texts, self.spans, strict=True):
            shown += [f"{text}: {one.start:.2f}-{one.end:.2f} s {one.label} {one.score:.4f}" for one in spans]
            shown += [] if spans else [f"{text}: no label is heard"]
        return shown + super().lines()


class Answer(Record):
    """A piece of the context; `start` and `end` count its characters."""

    answer: str
    score: float
    start: int
    end: int


class Answers(Result):
    """The answer to each question."""

    kind: Literal["answers"] = "answers"
    answers: tuple[Answer, ...]

    def lines(self) -> list[str]:
        """Return question and answer."""
        pairs = zip(self.texts, self.answers, strict=True)
        return [f"{text!r}: {found.answer!r} {found.score:.4f}" for text, found in pairs] + super().lines()


class Box(Record):
    """A thing on an image, with its probability; the corners are in pixels of the image in the file."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


class Detections(Result):
    """What is on each image, likeliest first.

    Attributes:
        threshold: the least score that is told.
        boxes: of each image.
    """

    kind: Literal["detections"] = "detections"
    threshold: float
    boxes: tuple[tuple[Box, ...], ...]

    def lines(self) -> list[str]:
        """Return a line per thing."""
        shown = []
        for text, boxes in zip(self.texts, self.boxes, strict=True):
            corners = [(f"{one.left:.0f}, {one.top:.0f}", f"{one.right:.0f}, {one.bottom:.0f}") for one in boxes]
            shown += [
                f"{text!r}: {one.label} {one.score:.4f} from {first} to {last}"
                for one, (first, last) in zip(boxes, corners, strict=True)
            ]
            shown += [] if boxes else [f"{text!r}: nothing with a score above {self.threshold:g}"]
        return shown + super().lines()


class Share(Record):
    """A label with the share of an image's pixels that have it."""

    label: str
    share: float


class Segments(Result):
    """What the pixels of each image belong to, the most first.

    Attributes:
        shares: of the labels that any pixel has, for each image.
        files: the maps that were written, a label's number per pixel; none where nobody asked for them.
    """

    kind: Literal["segments"] = "segments"
    shares: tuple[tuple[Share, ...], ...]
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the labels of each image, and the files."""
        shown = []
        for text, shares in zip(self.texts, self.shares, strict=True):
            shown.append(f"{text!r}: " + ", ".join(f"{one.label} {100 * one.share:.1f} %" for one in shares[:TOP]))
        return shown + [f"written: {name}" for name in self.files] + super().lines()


class DepthRange(Record):
    """The depths of an image of so many pixels, in the model's own unit: some give more for what is nearer."""

    width: int
    height: int
    least: float
    mean: float
    most: float


class Depth(Result):
    """How far the pixels of each image are.

    Attributes:
        ranges: of each image.
        files: the maps that were written, from 0 for the least to 65535 for the most; none where nobody asked for them.
    """

    kind: Literal["depth"] = "depth"
    ranges: tuple[DepthRange, ...]
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return least, mean and most of each image, and the files."""
        shown = [
            f"{text!r}: from {one.least:.4g} to {one.most:.4g}, {one.mean:.4g} in the mean, "
            f"over {one.width} x {one.height} pixels"
            for text, one in zip(self.texts, self.ranges, strict=True)
        ]
        return shown + [f"written: {name}" for name in self.files] + super().lines()


class ImageSize(Record):
    """Width and height in pixels."""

    width: int
    height: int


class Images(Result):
    """An image for each image.

    Attributes:
        sizes: of what came out.
        files: what was written; none where nobody asked for it.
    """

    kind: Literal["images"] = "images"
    sizes: tuple[ImageSize, ...]
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the size of each image, and the files."""
        pairs = zip(self.texts, self.sizes, strict=True)
        shown = [f"{text!r}: an image of {one.width} x {one.height} pixels" for text, one in pairs]
        return shown + [f"written: {name}" for name in self.files] + super().lines()


OfImages = Detections | Segments | Depth | Images
TextResult = (
    Embeddings
    | Classification
    | Ranking
    | TokenLabels
    | MaskFills
    | Continuations
    | Transcripts
    | FrameLabels
    | Answers
    | OfImages
)

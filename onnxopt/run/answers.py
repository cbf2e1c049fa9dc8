"""Try an artifact by hand: text (or the path of an image) in, an answer out, by what its task is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.records.manifest import Manifest
from onnxopt.run.claims import Claims
from onnxopt.run.compared import compare
from onnxopt.run.generate.beside import end_ids
from onnxopt.run.generate.decoder import cache_of
from onnxopt.run.generate.generator import RANDOM_WEIGHTS, Generator
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.labels import label_names, words_of
from onnxopt.run.paired import Ask, choose, rank
from onnxopt.run.results import (
    TOP,
    Answer,
    Answers,
    Classification,
    Continuations,
    Embeddings,
    Fill,
    Label,
    MaskFills,
    Ranking,
    TextResult,
    TokenLabels,
    joined,
)
from onnxopt.run.scores import Scores, as_scores, scores_of, softmax
from onnxopt.run.session import Session
from onnxopt.run.sounds import frame_labels, hear, hears, transcripts, vectors
from onnxopt.spec import SENTENCE, Array, Feeds, Target
from onnxopt.tasks.table import TASKS
from onnxopt.texts.tokenizer import MASKS, read_settings

if TYPE_CHECKING:
    from tokenizers import Encoding

DEFAULT_NEW_TOKENS = 20
WRITTEN = ("segments", "depth", "images")  # what is made of images and can be written as one
MAX_ANSWER_TOKENS = 30
_EMBEDDINGS = (SENTENCE, "text_embeds", "last_hidden_state", "token_embeddings", "pooler_output")
_PROMPTED = ("feature-extraction",)
# what the end of a saved class's name stands for, for an imported file whose task is unknown
_HEADS = {head.ending: task.name for task in TASKS.values() if not task.asked for head in task.heads if head.ending}
_HEADS |= {"LMHeadModel": "text-generation", "ForXVector": "audio-xvector"}
_OF_SOUND = {"text-classification": "audio-classification"}  # which ends of names do not tell apart


@dataclass(frozen=True)
class _Request:
    """What a task needs to answer; the texts of pairs are written with a tab between, as `--pair` takes them."""

    task: str
    texts: tuple[str, ...]
    context: str | None
    max_new_tokens: int
    pairs: tuple[tuple[str, str], ...] = ()
    prompt: str | None = None
    claims: Claims | None = None


def run_text(
    artifact: str | Path,
    texts: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    prompt: str | None = None,
    context: str | None = None,
    claims: Claims | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    out: str | Path | None = None,
    target: Target | None = None,
    threads: int | None = None,
) -> TextResult:
    """Give texts to an artifact and say what it answers.

    Args:
        artifact: the folder.
        texts: sentences, questions or prompts; paths of image files when the task is about images.
        pairs: two texts each, in place of `texts`, for a classifier that reads both: a reranker, or one of entailment.
        prompt: the name of a prompt of the checkpoint that is put in front of each text, for embeddings; its default
            when None, none at all when empty.
        context: the text to find answers in, for question answering.
        claims: labels of the user's own to choose from, for a model of entailment, or one that compares texts with
            images.
        max_new_tokens: how many tokens to write, for text generation. A model without a cache runs the whole text
            again for each.
        out: a folder for the maps or images that a model makes of images, as PNG by the names of what they are of;
            none are written when None.
        target: where to run; the default is the artifact's own target.
        threads: threads of one operator.

    Returns:
        The answer, by task: `Embeddings`, `Classification`, `Ranking`, `TokenLabels`, `MaskFills`, `Continuations`,
        `Answers`, and of images also `Detections`, `Segments`, `Depth` or `Images`.

    Raises:
        InputError: when the artifact or its tokenizer is missing, or the input does not suit the task.
    """
    _require_some(texts, pairs)
    opened = Opened.of(Path(artifact), target=target, threads=threads)
    given: dict[str, Any] = {"pairs": pairs, "prompt": prompt, "context": context, "max_new_tokens": max_new_tokens}
    return opened.answer(texts, **given, claims=claims, out=Path(out) if out is not None else None)


@dataclass
class Opened:
    """An artifact that is open, with what its task needs.

    Attributes:
        folder: the artifact.
        session: its model.
        config: content of config.json.
        task: what it does, in the words of transformers.
        made_up: whether its weights are, so that no answer means anything.
        scores: what the logits become where its manifest says it; empty where the config does.
    """

    folder: Path
    session: Session
    config: Mapping[str, Any]
    task: str
    made_up: bool
    scores: str = ""

    @classmethod
    def of(
        cls, folder: Path, *, target: Target | None = None, device: str | None = None, threads: int | None
    ) -> Opened:
        """Open an artifact; where it runs is said as for `Session`.

        Raises:
            InputError: when the folder is no artifact, or nothing says what its logits mean.
        """
        manifest = Manifest.read(folder)
        session = Session(folder, target=target, device=device, threads=threads)
        config = read_settings(folder, "config.json")
        task, scores = task_of(manifest.task, config, session), str(manifest.origin.get("scores", ""))
        return cls(folder, session, config, task, manifest.random_weights, scores)

    @cached_property
    def text(self) -> TextModel:
        """The tokenizer, opened when it is first needed.

        Raises:
            InputError: when there is none.
        """
        return TextModel.open(self.folder, self.session)

    def answer(
        self,
        texts: Sequence[str],
        *,
        pairs: Sequence[tuple[str, str]] = (),
        prompt: str | None = None,
        context: str | None = None,
        claims: Claims | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        out: Path | None = None,
    ) -> TextResult:
        """Answer texts or pairs; arguments, result and errors are those of `run_text`."""
        _require_some(texts, pairs)
        shown = tuple(texts) or tuple("\t".join(pair) for pair in pairs)
        request = _Request(self.task, shown, context, max_new_tokens, tuple(pairs), prompt, claims)
        _require_fitting(request)
        known_task = TASKS.get(self.task)
        if out is not None and (known_task is None or known_task.answer not in WRITTEN):
            raise InputError(
                f"a model for {self.task} writes no images", where="--out", hint="leave it out; --json tells everything"
            )
        if known_task is not None and known_task.takes == ("image",):
            result = self._of_images(request, out)
        elif _compares(self.task) and claims is not None:
            model = replace(self.text, notes=[])
            how: Scores = "sigmoid" if self.scores == "sigmoid" else "softmax"
            result = compare(model, self.task, request.texts, claims, how)
        elif hears(self.session.inputs):
            result = _run_sounds(self.folder, self.session, self.config, request)
        else:
            known = _ANSWERS.get(TASKS[self.task].answer) if self.task in TASKS else None
            if known is None or not TASKS[self.task].reads_text:
                raise _untried(self.task, self.folder)
            result = known(replace(self.text, notes=[]), request)
        warning = (RANDOM_WEIGHTS,) if self.made_up else ()
        return result.model_copy(update={"notes": tuple(dict.fromkeys((*warning, *result.notes)))})

    def _of_images(self, request: _Request, out: Path | None) -> TextResult:
        """Answer paths of image files."""
        from onnxopt.run.pictures import ANSWERS, PictureRun

        kind = TASKS[self.task].answer
        if kind in ("classification", "embeddings"):
            return _run_images(self.folder, self.session, self.config, request)
        if kind not in ANSWERS:
            raise _untried(self.task, self.folder)
        return ANSWERS[kind](PictureRun(self.folder, self.session, self.config, self.task, request.texts, out))


def _untried(task: str, folder: Path) -> InputError:
    """Return the refusal of a task whose answers are told in no words."""
    told = (*_ANSWERS, "detections", *WRITTEN)
    able = [one.name for one in TASKS.values() if one.answer in told and "video" not in one.takes]
    return InputError(
        f"task {task!r} cannot be tried with text",
        where=str(folder),
        hint=f"it can be {', '.join(able)}; for others give tensors to onnxopt.Session",
    )


def _require_some(texts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse nothing at all, and two things at once."""
    if not texts and not pairs:
        raise InputError("no text to run on", hint="write it behind the artifact's folder, in quotes")
    if texts and pairs:
        raise InputError("texts and pairs cannot be run together", hint="write either texts or --pair")


def _require_fitting(request: _Request) -> None:
    """Refuse what a task would not look at: else the answer would be one to another question.

    Raises:
        InputError: names the option that the task takes.
    """
    task = request.task
    if request.context is not None and task != "question-answering":
        hint = "for two texts that belong together use --pair" if _pairs(task) else "leave it out"
        raise InputError(f"a model for {task} reads no context", where="--context", hint=hint)
    if request.pairs and not _pairs(task):
        hint = "give the text to look in with --context" if task == "question-answering" else "write each text alone"
        raise InputError(f"a model for {task} reads no pairs", where="--pair", hint=hint)
    if request.prompt and task not in _PROMPTED:
        raise InputError(f"a model for {task} has no prompts", where="--prompt", hint="write it into the text")
    answer = TASKS[task].answer if task in TASKS and TASKS[task].reads_text else ""
    compares = _compares(task)
    if request.claims is not None and answer not in ("classification", "zero_shot") and not compares:
        raise InputError(f"a model for {task} does not choose from labels", where="--labels", hint="leave it out")
    if request.claims is not None and request.pairs:
        raise InputError("labels are chosen for texts, not for pairs", where="--labels", hint="write each text alone")
    if request.claims is not None and request.claims.several and compares:
        raise InputError(f"a model for {task} weighs labels in one way", where="--several", hint="leave it out")
    if request.claims is None and (answer == "zero_shot" or compares):
        raise InputError(f"a model for {task} needs labels to choose from", hint="write them with --labels a,b,c")
    if _pairs(task) == "must" and not request.pairs:
        raise InputError(f"a model for {task} reads two texts at once", hint="write them with --pair, a tab between")


def _pairs(task: str) -> str:
    """Return whether a task reads two texts at once: empty, `may` or `must`."""
    return TASKS[task].pairs if task in TASKS else ""


def _compares(task: str) -> bool:
    """Tell whether a task compares images with texts of the user's own."""
    return task in TASKS and TASKS[task].compares


def task_of(task: str, config: Mapping[str, Any], session: Session) -> str:
    """Return the task of an artifact; for an imported file, what its config's class or its outputs suggest."""
    if task != "onnx":
        return task
    for name in config.get("architectures") or ():
        for ending, found in _HEADS.items():
            if str(name).endswith(ending):
                return _OF_SOUND.get(found, found) if hears(session.inputs) else found
    names = {spec.name for spec in session.outputs}
    if {"start_logits", "end_logits"} <= names:
        return "question-answering"
    if hears(session.inputs) and "logits" not in names:
        return "audio-feature-extraction"
    about_images = any(spec.name == "pixel_values" for spec in session.inputs)
    if "logits" not in names:
        return "image-feature-extraction" if about_images else "feature-extraction"
    raise InputError(
        "nothing says what its logits mean", where=str(session.path), hint="put the model's config.json beside it"
    )


# Text


def _embed(model: TextModel, request: _Request) -> Embeddings:
    before = model.prompts.before(request.prompt)
    answered = model.run(model.encode([f"{before}{text}" for text in request.texts]))
    name = _embedding_output(model.session)
    values = answered.outputs[name].astype(np.float32)
    notes = list(model.notes)
    if values.ndim == 3:
        weights = answered.mask[:, :, None].astype(np.float32)
        values = (values * weights).sum(axis=1) / weights.sum(axis=1)
        notes.append(f"the model has no sentence embedding: this is the mean of {name} over the text's tokens")
    return embeddings(request.task, request.texts, name, values, notes)


def embeddings(task: str, texts: Sequence[str], output: str, values: Array, notes: Sequence[str] = ()) -> Embeddings:
    """Put vectors and their similarities into a result.

    Args:
        task: what was done.
        texts: what went in.
        output: the output the vectors come from.
        values: float32 [texts, dimension].
        notes: sentences a user should read.
    """
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    return Embeddings(
        task=task,
        texts=tuple(texts),
        output=output,
        vectors=tuple(tuple(row) for row in values.tolist()),
        cosine=tuple(tuple(row) for row in (unit @ unit.T).tolist()) if len(texts) > 1 else (),
        notes=tuple(notes),
    )


def _embedding_output(session: Session) -> str:
    names = [spec.name for spec in session.outputs]
    known = next((name for name in _EMBEDDINGS if name in names), None)
    likely = next((spec.name for spec in session.outputs if len(spec.axes) in (2, 3)), None)
    if known or likely:
        return known or likely or ""
    raise InputError(f"no output is a vector per text: {', '.join(names)}", where=str(session.path))


def _classify(model: TextModel, request: _Request) -> Classification:
    if request.claims is not None:
        return choose(model, request.task, request.texts, request.claims, _asks(model))
    encodings = model.encode_pairs(request.pairs) if request.pairs else model.encode(request.texts)
    logits = _logits(model.run(encodings).outputs, model.session)
    return classification(request.task, request.texts, logits, model.config, model.notes)


def _rank(model: TextModel, request: _Request) -> Ranking:
    return rank(model, request.task, request.pairs, _asks(model))


def _asks(model: TextModel) -> Ask:
    """Return what runs a model on pairs of texts."""
    return lambda pairs: _logits(model.run(model.encode_pairs(pairs)).outputs, model.session)


def classification(
    task: str, texts: Sequence[str], logits: Array, config: Mapping[str, Any], notes: Sequence[str] = ()
) -> Classification:
    """Turn logits into labels with probabilities, as the config says they are meant.

    Args:
        task: what was done.
        texts: what went in.
        logits: float [texts, labels].
        config: content of config.json: `id2label`, `problem_type`.
        notes: sentences a user should read.
    """
    scores = as_scores(logits, scores_of(config, logits.shape[-1]))
    names = label_names(config, logits.shape[-1], task)
    rows = (sorted(zip(names, row, strict=True), key=lambda pair: -pair[1]) for row in scores.tolist())
    return Classification(
        task=task,
        texts=tuple(texts),
        labels=tuple(tuple(Label(label=name, score=score) for name, score in row) for row in rows),
        notes=tuple(notes),
    )


def _label_words(model: TextModel, request: _Request) -> TokenLabels:
    encodings = model.encode(request.texts)
    answered = model.run(encodings)
    scores = softmax(_logits(answered.outputs, model.session))
    names = label_names(model.config, scores.shape[-1])
    rows = []
    for row, (text, encoding) in enumerate(zip(request.texts, encodings, strict=True)):
        own = scores[row][answered.mask[row]]
        rows.append(tuple(words_of(text, encoding, own, names)))
    entities = tuple(joined(text, row) for text, row in zip(request.texts, rows, strict=True))
    notes = tuple(model.notes)
    return TokenLabels(task=request.task, texts=request.texts, words=tuple(rows), entities=entities, notes=notes)


def _fill_masks(model: TextModel, request: _Request) -> MaskFills:
    mask_id = model.tokenizer.token_to_id(model.mask_token) if model.mask_token else None
    if mask_id is None:
        raise InputError("its tokenizer has no mask token", where=str(model.folder))
    texts = []
    for text in request.texts:
        for written in MASKS:
            text = text.replace(written, model.mask_token)  # noqa: PLW2901  # each spelling in turn
        texts.append(text)
    encodings = model.encode(texts)
    answered = model.run(encodings)
    logits = _logits(answered.outputs, model.session)
    fills = []
    for row, encoding in enumerate(encodings):
        places = [index for index, token in enumerate(encoding.ids) if token == mask_id]
        if not places:
            raise InputError(f"text {row + 1} hides no word", hint=f"write {model.mask_token} in its place")
        scores = softmax(logits[row][answered.mask[row]][places])
        fills.append(tuple(_top_tokens(model, score) for score in scores))
    return MaskFills(task=request.task, texts=request.texts, fills=tuple(fills), notes=tuple(model.notes))


def _top_tokens(model: TextModel, scores: Array) -> tuple[Fill, ...]:
    best = np.argsort(-scores, kind="stable")[:TOP]
    return tuple(Fill(token=model.tokenizer.decode([int(one)]).strip(), score=float(scores[one])) for one in best)


def _continue(model: TextModel, request: _Request) -> Continuations:
    if cache_of(model.session) is not None:
        return _generate(model, request)
    ends = end_ids(read_settings(model.folder, "generation_config.json"), model.config)
    continuations = tuple(
        _write_on(model, encoding, ends, request.max_new_tokens) for encoding in model.encode(request.texts)
    )
    return Continuations(
        task=request.task, texts=request.texts, continuations=continuations, notes=tuple(dict.fromkeys(model.notes))
    )


def _generate(model: TextModel, request: _Request) -> Continuations:
    """Continue all texts together, with the cache that the model has."""
    generator = Generator(model.folder, session=model.session)
    prompts = [encoding.ids for encoding in model.encode(request.texts)]
    result = generator.generate(prompts, max_new_tokens=request.max_new_tokens)
    return Continuations(
        task=request.task,
        texts=request.texts,
        continuations=tuple(result.texts),
        notes=tuple(dict.fromkeys((*model.notes, *result.notes))),
    )


def _write_on(model: TextModel, encoding: Encoding, ends: frozenset[int], count: int) -> str:
    """Append the likeliest token until an end token comes, `count` are written, or the model is full."""
    prompt = list(encoding.ids)
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        if model.limit and len(ids) >= model.limit:
            model.notes.append(f"stopped at the {model.limit} tokens that the model takes")
            break
        answered = model.run_ids([ids], [[0] * len(ids)])
        logits = _logits(answered.outputs, model.session)
        row = logits[0][answered.mask[0]] if logits.shape[1] == answered.mask.shape[1] else logits[0]
        token = int(row[-1].argmax())
        if token in ends:
            break
        ids.append(token)
    # a token's text may depend on what comes before it, so the whole is decoded and the prompt cut off
    before = model.tokenizer.decode(prompt, skip_special_tokens=True)
    return model.tokenizer.decode(ids, skip_special_tokens=True)[len(before) :]


def _find_answers(model: TextModel, request: _Request) -> Answers:
    if not request.context:
        raise InputError("question answering needs a text to look in", hint="give it with --context")
    answers = []
    for encoding in model.encode(request.texts, request.context):
        answered = model.run([encoding])
        rows = [answered.outputs.get(name) for name in ("start_logits", "end_logits")]
        if rows[0] is None or rows[1] is None:
            raise InputError("has no start_logits and end_logits", where=str(model.session.path))
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        if not inside.any():
            raise InputError("the question leaves no room for the text", hint="ask a shorter question")
        start, end = (softmax(np.where(inside, row[0][answered.mask[0]], -np.inf)) for row in rows if row is not None)
        first, last, score = best_span(start, end)
        begin, finish = encoding.offsets[first][0], encoding.offsets[last][1]
        answers.append(Answer(answer=request.context[begin:finish], score=score, start=begin, end=finish))
    return Answers(
        task=request.task, texts=request.texts, answers=tuple(answers), notes=tuple(dict.fromkeys(model.notes))
    )


def best_span(start: Array, end: Array) -> tuple[int, int, float]:
    """Return first and last token of the likeliest answer, and its probability.

    Args:
        start: float [tokens], how likely an answer starts at a token.
        end: float [tokens], how likely it ends there.
    """
    size = len(start)
    allowed = np.triu(np.ones((size, size))) - np.triu(np.ones((size, size)), k=MAX_ANSWER_TOKENS)
    scores = np.outer(start, end) * allowed
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(first), int(last), float(scores[first, last])


_ANSWERS: Mapping[str, Callable[[TextModel, _Request], TextResult]] = {
    "embeddings": _embed,
    "classification": _classify,
    "zero_shot": _classify,
    "ranking": _rank,
    "token_labels": _label_words,
    "mask_fills": _fill_masks,
    "continuations": _continue,
    "answers": _find_answers,
}


# Images


def _run_images(folder: Path, session: Session, config: Mapping[str, Any], request: _Request) -> TextResult:
    from onnxopt.run.inputs.image import read_images

    outputs = read_images(folder, session, [Path(text) for text in request.texts])
    if request.task == "image-classification":
        return classification(request.task, request.texts, _logits(outputs, session), config)
    names = [name for name in ("image_embeds", "pooler_output", "last_hidden_state") if name in outputs]
    name = names[0] if names else _embedding_output(session)
    values = outputs[name].astype(np.float32)
    # the first token of a vision transformer stands for the image
    vectors = values[:, 0] if values.ndim == 3 else values.reshape(len(values), -1)
    return embeddings(request.task, request.texts, name, vectors)


# Sounds


def _run_sounds(folder: Path, session: Session, config: Mapping[str, Any], request: _Request) -> TextResult:
    task, texts = request.task, request.texts
    found = hear(folder, session, [Path(text) for text in texts])
    kind = TASKS[task].answer if task in TASKS else "embeddings"
    if kind == "continuations":  # of the heads of speech, the one that hears without writing
        return transcripts(task, texts, found, folder, config)
    if kind == "frame_labels":
        return frame_labels(task, texts, found, config)
    if kind == "classification":
        return classification(task, texts, np.stack([_logits(one.outputs, session) for one in found]), config)
    name, values, notes = vectors(found)
    return embeddings(task, texts, name, values, notes)


# Shared


def _logits(outputs: Feeds, session: Session) -> Array:
    if "logits" in outputs:
        return outputs["logits"]
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    raise InputError(f"no output is called logits: {', '.join(outputs)}", where=str(session.path))

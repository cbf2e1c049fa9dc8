"""Calibration data: texts, images, sounds or ready feeds, as inputs of a model that hold no padding.

Rows of one batch have one length, so no position is padding and none can enter a statistic. Texts are cut to what the
model takes; a language model's texts are joined and cut into windows. Every source is split in three, in turns: most
of it is for fitting, some for choosing among fits, and the rest is never looked at until the result is judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxopt.calibrate.pairs import paired_rows
from onnxopt.calibrate.sounds import sound_feeds
from onnxopt.calibrate.sources import IMAGE_TYPES, NONE, RANDOM, SELF, SOUND_TYPES, require_there
from onnxopt.errors import InputError
from onnxopt.graph.cache import PAST, SEQUENCE, Cache, complete
from onnxopt.graph.roles import meanings_of
from onnxopt.host.files import read_npz
from onnxopt.load.loaded import Loaded
from onnxopt.records.quantization import CalibrationRecord
from onnxopt.run.inputs.sound import PROCESSOR_NAME, WHOLE_PROCESSOR_NAME
from onnxopt.run.sounds import hears
from onnxopt.spec import Array, Feeds
from onnxopt.tasks.table import TASKS
from onnxopt.texts.builtin import builtin_texts
from onnxopt.texts.files import BUILTIN, HUB_PREFIX, LEAST_SAMPLES, read_data_set, read_texts
from onnxopt.texts.tokenizer import prefix_ids
from onnxopt.texts.windows import cut_text, windows_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES = 256  # texts of the builtin source, and at most of any other unless asked otherwise
WINDOW = 256  # tokens of a language model's samples
LONGEST = 256  # tokens of a text of the builtin source
MOST_TOKENS = 512  # of a text of any other source, where the model does not say what it takes
BATCH_TOKENS = 1024  # of one run: bounds the memory of what is captured
Part = Literal["fit", "choose", "judge"]
# of eight samples five fit, one chooses and two judge
_TURN: tuple[Part, ...] = ("fit", "judge", "fit", "choose", "fit", "judge", "fit", "fit")


@dataclass(frozen=True)
class CalibrationData:
    """Samples of one source, ready for a model.

    Attributes:
        record: what they are.
        rows: token ids of each sample; empty for other kinds.
        ready: feeds of each sample, for images and feeds of the user.
        texts: the texts behind `rows`, where they are texts of their own.
        types: segments of the tokens of rows that are pairs of texts; those of every other row are the first.
    """

    record: CalibrationRecord
    rows: tuple[tuple[int, ...], ...] = ()
    ready: tuple[Feeds, ...] = ()
    texts: tuple[str, ...] = ()
    types: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict, repr=False)
    _loaded: Loaded | None = field(default=None, repr=False)

    def part(self, part: Part) -> list[int]:
        """Return the places of the samples that serve one purpose."""
        count = len(self.rows) or len(self.ready)
        found = [place for place in range(count) if _TURN[place % len(_TURN)] == part]
        return found or list(range(count))  # forced data may be a single sample

    def batches(self, part: Part, *, batch_tokens: int = BATCH_TOKENS, most: int | None = None) -> Iterator[Feeds]:
        """Yield feeds without padding: samples of one length together, no more than `batch_tokens` at a time.

        Args:
            part: which samples.
            batch_tokens: the most tokens of a batch that holds several samples.
            most: the most samples.
        """
        places = self.part(part)[:most]
        if self.ready:
            yield from (self.ready[place] for place in places)
            return
        by_length: dict[int, list[int]] = {}
        for place in places:
            by_length.setdefault(len(self.rows[place]), []).append(place)
        for length, same in sorted(by_length.items()):
            together = max(1, batch_tokens // length)
            for start in range(0, len(same), together):
                yield self.feeds([self.rows[place] for place in same[start : start + together]])

    def feeds(self, rows: Sequence[Sequence[int]]) -> Feeds:
        """Return the model's inputs for rows of token ids of one length, with an empty past."""
        if self._loaded is None:
            raise ValueError("ready feeds are not made of token ids")
        types = [self.types.get(tuple(row), (0,) * len(row)) for row in rows]
        return feeds_of(self._loaded, np.array(rows, np.int64), np.array(types, np.int64))


def feeds_of(loaded: Loaded, ids: Array, types: Array | None = None) -> Feeds:
    """Return a model's inputs for int64 [batch, tokens] ids without padding.

    Args:
        loaded: the model.
        ids: of the tokens.
        types: segments of the tokens, of the same shape; the first for all when None.

    Raises:
        InputError: the model takes something that ids say nothing about.
    """
    batch, length = ids.shape
    sizes = complete({"batch": batch, SEQUENCE: length, PAST: 0})
    made: Feeds = {}
    read = False  # a second input of numbers for each token holds something else: languages, say
    meanings = meanings_of(loaded.signature)
    for spec in loaded.signature.inputs:
        meaning = meanings[spec.name]
        if meaning == "past":
            array: Array = np.zeros(spec.shape(sizes))
        elif meaning == "mask":
            array = np.ones((batch, length))
        elif meaning == "types" and len(spec.axes) == 2:
            array = np.zeros((batch, length)) if types is None else types
        elif meaning == "positions":
            array = np.broadcast_to(np.arange(length), (batch, length))
        elif len(spec.axes) == 2 and "int" in spec.dtype and not read:
            array, read = ids, True
        else:
            raise InputError(
                f"calibration texts say nothing about the input {spec.name!r}",
                where=loaded.name,
                hint="give feeds: --calibration feeds.npz",
            )
        made[spec.name] = array.astype(spec.dtype)
    return made


def read_calibration(
    loaded: Loaded, source: str | Path = BUILTIN, *, samples: int | None = None, force: bool = False
) -> CalibrationData:
    """Read calibration data for a model.

    Args:
        loaded: the model, with its tokenizer or processor among its assets.
        source: `builtin` for prose of CPython's manuals, of what hears for sounds that are made; `random` for the
            model's own random inputs, which must be forced; a file of text (paragraphs) or of JSON entries, a folder of
            images or of .wav files, an .npz file or a folder of them (one array per input, samples along the first
            axis); or `hf:name[:split[:column]]` for a data set.
        samples: the most samples; 256 when not given.
        force: accept random data, or less than it takes to say something.

    Raises:
        InputError: the source cannot be read, does not fit the model, or says too little.
    """
    name, most = str(source), samples or SAMPLES
    if name == SELF:
        raise InputError("a model writes its own calibration text while it is quantized", where="--calibration self")
    if name == NONE:
        hint = f"give samples, or use {BUILTIN}"
        raise InputError("only weights in fewer bits do without samples", where="--calibration none", hint=hint)
    require_there(name, samples)
    if name == BUILTIN and hears(loaded.signature.inputs) and not (loaded.random_weights and not _prepares(loaded)):
        data = _of_feeds(loaded, sound_feeds(loaded, None, most), name)
    elif name == RANDOM or (loaded.random_weights and name == BUILTIN and _tokenizer(loaded) is None):
        data = _random(loaded, most, forced=force or loaded.random_weights)
    elif name.startswith(HUB_PREFIX):
        data = _of_texts(loaded, read_data_set(name.removeprefix(HUB_PREFIX), most), name, most)
    elif name == BUILTIN:
        data = _of_texts(loaded, builtin_texts(), name, most)
    else:
        data = _of_path(loaded, Path(source).expanduser(), most)
    if data.record.samples < LEAST_SAMPLES and not force:
        raise InputError(
            f"{data.record.samples} calibration samples say too little about ranges",
            where=name,
            hint=f"give at least {LEAST_SAMPLES}, or force it with --force-calibration, which marks the result",
        )
    meaningless = data.record.meaningless or data.record.samples < LEAST_SAMPLES
    return CalibrationData(
        data.record.model_copy(update={"meaningless": meaningless}),
        data.rows,
        data.ready,
        data.texts,
        data.types,
        loaded,
    )


def judging_alone(loaded: Loaded) -> CalibrationData:
    """Return samples to judge a result by that nothing was fitted to: its weights alone decided.

    Args:
        loaded: the model.

    Raises:
        InputError: there are no samples for such a model but a user's own.
    """
    data = read_calibration(loaded)
    return replace(data, record=data.record.model_copy(update={"source": f"{NONE}, judged by {data.record.source}"}))


def _of_path(loaded: Loaded, path: Path, most: int) -> CalibrationData:
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file())
        arrays = [one for one in files if one.suffix == ".npz"]
        images = [one for one in files if one.suffix.lower() in IMAGE_TYPES]
        sounds = [one for one in files if one.suffix.lower() in SOUND_TYPES]
        if arrays:
            return _of_feeds(loaded, [feeds for one in arrays for feeds in _read_feeds(loaded, one)][:most], path.name)
        if images:
            return _of_images(loaded, images[:most], path.name)
        if sounds and hears(loaded.signature.inputs):
            return _of_feeds(loaded, sound_feeds(loaded, sounds, most), path.name)
        raise InputError("the calibration folder has neither images nor .wav nor .npz files", where=str(path))
    if path.suffix == ".npz":
        return _of_feeds(loaded, _read_feeds(loaded, path)[:most], path.name)
    if path.suffix.lower() in IMAGE_TYPES:
        return _of_images(loaded, [path], path.name)
    return _of_texts(loaded, read_texts(path), path.name, most)


def _prepares(loaded: Loaded) -> bool:
    """Tell whether something says how sounds or images become inputs."""
    return any(one.name in (PROCESSOR_NAME, WHOLE_PROCESSOR_NAME) for one in loaded.assets)


def _tokenizer(loaded: Loaded) -> Tokenizer | None:
    from onnxopt.texts.tokenizer import TOKENIZER_NAME, open_tokenizer

    file = next((asset for asset in loaded.assets if asset.name == TOKENIZER_NAME), None)
    if file is None:
        return None
    return open_tokenizer(file.parent)


def _of_texts(loaded: Loaded, texts: Sequence[str], name: str, most: int) -> CalibrationData:
    tokenizer = _tokenizer(loaded)
    if tokenizer is None:
        raise InputError(
            "the model has no tokenizer.json, so texts cannot be its calibration data",
            where=loaded.name,
            hint="put tokenizer.json beside the model, or give feeds: --calibration feeds.npz",
        )
    limit = int(loaded.origin.get("context_length", 0) or 0)
    kept: list[str] = []
    task = TASKS.get(loaded.task)
    if task is not None and (task.pairs == "must" or task.answer == "zero_shot"):
        types = paired_rows(tokenizer, texts[:most], min(MOST_TOKENS, limit or MOST_TOKENS))
        return CalibrationData(_record(name, list(types)), tuple(types), types=types)
    if Cache.of(loaded.signature) is not None or loaded.task == "text-generation":
        rows = windows_of(tokenizer, texts, min(WINDOW, limit or WINDOW), most)
    else:
        longest = min(LONGEST if name == BUILTIN else MOST_TOKENS, limit or MOST_TOKENS)
        kept = list(texts[:most])
        rows = [cut_text(tokenizer, text, longest) for text in kept]
        kept = [text for text, row in zip(kept, rows, strict=True) if row]
        rows = [row for row in rows if row]
    return CalibrationData(_record(name, rows), tuple(rows), texts=tuple(kept))


def prefix_of(loaded: Loaded) -> tuple[int, ...]:
    """Return the tokens with which a model's tokenizer begins a text; none without a tokenizer."""
    tokenizer = _tokenizer(loaded)
    return prefix_ids(tokenizer) if tokenizer is not None else ()


def of_rows(loaded: Loaded, rows: Sequence[Sequence[int]], name: str) -> CalibrationData:
    """Return calibration data of token ids that are known already.

    Args:
        loaded: the model.
        rows: ids of each sample, without padding.
        name: where they come from.
    """
    return CalibrationData(_record(name, rows), tuple(tuple(row) for row in rows), _loaded=loaded)


def _record(name: str, rows: Sequence[Sequence[int]]) -> CalibrationRecord:
    lengths = [len(row) for row in rows]
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([len(row), *row], "<i8").tobytes())
    return CalibrationRecord(
        source=name,
        samples=len(rows),
        shortest=min(lengths, default=0),
        longest=max(lengths, default=0),
        tokens=sum(lengths),
        sha256=digest.hexdigest(),
    )


def _of_feeds(loaded: Loaded, ready: Sequence[Feeds], name: str, *, meaningless: bool = False) -> CalibrationData:
    digest = hashlib.sha256()
    for feeds in ready:
        for spec in loaded.signature.inputs:
            digest.update(np.ascontiguousarray(feeds[spec.name]).tobytes())
    record = CalibrationRecord(source=name, samples=len(ready), sha256=digest.hexdigest(), meaningless=meaningless)
    return CalibrationData(record, ready=tuple(ready))


def _read_feeds(loaded: Loaded, path: Path) -> list[Feeds]:
    """Read samples along the first axis of one array per input; nothing pickled is ever opened."""
    try:
        arrays = read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be read as .npz ({error})", where=str(path), hint="write it with numpy.savez"
        ) from error
    if not arrays:
        raise InputError("holds nothing", where=str(path), hint="write it with numpy.savez")
    for spec in loaded.signature.inputs:
        if spec.name not in arrays:
            raise InputError(
                f"has no array {spec.name!r}",
                where=str(path),
                hint=f"give one for each of {', '.join(one.name for one in loaded.signature.inputs)}",
            )
        array = arrays[spec.name]
        if (
            array.ndim == 0
            or array.ndim != len(spec.axes)
            or any(
                isinstance(axis, int) and axis != size
                for axis, size in list(zip(spec.axes, array.shape, strict=True))[1:]
            )
        ):
            raise InputError(
                f"array {spec.name!r} has shape {list(array.shape)}, the model takes {list(spec.axes)}", where=str(path)
            )
        if array.dtype.kind != np.dtype(spec.dtype).kind:
            raise InputError(f"array {spec.name!r} is {array.dtype}, the model takes {spec.dtype}", where=str(path))
    counts = {len(arrays[spec.name]) for spec in loaded.signature.inputs}
    if len(counts) != 1:
        raise InputError(
            f"the arrays have {sorted(counts)} samples", where=str(path), hint="give as many of each input"
        )
    return [
        {spec.name: arrays[spec.name][place : place + 1].astype(spec.dtype) for spec in loaded.signature.inputs}
        for place in range(counts.pop())
    ]


def _of_images(loaded: Loaded, paths: Sequence[Path], name: str) -> CalibrationData:
    from onnxopt.run.inputs.image import SETTINGS_NAME, open_image, prepare
    from onnxopt.texts.tokenizer import read_settings

    file = next((asset for asset in loaded.assets if asset.name == SETTINGS_NAME), None)
    if file is None:
        raise InputError(
            f"the model has no {SETTINGS_NAME}, so images cannot be its calibration data",
            where=loaded.name,
            hint=f"put {SETTINGS_NAME} beside the model, or give feeds: --calibration feeds.npz",
        )
    if len(loaded.signature.inputs) != 1:
        raise InputError("the model takes more than pixels", where=loaded.name, hint="give feeds as .npz")
    settings, spec = read_settings(file.parent, SETTINGS_NAME), loaded.signature.inputs[0]
    ready = [{spec.name: prepare(open_image(path), settings).astype(spec.dtype)[None]} for path in paths]
    return _of_feeds(loaded, ready, name)


def _random(loaded: Loaded, most: int, *, forced: bool) -> CalibrationData:
    if not forced:
        raise InputError(
            "random calibration data says nothing about the ranges of real inputs",
            hint="give real data, or force it with --force-calibration, which marks the result",
        )
    axes = [axis for axis in loaded.signature.axes if axis != PAST]
    sizes = {axis: 1 if axis == "batch" else loaded.usual(axis, 32) for axis in axes}
    if PAST in loaded.signature.axes:
        sizes[PAST] = 0
    ready = [loaded.feeder.make(complete(sizes), "none", seed=1000 + number) for number in range(min(most, 32))]
    return _of_feeds(loaded, ready, RANDOM, meaningless=True)

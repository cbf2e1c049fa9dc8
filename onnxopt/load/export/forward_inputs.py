"""Find by trying which optional arguments of a model's `forward` its answer depends on, and what may stand in them.

Whoever calls a model of transformers with the optional arguments left out gets an answer, and it may be another one:
that of a page without its boxes, of a text without its picture. So every optional tensor of the signature is tried, on
made-up values of a kind and in a range that the model takes, and the answers with and without it are compared. No
architecture is named here; what is, are the words that transformers uses in all signatures alike.

What makes an argument an input of the exported file: it has a place for every token (or is the image beside the text),
and the answer changes with it. What reads the table of words is other text, not a property of this one: GPT-2 takes
segments so, which no tokenizer makes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.quiet import quiet
from onnxopt.load.export.processors import made_by_processors
from onnxopt.spec import Array, TensorSpec
from onnxopt.tasks.task import IMAGE_BATCH

LEFT_OUT = "left out: "  # how a note begins that must be read before anything else of a result
# Words of transformers' signatures, the same for every architecture: what training compares with, what stands for the
# ids, what an earlier call or another network has made, and places that are counted where they are not given.
_NO_INPUT = re.compile(
    r"labels?$|^(start|end)_positions$|^inputs_embeds$|^(en|de)coder_|encoder_outputs$|^past_|^cache|_cache$"
    r"|^mems$|^states?$|^position_ids$|head_mask$"
)
_KEPT = ("input_ids", "attention_mask", "pixel_values")  # without which nothing runs, of a text or an image
_BATCH, _SEQUENCE = "batch", "sequence"
_SIZES: tuple[dict[str, int], ...] = (  # of trial runs
    {_BATCH: 2, _SEQUENCE: 7, IMAGE_BATCH: 1},
    {_BATCH: 3, _SEQUENCE: 5, IMAGE_BATCH: 2},
)
_ITEMS = 3  # entities, regions, ...: neither rows nor tokens of the first trial run
_COLUMNS = range(2, 65)  # of an argument with several numbers for each token, such as the corners of a box
_IMAGE_SIZE = 224  # what image models without a word mean
_CHANGED = 1e-5  # of the largest value: float32 rounds below it, and nothing was rounded differently here
_SEEDS = (0, 1)


@dataclass(frozen=True)
class ExtraInput:
    """An input of a model besides ids, mask and token types.

    Attributes:
        spec: name, dtype and axes.
        counts: how many values there are from 0 on, for each column of the last axis, or one number where that is
            `sequence`; empty for real numbers, which are about normal.
        corners: the second half of the columns is not below the first: the corners of boxes.
        region: ones stand where the image is, from its corner on, and zeros where it was filled up.
    """

    spec: TensorSpec
    counts: tuple[int, ...] = ()
    corners: bool = False
    region: bool = False

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Return made-up values of a shape, in the dtype of the input."""
        if self.region:
            return self._regions(shape, rng)
        if not self.counts:
            return rng.standard_normal(shape).astype(self.spec.dtype)
        counts = np.array(self.counts) if len(self.counts) > 1 else np.array(self.counts[0])
        made = rng.integers(0, np.broadcast_to(counts, shape))
        if self.corners:
            half = shape[-1] // 2
            first, second = made[..., :half].copy(), made[..., half:].copy()
            made[..., :half], made[..., half:] = np.minimum(first, second), np.maximum(first, second)
        return np.asarray(made).astype(self.spec.dtype)

    def _regions(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Return ones over at least half of each side of every row, of shape [batch, height, width]."""
        made = np.zeros(shape, self.spec.dtype)
        for row in made:
            height, width = (int(rng.integers((side + 1) // 2, side + 1)) for side in row.shape)
            row[:height, :width] = 1
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON can hold."""
        return {
            "name": self.spec.name,
            "dtype": self.spec.dtype,
            "axes": list(self.spec.axes),
            "counts": list(self.counts),
            "corners": self.corners,
            "region": self.region,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ExtraInput:
        """Read what `to_json` wrote."""
        spec = TensorSpec(content["name"], content["dtype"], tuple(content["axes"]))
        return cls(spec, tuple(content["counts"]), bool(content["corners"]), bool(content.get("region")))


@dataclass(frozen=True)
class FoundInputs:
    """What came of trying.

    Attributes:
        taken: have a place in the exported file.
        dependent: the answer depends on them, and there is no place for them.
        unknown: nothing that was made for them runs.
    """

    taken: tuple[ExtraInput, ...] = ()
    dependent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def optional_tensors(network: Any) -> dict[str, str]:
    """Return the tensors that `forward` takes besides what every model has, with what the signature says of each."""
    found: dict[str, str] = {}
    for name, one in inspect.signature(network.forward).parameters.items():
        if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or _NO_INPUT.search(name):
            continue
        kind = one.annotation if isinstance(one.annotation, str) else getattr(one.annotation, "__name__", "")
        kind = kind if kind and kind != "_empty" and "|" in kind else f"{kind} {one.annotation}"
        given = one.default is None or one.default is one.empty
        if given and re.match(r"^\W*(class )?\W*(typing\.Optional\[)?(torch\.)?\w*Tensor\b", kind.strip()):
            found[name] = kind
    return found


def find_inputs(
    network: Any,
    config: Any,
    base: Sequence[TensorSpec],
    *,
    made: frozenset[str],
    outputs: Sequence[str],
    without: Iterable[str] = (),
) -> FoundInputs:
    """Try every optional tensor of a model's `forward`, one after the other, beside those that were found so far.

    Args:
        network: transformers' module, for inference.
        config: its config.
        base: the inputs that it has in any case, ids or pixels first.
        made: names of what its processors make.
        outputs: what the answer is; all tensors where none of them is given.
        without: names that are not tried.

    Returns:
        What takes part in the answer.
    """
    known = {spec.name for spec in base} | set(without)
    names = {name: kind for name, kind in optional_tensors(network).items() if name not in known}
    if base[0].name == "pixel_values":  # what no processor makes of an image is for training: hidden patches, noise
        names = {name: kind for name, kind in names.items() if name in made}
    if not names:
        return FoundInputs()
    trial = _Subject(network, config, tuple(base), tuple(outputs))
    taken: list[ExtraInput] = []
    dependent: list[str] = []
    silent: list[str] = []
    unknown: list[str] = []
    for name, kind in names.items():
        extra = trial.shape_of(name, kind)
        if extra is None:
            unknown.append(name)
        elif not trial.matters(extra) or (trial.reads_words(extra) and name not in made):
            silent.append(name)
        elif trial.has_own_number(extra):
            dependent.append(name)
        else:
            taken.append(extra)
            trial = trial.beside(extra)
    for name in tuple(unknown):
        if trial.matters_beside(name, [other for other in (*unknown, *silent) if other != name]):
            dependent.append(name)
            unknown.remove(name)
    return FoundInputs(tuple(taken), tuple(dependent), tuple(unknown))


def drop_inputs(
    network: Any, base: Sequence[TensorSpec], without: Iterable[str], *, where: str
) -> tuple[TensorSpec, ...]:
    """Return the inputs that a model has in any case, less those that its user does not want.

    Raises:
        InputError: for a name that is none of what can be left out.
    """
    names = tuple(without)
    able = [spec.name for spec in base if spec.name not in _KEPT]
    able += [name for name in optional_tensors(network) if name not in {spec.name for spec in base}]
    _require_known(names, able, network, where)
    return tuple(spec for spec in base if spec.name not in names)


def _require_known(names: Iterable[str], able: Sequence[str], network: Any, where: str) -> None:
    wrong = next((name for name in names if name not in able), None)
    if wrong is not None:
        raise InputError(
            f"{type(network).__name__} has no input {wrong!r} that could be left out",
            where=where,
            hint=f"--without takes {', '.join(able)}" if able else "drop --without",
        )


def inputs_of_pair(network: Any, taken: Sequence[TensorSpec], without: Iterable[str], *, where: str) -> tuple[str, ...]:
    """Say what is left out of an encoder-decoder, whose parts take what one reads and the other writes alone.

    Args:
        network: transformers' module.
        taken: the inputs of a part.
        without: inputs that its user leaves out.
        where: its source, for messages.

    Returns:
        What must be said.

    Raises:
        InputError: when its processors make something that would be left out, such as pictures beside the text.
    """
    names, known = tuple(without), {*_KEPT[:2], network.main_input_name, *(spec.name for spec in taken)}
    able = [name for name in optional_tensors(network) if name not in known]
    _require_known(names, able, network, where)
    found = FoundInputs(unknown=tuple(name for name in able if name not in names))
    made = made_by_processors(network.config.model_type)
    require_inputs(found, made=made, keeps=True, title=type(network).__name__, where=where)
    return tuple(left_out_notes(found, names))


def require_inputs(found: FoundInputs, *, made: frozenset[str], keeps: bool, title: str, where: str) -> None:
    """Refuse a model whose answer depends on what its file would not take.

    Args:
        found: what came of trying.
        made: names of what its processors make.
        keeps: the file can take inputs besides ids and mask; one that writes token by token cannot.
        title: the model's class.
        where: its source, for messages.

    Raises:
        InputError: names what would be left out, and the option that says so knowingly.
    """
    sure = [*found.dependent, *([] if keeps else [extra.spec.name for extra in found.taken])]
    lost = [*sure, *(name for name in found.unknown if name in made)]
    if lost:
        verb = "depends on" if len(sure) == len(lost) else "depends, or may depend, on"
        raise InputError(
            f"the answer of {title} {verb} {', '.join(lost)}, for which the exported file would have no input",
            where=where,
            hint=f"leave it out knowingly with --without {','.join(lost)}",
        )


def left_out_notes(found: FoundInputs, without: Iterable[str]) -> list[str]:
    """Return what must be said before anything else: what the file does not take though `forward` does."""
    asked = ", ".join(without)
    notes = [f"{LEFT_OUT}{asked}, as asked with --without: answers are those of the model without it"] if asked else []
    if found.unknown:
        notes.append(f"{LEFT_OUT}{', '.join(found.unknown)}: optional in the model, and no values are known for it")
    return notes


def choose_inputs(
    network: Any,
    plain: tuple[TensorSpec, ...],
    image_size: tuple[int, ...],
    *,
    outputs: Sequence[str],
    writes: bool,
    without: Iterable[str],
    where: str,
) -> tuple[tuple[ExtraInput, ...], tuple[str, ...]]:
    """Return the inputs that a model needs besides the plain ones, found by trying.

    Args:
        network: transformers' module, for inference.
        plain: the inputs that it has in any case, ids or pixels first.
        image_size: height and width of its images; empty for text.
        outputs: what the answer is.
        writes: it writes token by token; then it takes ids and mask alone.
        without: inputs that its user leaves out.
        where: its source, for messages.

    Returns:
        The inputs, and what must be said of what is left out.

    Raises:
        InputError: when the answer depends on something that would be left out.
    """
    made = made_by_processors(network.config.model_type)
    sized = (replace(plain[0], axes=(*plain[0].axes[:-2], *image_size)), *plain[1:]) if image_size else plain
    found = find_inputs(network, network.config, sized, made=made, outputs=outputs, without=without)
    require_inputs(found, made=made, keeps=not writes, title=type(network).__name__, where=where)
    axes = plain[0].axes
    # what an image model takes beside its pixels has their height and width
    extras = (
        replace(one, spec=replace(one.spec, axes=(axes[0], *axes[-2:])), region=one.counts == (2,))
        if image_size
        else one
        for one in found.taken
    )
    return tuple(extras), tuple(left_out_notes(found, without))


@dataclass(frozen=True)
class _Subject:
    """A model on a small text or image, with what it takes for sure.

    Attributes:
        network: transformers' module.
        config: its config.
        base: inputs in any case.
        outputs: what the answer is.
        extras: inputs that have been found.
        answers: to nothing more than that, once it was asked.
    """

    network: Any
    config: Any
    base: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    extras: tuple[ExtraInput, ...] = ()
    answers: list[list[Array] | None] = field(default_factory=list)

    def beside(self, extra: ExtraInput) -> _Subject:
        """Return the same with one input more."""
        return _Subject(self.network, self.config, self.base, self.outputs, (*self.extras, extra))

    def answer(self, given: Mapping[str, Array], sizes: Mapping[str, int] = _SIZES[0]) -> list[Array] | None:
        """Return what the model answers, None where it does not run."""
        import torch

        feeds = {**self._feeds(sizes), **given}
        try:
            with torch.inference_mode(), quiet():
                tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
                result = self.network(**tensors, return_dict=True)
        except Exception:  # noqa: BLE001  whatever a model raises, it says no
            return None
        values = {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
        names = [name for name in self.outputs if name in values] or list(values)
        return [values[name].float().numpy() for name in names]

    def alone(self) -> list[Array] | None:
        """Return what the model answers without anything more."""
        if not self.answers:
            self.answers.append(self.answer({}))
        return self.answers[0]

    def shape_of(self, name: str, kind: str) -> ExtraInput | None:
        """Find a shape that runs at two lengths, and the range of values; None when there is none."""
        for spec in self._shapes(name, kind):
            start = 1 if spec.axes[1:] and _SEQUENCE not in spec.axes else 0  # a page of which nothing is shown is none
            runs = (self.answer({name: np.full(spec.shape(sizes), start, spec.dtype)}, sizes) for sizes in _SIZES)
            if all(found is not None for found in runs):
                return self._with_range(spec)
        return None

    def matters(self, extra: ExtraInput) -> bool:
        """Tell whether the answer changes with any values of an input."""
        if extra.counts and max(extra.counts) < 2:
            return False
        shape = extra.spec.shape(_SIZES[0])
        draws = (extra.draw(shape, np.random.default_rng(seed)) for seed in _SEEDS)
        return any(self._changes({extra.spec.name: values}) for values in draws)

    def reads_words(self, extra: ExtraInput) -> bool:
        """Tell whether the model looks an input up in the table of words."""
        table = None if self.base[0].name == "pixel_values" else self._words()
        if table is None:
            return False
        calls: list[None] = []
        handle = table.register_forward_hook(lambda *_: calls.append(None))
        try:
            self.answer({})
            words = len(calls)
            self.answer({extra.spec.name: np.zeros(extra.spec.shape(_SIZES[0]), extra.spec.dtype)})
        finally:
            handle.remove()
        return 0 < words < len(calls) - words

    def has_own_number(self, extra: ExtraInput) -> bool:
        """Tell whether an input with a place for every token may have as well any other number of places."""
        other = {**_SIZES[0], _SEQUENCE: _ITEMS}
        return _SEQUENCE in extra.spec.axes and self._changes(
            {extra.spec.name: extra.draw(extra.spec.shape(other), np.random.default_rng(0))}
        )

    def matters_beside(self, name: str, others: Sequence[str]) -> bool:
        """Tell whether the answer changes with an argument that runs beside another one only.

        Entities have a number of their own and come with their places, without which they mean nothing.
        """
        flat = np.zeros((_SIZES[0][_BATCH], _ITEMS), np.int64)
        pairs = ((other, shape) for other in others for shape in (flat.shape, (*flat.shape, 2)))
        return any(self._changes({name: flat, other: np.zeros(shape, np.int64)}) for other, shape in pairs)

    def _changes(self, given: Mapping[str, Array]) -> bool:
        found, alone = self.answer(given), self.alone()
        return found is not None and (alone is None or _differ(found, alone))

    def _feeds(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        rng = np.random.default_rng(sizes[_SEQUENCE])
        made: dict[str, Array] = {}
        for spec in self.base:
            shape = tuple(sizes.get(axis, _IMAGE_SIZE) if isinstance(axis, str) else axis for axis in spec.axes)
            if spec.dtype == "float32":
                made[spec.name] = rng.standard_normal(shape).astype(np.float32)
            elif "mask" in spec.name:
                made[spec.name] = np.ones(shape, spec.dtype)
            elif spec is self.base[0]:
                made[spec.name] = rng.choice(self._ordinary(), size=shape).astype(spec.dtype)
            else:
                made[spec.name] = np.zeros(shape, spec.dtype)
        for extra in self.extras:
            made[extra.spec.name] = extra.draw(extra.spec.shape(sizes), rng)
        return made

    def _words(self) -> Any:
        """Return the table of words; None where the network has none, or does not say where it is."""
        try:
            return self.network.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # of two towers, or of pictures alone
            return None

    def _ordinary(self) -> Array:
        """Return ids that mean a word, not a mark or the place of a picture."""
        words = int(getattr(self._words(), "num_embeddings", 0) or 64)
        special = {
            value
            for part in _parts(self.config)
            for key, value in part.items()
            if isinstance(value, int) and re.search(r"token_(id|index)$", key)
        }
        return np.array([one for one in range(min(words, 64)) if one not in special] or [0])

    def _shapes(self, name: str, kind: str) -> Iterator[TensorSpec]:
        """Yield what an argument may look like: a number or several for each token, one for each text, an image."""
        dtypes = [dtype for word, dtype in _KINDS if word in kind] or ["int64", "float32"]
        if self.base[0].name == "pixel_values":
            yield from (TensorSpec(name, dtype, (_BATCH, *self.base[0].axes[-2:])) for dtype in dtypes)
            return
        for dtype in dtypes:
            yield TensorSpec(name, dtype, (_BATCH,))
            yield TensorSpec(name, dtype, (_BATCH, _SEQUENCE))
        for channels, height, width in _image_sizes(self.config):
            yield TensorSpec(name, "float32", (_BATCH, channels, height, width))
            yield TensorSpec(name, "int64", (_BATCH, height, width))
        for dtype in dtypes:
            for columns in (1, *_COLUMNS) if dtype == "int64" else (1, 4, *self._numbers()) if dtype != "bool" else ():
                spec = TensorSpec(name, dtype, (_BATCH, _SEQUENCE, columns))
                if columns == 1 and self.answer({name: np.zeros(spec.shape(_SIZES[0]), dtype)}) is not None:
                    break  # what takes any number of columns has none
                yield spec

    def _with_range(self, spec: TensorSpec) -> ExtraInput:
        """Return an input of a shape that runs, with the range of its values."""
        if spec.dtype == "float32":
            return ExtraInput(spec)
        if spec.dtype == "bool":
            return ExtraInput(spec, (2,))
        shape = spec.shape(_SIZES[0])
        columns = shape[-1] if _SEQUENCE in spec.axes[1:2] and len(shape) == 3 else 1

        def alike(value: int) -> Array:
            return np.full(shape, value, spec.dtype)

        together = self._count(spec.name, alike)
        if columns == 1:
            return ExtraInput(spec, (together,))
        counts = []
        for column in range(columns):
            own = np.arange(columns) == column
            count = self._count(spec.name, lambda value, own=own: alike(value) * own)  # type: ignore[misc]  # a default
            counts.append(max(together, count))
        corners = columns % 2 == 0 and self.answer({spec.name: alike(1) * (np.arange(columns) < columns // 2)}) is None
        return ExtraInput(spec, tuple(counts), corners)

    def _count(self, name: str, make: Callable[[int], Array]) -> int:
        """Return how many values an input takes: as many as the largest table that is not left, 2 where none is."""
        import torch

        tables = {one.num_embeddings for one in self.network.modules() if isinstance(one, torch.nn.Embedding)}
        if self.answer({name: make(max(tables, default=0) + 1)}) is not None:
            return 2  # nothing is looked up: a flag
        count = 1
        for size in sorted({2, *(size for size in tables if size > 1)}):
            if self.answer({name: make(size - 1)}) is None:
                break
            count = size
        return count

    def _numbers(self) -> list[int]:
        """Return the sizes that the config names, which a last axis may have."""
        found = {value for part in _parts(self.config) for value in part.values() if type(value) is int and value > 1}
        return sorted(value for value in found if value <= 1 << 14)


_KINDS = (("LongTensor", "int64"), ("IntTensor", "int64"), ("BoolTensor", "bool"), ("FloatTensor", "float32"))


def _differ(found: Sequence[Array], alone: Sequence[Array]) -> bool:
    """Tell whether two answers are not the same but for rounding."""
    if [one.shape for one in found] != [one.shape for one in alone]:
        return True
    for left, right in zip(found, alone, strict=True):
        scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
        if not float(np.max(np.abs(left - right), initial=0.0)) <= _CHANGED * scale:
            return True
    return False


def _parts(config: Any) -> list[dict[str, Any]]:
    """Return a config and those inside it as mappings."""
    whole = config.to_dict()
    return [whole, *(value for value in whole.values() if isinstance(value, dict))]


def _image_sizes(config: Any) -> list[tuple[int, int, int]]:
    """Return channels, height and width of images that a config speaks of, its own first."""
    found: list[tuple[int, int, int]] = []
    for part in _parts(config):
        channels = part.get("num_channels") or 3
        for key in ("image_size", "input_size"):
            size = part.get(key)
            pair = size if isinstance(size, (list, tuple)) else (size, size)
            if len(pair) == 2 and all(isinstance(one, int) and one > 0 for one in pair):
                found.append((int(channels), int(pair[0]), int(pair[1])))
    return list(dict.fromkeys([*found, (3, _IMAGE_SIZE, _IMAGE_SIZE)]))

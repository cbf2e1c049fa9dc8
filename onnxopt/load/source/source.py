"""Find what the user named: an .onnx file, a checkpoint folder, a recipe, or a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from onnxopt.errors import InputError, word
from onnxopt.host.extras import require
from onnxopt.load.source.gguf import convert_gguf
from onnxopt.load.source.recipe import Recipe, all_recipes
from onnxopt.load.source.samples import fetch_sample
from onnxopt.records.manifest import MANIFEST_NAME, Manifest

Weights = Literal["pretrained", "random"]
Kind = Literal["onnx", "folder", "sample", "hub", "architecture"]

# What a model needs from the Hub. Pickled weights (.bin, .pt, .ckpt, ...) run code when read and are left out.
HUB_FILES = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "[0-9]_*/*.json",
    "[0-9]_*/*.safetensors",
)
HUB_FILES_NOT = (
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*"),
    *("consolidated*.safetensors", "*.fp16.safetensors"),  # the same weights once more
)
HUB_FILES_SMALL = tuple(pattern for pattern in HUB_FILES if not pattern.endswith(".safetensors"))
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

ENDINGS = (".onnx", ".gguf")  # of the files that are sources
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        text: what the user wrote.
        name: short name for the artifact; ends in `-random` for made-up weights.
        kind: `onnx` a file, `folder` a local checkpoint, `sample` a recipe's own weights, `hub` a snapshot of a Hub
            model, `architecture` a recipe's numbers, without any file.
        path: the file or the folder; None for `architecture`.
        weights: `random` builds the architecture with made-up weights.
        recipe: what the project knows about this model, if it has a recipe.
        revision: the Hub's commit, when there is one.
        trust_remote_code: whether code that the checkpoint brings along may run.
        notes: what the ledger should say about how it was fetched.
        made: what a step did to the model that `text` names, such as `pruned`; `path` is then the step's folder.
    """

    text: str
    name: str
    kind: Kind
    path: Path | None
    weights: Weights = "pretrained"
    recipe: Recipe | None = None
    revision: str = ""
    trust_remote_code: bool = False
    notes: tuple[str, ...] = ()
    made: str = ""

    def after(self, step: str, folder: Path) -> Source:
        """Return the checkpoint that a step made of this one: records and messages name what the user named.

        Args:
            step: what it did, such as `pruned`.
            folder: that it wrote, with a `config.json` and weights.
        """
        # a recipe's counts and weights are those of the whole model; its task and workload hold for what is left
        recipe = self.recipe and replace(self.recipe, expected={}, sample=None)
        return replace(self, kind="folder", path=folder, recipe=recipe, notes=(), made=step)


def resolve(
    text: str,
    *,
    weights: Weights = "pretrained",
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Source:
    """Find the model that `text` names, downloading it when it is not on this machine.

    Tried in this order: an existing .onnx or .gguf file, an existing checkpoint folder, a recipe's name, a Hub id.

    Args:
        text: what the user wrote.
        weights: `random` needs no weights: the architecture of a recipe or of a config.json is enough.
        revision: branch, tag or commit on the Hub.
        offline: use only what is already on this machine.
        trust_remote_code: allow code from the checkpoint; off unless the user asks for it.
        progress: told what is being done.

    Returns:
        The source, present on this machine.

    Raises:
        InputError: when nothing of that name can be had, with what to do instead.
    """
    require_known(text, weights)
    path = Path(text).expanduser()
    local = _local(text, path, weights, trust_remote_code=trust_remote_code, progress=progress)
    if local:
        return local
    recipes = all_recipes()
    recipe = recipes.get(text)
    if recipe and recipe.sample and weights == "pretrained":
        found = _sample(text, recipe, progress)
        return replace(found, notes=(*found.notes, _beside(text))) if path.is_dir() else found
    recipe = recipe or next((one for one in recipes.values() if one.source == text), None)
    name = _named(text.rsplit("/", 1)[-1], weights)
    if recipe and recipe.architecture and weights == "random":
        return Source(text, name, "architecture", None, weights, recipe)
    folder = _from_hub(text, recipe, weights, revision, offline=offline, progress=progress)
    _refuse_pickled_only(folder, weights, shown=text)
    notes = (_beside(text),) if path.is_dir() else ()
    return Source(text, name, "hub", folder, weights, recipe, folder.name, trust_remote_code, notes)


def require_known(text: str, weights: Weights = "pretrained") -> None:
    """Refuse a name under which there is nothing, without fetching or converting what there is.

    Args:
        text: what the user wrote.
        weights: as `resolve` takes them.

    Raises:
        InputError: as `resolve` does; whether the Hub has a model of that name is not asked.
    """
    path = Path(text).expanduser()
    if path.suffix == ".onnx":
        if not path.is_file():
            raise _nowhere(text, path, {})
        if weights == "random":
            what = "random weights need an architecture, not an .onnx file"
            raise InputError(what, where=text, hint="drop --weights random")
        return
    if path.suffix == ".gguf":
        if not path.exists():
            raise _nowhere(text, path, {})
        if path.is_file():
            return
    if (path / "config.json").is_file():
        _refuse_artifact(text, path, weights)
        _refuse_pickled_only(path, weights)
    else:
        recipes = all_recipes()
        if text not in recipes and path.exists():
            raise _no_source(text, path)
        if text not in recipes and (is_path(text) or not _HUB_ID.fullmatch(text)):
            raise _nowhere(text, path, recipes)
    require("hf", "making a graph of a checkpoint", where=text, instead="give an .onnx file of it")


def _local(
    text: str, path: Path, weights: Weights, *, trust_remote_code: bool, progress: Callable[[str], None] | None
) -> Source | None:
    """Return the file or checkpoint folder at `path`, if there is one."""
    if path.suffix == ".onnx":
        stem = path.resolve().parent.name if path.stem == "model" else path.stem
        return Source(text, _named(stem, weights), "onnx", path, weights)
    if path.suffix == ".gguf" and path.is_file():
        folder = convert_gguf(path, progress=progress)
        return Source(text, _named(path.stem, weights), "folder", folder, weights, notes=(_dequantized(path),))
    if not (path / "config.json").is_file():
        return None
    name = _named(path.resolve().name, weights)
    hidden = next((one for one in all_recipes().values() if text in (one.name, one.source)), None)
    notes = (
        (f"the folder {text} was taken, which is here, and not the model that is known by that name",) if hidden else ()
    )
    return Source(text, name, "folder", path, weights, trust_remote_code=trust_remote_code, notes=notes)


def _sample(text: str, recipe: Recipe, progress: Callable[[str], None] | None) -> Source:
    """Return the checkpoint that a recipe has beside the Hub."""
    folder = fetch_sample(recipe, progress=progress)
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is None:
        return Source(text, recipe.name, "sample", folder, recipe=recipe)
    converted = convert_gguf(gguf, progress=progress)
    return Source(text, recipe.name, "sample", converted, recipe=recipe, notes=(_dequantized(gguf),))


def _dequantized(path: Path) -> str:
    return f"the weights of {path.name} were dequantized to float32"


def is_path(text: str) -> bool:
    """Tell whether what a user wrote can only be a path: by how it begins or ends, or by how many folders it names."""
    return text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1 or text.endswith((*ENDINGS, "/"))


def _nowhere(text: str, path: Path, recipes: dict[str, Recipe]) -> InputError:
    """Say that there is nothing of that name, and for a path how far it leads."""
    if not is_path(text):
        return InputError(f"no such file, folder or model: {text!r}", hint=_alternatives(recipes))
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    near = (
        get_close_matches(path.name, [one.name for one in there.iterdir()], 1)
        if there == path.absolute().parent
        else ()
    )
    hint = f"did you mean {path.with_name(near[0])}?" if near else "check the path"
    return InputError("no such file or folder", where=text, hint=hint)


def _no_source(text: str, path: Path) -> InputError:
    """Say what is there under a name that is no source, and how to get at one that it hides."""
    if not path.is_dir():
        return InputError("is neither an .onnx or .gguf file nor a folder with a config.json", where=text)
    files = sorted(one.name for one in path.iterdir() if one.suffix in ENDINGS)
    hint = f"name the file in it: {path / files[0]}" if files else "name the folder of a checkpoint, or a file"
    if _HUB_ID.fullmatch(text) and not is_path(text):
        hint += "; the Hub's model of that name is found from a folder where this one is not"
    return InputError(
        "is a folder without a config.json, so it is neither an .onnx file nor a checkpoint", where=text, hint=hint
    )


def _beside(text: str) -> str:
    return f"a folder {text} is here, too, and is no checkpoint: the model that is known by that name was taken"


def _refuse_artifact(text: str, path: Path, weights: Weights) -> None:
    """Refuse what `optimize` has made, which has the config and the tokenizer of a checkpoint, and no weights."""
    if weights == "random" or any(path.glob("*.safetensors")) or not (path / MANIFEST_NAME).is_file():
        return
    try:
        made = Manifest.read(path)
    except InputError:
        return
    model = next((f" or {path / name}" for name in sorted(made.files) if name.endswith(".onnx") and not made.parts), "")
    known = any(text in (one.name, one.source) for one in all_recipes().values())
    elsewhere = f"; the model {text} is found from a folder where this one is not" if known else ""
    raise InputError(
        "is an artifact, made by onnxopt",
        where=text,
        hint=f"name what it was made from ({word(str(made.origin.get('source', '')))}){model}{elsewhere}",
    )


def _named(text: str, weights: Weights) -> str:
    """Return a name that any file system takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
    return f"{plain}-random" if weights == "random" else plain


def _refuse_pickled_only(folder: Path, weights: Weights, *, shown: str = "") -> None:
    """Refuse a checkpoint without safetensors: reading pickled weights runs whatever code is in them."""
    if weights == "random" or any(folder.glob("*.safetensors")):
        return
    where = shown or str(folder)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"the weights are pickled ({pickled[0]}), and reading those can run code",
            where=where,
            hint="convert the checkpoint to safetensors with save_pretrained",
        )
    raise InputError(
        "the checkpoint has no *.safetensors weights",
        where=where,
        hint="give a folder or model that has them, or --weights random to try the architecture",
    )


def _alternatives(recipes: dict[str, Recipe], wanted: Recipe | None = None) -> str:
    """Return what can be done without the Hub, as one clause; shorter for a recipe that names its stand-in."""
    if wanted and wanted.stand_in:
        other = recipes[wanted.stand_in]
        return (
            f"without the Hub use {other.name} ({other.title}), which has real weights, or --weights random, "
            f"which builds {wanted.name} with made-up weights to try its structure and speed"
        )
    samples = [name for name, recipe in recipes.items() if recipe.sample]
    built = [name for name, recipe in recipes.items() if recipe.architecture and not recipe.sample]
    return (
        f"without the Hub use {' or '.join(samples)}, a local checkpoint folder (config.json, *.safetensors, "
        f"tokenizer.json), or --weights random, which builds an architecture ({', '.join(built)}, or any folder with a "
        "config.json) with made-up weights to try its structure and speed"
    )


def _from_hub(
    text: str,
    recipe: Recipe | None,
    weights: Weights,
    revision: str | None,
    *,
    offline: bool,
    progress: Callable[[str], None] | None,
) -> Path:
    """Return the folder of a Hub snapshot; only data files, and without weights when those are made up."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    name = recipe.source if recipe else text
    if progress:
        progress(f"looking for {name} on {constants.ENDPOINT}")
    wanted = HUB_FILES_SMALL if weights == "random" else HUB_FILES
    disable_progress_bars()
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(HUB_FILES_NOT),
            local_files_only=offline,
            etag_timeout=10,
        )
    except Exception as error:
        raise _hub_error(name, recipe, revision, error, offline=offline) from error
    finally:
        enable_progress_bars()
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise InputError(
            "has no config.json, so it is no transformers checkpoint", where=name, hint=_alternatives(all_recipes())
        )
    return path


def _hub_error(
    name: str, recipe: Recipe | None, revision: str | None, error: Exception, *, offline: bool
) -> InputError:
    """Say in one line why the Hub gave no model."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    # in order of how much they say: a gated repository is also a repository that was not found
    known: list[tuple[type[BaseException], str, str]] = [
        (errors.HFValidationError, "is no valid name of a Hub model", ""),
        (errors.GatedRepoError, "is gated", f"accept its terms at {constants.ENDPOINT}/{name} and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "is not on the Hub, or is private", "check the spelling, or set HF_TOKEN"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r} on the Hub", "name another, or none"),
    ]
    for kind, what, hint in known:
        if any(isinstance(one, kind) for one in chain):
            return InputError(what, where=name, hint=hint or _alternatives(all_recipes()))
    statuses = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    status = next((code for code in statuses if code), None)
    if status:
        return InputError(f"the Hub answered HTTP {status}", where=name, hint="set HF_TOKEN, or try again later")
    if offline or constants.HF_HUB_OFFLINE:
        hub = "the Hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub is switched off"
    else:
        hub = f"the Hub ({constants.ENDPOINT}) cannot be reached"
    what = f"is no file or folder here, is not in the cache, and {hub}"
    return InputError(what, where=name, hint=_alternatives(all_recipes(), recipe))

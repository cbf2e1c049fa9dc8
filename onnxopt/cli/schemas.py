"""The JSON Schema of each object that the command line prints, made from the records behind it: `onnxopt schema`.

It loads what the commands are made of, so nothing but `onnxopt schema` imports it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_type_hints

from pydantic import Field, TypeAdapter, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import Required, TypedDict

from onnxopt.artifact.clients import STACKS
from onnxopt.artifact.placement import Placement
from onnxopt.cli.progress import Line
from onnxopt.compress.report import Compression
from onnxopt.distill.settings import Distillation
from onnxopt.host.checkup import Checkup
from onnxopt.host.failures import SCHEMA_VERSION, Failure
from onnxopt.judge.perplexity import Perplexity
from onnxopt.pipeline.explain import Description, Verdict
from onnxopt.pipeline.inspection import Inspection
from onnxopt.proof.compare import Comparison
from onnxopt.prune.run import PruneRecord
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Measurements
from onnxopt.records.quantization import SensitivityRecord
from onnxopt.records.record import Record
from onnxopt.road.described import attributes
from onnxopt.run.generate.written import Generation
from onnxopt.run.results import TextResult
from onnxopt.tasks.listed import ListedTask
from onnxopt.timing.bench import BenchResult

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NO_NUMBERS = ["Infinity", "-Infinity", "NaN"]


class Answer(Record):
    """What a command prints with `--json`.

    Attributes:
        schema_version: of this schema; it rises when a key goes or means something else, and stays when one is added.
    """

    schema_version: Literal[1] = SCHEMA_VERSION


class Optimized(Answer):
    """What `optimize` made.

    Attributes:
        path: the folder of the artifact.
        manifest: what the artifact says of itself, its `manifest.json`.
        measurements: its `measurements.json`; null where nothing was measured.
    """

    path: str
    manifest: Manifest
    measurements: Measurements | None


class Passes(Answer):
    """The passes, those of onnxopt first.

    Attributes:
        passes: one entry each.
    """

    passes: tuple[Description, ...]


class Tasks(Answer):
    """What models can be asked to do.

    Attributes:
        tasks: one entry each.
    """

    tasks: tuple[ListedTask, ...]


class Explained(Answer):
    """Why a pass fires or not.

    Attributes:
        pass_: its name.
        candidates: every node at which it could start.
    """

    pass_: str = Field(alias="pass")
    candidates: tuple[Verdict, ...]


class Pruned(Answer):
    """What `prune` made.

    Attributes:
        path: the folder that was written.
        pruning: what was pruned, its `pruning.json`.
    """

    path: str
    pruning: PruneRecord


class Distilled(Answer):
    """What `distill` made.

    Attributes:
        path: the folder that was written, or the job.
        distillation: how the student was taught, its `distillation.json`; null where a job was written.
    """

    path: str
    distillation: Distillation | None


class Compressed(Answer):
    """What `compress` made.

    Attributes:
        path: the folder of the artifact.
        compression: what each step did.
    """

    path: str
    compression: Compression


class Ranked(Answer):
    """What quantizing each layer alone costs.

    Attributes:
        layers: all that were tried, the most harmful first.
    """

    layers: tuple[SensitivityRecord, ...]


class CacheEntry(Record):
    """One entry of the cache.

    Attributes:
        kind: what it is.
        name: of its folder or file.
        bytes: of its files.
        used: when it was last used, ISO 8601.
        finished: false where a process ended before it was whole.
    """

    kind: str
    name: str
    bytes: int
    used: str
    finished: bool


class Cache(Answer):
    """What is in the cache folder.

    Attributes:
        path: the folder.
        freed_bytes: of what `cache clear` removed.
        removed: how many entries that were.
        entries: what is there, or has stayed.
    """

    path: str
    freed_bytes: int
    removed: int
    entries: tuple[CacheEntry, ...]


class Client(Record):
    """A client that was added to an artifact.

    Attributes:
        command: how it is run in its folder, to check the artifact.
        ask: how it is given texts there; empty where it takes none.
        files: what was written, by path in the artifact.
    """

    command: str
    ask: str
    files: tuple[str, ...]


class Schema(Record):
    """An object that is printed.

    Attributes:
        name: what `onnxopt schema` takes.
        about: what it is.
    """

    name: str
    about: str


class Listed(Answer):
    """What there is a schema of.

    Attributes:
        schemas: one entry each.
    """

    schemas: tuple[Schema, ...]


class Failed(Answer):
    """What is printed in place of an answer when a command fails.

    Attributes:
        error: why.
    """

    error: Failure


def _flat(kind: type[Any], base: type[Record] = Answer) -> type[Any]:
    """Return a record whose keys are those of another record or of a dataclass, with the version in front."""
    if issubclass(kind, Record):
        return type(kind.__name__, (kind, base), {"__doc__": kind.__doc__, "__module__": __name__})
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {one.name: (hints[one.name], ...) for one in dataclasses.fields(kind)}
    return create_model(kind.__name__, __base__=base, __doc__=kind.__doc__, **fields)


def _either(*kinds: Any) -> Any:
    """Return the union of types that are known at run time only."""
    return Union[kinds]  # noqa: UP007  # `|` takes no tuple


SCHEMAS: Mapping[str, tuple[str, Any]] = {
    "optimize": ("the artifact that was made: its manifest and its measurements", Optimized),
    "inspect": ("what a graph takes, gives and is made of", _flat(Inspection)),
    "passes": ("the passes", Passes),
    "tasks": ("what models can be asked to do", Tasks),
    "explain": ("why a pass fires on a graph or not", Explained),
    "verify": (
        "how two models compare; with `error` where they differ",
        _either(_flat(Comparison), type("Different", (_flat(Comparison, Failed),), {"__doc__": Comparison.__doc__})),
    ),
    "bench": ("latencies of models side by side", _flat(BenchResult)),
    "run": ("the answers of a model, by its task", _either(*(_flat(kind) for kind in get_args(TextResult)))),
    "generate": ("texts that a language model wrote, and how fast", _flat(Generation)),
    "perplexity": ("how well a language model predicts a text", _flat(Perplexity)),
    "placement": ("where the nodes of a model run", _flat(Placement)),
    "package": (
        "the clients that were added, by stack",
        TypedDict(  # type: ignore[operator]  # the stacks are known at run time
            "Packaged", {"schema_version": Required[Literal[1]], **dict.fromkeys(STACKS, Client)}, total=False
        ),
    ),
    "prune": ("what was pruned", Pruned),
    "distill": ("how a student was taught", Distilled),
    "compress": ("what each step of a recipe did", Compressed),
    "sensitivity": ("what quantizing each layer alone costs", Ranked),
    "doctor": ("what is installed and what is missing", _flat(Checkup)),
    "cache": ("what is in the cache folder", Cache),
    "schema": ("the schemas there are", Listed),
    "error": ("what is printed in place of any of these when a command fails", Failed),
    "progress": ("a line on standard error with `--progress json`", Line),
}


class _Generator(GenerateJsonSchema):
    """Describes what is written: every key, with what its docstring says of it."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Every key is written, but those of a mapping that has some of them."""
        if field["type"] == "typed-dict-field":
            return bool(field.get("required", total))
        return True

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """A number, or the word for what JSON has no number for."""
        return {"anyOf": [super().float_schema(schema), {"enum": _NO_NUMBERS}]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A record."""
        return _with_words(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """A dataclass, whose keys are known as those of a record are."""
        return {**_with_words(super().dataclass_schema(schema), schema["cls"]), "additionalProperties": False}

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        """A mapping whose keys are known."""
        return {**super().typed_dict_schema(schema), "additionalProperties": False}


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of an object that is printed.

    Args:
        name: one of `SCHEMAS`.
    """
    about, kind = SCHEMAS[name]
    found = TypeAdapter(kind).json_schema(mode="serialization", schema_generator=_Generator)
    return {"$schema": _DIALECT, **found, "title": f"onnxopt {name}", "description": about}


def _with_words(schema: JsonSchemaValue, kind: type[Any]) -> JsonSchemaValue:
    """Return the schema of a class with what its docstring, or that of a class behind it, says of its keys."""
    said: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        said |= attributes(inspect.cleandoc(one.__doc__ or ""))
    names = {key: key if key in said else f"{key}_" for key in schema.get("properties", {})}
    properties = {
        key: {**value, **({"description": said[names[key]]} if names[key] in said else {})}
        for key, value in schema.get("properties", {}).items()
    }
    summary = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return {**schema, "properties": properties, "description": " ".join(summary.split())}

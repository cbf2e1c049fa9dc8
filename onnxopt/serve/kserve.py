"""The KServe v2 protocol (Open Inference Protocol) over HTTP: any model, tensors in, tensors out.

Source: KServe, "Open Inference Protocol (V2)", required API; tensors as JSON, and as bytes behind the JSON with the
header `Inference-Header-Content-Length` (Triton's binary tensor data extension, which tritonclient uses by default).

A key that the protocol does not have is refused. Of parameters, those that would change the answer are refused
(shared memory, classification), and all others are accepted and ignored, as the protocol leaves them to servers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from onnxopt.errors import word
from onnxopt.serve.answers import COPIES, JSON_BYTES, Numbers, count_letters, encoded, hold_answer, with_numbers
from onnxopt.serve.parsing import Readers
from onnxopt.serve.problems import Json, Problem, place_of
from onnxopt.serve.reader import BEYOND, TENSORS, Packed
from onnxopt.serve.shelf import Served, Shelf
from onnxopt.serve.texts import off_loop
from onnxopt.spec import Array, Feeds, TensorSpec

MAX_DIGITS = 19  # of a number that is a size
router = APIRouter(prefix="/v2")

LENGTH_HEADER = "Inference-Header-Content-Length"
DATATYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
MAX_RANK = 32  # NumPy's arrays have 64 axes at most, and no model comes near
_Size = Annotated[int, Field(ge=0, lt=1 << 63)]
# as the reader packs it, nested or flat as it was sent
_Data = Annotated[
    Packed | None,
    Field(fail_fast=True),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {}}, {"type": "null"}], "default": None}),
]
_UNSUPPORTED = frozenset({"classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"})
_ITEM_BYTES = {dtype: 1 if dtype == "bool" else int("".join(filter(str.isdigit, dtype))) // 8 for dtype in DATATYPES}
_DTYPES = {name: dtype for dtype, name in DATATYPES.items()}


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    binary_data: bool = False
    binary_data_size: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _only_supported(self) -> _Parameters:
        for name in _UNSUPPORTED & set(self.model_extra or {}):
            raise ValueError(f"{name} is not supported")
        return self


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    shape: Annotated[list[_Size], Field(fail_fast=True, max_length=MAX_RANK)]
    datatype: str
    data: _Data = None
    parameters: _Parameters = _Parameters()


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: _Parameters | None = None


class _Options(BaseModel):
    model_config = ConfigDict(extra="allow")

    binary_data_output: bool = False


class _Inference(BaseModel):
    """Body of an inference request."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    inputs: Annotated[list[_Tensor], Field(fail_fast=True)]
    outputs: Annotated[list[_Output], Field(fail_fast=True)] | None = None
    parameters: _Options = _Options()

    @property
    def wanted(self) -> list[str] | None:
        """Names of the outputs that are asked for; None for all of them, which an empty list asks for as well."""
        return [output.name for output in self.outputs] if self.outputs else None


def _inlined(schema: Any, known: Mapping[str, Any]) -> Any:
    """Return a JSON schema with what it refers to put in its place, as a part of another document needs it."""
    if isinstance(schema, list):
        return [_inlined(one, known) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {key: _inlined(value, known) for key, value in schema.items() if key != "$defs"}


# the handler reads the body itself, since bytes may follow the JSON
_SCHEMA = _Inference.model_json_schema()
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"])}},
    }
}


@router.get("")
async def server() -> Response:
    """Describe the server."""
    from onnxopt.version import __version__

    return Json({"name": "onnxopt", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live")
@router.get("/health/ready")
async def health() -> Response:
    """Say that the server is there; a stopping one accepts no connection."""
    return Response()


@router.get("/models/{name}")
@router.get("/models/{name}/versions/1")
async def metadata(request: Request, name: str) -> Response:
    """Describe inputs and outputs of a model; -1 is any size."""
    served = _served(request, name)
    return Json(
        {
            "name": name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [_described(spec) for spec in served.session.inputs],
            "outputs": [_described(spec) for spec in served.session.outputs],
        }
    )


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/1/ready")
async def ready(request: Request, name: str) -> Response:
    """Say that a model is there."""
    _served(request, name)
    return Response()


@router.post("/models/{name}/infer", openapi_extra=_BODY)
@router.post("/models/{name}/versions/1/infer", openapi_extra=_BODY)
async def infer(request: Request, name: str) -> Response:
    """Run a model."""
    served = _served(request, name)
    body = await request.body()
    size = _json_size(request.headers.get(LENGTH_HEADER), len(body))
    readers: Readers = request.app.state.readers
    asked = _asked(await readers.read(body[:size], TENSORS))
    feeds = _feeds(served, asked.inputs, body[size:])
    hold_answer(request, _answer_bytes(served, asked, feeds))
    found = await served.run(feeds, asked.wanted)
    return await _answered(served, asked, found)


def _json_size(said: str | None, whole: int) -> int:
    """Return how many bytes of a body are JSON, as its header says."""
    if said is None:
        return whole
    if not (said.isascii() and said.isdigit() and len(said) < MAX_DIGITS and int(said) <= whole):
        raise Problem(400, f"the header {LENGTH_HEADER} is not a number from 0 to {whole}, the size of the body")
    return int(said)


def _asked(body: Any) -> _Inference:
    try:
        asked = _Inference.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = place_of(first["loc"])
        raise Problem(422, f"{place}: {first['msg']}" if place else first["msg"]) from error
    for kind, names in (
        ("input", [one.name for one in asked.inputs]),
        ("output", [one.name for one in asked.outputs or ()]),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise Problem(422, f"{kind} {word(twice)!r} is there twice")
    return asked


def _served(request: Request, name: str) -> Served:
    shelf: Shelf = request.app.state.shelf
    return shelf.get(name)


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": DATATYPES.get(spec.dtype, spec.dtype), "shape": shape}


def _feeds(served: Served, tensors: Sequence[_Tensor], raw: bytes) -> Feeds:
    feeds: Feeds = {}
    at = 0
    for tensor in tensors:
        name, dtype = word(tensor.name), _DTYPES.get(tensor.datatype)
        if dtype is None:
            raise Problem(422, f"input {name!r}: unknown datatype {word(tensor.datatype)!r}")
        count, size = math.prod(tensor.shape), tensor.parameters.binary_data_size
        if size is None:
            array = _from_json(tensor, dtype)
        else:
            array = _from_bytes(tensor, dtype, raw[at : at + size])
            at += size
        if array.size != count:
            raise Problem(422, f"input {name!r}: {array.size} elements, the shape {tensor.shape} has {count}")
        try:
            feeds[tensor.name] = array.reshape(tensor.shape)
        except ValueError as error:  # without elements, but of sizes whose product no machine can count
            raise Problem(422, f"input {name!r}: the shape {tensor.shape} is too large") from error
    if at != len(raw):
        raise Problem(422, f"{len(raw)} bytes behind the JSON, the inputs speak of {at}")
    served.session.check(feeds)
    return feeds


def _from_json(tensor: _Tensor, dtype: str) -> Array:
    name = word(tensor.name)
    if tensor.data is None or dtype == "bfloat16":
        raise Problem(422, f"input {name!r} has no data that JSON can hold")
    kind, raw = tensor.data
    if not kind:
        raise Problem(422, f"input {name!r}: the data is not a regular array of numbers")
    wanted = np.dtype(dtype)
    if wanted.kind in "iu" and kind == "d":
        raise Problem(422, f"input {name!r}: the data is not {tensor.datatype}")
    plain = np.frombuffer(raw, "?" if kind == "?" else f"={kind}") if kind != BEYOND else None
    bounds = np.iinfo(wanted) if wanted.kind in "iu" else None
    if plain is None or (bounds and plain.size and (int(plain.min()) < bounds.min or int(plain.max()) > bounds.max)):
        raise Problem(422, f"input {name!r}: a number does not fit into {tensor.datatype}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused in the next lines
        array = plain.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise Problem(422, f"input {name!r}: a number is not finite in {tensor.datatype}")
    return array


def _from_bytes(tensor: _Tensor, dtype: str, raw: bytes) -> Array:
    kind = _bfloat16() if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    if len(raw) % kind.itemsize or len(raw) != tensor.parameters.binary_data_size:
        raise Problem(422, f"input {word(tensor.name)!r}: {len(raw)} bytes are no {tensor.datatype}")
    array = np.frombuffer(raw, kind)
    return array if dtype == "bfloat16" else array.astype(dtype)


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


def _answer_bytes(served: Served, asked: _Inference, feeds: Feeds) -> int:
    """Return how many bytes of memory the answer to a request takes, as far as shapes tell.

    An axis of an output that no input has is taken to be as long as the longest that one has.
    """
    open_axes = {
        axis: size
        for spec in served.session.inputs
        for axis, size in zip(spec.axes, feeds[spec.name].shape if spec.name in feeds else (), strict=False)
        if isinstance(axis, str)
    }
    longest, total = max(open_axes.values(), default=1), 0
    wanted, raw = asked.wanted, _as_bytes(asked)
    for spec in served.session.outputs:
        if wanted is None or spec.name in wanted:
            sizes = (axis if isinstance(axis, int) else open_axes.get(axis, longest) for axis in spec.axes)
            per_element = COPIES * _ITEM_BYTES.get(spec.dtype, 8) if raw is None or spec.name in raw else JSON_BYTES
            total += math.prod(sizes) * per_element
    return total


def _as_bytes(asked: _Inference) -> set[str] | None:
    """Return the outputs that are wanted as bytes; None for all."""
    if asked.parameters.binary_data_output and asked.wanted is None:
        return None
    return {output.name for output in asked.outputs or () if output.parameters and output.parameters.binary_data}


async def _answered(served: Served, asked: _Inference, found: Mapping[str, Array]) -> Response:
    """Return outputs as JSON, or as bytes behind it where that was asked for."""
    as_bytes = _as_bytes(asked)
    names = asked.wanted
    order = [spec.name for spec in served.session.outputs] if names is None else names
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name in order:
        array = found[name]
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if as_bytes is None or name in as_bytes:
            plain = array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"), copy=False)
            raw.append(np.ascontiguousarray(plain).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        elif array.dtype.name == "bfloat16":
            raise Problem(422, f"output {name!r} is BF16, which only binary_data can hold")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Problem(422, f"output {name!r} is not finite, which only binary_data can hold")
        else:
            tensor["data"] = Numbers(array)
        tensors.append(tensor)
    content = {"model_name": served.name, "model_version": "1", "outputs": tensors}
    if asked.id is not None:
        content["id"] = asked.id
    if not raw:
        return await with_numbers(content)
    head = await off_loop(lambda: encoded(content), letters=count_letters(content))
    return Response(
        head + b"".join(raw), media_type="application/octet-stream", headers={LENGTH_HEADER: str(len(head))}
    )

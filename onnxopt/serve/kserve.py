"""The KServe v2 protocol (Open Inference Protocol) over HTTP: any model, tensors in, tensors out.

Source: KServe, "Open Inference Protocol (V2)", required API; tensors as JSON, and as bytes behind the JSON with the
header `Inference-Header-Content-Length` (Triton's binary tensor data extension, which tritonclient uses by default).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxopt.serve.problems import Problem
from onnxopt.serve.shelf import Served, Shelf
from onnxopt.spec import Array, Feeds, TensorSpec

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
_DTYPES = {name: dtype for dtype, name in DATATYPES.items()}


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    binary_data: bool = False
    binary_data_size: int | None = Field(default=None, ge=0)


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: _Parameters = _Parameters()


class _Output(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: _Parameters | None = None


class _Options(BaseModel):
    model_config = ConfigDict(extra="allow")

    binary_data_output: bool = False


class _Inference(BaseModel):
    """Body of an inference request."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[_Tensor]
    outputs: list[_Output] | None = None
    parameters: _Options = _Options()


@router.get("")
async def server() -> Response:
    """Describe the server."""
    from onnxopt.version import __version__

    return JSONResponse({"name": "onnxopt", "version": __version__, "extensions": ["binary_tensor_data"]})


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
    return JSONResponse(
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


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/1/infer")
async def infer(request: Request, name: str) -> Response:
    """Run a model."""
    served = _served(request, name)
    body = await request.body()
    given = request.headers.get(LENGTH_HEADER)
    try:
        size = len(body) if given is None else int(given)
        asked = _Inference.model_validate(json.loads(body[:size]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not valid JSON") from error
    feeds = _feeds(served, asked.inputs, body[size:])
    names = None if asked.outputs is None else [output.name for output in asked.outputs]
    found = await served.run(feeds, names)
    return _answered(served, asked, found, names)


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
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None:
            raise Problem(422, f"input {tensor.name!r}: unknown datatype {tensor.datatype!r}")
        if any(size < 0 for size in tensor.shape):
            raise Problem(422, f"input {tensor.name!r}: the shape {tensor.shape} has a negative size")
        count, size = math.prod(tensor.shape), tensor.parameters.binary_data_size
        if size is None:
            array = _from_json(tensor, dtype)
        else:
            array = _from_bytes(tensor, dtype, raw[at : at + size])
            at += size
        if array.size != count:
            raise Problem(422, f"input {tensor.name!r}: {array.size} elements, the shape {tensor.shape} has {count}")
        feeds[tensor.name] = array.reshape(tensor.shape)
    if at != len(raw):
        raise Problem(422, f"{len(raw)} bytes behind the JSON, the inputs speak of {at}")
    served.session.check(feeds)
    return feeds


def _from_json(tensor: _Tensor, dtype: str) -> Array:
    if tensor.data is None or dtype == "bfloat16":
        raise Problem(422, f"input {tensor.name!r} has no data that JSON can hold")
    try:
        plain = np.array(tensor.data)
    except ValueError as error:
        raise Problem(422, f"input {tensor.name!r}: the data is not a regular array") from error
    wanted = np.dtype(dtype)
    if plain.size and (plain.dtype.kind not in "biuf" or (wanted.kind in "iu" and plain.dtype.kind == "f")):
        raise Problem(422, f"input {tensor.name!r}: the data is not {tensor.datatype}")
    if wanted.kind in "iu" and plain.size:
        bounds = np.iinfo(wanted)
        if int(plain.min()) < bounds.min or int(plain.max()) > bounds.max:
            raise Problem(422, f"input {tensor.name!r}: a number does not fit into {tensor.datatype}")
    return plain.astype(wanted).ravel()


def _from_bytes(tensor: _Tensor, dtype: str, raw: bytes) -> Array:
    kind = _bfloat16() if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    if len(raw) % kind.itemsize or len(raw) != tensor.parameters.binary_data_size:
        raise Problem(422, f"input {tensor.name!r}: {len(raw)} bytes are no {tensor.datatype}")
    array = np.frombuffer(raw, kind)
    return array if dtype == "bfloat16" else array.astype(dtype)


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


def _answered(served: Served, asked: _Inference, found: Mapping[str, Array], names: Sequence[str] | None) -> Response:
    """Return outputs as JSON, or as bytes behind it where that was asked for."""
    as_bytes = {output.name for output in asked.outputs or () if output.parameters and output.parameters.binary_data}
    order = [spec.name for spec in served.session.outputs] if names is None else names
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name in order:
        array = found[name]
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if name in as_bytes or (asked.parameters.binary_data_output and names is None):
            plain = array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"), copy=False)
            raw.append(np.ascontiguousarray(plain).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        elif array.dtype.name == "bfloat16":
            raise Problem(422, f"output {name!r} is BF16, which only binary_data can hold")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Problem(422, f"output {name!r} is not finite, which only binary_data can hold")
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    content = {"model_name": served.name, "model_version": "1", "outputs": tensors}
    if asked.id is not None:
        content["id"] = asked.id
    if not raw:
        return JSONResponse(content)
    head = json.dumps(content).encode()
    return Response(
        head + b"".join(raw), media_type="application/octet-stream", headers={LENGTH_HEADER: str(len(head))}
    )

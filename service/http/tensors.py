"""Tensors as the Open Inference Protocol carries them: JSON numbers, or raw bytes behind the JSON.

    body -> InferRequest and the bytes behind it -> feeds that fit the graph -> (run) -> outputs -> JSON, and the bytes behind it

Everything is checked against the graph before it is run, so that a wrong tensor is the caller's error and no neighbour in its batch
notices. https://github.com/kserve/open-inference-protocol, and Triton's extensions "binary_tensor_data" and "classification".
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError, model_validator
from pydantic_core import from_json, to_json

from service.errors import InputError, MalformedBody
from service.http.forms import Data
from service.runtime.session import TensorInfo, Tensors

Array = NDArray[np.generic]
KINDS: dict[str, tuple[str, str]] = {
    "tensor(bool)": ("BOOL", "?"),
    "tensor(int8)": ("INT8", "<i1"),
    "tensor(int16)": ("INT16", "<i2"),
    "tensor(int32)": ("INT32", "<i4"),
    "tensor(int64)": ("INT64", "<i8"),
    "tensor(uint8)": ("UINT8", "<u1"),
    "tensor(uint16)": ("UINT16", "<u2"),
    "tensor(uint32)": ("UINT32", "<u4"),
    "tensor(uint64)": ("UINT64", "<u8"),
    "tensor(float16)": ("FP16", "<f2"),
    "tensor(float)": ("FP32", "<f4"),
    "tensor(double)": ("FP64", "<f8"),
}
"""ONNX's name of a type -> the protocol's, and numpy's. Texts (BYTES) and BF16 are inputs of no model here."""

MAX_HEADER = 8 * 2**20  # bytes of JSON: parsed, each can become some thirty
MAX_LISTS = 2**20  # in that JSON: each costs as much as a hundred bytes of numbers
MAX_NUMBERS = 2**21  # that are answered as JSON: beyond, bytes are the way
MAX_BATCH = 64

Side = Annotated[StrictInt, Field(ge=1, le=2**31)]


class _Sent(BaseModel):
    """A part of a request. Some clients write null for what they leave out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, sent: Any) -> Any:
        return {name: value for name, value in sent.items() if value is not None} if isinstance(sent, dict) else sent


class _Parameters(_Sent):
    """Those that have a meaning here; others are passed over, as the protocol has it."""

    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None
    binary_data: StrictBool | None = None
    binary_data_output: StrictBool | None = None
    classification: StrictInt = Field(0, ge=0)
    timeout: StrictInt = Field(0, ge=0, description="microseconds; 0: the service's own limit")
    shared_memory_region: Any = None


NO_PARAMETERS = _Parameters.model_validate({})


class AskedInput(_Sent):
    name: str
    shape: list[Side] = Field(max_length=16)
    datatype: str
    parameters: _Parameters = NO_PARAMETERS
    data: Any = None


class AskedOutput(_Sent):
    name: str
    parameters: _Parameters = NO_PARAMETERS


class InferRequest(_Sent):
    """The JSON of an inference request."""

    id: str = ""
    parameters: _Parameters = NO_PARAMETERS
    inputs: list[AskedInput] = Field(min_length=1, max_length=64)
    outputs: list[AskedOutput] = Field([], max_length=64)


@dataclass(frozen=True)
class Wanted:
    """One output to answer with. `classes`: how many of the largest values as text, 0 for the tensor itself."""

    name: str
    binary: bool
    classes: int


def datatype(dtype: str) -> str:
    """The protocol's name of ONNX's type `dtype`, like "tensor(float)"; texts are BYTES."""
    return KINDS[dtype][0] if dtype in KINDS else "BYTES" if dtype == "tensor(string)" else dtype


def shape_of(info: TensorInfo) -> list[int]:
    """The shape with -1 for free axes."""
    return [axis if isinstance(axis, int) else -1 for axis in info.shape]


def read_request(body: Data, header_length: int | None) -> tuple[InferRequest, memoryview]:
    """The JSON at the beginning of a body, and what is behind its `header_length` bytes (None: it is the whole body).

    Raises MalformedBody, and InputError naming the key that is wrong.
    """
    whole = memoryview(body)
    end = len(whole) if header_length is None else header_length
    if end > len(whole):
        raise MalformedBody(f"Inference-Header-Content-Length is {end}, but the body has {len(whole)} bytes")
    if end > MAX_HEADER:
        raise MalformedBody(f"the JSON has {end} bytes; at most {MAX_HEADER} are taken, send the tensors as binary data")
    header = bytes(whole[:end])
    if header.count(b"[") + header.count(b"{") > MAX_LISTS:
        raise MalformedBody(f"the JSON has more than {MAX_LISTS} lists; send the numbers of a tensor in one")
    try:
        found = from_json(header, allow_inf_nan=False, cache_strings="keys")
        return InferRequest.model_validate(found), whole[end:]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}") from None
    except ValueError as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from None


def read_feeds(request: InferRequest, behind: memoryview, wanted: Sequence[TensorInfo]) -> dict[str, Array]:
    """The input tensors by name, in the graph's order: each with the shape and type that the graph has, all of one batch size.

    Raises InputError.
    """
    infos, found = {info.name: info for info in wanted}, dict[str, Array]()
    sizes: dict[str, int] = {}
    for asked in request.inputs:
        info = infos.get(asked.name)
        if info is None:
            raise InputError(f"there is no input {asked.name!r:.80}; the model's inputs are: {', '.join(infos)}")
        if asked.name in found:
            raise InputError(f"the input {asked.name!r} is given more than once")
        _check_kind(asked, info)
        _check_shape(asked, info, sizes)
        size = asked.parameters.binary_data_size
        if size is None:
            found[asked.name] = _from_data(asked, info)
        else:
            if asked.data is not None:
                raise InputError(f"the input {asked.name!r} has data and binary_data_size; give one of them")
            if size > len(behind):
                raise InputError(f"binary data: the input {asked.name!r} has {size} bytes, but {len(behind)} are left in the body")
            found[asked.name], behind = _from_bytes(asked, info, behind[:size]), behind[size:]
    if behind:
        raise InputError(f"binary data: {len(behind)} bytes at the end of the body belong to no input")
    missing = [name for name in infos if name not in found]
    if missing:
        raise InputError(f"the input {missing[0]!r} is missing; the model's inputs are: {', '.join(infos)}")
    if len({len(tensor) for tensor in found.values()}) > 1:
        raise InputError("the inputs differ in their first axis, the batch")
    return {name: found[name] for name in infos}


def _check_kind(asked: AskedInput, info: TensorInfo) -> None:
    if info.dtype not in KINDS:
        raise InputError(f"the input {info.name!r} is {datatype(info.dtype)}, which cannot be sent here")
    if asked.datatype in ("BYTES", "BF16"):
        raise InputError(f"the input {info.name!r} is {datatype(info.dtype)}; {asked.datatype} is not taken")
    if asked.datatype != datatype(info.dtype):
        raise InputError(f"the input {info.name!r} is {datatype(info.dtype)}, not {asked.datatype!r:.40}")
    if asked.parameters.shared_memory_region is not None:
        raise InputError(f"the input {info.name!r} is in shared memory, which is not used here; send its data")


def _check_shape(asked: AskedInput, info: TensorInfo, sizes: dict[str, int]) -> None:
    """Against the fixed axes; axes that have the same name have the same length in all inputs."""
    told = f"the input {info.name!r} has the shape {asked.shape}, but the model wants {shape_of(info)}"
    if len(asked.shape) != len(info.shape):
        raise InputError(told)
    for given, axis in zip(asked.shape, info.shape, strict=True):
        if isinstance(axis, int):
            if given != axis:
                raise InputError(told)
        elif axis is not None and sizes.setdefault(axis, given) != given:
            raise InputError(f"{told}, where the axis {axis!r} is {sizes[axis]} already")


def _from_bytes(asked: AskedInput, info: TensorInfo, data: memoryview) -> Array:
    dtype = np.dtype(KINDS[info.dtype][1])
    expected = math.prod(asked.shape) * dtype.itemsize
    if len(data) != expected:
        raise InputError(f"the input {info.name!r} has {len(data)} bytes, but {asked.datatype} {asked.shape} needs {expected}")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"the input {info.name!r} holds other bytes than 0 and 1")
    return np.require(np.frombuffer(data, dtype).reshape(asked.shape), requirements="A")


def _from_data(asked: AskedInput, info: TensorInfo) -> Array:
    """Numbers in one list, or nested as the shape is."""
    if not isinstance(asked.data, list):
        raise InputError(f"the input {info.name!r} has no data: give a list, or bytes behind the JSON with binary_data_size")
    try:
        given = np.array(asked.data, dtype=object)  # whatever it holds: with a type of numbers, texts would be parsed
    except ValueError:
        raise InputError(f"the input {info.name!r} has data whose lists differ in length") from None
    if given.size != math.prod(asked.shape):
        raise InputError(f"the input {info.name!r} has {given.size} numbers, but {asked.shape} needs {math.prod(asked.shape)}")
    if given.ndim != 1 and given.shape != tuple(asked.shape):
        raise InputError(f"the input {info.name!r} has data of the shape {list(given.shape)}, but says {asked.shape}")
    flat = given.ravel().tolist()
    dtype = np.dtype(KINDS[info.dtype][1])
    allowed = {bool} if dtype.kind == "b" else {int, float} if dtype.kind == "f" else {int}
    other = set(map(type, flat)) - allowed
    if other:
        raise InputError(f"the input {info.name!r} is {asked.datatype}, but its data hold a {min(kind.__name__ for kind in other)}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, np.float64 if dtype.kind == "f" else dtype).astype(dtype).reshape(asked.shape)
    except (OverflowError, FloatingPointError):
        raise InputError(f"the input {info.name!r} holds numbers that {asked.datatype} has not") from None


def read_wanted(request: InferRequest, outputs: Sequence[TensorInfo]) -> list[Wanted]:
    """The outputs asked for, all of them where none are named. Raises InputError."""
    kinds = {info.name: info.dtype for info in outputs}
    chosen: list[Wanted] = []
    for asked in request.outputs or [AskedOutput(name=name) for name in kinds]:
        if asked.name not in kinds:
            raise InputError(f"there is no output {asked.name!r:.80}; the model's outputs are: {', '.join(kinds)}")
        if kinds[asked.name] not in KINDS:
            raise InputError(f"the output {asked.name!r} is {datatype(kinds[asked.name])}, which cannot be answered here")
        if asked.name in {one.name for one in chosen}:
            raise InputError(f"the output {asked.name!r} is asked for more than once")
        if asked.parameters.shared_memory_region is not None:
            raise InputError(f"the output {asked.name!r} is asked for in shared memory, which is not used here")
        binary = asked.parameters.binary_data
        every = bool(request.parameters.binary_data_output)
        chosen.append(Wanted(asked.name, every if binary is None else binary, asked.parameters.classification))
    return chosen


def write_answer(
    head: Mapping[str, Any], wanted: Sequence[Wanted], outputs: Tensors, labels: Sequence[str]
) -> tuple[bytes, int | None]:
    """The body: `head` and the `wanted` outputs as JSON, what is binary behind it; and the JSON's length, None where it is all.

    labels: the classes' names, used where there is one for each value. Raises InputError for what JSON cannot carry.
    """
    told, behind = list[dict[str, Any]](), list[bytes]()
    numbers = sum(outputs[one.name].size for one in wanted if not one.binary and not one.classes)
    if numbers > MAX_NUMBERS:
        raise InputError(f"the answer has {numbers} numbers, too many for JSON (at most {MAX_NUMBERS}); ask for binary data")
    for one in wanted:
        tensor = outputs[one.name]
        if one.classes:
            tensor = classify(tensor, one.classes, labels)
        entry: dict[str, Any] = {"name": one.name, "datatype": _kind_of(tensor), "shape": list(tensor.shape)}
        if one.binary:
            behind.append(_to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            entry["data"] = _to_data(one.name, tensor)
        told.append(entry)
    header = to_json({**head, "outputs": told})
    return b"".join((header, *behind)), len(header) if behind else None


def classify(tensor: Array, count: int, labels: Sequence[str]) -> Array:
    """The `count` largest values of each item of a batch, the largest first, as texts [n, count].

    A text is "value:index", or "value:index:label" where there is one label for each value.
    """
    rows = tensor.reshape(len(tensor), -1)
    named = len(labels) == rows.shape[1]
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = [
        [f"{row[index]:f}:{index}" + (f":{labels[index]}" if named else "") for index in indices]
        for row, indices in zip(rows.tolist(), best.tolist(), strict=True)
    ]
    return np.array(texts, dtype=object).reshape(best.shape)


def _kind_of(tensor: Array) -> str:
    return "BYTES" if tensor.dtype == object else next(name for name, kind in KINDS.values() if tensor.dtype == np.dtype(kind))


def _to_bytes(tensor: Array) -> bytes:
    if tensor.dtype == object:  # texts, each behind its length
        raw = [text.encode() for text in tensor.ravel().tolist()]
        return b"".join(struct.pack("<I", len(text)) + text for text in raw)
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()


def _to_data(name: str, tensor: Array) -> list[Any]:
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise InputError(f"the output {name!r} holds numbers that are not finite, which JSON cannot say; ask for binary data")
    return tensor.ravel().tolist()

"""Read an untrusted ONNX file without running anything of it: what goes in, what comes out, and whether it can be used at all."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import ModelRefused
from service.intake.entries import check_entries
from service.intake.words import Port
from service.repository.files import digest_of
from service.repository.spec import Precision
from service.settings import Settings

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

HOUSE_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Operator sets that onnxruntime carries itself; whether it knows a single operator, the trial run shows."""
INT8 = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "DynamicQuantizeLinear"})
MAX_DEPTH = 32
"""Graphs inside graphs (If, Loop): deeper ones are no one's export."""


@dataclass(frozen=True)
class OnnxFile:
    """What a file says of itself. `size` in bytes, with that of `external`: further files that it needs, beside it.

    first_operators: of the nodes that read each input.
    """

    path: Path
    sha256: str
    size: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    producer: str
    opset: int
    operators: Mapping[str, int]
    precision: Precision
    external: tuple[Path, ...]
    first_operators: Mapping[str, tuple[str, ...]]


def read(path: Path, settings: Settings) -> OnnxFile:
    """The file at `path`. Raises ModelRefused where it cannot be used, OSError where it cannot be read."""
    size = path.stat().st_size
    if size > settings.max_model_bytes:
        raise ModelRefused(
            f"{path.name} has {size} bytes, more than the {settings.max_model_bytes} that VISION_MAX_MODEL_BYTES allows"
        )
    model = _parse(path, size)
    _refuse_training(path, model)
    nodes = list(_nodes(model.graph))
    _refuse_domains(path, model, nodes)
    external = _external(path, model, nodes)
    whole = size + sum(file.stat().st_size for file in external)
    if whole > settings.max_model_bytes:
        raise ModelRefused(f"{path.name} and its data have {whole} bytes, more than VISION_MAX_MODEL_BYTES allows")
    weights = {tensor.name for tensor in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    inputs = tuple(_port(path, value, "input") for value in model.graph.input if value.name not in weights)
    outputs = tuple(_port(path, value, "output") for value in model.graph.output)
    if not inputs or not outputs:
        raise ModelRefused(f"{path.name} has no {'outputs' if inputs else 'inputs'}: it is a table of weights, not a network")
    readers = {port.name: tuple(n.op_type for n in model.graph.node if port.name in n.input) for port in inputs}
    return OnnxFile(
        path,
        digest_of(path),
        whole,
        inputs,
        outputs,
        {entry.key: entry.value for entry in model.metadata_props},
        f"{model.producer_name} {model.producer_version}".strip() or "unknown",
        next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1),
        Counter(node.op_type for node in nodes),
        _precision(model, nodes),
        external,
        readers,
    )


def _parse(path: Path, size: int) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    if size == 0:
        raise ModelRefused(f"{path.name} is empty")
    with path.open("rb") as file:
        head = file.read(512)
    start = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise ModelRefused(
            f"{path.name} is a Git LFS pointer, not the file that it points to: run git lfs pull, or download it itself"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelRefused(f"{path.name} is a web page, not an ONNX model: what was downloaded is probably an error page")
    if head.startswith(b"PK\x03\x04") or head.startswith(b"\x80\x02"):
        raise ModelRefused(f"{path.name} looks like a PyTorch file or a zip archive, not an ONNX model; export it to ONNX first")
    if head[4:8] == b"TFL3":
        raise ModelRefused(f"{path.name} is a TensorFlow Lite model; export it to ONNX first")
    check_entries(path)
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        what = "too short to be an ONNX model" if size < 64 else "not a valid ONNX model: damaged, cut short, or of another format"
        raise ModelRefused(f"{path.name} ({size} bytes) is {what}") from None
    if not model.graph.node or not (model.ir_version or model.opset_import):
        raise ModelRefused(f"{path.name} ({size} bytes) is not a valid ONNX model: it holds no network")
    return model


def _refuse_training(path: Path, model: "ModelProto") -> None:
    if model.training_info or any(entry.domain == "ai.onnx.preview.training" for entry in model.opset_import):
        raise ModelRefused(f"{path.name} is a graph for training; export the network for inference")


def _nodes(graph: "GraphProto | FunctionProto", depth: int = 0) -> Iterator["NodeProto"]:
    """Every node, those of graphs inside attributes too."""
    if depth > MAX_DEPTH:
        raise ModelRefused(f"graphs lie in graphs more than {MAX_DEPTH} deep")
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner, depth + 1)


def _refuse_domains(path: Path, model: "ModelProto", nodes: list["NodeProto"]) -> None:
    import onnx

    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        if (node.domain, node.op_type) in own:
            continue
        if node.domain not in HOUSE_DOMAINS or node.op_type.endswith("_TRT"):
            raise ModelRefused(
                f"{path.name} needs the operator {name}, which comes from a library of its own; such libraries are never loaded. "
                "Export the model without it"
            )
        if node.domain in {"", "ai.onnx"} and not onnx.defs.has(node.op_type):
            raise ModelRefused(f"{path.name} needs the operator {name}, which is not known here")


def _external(path: Path, model: "ModelProto", nodes: list["NodeProto"]) -> tuple[Path, ...]:
    """The files that hold data outside of the model. Raises ModelRefused for one missing, or anywhere but beside the model."""
    folder = path.parent.resolve()
    found: dict[str, int] = {}
    for tensor in _tensors(model, nodes):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not _lies_in(folder, location):
            raise ModelRefused(
                f"{path.name} wants to read its weights from {location!r:.120}, outside its own folder, which is not allowed; "
                "put them beside it, or export it as one file"
            )
        if not _is_file(folder / location):
            raise ModelRefused(f"{path.name} needs the file {location!r:.120} with its weights beside it, and that is missing")
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError:
            raise ModelRefused(f"{path.name} does not say where in {location!r:.120} its weights lie") from None
        found[location] = max(found.get(location, 0), end)
    for location, end in found.items():
        if (folder / location).stat().st_size < end:
            raise ModelRefused(f"{location} is shorter than {path.name} says: {end} bytes are needed; it may be cut short")
    return tuple(folder / location for location in found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name
        return False


def _lies_in(folder: Path, location: str) -> bool:
    """Does `location` name something directly in `folder`, without any trick?"""
    target = Path(location)
    try:
        return bool(location) and "\\" not in location and not target.is_absolute() and (folder / target).resolve().parent == folder
    except (OSError, ValueError):  # a name that no system would take
        return False


def _tensors(model: "ModelProto", nodes: list["NodeProto"]) -> Iterator["TensorProto"]:
    yield from _initializers(model.graph)
    functions = [node for function in model.functions for node in _nodes(function)]
    for node in (*nodes, *functions):
        for attribute in node.attribute:
            yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))
            for sparse in (*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])):
                yield from (sparse.values, sparse.indices)
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _initializers(inner)


def _initializers(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _port(path: Path, value: Any, what: str) -> Port:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind in {"sequence_type", "map_type", "optional_type"}:
        hint = "; a classifier of scikit-learn is to be exported with zipmap=False" if what == "output" else ""
        raise ModelRefused(f"the {what} {value.name} of {path.name} is a {kind.removesuffix('_type')}, not a tensor{hint}")
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        raise ModelRefused(f"the {what} {value.name} of {path.name} is text, not numbers")
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(d.dim_value if d.dim_value > 0 else d.dim_param or None for d in tensor.shape.dim)
    return Port(value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape)


def _precision(model: "ModelProto", nodes: list["NodeProto"]) -> Precision:
    import onnx

    if any(node.op_type in INT8 or node.op_type.startswith("QLinear") for node in nodes):
        return "int8"
    weights: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        weights[tensor.data_type] += math.prod(tensor.dims)
    return "float16" if weights[onnx.TensorProto.FLOAT16] > weights[onnx.TensorProto.FLOAT] else "float32"

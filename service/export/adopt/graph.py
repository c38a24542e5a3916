"""From a foreign ONNX file to a graph of the house: read it, free what the exporter fixed, put the house's ends on it."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, checker, compose, external_data_helper, shape_inference

from service.errors import ExportFailed
from service.export.adopt.batch import free_batch
from service.export.adopt.entrance import dims_of, enter, fix_size, picture_size
from service.export.adopt.tail import GIVEN, Output, Tail, read_by, subgraphs
from service.export.contract import Contract, Decoder

Decode = Callable[[Tail, Sequence[Output], Contract], None]
DECODERS: dict[Decoder, str] = {
    "yolov2": "anchors:yolov2",
    "yolov3": "anchors:yolov3",
    "yolov5": "yolo:yolov5",
    "yolov8": "yolo:yolov8",
    "yolox": "yolo:yolox",
    "end-to-end": "yolo:end_to_end",
    "detr": "queries:detr",
    "detr-decoded": "queries:detr_decoded",
    "nanodet": "nanodet:nanodet",
    "nms-indices": "chosen:nms_indices",
    "nms-rows": "chosen:nms_rows",
    "efficient-nms": "chosen:efficient_nms",
    "boxes-labels-scores": "chosen:boxes_labels_scores",
    "logits": "plain:logits",
    "probabilities": "plain:probabilities",
    "embedding": "plain:embedding",
    "picture": "plain:picture",
    "picture-and-style": "plain:picture_and_style",
}
"""Module below service.export.adopt and function, by decoder."""
LARGEST = 2**31 - 1
"""Bytes of one file with all its weights: what protobuf can hold."""


def rewritten(path: Path, contract: Contract) -> ModelProto:
    """The house's graph made of the file at `path`. Raises ExportFailed naming what does not fit the contract."""
    model = compose.add_prefix(read(path), GIVEN)
    _drop_weight_inputs(model)
    picture = _picture_input(model, contract)
    fix_size(picture, contract)
    if contract.free_batch:
        model = free_batch(model, picture.name)
        picture = _picture_input(model, contract)
    outputs = _chosen(model, contract)
    height, width = picture_size(picture, contract)
    tail = Tail(model, None if height is None or width is None else (height, width))
    enter(tail, picture, contract)
    find_decoder(contract.decoder)(tail, outputs, contract)
    tail.finish()
    _drop_unread_inputs(model)
    _check(model, contract)
    return model


def find_decoder(name: Decoder) -> Decode:
    module, function = DECODERS[name].split(":")
    found: Decode = getattr(import_module(f"service.export.adopt.{module}"), function)
    return found


def read(path: Path) -> ModelProto:
    """The model with all its weights inside. Raises ExportFailed where it is none, or its weights lie elsewhere than beside it."""
    if path.stat().st_size > LARGEST:
        raise ExportFailed(f"{path.name} is larger than the 2 GiB that one ONNX file can hold")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ExportFailed(f"{path.name} is no ONNX file, or it is cut short") from None
    if not model.graph.node:
        raise ExportFailed(f"{path.name} holds no graph")
    outside = _external(model, path.parent.resolve())
    if outside:
        if path.stat().st_size + sum(file.stat().st_size for file in outside) > LARGEST:
            raise ExportFailed(f"{path.name} and its weights are larger than the 2 GiB that one ONNX file can hold")
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, checker.ValidationError) as error:
            raise ExportFailed(f"{path.name}: its weights cannot be read: {error}") from None
    return model


def _external(model: ModelProto, folder: Path) -> set[Path]:
    """Files beside the model that hold weights. Raises ExportFailed for one that is missing or anywhere else."""
    files = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = (folder / name).resolve()
        if not name or file.parent != folder:
            raise ExportFailed(f"weights are said to lie in {name!r:.120}; only files in the model's own folder are read")
        if not file.is_file():
            raise ExportFailed(f"the weights lie in a second file {name!r:.120}, which is not there; put it beside the model")
        files.add(file)
    return files


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            yield from (*([item.t] if item.HasField("t") else ()), *item.tensors)
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _drop_weight_inputs(model: ModelProto) -> None:
    """Weights that are inputs too, as IR version 3 has them, cannot be folded by runtimes."""
    model.ir_version = max(model.ir_version, 4)
    weights = {tensor.name for tensor in model.graph.initializer}
    _keep_inputs(model, [value for value in model.graph.input if value.name not in weights])


def _drop_unread_inputs(model: ModelProto) -> None:
    """Raises ExportFailed for an input of the file that something reads and nothing feeds."""
    read = {name for node in model.graph.node for name in read_by(node)}
    for value in model.graph.input:
        if value.name.startswith(GIVEN) and value.name in read:
            dims = [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
            raise ExportFailed(f"the file has a further input {value.name.removeprefix(GIVEN)!r} {dims}, which nothing is known of")
    _keep_inputs(model, [value for value in model.graph.input if not value.name.startswith(GIVEN)])


def _keep_inputs(model: ModelProto, values: Sequence[ValueInfoProto]) -> None:
    kept = list(values)
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _picture_input(model: ModelProto, contract: Contract) -> ValueInfoProto:
    names = [value.name.removeprefix(GIVEN) for value in model.graph.input]
    wanted = contract.input or next(iter(names), "")
    if wanted not in names:
        raise ExportFailed(f"there is no input {wanted!r}; the inputs are: {', '.join(names) or '(none)'}")
    found: ValueInfoProto = model.graph.input[names.index(wanted)]
    return found


def _chosen(model: ModelProto, contract: Contract) -> list[Output]:
    """The outputs that the decoder reads, in its order, with the shapes that they have now."""
    outputs = {output.name.removeprefix(GIVEN): output for output in outputs_of(model)}
    if missing := [name for name in contract.outputs if name not in outputs]:
        raise ExportFailed(f"there is no output {missing[0]!r}; the outputs are: {', '.join(outputs)}")
    return [outputs[name] for name in contract.outputs or outputs]


def outputs_of(model: ModelProto) -> list[Output]:
    """The outputs with their shapes: as far as shape inference gets, else as the file has them."""
    found = []
    for value, inferred in zip(model.graph.output, inferred_outputs(model), strict=True):
        said, known = dims_of(value), inferred.shape
        if said is not None and known is not None and len(said) == len(known):
            known = tuple(a or b for a, b in zip(known, said, strict=True))
        found.append(Output(value.name, value.type.tensor_type.elem_type, said if known is None else known))
    return found


def inferred_outputs(model: ModelProto) -> list[Output]:
    """The outputs with what follows from the inputs' shapes alone, whatever the file says of them."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    outputs = shape_inference.infer_shapes(bare, data_prop=True).graph.output
    return [Output(value.name, value.type.tensor_type.elem_type, dims_of(value)) for value in outputs]


def _check(model: ModelProto, contract: Contract) -> None:
    """Is it a graph, all in one file, with the batch as free as the contract says? Raises ExportFailed."""
    if model.ByteSize() > LARGEST:
        raise ExportFailed("the graph is larger than the 2 GiB that one ONNX file can hold")
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ExportFailed(f"the graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from None
    for output in inferred_outputs(model) if contract.free_batch else ():
        if output.shape and output.shape[0] is not None:
            raise ExportFailed(f"the batch cannot be freed: {output.label} would stay that of {output.shape[0]}")

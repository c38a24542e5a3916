"""From a foreign ONNX file to a graph of the house: read it, free what the exporter fixed, put the house's ends on it."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, ValueInfoProto, checker, external_data_helper, helper, shape_inference

from service.errors import ExportFailed
from service.export.adopt.batch import free_batch
from service.export.adopt.entrance import dims_of, enter, fix_size, picture_size
from service.export.adopt.names import set_apart
from service.export.adopt.tail import GIVEN, Output, Tail, in_order, read_by
from service.export.contract import Contract, Decoder
from service.export.rewrite import replace_nodes

Decode = Callable[[Tail, Sequence[Output], Contract], None]
DECODERS: dict[Decoder, str] = {
    "yolov2": "anchors:yolov2",
    "yolov3": "anchors:yolov3",
    "yolov5": "yolo:yolov5",
    "yolov8": "yolo:yolov8",
    "yolox": "yolo:yolox",
    "corners-scores": "yolo:corners_scores",
    "end-to-end": "yolo:end_to_end",
    "end-to-end-centres": "yolo:end_to_end_centres",
    "detr": "queries:detr",
    "detr-decoded": "queries:detr_decoded",
    "nanodet": "nanodet:nanodet",
    "nms-indices": "chosen:nms_indices",
    "nms-rows": "chosen:nms_rows",
    "efficient-nms": "chosen:efficient_nms",
    "boxes-labels-scores": "chosen:boxes_labels_scores",
    "logits": "plain:logits",
    "probabilities": "plain:probabilities",
    "logits-or-probabilities": "plain:logits_or_probabilities",
    "embedding": "plain:embedding",
    "picture": "plain:picture",
    "picture-and-style": "plain:picture_and_style",
}
"""Module below service.export.adopt and function, by decoder."""
OLDEST = 7
"""Before this opset operators broadcast in another way."""
HEAVY = 2**16
"""Bytes from which on a weight is kept aside."""
LARGEST = 2**31 - 1
"""Bytes of one file with all its weights: what protobuf can hold."""


def rewritten(path: Path, contract: Contract) -> ModelProto:
    """The house's graph made of the file at `path`. Raises ExportFailed naming what does not fit the contract."""
    model = read(path)
    set_apart(model)
    replace_nodes(model, in_order(model.graph.node))  # converters to float16 put the casts of inputs behind all else
    _drop_weight_inputs(model)
    _normalise_by_channel(model)
    heavy = _lift_weights(model)
    picture = _picture_input(model, contract)
    fix_size(picture, contract)
    if contract.free_batch:
        model = free_batch(model, picture.name, heavy)
        picture = _picture_input(model, contract)
    outputs = _chosen(outputs_of(model, heavy), contract)
    height, width = picture_size(picture, contract)
    tail = Tail(model, None if height is None or width is None else (height, width))
    if tail.opset < OLDEST:
        raise ExportFailed(f"the file is of opset {tail.opset}; {OLDEST} and later are read: export it anew")
    enter(tail, picture, contract)
    find_decoder(contract.decoder)(tail, outputs, contract)
    tail.finish()
    _drop_unread_inputs(model)
    _check(model, heavy, contract)
    needed = {name for node in model.graph.node for name in read_by(node)}
    model.graph.initializer.extend(tensor for tensor in heavy if tensor.name in needed)
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
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise ExportFailed(f"{path.name} is no ONNX file, or it is cut short") from None
    if not model.graph.node:
        raise ExportFailed(f"{path.name} holds no graph")
    _bring_in_weights(model, path)
    return model


def _bring_in_weights(model: ModelProto, path: Path) -> None:
    """Weights that lie in files beside the model become part of it. Raises ExportFailed for any that lie elsewhere."""
    size, folder = path.stat().st_size, path.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        file = _beside(folder, said.get("location", ""))
        size += int(said["length"]) if said.get("length", "").isdecimal() else file.stat().st_size
        if size > LARGEST:
            raise ExportFailed(f"{path.name} and its weights are larger than the 2 GiB that one ONNX file can hold")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, checker.ValidationError) as error:
            raise ExportFailed(f"{path.name}: its weights cannot be read: {error}") from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _beside(folder: Path, name: str) -> Path:
    file = (folder / name).resolve()
    if not name or file.parent != folder:
        raise ExportFailed(f"weights are said to lie in {name!r:.120}; only files in the model's own folder are read")
    if not file.is_file():
        raise ExportFailed(f"the weights lie in a second file {name!r:.120}, which is not there; put it beside the model")
    return file


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor that is written down anywhere: weights, constants, in bodies of branches, in functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for inner in [value] if isinstance(value, Message) else value if _holds_messages(value) else ():
            yield from _tensors(inner)


def _holds_messages(value: Any) -> bool:
    return not isinstance(value, str | bytes | int | float) and len(value) > 0 and isinstance(value[0], Message)


def _drop_weight_inputs(model: ModelProto) -> None:
    """Weights that are inputs too, as IR version 3 has them, cannot be folded by runtimes."""
    model.ir_version = max(model.ir_version, 4)
    weights = {tensor.name for tensor in model.graph.initializer}
    _keep_inputs(model, [value for value in model.graph.input if value.name not in weights])


def _normalise_by_channel(model: ModelProto) -> None:
    """spatial=0 with one scale a channel, as old MXNet exports have it, is refused by runtimes and means what spatial=1 does."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and ranks.get(node.input[1]) == 1:
            kept = [item for item in node.attribute if item.name != "spatial"]
            del node.attribute[:]
            node.attribute.extend(kept)


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


def _lift_weights(model: ModelProto) -> list[TensorProto]:
    """Take the large weights out of `model`: each pass over it copies it whole, and none of them looks at more than a shape."""
    weights = list(model.graph.initializer)  # still there when the list is emptied: Python holds them
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for tensor in weights if tensor.ByteSize() <= HEAVY)
    return [tensor for tensor in weights if tensor.ByteSize() > HEAVY]


def _chosen(found: Sequence[Output], contract: Contract) -> list[Output]:
    """The outputs that the decoder reads, in its order, with the shapes that they have now."""
    outputs = {output.name.removeprefix(GIVEN): output for output in found}
    if missing := [name for name in contract.outputs if name not in outputs]:
        raise ExportFailed(f"there is no output {missing[0]!r}; the outputs are: {', '.join(outputs)}")
    return [outputs[name] for name in contract.outputs or outputs]


def outputs_of(model: ModelProto, heavy: Sequence[TensorProto] = ()) -> list[Output]:
    """The outputs with their shapes: as far as shape inference gets, else as the file has them."""
    found = []
    for value, inferred in zip(model.graph.output, inferred_outputs(model, heavy), strict=True):
        said, known = dims_of(value), inferred.shape
        if said is not None and known is not None and len(said) == len(known):
            known = tuple(a or b for a, b in zip(known, said, strict=True))
        found.append(Output(value.name, value.type.tensor_type.elem_type, said if known is None else known))
    return found


def inferred_outputs(model: ModelProto, heavy: Sequence[TensorProto] = ()) -> list[Output]:
    """The outputs with what follows from the inputs' shapes alone, whatever the file says of them."""
    bare = _with_inputs(model, heavy)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    outputs = shape_inference.infer_shapes(bare, data_prop=True).graph.output
    return [Output(value.name, value.type.tensor_type.elem_type, dims_of(value)) for value in outputs]


def _with_inputs(model: ModelProto, heavy: Sequence[TensorProto]) -> ModelProto:
    """A copy in which the weights that are kept aside are inputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    copy.graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in heavy)
    return copy


def _check(model: ModelProto, heavy: Sequence[TensorProto], contract: Contract) -> None:
    """Is it a graph, all in one file, with the batch as free as the contract says? Raises ExportFailed."""
    if model.ByteSize() + sum(tensor.ByteSize() for tensor in heavy) > LARGEST:
        raise ExportFailed("the graph is larger than the 2 GiB that one ONNX file can hold")
    try:
        checker.check_model(_with_inputs(model, heavy))
    except checker.ValidationError as error:
        raise ExportFailed(f"the graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from None
    for output in inferred_outputs(model, heavy) if contract.free_batch else ():
        if output.shape and output.shape[0] is not None:
            raise ExportFailed(f"the batch cannot be freed: {output.label} would stay that of {output.shape[0]}")

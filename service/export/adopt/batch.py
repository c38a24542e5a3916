"""Frees the batch that an exporter fixed to one picture, or to several."""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from service.errors import ExportFailed
from service.export import rewrite
from service.export.adopt.tail import GIVEN, subgraphs
from service.export.rewrite import Array, attribute, constants


def free_batch(model: ModelProto, picture: str, heavy: Sequence[TensorProto] = ()) -> ModelProto:
    """Let the leading axis of the input `picture` take any length, where the file fixed it; a free one is left as it is.

    heavy: weights of the graph that are kept aside; all that is asked of them is their shape.
    Opens Reshapes and Resizes that pin it by a constant. Raises ExportFailed where that cannot be done.
    """
    dims = next(value for value in model.graph.input if value.name == picture).type.tensor_type.shape.dim
    if not dims or dims[0].dim_value == 0:
        return model
    fixed: int = dims[0].dim_value
    if any(subgraphs(node) for node in model.graph.node):
        raise ExportFailed("the batch cannot be freed: the graph has branches or loops (If, Loop, Scan)")
    model = _without_casts(rewrite.copy_of(model))
    model.graph.value_info.extend(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in heavy)
    _open_resizes(model)
    known = constants(model)
    for node in model.graph.node:
        _forget_allowzero(node, known)
    return rewrite.free_batch(model, fixed)


def _without_casts(model: ModelProto) -> ModelProto:
    """Cast constants become constants, in place: float16 exports hold the factors of a Resize so, which no inference sees."""
    known, kept = constants(model), []
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in known:
            dtype = helper.tensor_dtype_to_np_dtype(attribute(node, "to"))
            known[node.output[0]] = known[node.input[0]].astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(known[node.output[0]], node.output[0]))
        else:
            kept.append(node)
    rewrite.replace_nodes(model, kept)
    return model


def _open_resizes(model: ModelProto) -> None:
    """A Resize to constant sizes 1, c, h, w becomes one by constant factors: those leave the batch alone."""
    known = constants(model)
    wanted = [node for node in model.graph.node if node.op_type == "Resize" and len(node.input) == 4 and node.input[3] in known]
    if not wanted:
        return
    inferred = shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    for node in wanted:
        sizes, incoming = known[node.input[3]], shapes.get(node.input[0], [])
        if attribute(node, "axes") is not None:
            continue
        if len(incoming) != len(sizes) or not all(incoming):
            raise ExportFailed(f"the batch of Resize {node.output[0].removeprefix(GIVEN)!r} cannot be freed")
        name = f"{node.output[0]}/any_batch"
        model.graph.initializer.append(numpy_helper.from_array(_factors(sizes, incoming), name))
        node.input[2] = name
        del node.input[3]


def _factors(sizes: Array, incoming: list[int]) -> Array:
    """float32 factors that bring `incoming` to exactly `sizes`: lengths are rounded down."""
    factors = (sizes / np.array(incoming)).astype(np.float32)
    short = np.floor(np.array(incoming, np.float32) * factors) < sizes
    return np.asarray(np.where(short, np.nextafter(factors, np.float32(np.inf)), factors))


def _forget_allowzero(node: NodeProto, known: dict[str, Array]) -> None:
    """A 0 in a Reshape is going to mean: as it comes in."""
    if node.op_type == "Reshape" and node.input[1] in known and 0 not in known[node.input[1]]:
        kept = [item for item in node.attribute if item.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)

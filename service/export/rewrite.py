"""Passes over published ONNX graphs: weights back to float32, any batch, faster operators, uint8 pixels at the entrance.

Each pass takes a model and gives a new one; the model that came in is left as it was. Graphs without subgraphs (If, Loop) only.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from service.errors import ExportFailed

Array = NDArray[Any]
Triple = tuple[float, float, float]
BATCH = "n"


def pixels_input(  # noqa: PLR0913 - the arithmetic that photos need, each by name
    model: ModelProto,
    input: str,  # noqa: A002 - it is the graph's input
    *,
    name: str = "pixels",
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    reverse_channels: bool = False,
    scale: float = 1.0,
    mean: Triple = (0.0, 0.0, 0.0),
    std: Triple = (1.0, 1.0, 1.0),
) -> ModelProto:
    """Replace the float input `input` by uint8 RGB pixels [n, h, w, 3] called `name`.

    layout: of the old input; its batch, height and width stay as free or as fixed as they were. The old input becomes
    (pixels * scale - mean) / std, in the order of its own channels: reverse_channels for a graph that wants BGR.
    Raises ExportFailed when there is no such input of four axes.
    """
    model = copy_of(model)
    graph = model.graph
    old = next((value for value in graph.input if value.name == input), None)
    if old is None or len(old.type.tensor_type.shape.dim) != 4:
        raise ExportFailed(f"the graph has no input {input!r} with four axes")
    dims = [dim.dim_param or dim.dim_value for dim in old.type.tensor_type.shape.dim]
    batch, height, width = (dims[0], *dims[2:]) if layout == "NCHW" else dims[:3]
    channel_axis = 1 if layout == "NCHW" else 3

    steps: list[tuple[str, list[Array], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if layout == "NCHW":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if reverse_channels:
        steps.append(("Gather", [np.array([2, 1, 0])], {"axis": channel_axis}))
    shape = [3 if axis == channel_axis else 1 for axis in range(4)]
    if any(mean):
        steps.append(("Sub", [_shaped(np.array(mean) / scale, shape)], {}))
    if (factors := scale / np.array(std)).tolist() != [1, 1, 1]:
        steps.append(("Mul", [_shaped(factors, shape)], {}))

    nodes, current = [], name
    for position, (operator, arrays, attributes) in enumerate(steps):
        output = input if position == len(steps) - 1 else f"{name}/{operator.lower()}"
        given = [_add_initializer(model, f"{name}/{operator.lower()}_by", array) for array in arrays]
        nodes.append(helper.make_node(operator, [current, *given], [output], output, **attributes))
        current = output
    replace_nodes(model, [*nodes, *graph.node])
    entrance = helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, 3])
    _replace_inputs(model, [entrance if value.name == input else value for value in graph.input])
    return model


def fold_dequantize(model: ModelProto) -> ModelProto:
    """Weights behind DequantizeLinear (per tensor, per axis or per block) and Reshape become float32 initialisers, exactly.

    Only what is known before the graph runs is folded; activations keep their nodes. Constants that nothing reads any
    more are dropped.
    """
    model = copy_of(model)
    known, kept = constants(model), []
    for node in model.graph.node:
        if node.op_type in _FOLDED and all(name in known for name in node.input):
            value = _FOLDED[node.op_type](node, [known[name] for name in node.input])
            known[node.output[0]] = value
            _add_initializer(model, node.output[0], value)
        else:
            kept.append(node)
    replace_nodes(model, kept)
    return drop_unused(model)


def drop_initializer_inputs(model: ModelProto) -> ModelProto:
    """Take from the graph's inputs what is an initialiser (IR version 3's habit) or read by no node.

    A weight that is also an input may be fed anew, so runtimes cannot fold it.
    """
    model = copy_of(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    _replace_inputs(model, [value for value in model.graph.input if value.name in read - weights])
    return model


def drop_unused(model: ModelProto) -> ModelProto:
    """Drop the initialisers and Constant nodes that neither a node nor an output reads."""
    model = copy_of(model)
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    replace_nodes(model, [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read])
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    return model


def free_batch(model: ModelProto, fixed: int = 1) -> ModelProto:
    """Let the leading axis of every input and output, fixed to `fixed` by the exporter, take any length n.

    Reshapes of data that pin it by a constant shape `fixed`, ... are opened too: to 0 (as it comes in) where it comes in leading,
    else to -1 (whatever is left). Raises ExportFailed where neither can work.
    """
    shapes = _inferred_shapes(model)
    model = copy_of(model)
    known, flowing = constants(model), _data_tensors(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[0] not in flowing or node.input[1] not in known:
            continue
        shape = known[node.input[1]]
        if shape.size and shape[0] == fixed:
            opened = shape.copy()
            opened[0] = _open_axis(node, shape, shapes.get(node.input[0]), fixed)
            node.input[1] = _add_initializer(model, f"{node.input[1]}/any_batch/{node.output[0]}", opened)
    for value in (*model.graph.input, *model.graph.output):
        if dims := value.type.tensor_type.shape.dim:
            dims[0].dim_param = BATCH
    del model.graph.value_info[:]  # they still speak of a batch of one
    return drop_unused(model)


def replace_prelu(model: ModelProto) -> ModelProto:
    """PRelu(x, a) as a * x + (1 - a) * Relu(x), the same for any sign and size of the slope a.

    onnxruntime has fast loops for these four but not for PRelu. Only slopes that are constants are replaced.
    """
    model = copy_of(model)
    known, nodes = constants(model), []
    for node in model.graph.node:
        if node.op_type != "PRelu" or node.input[1] not in known:
            nodes.append(node)
            continue
        (x, slope), y = node.input, node.output[0]
        rest = _add_initializer(model, f"{y}/rest", np.float32(1) - known[slope])
        nodes += [
            helper.make_node("Relu", [x], [f"{y}/positive"]),
            helper.make_node("Mul", [f"{y}/positive", rest], [f"{y}/bent"]),
            helper.make_node("Mul", [x, slope], [f"{y}/straight"]),
            helper.make_node("Add", [f"{y}/straight", f"{y}/bent"], [y]),
        ]
    replace_nodes(model, nodes)
    return drop_unused(model)


def constants(model: ModelProto) -> dict[str, Array]:
    """Every tensor known before the graph runs, by name: initialisers and Constant nodes."""
    found: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
            found[node.output[0]] = numpy_helper.to_array(value)
    return found


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of one attribute of a node, or `default`."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def copy_of(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def copy_node(node: NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    """The same operator with the same attributes between other tensors, called as the first of `outputs`."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = outputs[0]
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    return copy


def replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Let the graph of `model`, in place, have these nodes instead of its own."""
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _dequantize(node: NodeProto, given: Sequence[Array]) -> Array:
    """ONNX DequantizeLinear: (x - zero_point) * scale, in float32. x: [...]; scale: one, [x.shape[axis]] or one per block."""
    x, scale = given[0], given[1].astype(np.float32)
    zero = given[2].astype(np.int32) if len(given) > 2 else np.zeros(scale.shape, np.int32)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    elif block := attribute(node, "block_size", 0):
        axis = attribute(node, "axis", 1)
        scale, zero = (np.repeat(part, block, axis).take(range(x.shape[axis]), axis) for part in (scale, zero))
    else:
        shape = [1] * x.ndim
        shape[attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((x.astype(np.int32) - zero).astype(np.float32) * scale)


def _reshape(node: NodeProto, given: Sequence[Array]) -> Array:
    x, shape = given
    keep_zeros = attribute(node, "allowzero", 0)
    return x.reshape([x.shape[axis] if n == 0 and not keep_zeros else int(n) for axis, n in enumerate(shape)])


_FOLDED = {"DequantizeLinear": _dequantize, "Reshape": _reshape}


def _open_axis(node: NodeProto, shape: Array, incoming: Sequence[int] | None, fixed: int) -> int:
    if incoming is None or not incoming or incoming[0] in (0, fixed):  # 0: inference could not tell; exporters pinned it
        return 0
    if -1 in shape:
        raise ExportFailed(f"the batch of Reshape {node.output[0]!r} to {shape.tolist()} cannot be freed")
    return -1


def _inferred_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Axis lengths of every tensor that shape inference knows; 0 for a length that it does not."""
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def _data_tensors(model: ModelProto) -> set[str]:
    """Names of tensors computed from the graph's inputs, other than from their shapes alone. Nodes are in running order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    flowing = {value.name for value in model.graph.input} - weights
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and not flowing.isdisjoint(node.input):
            flowing.update(node.output)
    return flowing


def _shaped(values: Array, shape: Sequence[int]) -> Array:
    """Three channel values as float32 that broadcast over pixels; one value where all are the same."""
    return np.array(values[0], np.float32) if np.ptp(values) == 0 else values.astype(np.float32).reshape(shape)


def _add_initializer(model: ModelProto, name: str, value: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
    return name


def _replace_inputs(model: ModelProto, values: Sequence[ValueInfoProto]) -> None:
    kept = list(values)
    del model.graph.input[:]
    model.graph.input.extend(kept)

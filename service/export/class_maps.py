"""The graph "maps": what a classifier that ends in an average sees at each position of its last feature map.

features [n, c, rows, columns] -> averaged over positions -> logits = W f + b       what the graph "model" does
features [n, c, rows, columns] -> W and b at every position -> maps                 what is added here

Both are linear, so that the mean of a class's map over positions is its logit: the class activation map of Zhou et al. 2016
(arXiv 1512.04150). Height and width of the pixels become free. Over a larger picture the mean over as many positions as a picture
of the usual size has is the class of that window: Sermanet et al. 2013, OverFeat (arXiv 1312.6229).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from service.errors import ExportFailed
from service.export.rewrite import Array, attribute, constants, copy_of, replace_nodes

LOGITS, MAPS = "logits", "maps"
_PREFIX = "maps/"
_PASSED = frozenset({"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast"})
"""What moves numbers from one shape to another without changing them, at inference."""
_POOLS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})


@dataclass
class _End:
    """What lies between the pooled features and the logits, gathered from the end backwards.

    weight: [classes, c], None for none. logarithm: a softmax must come, its logarithm was passed; either: one may come.
    """

    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    rows: list[tuple[int, int]] = field(default_factory=list)
    logarithm: bool = False
    either: bool = False

    def dense(self, weight: Array, bias: Array | None = None) -> None:
        """Raises ExportFailed at a second one: two without anything between them would be one."""
        if self.weight is not None:
            raise ExportFailed("there are several layers between the average and the classes")
        self.check_linear()
        if bias is not None:
            self.add(bias)
        if self.bias is not None and self.bias.size not in {1, len(weight)}:
            raise ExportFailed("the biases are not one a class")
        self.weight = weight.astype(np.float32)

    def add(self, bias: Array) -> None:
        if self.weight is not None:
            raise ExportFailed("something is added to the average before the classes are made of it")
        self.bias = bias.astype(np.float32).ravel() + (0 if self.bias is None else self.bias)

    def check_linear(self) -> None:
        if self.logarithm:
            raise ExportFailed("it answers probabilities that no softmax made")


def class_maps(model: ModelProto) -> ModelProto:
    """The graph with the outputs "logits" [n, classes] and "maps" [n, classes, rows, columns] of a classifier of the house.

    `model` has the input "pixels" [n, height, width, 3] and the output "logits", also where these are logarithms of a softmax: then
    the logits here are what the softmax got, which gives the same probabilities. Raises ExportFailed saying what its end is
    instead of an average over positions and one linear layer, before or behind it.
    """
    if any(item.HasField("g") or item.graphs for node in model.graph.node for item in node.attribute):
        raise ExportFailed("the graph has branches or loops")
    end = _End()
    pool = _walk(model, end)
    model = copy_of(model)
    _free_sides(model)
    _rewire(model, pool.input[0], end)
    return model


def _walk(model: ModelProto, end: _End) -> NodeProto:
    """From the logits back to the node that averages. Raises ExportFailed."""
    makers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    known = constants(model)
    name = LOGITS
    while True:
        node = makers.get(name)
        if node is None:
            raise ExportFailed("its end does not come from an average over positions")
        if node.op_type in _POOLS:
            end.check_linear()
            _check_pool(model, node, known)
            return node
        name = _step(node, known, end)


def _step(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    """Take one node into `end`; gives the tensor that it reads. Raises ExportFailed."""
    if node.op_type in _PASSED:
        return str(node.input[0])
    if node.op_type == "Where":  # logits, or logarithms of probabilities, whichever the file gives
        end.either = True
        return str(node.input[2])
    take = _LAYERS.get(node.op_type)
    if take is None:
        raise ExportFailed(f"between the average and the classes, or in place of it, is {node.op_type}")
    return take(node, known, end)


def _log(node: NodeProto, _: dict[str, Array], end: _End) -> str:
    end.logarithm = True
    return str(node.input[0])


def _relu(node: NodeProto, _: dict[str, Array], end: _End) -> str:
    if not end.logarithm:
        raise ExportFailed("between the average and the classes, or in place of it, is Relu")
    return str(node.input[0])  # of probabilities, before their logarithm


def _softmax(node: NodeProto, _: dict[str, Array], end: _End) -> str:
    if node.op_type == "Softmax" and not (end.logarithm or end.either):
        raise ExportFailed("it answers probabilities where logits were expected")
    end.logarithm = end.either = False
    return str(node.input[0])


def _slice(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    if len(node.input) > 1:
        given = [known.get(name, np.zeros(0)).ravel().tolist() for name in node.input[1:]]
    else:
        given = [list(attribute(node, name, ())) for name in ("starts", "ends", "axes")]
    starts, ends, axes = given if len(given) == 3 else ([], [], [])
    if [len(starts), len(ends)] != [1, 1] or axes != [1] or end.weight is not None or end.bias is not None:
        raise ExportFailed("its classes are cut out in a way that is not known")
    end.rows.insert(0, (int(starts[0]), int(ends[0])))
    return str(node.input[0])


def _add(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    by = next((index for index in (1, 0) if node.input[index] in known), None)
    if by is None:
        raise ExportFailed("between the average and the classes, or in place of it, is a sum")
    if not end.logarithm:  # else what keeps the logarithm finite
        end.add(known[node.input[by]])
    return str(node.input[1 - by])


def _matmul(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    end.dense(_weight(node, known).T)
    return str(node.input[0])


def _gemm(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    weight = _weight(node, known) * attribute(node, "alpha", 1.0)
    bias = known.get(node.input[2]) if len(node.input) > 2 else None
    if attribute(node, "transA", 0) or (len(node.input) > 2 and bias is None):
        raise ExportFailed("its last layer is computed in a way that is not known")
    end.dense(weight if attribute(node, "transB", 0) else weight.T, None if bias is None else bias * attribute(node, "beta", 1.0))
    return str(node.input[0])


def _conv(node: NodeProto, known: dict[str, Array], end: _End) -> str:
    """A 1 x 1 convolution of the single position that an average leaves."""
    weight = _weight(node, known)
    if weight.ndim != 4 or weight.shape[2:] != (1, 1) or attribute(node, "group", 1) != 1 or any(attribute(node, "pads", ())):
        raise ExportFailed("between the average and the classes, or in place of it, is a convolution")
    end.dense(weight[:, :, 0, 0], known[node.input[2]] if len(node.input) > 2 else None)
    return str(node.input[0])


def _weight(node: NodeProto, known: dict[str, Array]) -> Array:
    weight = known.get(node.input[1])
    if weight is None or weight.dtype.kind != "f":
        raise ExportFailed(
            "the weights of its last layer are not there as floating-point numbers: it is quantised, or computes them"
        )
    return weight


_LAYERS: dict[str, Callable[[NodeProto, dict[str, Array], _End], str]] = {
    "Log": _log,
    "Relu": _relu,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Slice": _slice,
    "Add": _add,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
}


def _check_pool(model: ModelProto, node: NodeProto, known: dict[str, Array]) -> None:
    """Does it average over all positions of a map [n, c, rows, columns], and nothing else? Raises ExportFailed."""
    if node.op_type == "GlobalAveragePool":
        return
    if node.op_type == "ReduceMean":
        axes = known[node.input[1]].tolist() if len(node.input) > 1 and node.input[1] in known else attribute(node, "axes", ())
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            raise ExportFailed("its average is not over the rows and columns of a map")
        return
    shapes = {value.name: value for value in shape_inference.infer_shapes(model).graph.value_info}
    found = shapes.get(node.input[0])
    sides = [] if found is None else [dim.dim_value for dim in found.type.tensor_type.shape.dim][2:]
    if list(attribute(node, "kernel_shape", ())) != sides or any(attribute(node, "pads", ())):
        raise ExportFailed("its average is not over all positions of the map")


def _free_sides(model: ModelProto) -> None:
    """Let height and width of the pixels be any, and forget the shapes that followed from them."""
    (pixels,) = (value for value in model.graph.input if value.name == "pixels")
    dims = pixels.type.tensor_type.shape.dim
    dims[1].dim_param, dims[2].dim_param = "height", "width"
    del model.graph.value_info[:]


def _rewire(model: ModelProto, features: str, end: _End) -> None:
    """Let `model`, in place, end in the two outputs made of `features`."""
    made: list[NodeProto] = []

    def constant(name: str, value: Array) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), _PREFIX + name))
        return _PREFIX + name

    def node(operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, inputs, [output], _PREFIX + output, **attributes))
        return output

    x = node("Cast", features, output=f"{_PREFIX}features", to=TensorProto.FLOAT)
    pooled = node("Flatten", node("GlobalAveragePool", x, output=f"{_PREFIX}pooled"), output=f"{_PREFIX}flat", axis=1)
    if end.weight is None and end.bias is None:
        rows = _rows(end, None)
        maps, logits = x, pooled
        if rows is not None:
            index = constant("rows", rows)
            maps, logits = (node("Gather", t, index, output=f"{_PREFIX}{n}", axis=1) for t, n in ((x, "cut"), (pooled, "cut_flat")))
        node("Identity", maps, output=MAPS)
        node("Identity", logits, output=LOGITS)
    else:
        if end.weight is None:
            raise ExportFailed("biases are added to the average itself")
        weight, bias = end.weight, np.broadcast_to(np.float32(0) if end.bias is None else end.bias, len(end.weight))
        rows = _rows(end, len(weight))
        weight, bias = (weight, bias) if rows is None else (weight[rows], bias[rows])
        names = constant("weight", weight), constant("bias", bias)
        node("Gemm", pooled, *names, output=LOGITS, transB=1)
        spread = constant("weight_1x1", weight[:, :, None, None])
        node("Conv", x, spread, names[1], output=MAPS, kernel_shape=[1, 1])
    classes: int | str = "classes" if end.weight is None else len(weight)
    _keep(model, made, classes)


def _rows(end: _End, classes: int | None) -> NDArray[np.int64] | None:
    """Which classes are left of all; None for all. Raises ExportFailed where their number is not known and would be needed."""
    if not end.rows:
        return None
    last = min(stop for _, stop in end.rows)
    if classes is None and last > 2**20:
        raise ExportFailed("its classes are cut out in a way that is not known")
    left = np.arange(last if classes is None else classes)
    for start, stop in end.rows:
        left = left[start:stop]
    return left


def _keep(model: ModelProto, made: Sequence[NodeProto], classes: int | str) -> None:
    """The nodes that the two outputs need, and their weights, and nothing else."""
    graph: GraphProto = model.graph
    old = [node for node in graph.node if not {LOGITS, MAPS} & set(node.output)]
    makers = {name: node for node in (*old, *made) for name in node.output}
    wanted, needed = [LOGITS, MAPS], set()
    while wanted:
        maker = makers.get(wanted.pop())
        if maker is not None and maker.output[0] not in needed:
            needed.add(maker.output[0])
            wanted += maker.input
    replace_nodes(model, [node for node in (*old, *made) if node.output[0] in needed])
    read = {name for node in graph.node for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:], graph.output[:]
    graph.initializer.extend(weights)
    shapes = {LOGITS: ["n", classes], MAPS: ["n", classes, "rows", "columns"]}
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())

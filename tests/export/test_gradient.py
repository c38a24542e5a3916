"""Gradients of graphs: every rule, and random graphs, against central differences in float64 and torch's autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from service.errors import ExportFailed
from service.export.gradient import append_gradient
from service.export.gradient_rules import RULES
from service.export.graph import Graph

Array = NDArray[Any]
Make = Callable[[Graph, str], str]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(0, 1, shape).astype(np.float32)


def made(make: Make, axes: Sequence[int | str]) -> tuple[Graph, str]:
    """A graph of x, and of r of the shape of y = make(x), and the name of its loss: the sum of r y, for r tells all of y apart."""
    graph = Graph("tried")
    y = make(graph, graph.input("x", axes))
    rank = len(graph.shapes()[y])
    r = graph.input("r", [f"r{axis}" for axis in range(rank)])
    return graph, graph.node("ReduceSum", graph.node("Mul", y, r), keepdims=0)


def in_float64(model: ModelProto) -> ModelProto:
    model = ModelProto.FromString(model.SerializeToString())
    for index, item in enumerate(model.graph.initializer):
        if item.data_type == TensorProto.FLOAT:
            model.graph.initializer[index].CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float64), item.name)
            )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def by_differences(make: Make, axes: Sequence[int | str], x: Array, r: Array, step: float = 1e-5) -> Array:
    graph, loss = made(make, axes)
    graph.output(loss, "loss", [])
    evaluator = ReferenceEvaluator(in_float64(graph.build()))

    def value(flat: Array) -> float:
        return float(evaluator.run(None, {"x": flat.reshape(x.shape), "r": r.astype(np.float64)})[0])

    start = x.astype(np.float64).ravel()
    found = np.empty(start.size)
    for index in range(start.size):
        moved = start.copy()
        moved[index] += step
        above = value(moved)
        moved[index] -= 2 * step
        found[index] = (above - value(moved)) / (2 * step)
    return found.reshape(x.shape)


def by_graph(make: Make, axes: Sequence[int | str], x: Array, r: Array) -> Array:
    graph, loss = made(make, axes)
    graph.output(append_gradient(graph, loss, "x"), "dx", axes)
    return np.asarray(run(graph.build(), {"x": x, "r": r})[0])


def run(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return list(onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds))


def shape_of(make: Make, axes: Sequence[int | str], x: Array) -> tuple[int, ...]:
    graph = Graph("shape")
    y = make(graph, graph.input("x", axes))
    graph.output(y, "y", [f"y{axis}" for axis in range(len(graph.shapes()[y]))])
    return run(graph.build(), {"x": x})[0].shape


def whole(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, np.int64))


def conv(out: int, into: int, kernel: tuple[int, int] = (3, 3), **how: Any) -> Make:
    return lambda g, x: g.node("Conv", x, g.constant(random(out, into, *kernel)), g.constant(random(out)), **how)


def other(operator: str, *shape: int, first: bool = False) -> Make:
    """x and a constant of `shape`, which comes second, or first."""
    return lambda g, x: g.node(operator, *((g.constant(random(*shape)), x) if first else (x, g.constant(random(*shape)))))


def sliced(starts: list[int], ends: list[int], *more: list[int]) -> Make:
    return lambda g, x: g.node("Slice", x, *(whole(g, *numbers) for numbers in (starts, ends, *more)))


def plain(operator: str, **how: Any) -> Make:
    return lambda g, x: g.node(operator, x, **how)


def reduced(operator: str, *axes: int, keepdims: int) -> Make:
    return lambda g, x: g.node(operator, x, *([whole(g, *axes)] if axes else []), keepdims=keepdims)


def twice(g: Graph, x: str) -> str:
    """x in four places, through nodes of which some give to several."""
    soft = g.node("LeakyRelu", x, alpha=0.2)
    return g.node("Sub", g.node("Add", g.node("Mul", x, soft), x), g.node("Mul", soft, soft))


SMALL: dict[str, tuple[Make, tuple[int, ...]]] = {
    "Add": (other("Add", 2, 3), (2, 3)),
    "Add, x broadcast": (other("Add", 2, 4, 3, 2, first=True), (4, 1, 2)),
    "Sub": (other("Sub", 3, 1), (2, 3, 4)),
    "Sub from": (other("Sub", 2, 3, 4, first=True), (3, 1)),
    "Mul": (other("Mul", 3, 4), (2, 3, 4)),
    "Mul, x broadcast": (other("Mul", 2, 3, 4, first=True), (1, 1, 4)),
    "Mul by itself": (lambda g, x: g.node("Mul", x, x), (2, 5)),
    "MatMul": (other("MatMul", 4, 5), (3, 4)),
    "MatMul, second": (other("MatMul", 4, 3, first=True), (3, 5)),
    "MatMul of stacks": (other("MatMul", 2, 2, 4, 3), (2, 2, 3, 4)),
    "MatMul with itself": (lambda g, x: g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1])), (2, 3, 4)),
    "Gemm": (lambda g, x: g.node("Gemm", x, g.constant(random(5, 4)), transB=1), (3, 4)),
    "Gemm, second": (lambda g, x: g.node("Gemm", g.constant(random(5, 4)), x, transB=1), (3, 4)),
    "Gemm, Gram": (lambda g, x: g.node("Gemm", x, x, transB=1), (3, 6)),
    "Relu": (plain("Relu"), (4, 7)),
    "LeakyRelu": (plain("LeakyRelu", alpha=0.1), (4, 7)),
    "LeakyRelu, its own slope": (plain("LeakyRelu"), (4, 7)),
    "Identity": (plain("Identity"), (3,)),
    "Conv": (conv(4, 2, pads=[1, 1, 1, 1]), (1, 2, 5, 4)),
    "Conv without pads": (conv(2, 3), (1, 3, 4, 5)),
    "Conv 1 x 1": (conv(4, 3, (1, 1)), (1, 3, 3, 2)),
    "Conv, uneven pads and kernel": (conv(2, 2, (2, 3), pads=[1, 0, 0, 2]), (1, 2, 4, 5)),
    "Conv, pads wider than the kernel": (conv(2, 2, (2, 2), pads=[3, 0, 0, 2]), (1, 2, 3, 3)),
    "Conv, stride 2": (conv(3, 2, pads=[1, 1, 1, 1], strides=[2, 2]), (1, 2, 5, 6)),
    "Conv, stride 3 with a rest": (conv(3, 2, strides=[3, 2]), (1, 2, 8, 6)),
    "Conv in groups": (conv(6, 2, pads=[1, 1, 1, 1], group=2), (1, 4, 4, 3)),
    "Conv of each channel": (conv(3, 1, pads=[1, 1, 1, 1], group=3), (2, 3, 3, 4)),
    "Conv in groups, stride 2": (conv(4, 2, pads=[0, 1, 1, 0], group=2, strides=[2, 2]), (1, 4, 5, 5)),
    "Conv, dilated": (conv(2, 2, dilations=[2, 1], pads=[2, 1, 2, 1]), (1, 2, 5, 4)),
    "AveragePool": (plain("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), (1, 2, 4, 6)),
    "AveragePool, odd": (plain("AveragePool", kernel_shape=[2, 3], strides=[2, 3]), (1, 2, 5, 7)),
    "MaxPool": (plain("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), (1, 2, 4, 6)),
    "MaxPool, odd": (plain("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), (2, 2, 5, 3)),
    "Reshape": (lambda g, x: g.node("Reshape", x, whole(g, 0, -1)), (2, 3, 4)),
    "Transpose": (plain("Transpose", perm=[2, 0, 1]), (2, 3, 4)),
    "Transpose, its own order": (plain("Transpose"), (2, 3, 4)),
    "Slice": (sliced([1, 0], [3, 2]), (4, 3, 2)),
    "Slice of named axes": (sliced([1, 0], [2**31 - 1, 2], [-1, 0]), (4, 3, 2)),
    "Slice from the end": (sliced([-2, -9], [2**31 - 1, -1], [1, 0], [1, 1]), (4, 3, 2)),
    "ReduceSum": (reduced("ReduceSum", 1, keepdims=1), (2, 3, 4)),
    "ReduceSum, squeezed": (reduced("ReduceSum", 0, -1, keepdims=0), (2, 3, 4)),
    "ReduceSum of all": (reduced("ReduceSum", keepdims=0), (2, 3)),
    "ReduceMean": (reduced("ReduceMean", 2, 0, keepdims=1), (2, 3, 4)),
    "ReduceMean, squeezed": (reduced("ReduceMean", 1, keepdims=0), (2, 3, 4)),
    "ReduceMean of all": (reduced("ReduceMean", keepdims=0), (2, 3)),
    "several ways": (twice, (3, 4)),
}


@pytest.mark.parametrize("name", SMALL)
def test_each_rule_agrees_with_differences(name: str) -> None:
    make, shape = SMALL[name]
    x = random(*shape, seed=1)
    r = random(*shape_of(make, shape, x), seed=2)
    wanted = by_differences(make, shape, x, r)
    assert np.abs(by_graph(make, shape, x, r) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_every_rule_is_tried() -> None:
    assert {name.split()[0].strip(",") for name in SMALL if name != "several ways"} == set(RULES)


def random_graph(seed: int) -> Make:
    """Six to nine layers drawn by `seed` on a picture, among them joins of two branches; all sizes are free."""

    def make(g: Graph, x: str) -> str:
        draw = np.random.default_rng(seed)
        channels = 2
        for layer in range(draw.integers(6, 10)):
            before = x
            match draw.integers(0, 9 if layer < 5 else 7):
                case 0 | 1:
                    wider = int(draw.integers(1, 4))
                    weight = random(wider, channels, 3, 3, seed=seed + layer) / 3
                    x = g.conv(x, weight, random(wider, seed=layer), pads=(1, 1, 1, 1))
                    channels = wider
                case 2:
                    weight = random(2 * channels, 1, 3, 2, seed=seed + layer)
                    x = g.conv(x, weight, random(2 * channels, seed=layer), pads=(1, 0, 1, 1), groups=channels)
                    channels *= 2
                case 3:
                    x = g.node("Add", g.node("Relu", x), g.node("Mul", x, g.constant(np.float32(0.2))))  # a ReLU alone may die
                case 4:
                    x = g.node("Mul", g.node("LeakyRelu", x, alpha=0.3), g.constant(random(channels, 1, 1, seed=layer)))
                case 5:
                    x = g.node("Add", g.node("Mul", x, g.constant(np.float32(0.5))), g.node("ReduceMean", x, whole(g, 2, 3)))
                case 6:
                    turned = g.node("LeakyRelu", g.node("Transpose", x, perm=[0, 1, 3, 2]), alpha=0.4)
                    x = g.node("Sub", g.constant(np.float32(1)), g.node("Transpose", turned, perm=[0, 1, 3, 2]))
                case 7:
                    x = g.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
                case 8:
                    x = g.node("Slice", x, whole(g, 1, -6), whole(g, 2**31 - 1, 2**31 - 1), whole(g, 2, 3))
            if before == x:
                raise AssertionError(seed)
        rows = g.node("Reshape", x, whole(g, channels, -1))
        return g.node("Gemm", rows, rows, transB=1)

    return make


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_agree_with_differences(seed: int) -> None:
    make, x = random_graph(seed), random(1, 2, 9, 7, seed=seed)
    r = random(*shape_of(make, [1, 2, "h", "w"], x), seed=2)
    wanted = by_differences(make, [1, 2, "h", "w"], x, r)
    assert np.abs(by_graph(make, [1, 2, "h", "w"], x, r) - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_one_gradient_serves_pictures_of_any_size() -> None:
    graph, loss = made(random_graph(1), [1, 2, "h", "w"])
    graph.output(append_gradient(graph, loss, "x"), "dx", [1, 2, "h", "w"])
    model = graph.build()
    for height, width in ((8, 12), (13, 11), (21, 17)):
        x = random(1, 2, height, width)
        r = random(*shape_of(random_graph(1), [1, 2, "h", "w"], x))
        got = run(model, {"x": x, "r": r})[0]
        fixed = by_graph(random_graph(1), [1, 2, height, width], x, r)
        assert got.shape == x.shape
        assert np.abs(got - fixed).max() < 1e-4 * np.abs(fixed).max()


def interpret(nodes: Sequence[NodeProto], known: dict[str, Any], torch: Any) -> None:
    """Run the nodes in torch: what each operator means is written anew here."""
    functional = torch.nn.functional

    def conv2d(
        x: Any, weight: Any, bias: Any = None, *, pads: Any = (0, 0, 0, 0), strides: Any = 1, dilations: Any = 1, **how: Any
    ) -> Any:
        top, left, bottom, right = pads
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, weight, bias, strides, 0, dilations, how.get("group", 1))

    def cut(x: Any, starts: Any, ends: Any, axes: Any = None, _steps: Any = None) -> Any:
        for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            axis = index if axes is None else int(axes[index])
            x = x.movedim(axis, 0)[slice(start, end)].movedim(0, axis)
        return x

    def over(reduce: Any) -> Any:
        return lambda x, axes=None, keepdims=1: reduce(x, list(range(x.ndim)) if axes is None else axes.tolist(), bool(keepdims))

    means: dict[str, Callable[..., Any]] = {
        "Add": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "MatMul": torch.matmul,
        "Gemm": lambda a, b, transB: a @ b.T,
        "Relu": functional.relu,
        "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
        "Identity": lambda x: x,
        "Conv": conv2d,
        "AveragePool": lambda x, **how: functional.avg_pool2d(x, how["kernel_shape"], how["strides"]),
        "MaxPool": lambda x, **how: functional.max_pool2d(x, how["kernel_shape"], how["strides"]),
        "Reshape": lambda x, shape: x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(shape.tolist())]),
        "Transpose": lambda x, perm=None: x.permute(list(range(x.ndim))[::-1] if perm is None else perm),
        "Slice": cut,
        "ReduceSum": over(torch.sum),
        "ReduceMean": over(torch.mean),
    }
    for node in nodes:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        attributes.pop("kernel_shape" if node.op_type == "Conv" else "", None)
        known[node.output[0]] = means[node.op_type](*(known[name] for name in node.input), **attributes)


def by_torch(make: Make, axes: Sequence[int | str], x: Array, r: Array, torch: Any) -> Array:
    graph, loss = made(make, axes)
    known = {"x": torch.tensor(x, dtype=torch.float64, requires_grad=True), "r": torch.tensor(r, dtype=torch.float64)}
    for name in {name for node in graph.made for name in node.input}:
        value = graph.value(name)
        if value is not None:
            known[name] = torch.tensor(value, dtype=torch.float64 if value.dtype.kind == "f" else torch.int64)
    interpret(graph.made, known, torch)
    (gradient,) = torch.autograd.grad(known[loss], known["x"])
    return np.asarray(gradient.numpy())


@pytest.mark.parametrize("name", SMALL)
def test_each_rule_agrees_with_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, shape = SMALL[name]
    x = random(*shape, seed=1)
    r = random(*shape_of(make, shape, x), seed=2)
    wanted = by_torch(make, shape, x, r, torch)
    assert np.abs(by_graph(make, shape, x, r) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("seed", range(16))
def test_random_graphs_agree_with_torch(seed: int) -> None:
    torch = pytest.importorskip("torch")
    make, x = random_graph(seed), random(1, 2, 33, 39, seed=seed)
    r = random(*shape_of(make, [1, 2, "h", "w"], x), seed=2)
    wanted = by_torch(make, [1, 2, "h", "w"], x, r, torch)
    assert np.abs(by_graph(make, [1, 2, "h", "w"], x, r) - wanted).max() < 1e-4 * np.abs(wanted).max()


def weights_first(g: Graph, x: str) -> str:
    return g.node("Conv", g.constant(random(1, 2, 5, 5)), x)


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (plain("Softmax"), (2, 3), "Softmax 'softmax0': no rule for its gradient; there are rules for: Add, AveragePool"),
        (weights_first, (3, 2, 3, 3), "not by its weights"),
        (plain("LeakyRelu", alpha=-0.1), (2, 3), "slope -0.1 is not from 0 to 1"),
        (plain("MaxPool", kernel_shape=[3, 3], strides=[2, 2]), (1, 1, 7, 7), "windows overlap"),
        (plain("AveragePool", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1]), (1, 1, 4, 4), "reach beyond"),
        (conv(2, 2, auto_pad="SAME_UPPER"), (1, 2, 5, 5), "auto_pad=SAME_UPPER"),
        (lambda g, x: g.node("Gemm", x, g.constant(random(4, 5))), (3, 4), "only A B"),
        (sliced([0], [4], [0], [2]), (4, 3), "its steps are not 1"),
        (other("MatMul", 4, 5), (2, 3, 4), "it joins the shapes"),
        (lambda g, x: g.nodes("Split", x, outputs=2, axis=0, num_outputs=2)[1], (4,), "only its first output"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_refused_in_words(make: Make, shape: tuple[int, ...], words: str) -> None:
    graph, loss = made(make, shape)
    with pytest.raises(ExportFailed, match=words):
        append_gradient(graph, loss, "x")


def test_a_loss_must_depend_on_the_input_and_be_one_number() -> None:
    graph = Graph("tried")
    x, z = graph.input("x", [2, 3]), graph.input("z", [1])
    with pytest.raises(ExportFailed, match="'z' does not depend on 'x'"):
        append_gradient(graph, z, x)
    with pytest.raises(ExportFailed, match=r"no scalar: its shape is \(2, 3\)"):
        append_gradient(graph, graph.node("Relu", x), x)


def test_nothing_is_computed_for_what_does_not_depend_on_the_input() -> None:
    graph, loss = made(conv(4, 2), (1, 2, 5, 5))
    before = len(graph.made)
    append_gradient(graph, loss, "x")
    added = [node.op_type for node in graph.made[before:]]
    assert added.count("Conv") == 1
    assert added.count("Mul") == 1  # by y, and not by r

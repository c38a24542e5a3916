"""Every contract in the catalogue against a file of that shape: names, axes and opset of the published one, and random weights."""

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from service.export.adopt import adopt
from service.export.contract import Contract
from service.repository.answers import check_answers
from service.repository.parity import noise
from service.repository.public import public_models
from service.repository.spec import ModelSpec
from service.runtime.session import run_once

ROWS, QUERIES, BINS = 6, 300, 8
OPSETS = {"yolox": 11, "nanodet": 11, "detr": 16, "face-liveness": 17}  # of those whose summary does not say it
CHOSEN = np.array([[0, 2, 1], [0, 79, 5], [0, 0, 0]], np.int32)  # picture, class, box
Shape = tuple[int, ...]


def distinct(*tasks: str) -> list[Any]:
    """One model for each contract, of all tasks or of these; what the outputs are called does not make another one."""
    found: dict[str, ModelSpec] = {}
    for spec in public_models().values():
        if spec.adapter is not None and (not tasks or spec.task in tasks):
            found.setdefault(f"{spec.task} {spec.adapter.model_copy(update={'outputs': ()})!r} {opset(spec)}", spec)
    return [pytest.param(spec, id=spec.name) for spec in found.values()]


def opset(spec: ModelSpec) -> int:
    assert spec.adapter is not None
    said = re.search(r"opset (\d+)", spec.summary)
    return int(said.group(1)) if said else OPSETS.get(spec.adapter.decoder, OPSETS.get(spec.task, 12))


def cells(contract: Contract, stride: int) -> tuple[int, int]:
    assert contract.size is not None
    return contract.size[0] // stride, contract.size[1] // stride


def answers(spec: ModelSpec) -> list[Shape]:
    """The axes of each output behind the batch, as the published file has them."""
    contract = spec.adapter
    assert contract is not None
    k, classes = [prod(cells(contract, stride)) for stride in contract.strides], contract.classes + contract.first_class
    shapes: dict[str, Callable[[], list[Shape]]] = {
        "logits": lambda: [(classes,)],
        "probabilities": lambda: [(classes, 1, 1) if "squeezenet" in spec.name else (classes,)],
        "logits-or-probabilities": lambda: [(classes,)],
        "corners-scores": lambda: [(ROWS, 4), (ROWS, classes)],
        "embedding": lambda: [(128,)],
        "yolox": lambda: [(sum(k), 5 + classes)],
        "yolov3": lambda: [(*cells(contract, stride), 3, 5 + classes) for stride in contract.strides],
        "nanodet": lambda: [(n, classes) for n in k] + [(n, 4 * BINS) for n in k],
        "detr": lambda: [(QUERIES, classes), (QUERIES, 4)],
        "nms-indices": lambda: [(ROWS, 4), (classes, ROWS)],
        "efficient-nms": lambda: [(), (ROWS, 4), (ROWS,), (ROWS,)],
        "boxes-labels-scores": lambda: [(ROWS, 4), (ROWS,), (ROWS,)],
    }
    return shapes[contract.decoder]()


class File:
    """A small graph: the mean of each channel times random weights, as every output."""

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.adapter is not None
        self.spec, self.contract, self.random = spec, spec.adapter, np.random.default_rng(7)
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self.outputs: list[Any] = []
        self.alone = self.contract.decoder == "boxes-labels-scores"  # takes one picture, without a batch axis
        self.batch: int | str = "N" if self.contract.free_batch else 1
        self.weights: list[NDArray[np.float32]] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def expose(self, name: str, dtype: int, shape: Any) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def model(self) -> ModelProto:
        contract = self.contract
        channels = 1 if contract.color == "GRAY" else 3
        assert contract.size is not None
        sides: list[Any] = ["h", "w"] if contract.decoder in {"efficient-nms", "nms-indices"} else list(contract.size)
        axes = [channels, *sides] if contract.layout == "NCHW" else [*sides, channels]
        kind = TensorProto.UINT8 if contract.decoder == "efficient-nms" else TensorProto.FLOAT
        name = contract.input or "data"
        inputs = [helper.make_tensor_value_info(name, kind, axes if self.alone else [self.batch, *axes])]
        if contract.decoder == "nms-indices":
            inputs.append(helper.make_tensor_value_info("image_shape", TensorProto.FLOAT, ["N", 2]))
        if contract.decoder == "picture":
            self.add("Mul", name, self.constant(0.5), output=contract.outputs[0])
            self.expose(contract.outputs[0], TensorProto.FLOAT, [self.batch, *axes])
        else:
            self.heads(name, channels)
        graph = helper.make_graph(self.nodes, "file", inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset(self.spec))], ir_version=4)

    def heads(self, name: str, channels: int) -> None:
        picture = self.add("Cast", name, to=TensorProto.FLOAT)
        first = 0 if self.alone else 1
        spatial = [first + 1, first + 2] if self.contract.layout == "NCHW" else [1, 2]
        pooled = self.add("ReduceMean", picture, axes=spatial, keepdims=0)
        if self.alone:
            pooled = self.add("Reshape", pooled, self.constant([1, channels], np.int64))
        shapes = answers(self.spec)
        names = self.contract.outputs or tuple(f"out{i}" for i in range(len(shapes)))
        for output, shape in zip(names, shapes, strict=False):
            self.weights.append(self.random.normal(0, 0.01, (channels, prod(shape))).astype(np.float32))
            flat = self.add("MatMul", pooled, self.constant(self.weights[-1]))
            if self.contract.decoder == "probabilities":
                flat = self.add("Softmax", flat, axis=1)
            lead: list[int] = [] if self.alone else [-1 if self.batch == "N" else 1]
            self.add("Reshape", flat, self.constant([*lead, *shape], np.int64), output=output)
            self.expose(output, TensorProto.FLOAT, ([] if self.alone else [self.batch]) + list(shape))
        self.whole_numbers(names)

    def whole_numbers(self, names: tuple[str, ...]) -> None:
        """What files with NMS inside say besides boxes and scores."""
        if self.contract.decoder == "nms-indices":
            self.add("Cast", self.constant(CHOSEN, np.int32), to=TensorProto.INT32, output=names[2])
            self.expose(names[2], TensorProto.INT32, ["m", 3])
            self.rename("Mul", names[0], "image_shape")
        if self.contract.decoder == "efficient-nms":
            self.replace(names[0], np.array([2], np.float32), TensorProto.FLOAT)
            self.replace(names[3], np.array([[1, 90, 17, 3, 3, 3]], np.float32), TensorProto.FLOAT)
        if self.contract.decoder == "boxes-labels-scores":
            self.replace(names[1], np.array([1, 80, 2, 2, 3, 4], np.int64), TensorProto.INT64)

    def replace(self, name: str, values: NDArray[Any], kind: int) -> None:
        self.nodes = [node for node in self.nodes if node.output[0] != name]
        self.outputs = [
            helper.make_tensor_value_info(name, kind, values.shape) if value.name == name else value for value in self.outputs
        ]
        self.add("Cast", self.constant(values, values.dtype), to=kind, output=name)

    def rename(self, operator: str, name: str, other: str) -> None:
        """Let `name` be the tensor of that name times the largest number of the input `other`."""
        node = next(node for node in self.nodes if node.output[0] == name)
        node.output[0] = f"{name}_unit"
        self.add(operator, f"{name}_unit", self.add("ReduceMax", other, keepdims=0), output=name)


@pytest.fixture
def built(tmp_path: Path) -> Callable[[ModelSpec], tuple[File, Path]]:
    """The file of a model, adopted by its contract."""

    def build(spec: ModelSpec) -> tuple[File, Path]:
        file = File(spec)
        onnx.save(file.model(), tmp_path / "file.onnx")
        assert spec.adapter is not None
        onnx.save(adopt(tmp_path / "file.onnx", spec.adapter), tmp_path / "model.onnx")
        return file, tmp_path / "model.onnx"

    return build


@pytest.mark.parametrize("spec", distinct())
def test_the_contract_makes_what_its_task_reads(spec: ModelSpec, built: Callable[[ModelSpec], tuple[File, Path]]) -> None:
    file, model = built(spec)
    check_answers(spec, run_once(model, noise(spec)))
    if file.batch == "N":
        outputs = run_once(model, noise(spec, batch=2))
        assert {len(tensor) for tensor in outputs.values()} == {2}


@pytest.mark.parametrize(
    "spec", [case for case in distinct() if case.values[0].task in {"classify", "face-liveness", "embed-face"}]
)
def test_the_file_gets_what_the_input_says(spec: ModelSpec, built: Callable[[ModelSpec], tuple[File, Path]]) -> None:
    """[input] tells people what happens to a pixel, and [adapter] does it: both must say the same."""
    file, model = built(spec)
    feeds = noise(spec)
    pixels = feeds["pixels"][0].astype(np.float64)
    seen = ((pixels - spec.input.mean) / spec.input.std).mean(axis=(0, 1))
    wanted = {"RGB": seen, "BGR": seen[::-1], "GRAY": np.array([seen @ (0.299, 0.587, 0.114)])}[file.contract.color] @ file.weights[
        0
    ]
    got = next(iter(run_once(model, feeds).values()))[0].ravel().astype(np.float64)
    if file.contract.decoder == "probabilities":
        wanted, got = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (wanted, got))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("spec", distinct("stylize"))
def test_a_painting_keeps_its_pixels(spec: ModelSpec, built: Callable[[ModelSpec], tuple[File, Path]]) -> None:
    _, model = built(spec)
    feeds = noise(spec)
    painted = run_once(model, feeds)["painted"]
    assert np.abs(painted.astype(int) - feeds["pixels"] * 0.5).max() <= 1


def test_boxes_chosen_by_the_file_come_with_their_classes(built: Callable[[ModelSpec], tuple[File, Path]]) -> None:
    """Classes count from 0 as the labels do, whatever the file counts from; a box of a class is where that class is."""
    for name, classes in {"yolov3-10": [2, 79, 0], "ssd-mobilenet-v1-12": [0, 89], "fasterrcnn-12": [0, 79, 1, 1, 2, 3]}.items():
        spec = public_models()[name]
        _, model = built(spec)
        scores = run_once(model, noise(spec))["scores"][0]
        assert [np.flatnonzero(row).tolist() for row in scores[: len(classes)]] == [[one] for one in classes]
        assert not scores[len(classes) :].any()


def test_batch_norms_of_old_exports_run(tmp_path: Path) -> None:
    """The ResNets of opset 7 may say spatial=0 though they hold one scale a channel, which runtimes refuse."""
    spec = public_models()["resnet18-v1-7"]
    assert spec.adapter is not None
    model = File(spec).model()
    model.graph.node.insert(0, helper.make_node("BatchNormalization", [model.graph.input[0].name, *"sbmv"], ["normal"], spatial=0))
    model.graph.node[1].input[0] = "normal"
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(3, np.float32), name) for name in "sbmv")
    onnx.save(model, tmp_path / "file.onnx")
    onnx.save(adopt(tmp_path / "file.onnx", spec.adapter), tmp_path / "model.onnx")
    check_answers(spec, run_once(tmp_path / "model.onnx", noise(spec)))

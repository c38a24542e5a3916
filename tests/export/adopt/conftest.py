"""Builders of tiny foreign ONNX files with random weights, and the two ways to run one: as it is, and adopted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.export.adopt import adopt
from service.export.contract import Contract
from service.runtime.session import run_once

Array = NDArray[Any]
Dims = Sequence[int | str | None]
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


class Foreign:
    """Someone's export: one picture in, convolutions, whatever out. `batch`: 1 as exporters fix it, or a name; so is `size`."""

    def __init__(
        self,
        *,
        opset: int = 13,
        dtype: str = "float32",
        layout: str = "NCHW",
        channels: int = 3,
        batch: int | str = 1,
        size: tuple[int | str, int | str] = (64, 96),
        name: str = "images",
        seed: int = 0,
    ) -> None:
        self.opset, self.batch = opset, batch
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.works_in = np.float16 if dtype == "float16" else np.float32
        axes: Dims = [batch, channels, *size] if layout == "NCHW" else [batch, *size, channels]
        self.channels = channels
        self.picture = self.input(name, axes, DTYPES[dtype])
        if dtype == "uint8":
            self.picture = self.node(
                "Mul", self.node("Cast", self.picture, to=TensorProto.FLOAT), self.constant(np.float32(1 / 255))
            )
        if layout == "NHWC":
            self.picture = self.node("Transpose", self.picture, perm=[0, 3, 1, 2])

    def input(self, name: str, shape: Dims, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value), name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def head(self, columns: int, stride: int) -> str:
        """A convolution of the picture to [n, columns, h / stride, w / stride], of about the spread 1 for pictures of 0..1."""
        weight = self.random.normal(0, 2 / stride, (columns, self.channels, stride, stride)).astype(self.works_in)
        bias = self.random.normal(0, 0.5, columns).astype(self.works_in)
        return self.node("Conv", self.picture, self.constant(weight), self.constant(bias), strides=[stride, stride])

    def reshape(self, x: str, *rest: int) -> str:
        """[batch, *rest], with the batch written down where it is fixed, as exporters do."""
        return self.node("Reshape", x, self.constant(np.array([self.batch if isinstance(self.batch, int) else 0, *rest], np.int64)))

    def rows(self, columns: int, strides: Sequence[int]) -> str:
        """Heads of several strides, one after the other, as [n, columns, k]."""
        return self.node("Concat", *(self.reshape(self.head(columns, stride), columns, -1) for stride in strides), axis=2)

    def output(self, x: str, name: str, shape: Dims, dtype: int | None = None) -> None:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.works_in)) if dtype is None else dtype
        self.node("Identity", x, name=name)
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def save(self, path: Path) -> Path:
        old = self.opset < 9  # weights had to be inputs too
        also = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.weights] if old else []
        graph = helper.make_graph(self.nodes, "theirs", [*self.inputs, *also], self.outputs, self.weights)
        others = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in others)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR[self.opset]), path)
        return path


@pytest.fixture(scope="session")
def foreign() -> type[Foreign]:
    return Foreign


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Array]:
    """Noise: pictures(count, height, width) -> uint8 [count, height, width, 3]."""
    return lambda count=1, height=64, width=96: np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., dict[str, Array]]:
    """house(path, contract, pixels, **more): the answers of the adopted graph, run from its own single file."""

    def run(path: Path, contract: Contract, pixels: Array, **more: Array) -> dict[str, Array]:
        made = tmp_path / "house" / "model.onnx"
        made.parent.mkdir(exist_ok=True)
        onnx.save(adopt(path, contract), made)
        return dict(run_once(made, {"pixels": pixels, **more}))

    return run

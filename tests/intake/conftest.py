"""Tiny ONNX files of every layout: tables of numbers made up, plus a mean of the picture times nothing, so that it is read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.settings import Settings

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
Shape = Sequence[int | str | None]
Graph = Callable[..., Path]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", trial_seconds=20, offline=True)


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """graph(outputs, shape, ...): a file whose outputs are the arrays given, as often as there are pictures."""

    def make(
        outputs: Mapping[str, Any],
        shape: Shape = (1, 3, 64, 64),
        *,
        dtype: str = "float32",
        name: str = "model",
        metadata: Mapping[str, str] | None = None,
        opset: int = 17,
        more_inputs: Mapping[str, tuple[str, Shape]] | None = None,
        per_picture: bool = True,
        folder: Path | None = None,
        extra_operator: str | None = None,
    ) -> Path:
        nodes, weights, values = [], [], []
        axes = list(range(1, len(shape)))
        nodes.append(helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceMean", ["whole"], ["mean"], axes=axes, keepdims=0))
        weights.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
        nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
        for number, (key, array) in enumerate(outputs.items()):
            array = np.asarray(array)  # noqa: PLW2901
            weights.append(numpy_helper.from_array(array, f"table{number}"))
            kind = TYPES[str(array.dtype)]
            if per_picture:
                weights.append(numpy_helper.from_array(np.array([-1] + [1] * (array.ndim - 1)), f"axes{number}"))
                nodes.append(helper.make_node("Reshape", ["nothing", f"axes{number}"], [f"rows{number}"]))
                nodes.append(helper.make_node("Cast", [f"rows{number}"], [f"cast{number}"], to=kind))
                nodes.append(helper.make_node("Add", [f"table{number}", f"cast{number}"], [key]))
                values.append(helper.make_tensor_value_info(key, kind, ["n" if isinstance(shape[0], str) else 1, *array.shape[1:]]))
            else:
                nodes.append(helper.make_node("Identity", [f"table{number}"], [key]))
                values.append(helper.make_tensor_value_info(key, kind, array.shape))
        if extra_operator == "NonMaxSuppression":
            weights.append(numpy_helper.from_array(np.zeros((1, 1, 4), np.float32), "no_boxes"))
            weights.append(numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "no_scores"))
            nodes.append(helper.make_node("NonMaxSuppression", ["no_boxes", "no_scores"], ["chosen"]))
        inputs = [helper.make_tensor_value_info("images", TYPES[dtype], shape)]
        for key, (kind_name, dims) in (more_inputs or {}).items():
            inputs.append(helper.make_tensor_value_info(key, TYPES[kind_name], dims))
        whole = helper.make_graph(nodes, "g", inputs, values, weights)
        model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="test")
        helper.set_model_props(model, dict(metadata or {}))
        path = (folder or tmp_path) / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(nodes, inputs, outputs, ...): a file of these nodes."""

    def make(
        nodes: Sequence[Any], inputs: Any = None, outputs: Any = None, weights: Any = (), name: str = "model", **model: Any
    ) -> Path:
        inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
        outputs = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        whole = helper.make_graph(list(nodes), "g", inputs, outputs, list(weights))
        domains = {"": 17, **model.pop("domains", {})}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        made = helper.make_model(whole, opset_imports=opsets, ir_version=model.pop("ir_version", 8))
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    return make


class Tables:
    """Answers as detectors give them for 64 x 64 pixels."""

    strides = (8, 16, 32)

    @staticmethod
    def places(size: int = 64, per_place: int = 1, strides: Sequence[int] = (8, 16, 32)) -> Any:
        levels = []
        for stride in strides:
            down, across = np.mgrid[0 : size // stride, 0 : size // stride]
            level = (np.stack([across, down], -1).reshape(-1, 2) + 0.5) * stride
            levels.append(np.tile(level, (per_place, 1)))
        return np.concatenate(levels)

    @classmethod
    def decoded(cls, extra: int, per_place: int = 1, size: int = 64) -> Any:
        """[1, k, 4 + extra]: boxes on their places, the rest random scores."""
        centres = cls.places(size, per_place)
        random = np.random.default_rng(3)
        rest = random.random((len(centres), extra)) * 0.9 + 0.05
        sides = np.full((len(centres), 2), 10.0)
        return np.concatenate([centres, sides, rest], 1)[None].astype(np.float32)

    @classmethod
    def raw(cls, extra: int) -> Any:
        count = len(cls.places())
        random = np.random.default_rng(4)
        return np.concatenate([random.normal(size=(count, 4)), random.random((count, extra))], 1)[None].astype(np.float32)

    @staticmethod
    def rows(count: int = 30, classes: int = 3) -> Any:
        """[1, count, 6]: corners, score, class."""
        random = np.random.default_rng(5)
        low = random.random((count, 2)) * 30
        labels = np.arange(count) % classes
        return np.concatenate([low, low + 12, random.random((count, 1)), labels[:, None]], 1)[None].astype(np.float32)

    @staticmethod
    def noise(*shape: int, low: float = -4, high: float = 4) -> Any:
        return np.random.default_rng(6).uniform(low, high, shape).astype(np.float32)


@pytest.fixture
def tables() -> type[Tables]:
    return Tables

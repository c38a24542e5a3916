"""Tiny models that a user may own: a detector of two classes whose one box is where its maker wants it."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.fleet import Fleet
from service.repository.progress import Silent
from service.settings import Settings

MakeModel = Callable[..., Path]
SIDE, PLACES = 64, 84

MANIFEST = """
name = "{name}"
version = "1"
task = "detect"
family = "adopted"
summary = "A box"
labels = "labels.txt"
nms = true
default = {default}

[licence]
spdx = "MIT"
url = "https://example.org"
commercial_use = true

[[files]]
name = "{file}"
sha256 = "{sha256}"
size = {size}

[export]
recipe = "adopt"

[adapter]
decoder = "yolov8"
scale = 0.00392156862745098
size = [64, 64]
classes = 2

[input]
size = [64, 64]
resize = "letterbox"
"""


def detector(x: float) -> bytes:
    """As YOLOv8 is exported: [1, 6, 84], of which one place has a box of 16 x 16 pixels around (x, 32) and the first class."""
    boxes = np.zeros((1, 6, PLACES), np.float32)
    boxes[0, :, 0] = (x, 32, 16, 16, 0.9, 0.0)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "shape"], ["column"]),
        helper.make_node("Add", ["column", "boxes"], ["output0"]),
    ]
    constants = {"zero": np.float32(0), "boxes": boxes, "shape": np.array([-1, 1, 1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, PLACES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def make_model(repository: Path) -> MakeModel:
    """Writes a model's folder with a manifest: make_model(name, x=32.0, default=False)."""

    def make(name: str, x: float = 32.0, *, default: bool = False) -> Path:
        folder, data = repository / name, detector(x)
        folder.mkdir(exist_ok=True)
        (folder / "box.onnx").write_bytes(data)
        (folder / "labels.txt").write_text("box\nring\n")
        about = {"name": name, "file": "box.onnx", "sha256": sha256(data).hexdigest(), "size": len(data)}
        (folder / "model.toml").write_text(MANIFEST.format(**about, default=str(default).lower()))
        return folder

    return make


@pytest.fixture
def box_file() -> Callable[[float], bytes]:
    """The file of such a detector."""
    return detector


@pytest.fixture
def settings(repository: Path, tmp_path: Path) -> Settings:
    return Settings(
        device="cpu", tune=False, reload_seconds=0, models=(), model_repository=(repository,), data_dir=tmp_path / "data"
    )


@pytest.fixture
def fleet_of(settings: Settings) -> Callable[..., Fleet]:
    """A fleet of the named models of the repository, started. The caller closes it."""

    def start(*names: str, **changes: object) -> Fleet:
        fleet = Fleet(settings.model_copy(update={"models": names, **changes}), Silent())
        fleet.start()
        return fleet

    return start

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import InferenceFailed
from service.runtime.providers import CPU, Choice
from service.runtime.session import FakeSession, OrtSession, Sizes, TensorInfo, run_once


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    """y = x + x, float32 [n, 2]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubler", [x], [y])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("sizes", get_args(Sizes))
@pytest.mark.parametrize("threads", [1, 2])
def test_runs_and_describes_a_graph(doubler: Path, sizes: Sizes, threads: int) -> None:
    session = OrtSession(doubler, Choice(CPU), sizes=sizes, threads=threads)
    assert session.inputs == (TensorInfo("x", ("n", 2), "tensor(float)"),)
    assert session.outputs == (TensorInfo("y", ("n", 2), "tensor(float)"),)
    assert session.provider == CPU
    np.testing.assert_array_equal(session.run({"x": np.ones((3, 2), np.float32)})["y"], np.full((3, 2), 2.0))


def test_graphs_are_optimised_beyond_the_basics(tmp_path: Path) -> None:
    """y = (x * 1e-30) @ (1e30 * identity): zero where each step is rounded, x once the scale is fused into the product."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    tiny = helper.make_tensor("tiny", TensorProto.FLOAT, [], [1e-30])
    huge = helper.make_tensor("huge", TensorProto.FLOAT, [2, 2], [1e30, 0, 0, 1e30])
    nodes = [helper.make_node("Mul", ["x", "tiny"], ["scaled"]), helper.make_node("MatMul", ["scaled", "huge"], ["y"])]
    path = tmp_path / "model.onnx"
    graph = helper.make_graph(nodes, "scaled", [x], [y], [tiny, huge])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    small = np.full((3, 2), 1e-20, np.float32)
    np.testing.assert_allclose(run_once(path, {"x": small})["y"], small, rtol=1e-5)


def test_a_run_that_fails_says_why(doubler: Path) -> None:
    with pytest.raises(InferenceFailed, match="x"):
        run_once(doubler, {"x": np.ones((3, 5), np.float32)})


def test_fake_session_answers_with_its_function() -> None:
    session = FakeSession(lambda feeds: {"y": feeds["x"] + 1})
    assert session.run({"x": np.zeros(2)})["y"].tolist() == [1, 1]


def test_a_graph_for_huge_pictures_gives_its_memory_back(tmp_path: Path) -> None:
    """Two runs of 64 MB each way: what is kept shows in what the process holds afterwards."""
    held = {}
    for sizes in ("some", "huge"):
        code = MEMORY.format(path=write_convolution(tmp_path), sizes=sizes)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        held[sizes] = int(done.stdout)
    assert held["some"] > 48
    assert held["huge"] < 16


MEMORY = """
import numpy as np, pathlib
from service.runtime.providers import CPU, Choice
from service.runtime.session import OrtSession
def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20
session = OrtSession(pathlib.Path({path!r}), Choice(CPU), sizes={sizes!r})
session.run({{"x": np.ones((1, 1, 64, 64), np.float32)}})
before = megabytes()
session.run({{"x": np.ones((1, 1, 4096, 4096), np.float32)}})
print(megabytes() - before)
"""


def write_convolution(folder: Path) -> str:
    """y = mean of relu(x) + x, over one picture of any size: intermediate results as large as the picture."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["b"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "wide", [x], [y])
    path = folder / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import InferenceFailed
from service.runtime.providers import CPU, Choice
from service.runtime.session import FakeSession, OrtSession, TensorInfo, run_once


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    """y = x + x, float32 [n, 2]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubler", [x], [y])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("keep_memory", [True, False])
def test_runs_and_describes_a_graph(doubler: Path, keep_memory: bool) -> None:
    session = OrtSession(doubler, Choice(CPU), keep_memory=keep_memory)
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

"""The trial run has little time and memory, survives a crash, and leaves nothing behind."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import ModelRefused
from service.intake import trial as module
from service.intake.trial import trial
from service.settings import Settings

Save = Callable[..., Path]
X = {"x": np.ones((1, 3, 8, 8), np.float32)}


def constant(name: str, value: object) -> object:
    return numpy_helper.from_array(np.array(value), name)


def test_several_runs_of_one_graph(save: Save, settings: Settings) -> None:
    path = save(
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Shape", ["x"], ["a/b c"])],
        outputs=[
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("a/b c", TensorProto.INT64, None),
        ],
    )
    first, second = trial(path, [X, {"x": 3 * X["x"]}], settings)
    assert first["y"].max() == 2
    assert second["y"].max() == 6
    assert second["a/b c"].tolist() == [1, 3, 8, 8]
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


def endless() -> list[object]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 3, 8, 8]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 3, 8, 8]),
        ],
    )
    return [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)]


def test_a_graph_that_takes_too_long_is_ended(save: Save, settings: Settings) -> None:
    path = save(endless(), weights=[constant("n", np.int64(2**60)), constant("yes", True)])
    with pytest.raises(ModelRefused, match="VISION_TRIAL_SECONDS"):
        trial(path, [X], settings.model_copy(update={"trial_seconds": 1.0}))


def test_a_graph_that_takes_too_much_memory(save: Save, settings: Settings) -> None:
    path = save(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Mul", ["s", "many"], ["large"]),
            helper.make_node("Expand", ["x", "large"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 1, 1])],
        weights=[constant("many", np.array([1, 3000, 3000, 3000]))],
    )
    with pytest.raises(ModelRefused, match="memory"):
        trial(path, [{"x": np.ones((1, 1, 1, 1), np.float32)}], settings)


def test_a_child_that_crashes(save: Save, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph would make it that finds a hole in the runtime."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport os\nos.kill(os.getpid(), 11)\n")
    python.chmod(0o755)
    path = save([helper.make_node("Relu", ["x"], ["y"])])
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelRefused, match="crashed"):
        trial(path, [X], settings)


def test_what_a_child_answers_is_not_trusted(
    save: Save, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nprint('nonsense')\n")
    python.chmod(0o755)
    path = save([helper.make_node("Relu", ["x"], ["y"])])
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelRefused, match="nothing that can be read"):
        trial(path, [X], settings)


def test_secrets_stay_with_the_parent(save: Save, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, told = tmp_path / "python", tmp_path / "told"
    python.write_text(f"#!{sys.executable}\nimport os\nopen({str(told)!r}, 'w').write(' '.join(os.environ))\n")
    python.chmod(0o755)
    path = save([helper.make_node("Relu", ["x"], ["y"])])
    monkeypatch.setenv("VISION_API_KEYS", "secret")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelRefused):
        trial(path, [X], settings)
    assert "PATH" in told.read_text().split()
    assert "VISION_API_KEYS" not in told.read_text()


@pytest.mark.skipif(os.name != "posix", reason="limits are asked of a POSIX system")
def test_the_child_cannot_write_a_file(tmp_path: Path) -> None:
    import subprocess

    limits = {"memory": 2**34, "seconds": 9}
    writing = f"open({str(tmp_path / 'f')!r}, 'w').write('x' * 99999)"
    code = f"from service.intake.trial import _limit; _limit({limits}); {writing}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        check=False,
    )
    assert done.returncode != 0
    assert (tmp_path / "f").stat().st_size == 0


def test_an_answer_in_words(save: Save, settings: Settings) -> None:
    path = save([helper.make_node("MatMul", ["x", "w"], ["y"])], weights=[constant("w", np.ones((5, 5), np.float32))])
    with pytest.raises(ModelRefused, match="cannot run it"):
        trial(path, [X], settings)

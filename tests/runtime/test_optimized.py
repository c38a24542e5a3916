import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.runtime import optimized
from service.runtime.optimized import FOLDER, KEPT, Optimized
from service.runtime.providers import CPU, CUDA, Choice
from service.runtime.session import OrtSession


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two convolutions with what fuses into them, float32 [n, 3, h, w] -> [n, 16, h, w]: the NCHWc layout applies."""
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=size).astype(np.float32), name) for name, size in
               (("w", (32, 3, 3, 3)), ("b", (32,)), ("v", (16, 32, 3, 3)))]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, "h", "w"])
    made = helper.make_graph(nodes, "two", [x], [y], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Optimized:
    return Optimized((tmp_path,), "a" * 64, Choice(CPU))


def answer(session: OrtSession) -> np.ndarray:
    return session.run({"x": np.random.default_rng(1).normal(size=(2, 3, 19, 23)).astype(np.float32)})["y"]


def opened(cache: Optimized, graph: Path) -> np.ndarray:
    return answer(cache.open(graph, threads=1, sizes="some"))


def kept(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).iterdir()) if (folder / FOLDER).exists() else []


def test_the_kept_graph_is_optimised_and_answers_bit_for_bit_the_same(cache: Optimized, graph: Path, tmp_path: Path) -> None:
    plain = answer(OrtSession(graph, Choice(CPU)))
    np.testing.assert_array_equal(opened(cache, graph), plain)
    (file,) = kept(tmp_path)
    assert {node.domain for node in onnx.load(file).graph.node} & {"com.microsoft.nchwc", "com.microsoft"}
    graph.unlink()  # from here on the kept one alone answers
    np.testing.assert_array_equal(opened(cache, graph), plain)
    np.testing.assert_array_equal(answer(cache.open(graph, threads=2, sizes="one")), plain)
    assert kept(tmp_path) == [file]


@pytest.mark.parametrize("damage", [b"", b"x", "cut", "flip"])
def test_a_damaged_file_is_made_again(cache: Optimized, graph: Path, tmp_path: Path, damage: bytes | str) -> None:
    plain = opened(cache, graph)
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes(damage if isinstance(damage, bytes) else {"cut": whole[:-1], "flip": flipped}[damage])
    assert cache.find(graph) is None
    np.testing.assert_array_equal(opened(cache, graph), plain)
    assert kept(tmp_path) == [file]
    assert cache.find(graph) == file


def test_a_file_that_onnxruntime_refuses_is_dropped_and_made_at_the_next_start(
    cache: Optimized, graph: Path, tmp_path: Path
) -> None:
    """Its digest is right, yet it is no graph."""
    plain = opened(cache, graph)
    (good,) = kept(tmp_path)
    good.unlink()
    part = tmp_path / "part"
    part.write_bytes(b"not a graph")
    bad = good.with_name(f"{good.stem.rpartition('-')[0]}-{optimized.digest_of(part)}.onnx")
    part.rename(bad)
    assert cache.find(graph) == bad
    np.testing.assert_array_equal(opened(cache, graph), plain)
    assert kept(tmp_path) == []
    np.testing.assert_array_equal(opened(cache, graph), plain)
    assert kept(tmp_path) == [good]


def test_another_build_runtime_or_processor_has_files_of_its_own(
    cache: Optimized, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(cache, graph)
    assert cache.find(graph) is not None
    assert replace(cache, build="b" * 64).find(graph) is None
    monkeypatch.setattr(optimized.import_onnxruntime(), "__version__", "99.0")
    assert cache.find(graph) is None
    monkeypatch.undo()
    monkeypatch.setattr(optimized, "processor", lambda: ("the same name", "f" * 64))
    assert cache.find(graph) is None


@pytest.mark.parametrize("change", [{"build": None}, {"choice": Choice(CUDA)}])
def test_nothing_is_kept_without_a_record_or_on_a_gpu(
    cache: Optimized, graph: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    other = replace(cache, **change)  # type: ignore[arg-type]
    assert other.find(graph) is None
    if other.choice.provider == CPU:
        opened(other, graph)
    assert kept(tmp_path) == []


def test_nothing_is_kept_where_the_processor_is_unknown(
    cache: Optimized, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimized, "processor", lambda: ("arm", None))
    opened(cache, graph)
    assert kept(tmp_path) == []


def test_the_next_folder_serves_or_none(cache: Optimized, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    plain = opened(replace(cache, folders=(tmp_path / "file",)), graph)
    np.testing.assert_array_equal(opened(replace(cache, folders=(tmp_path / "file", tmp_path / "free")), graph), plain)
    assert len(kept(tmp_path / "free")) == 1


def test_a_broken_graph_is_still_an_error(cache: Optimized, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"broken")
    with pytest.raises(Exception, match=r"model\.onnx"):
        opened(cache, tmp_path / "model.onnx")
    assert kept(tmp_path) == []


def test_old_files_and_what_a_killed_process_left_are_dropped(cache: Optimized, graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for number in range(KEPT + 2):
        path = folder / f"model-{number:016x}-{'0' * 64}.onnx"
        path.touch()
        os.utime(path, (1000 + number, 1000 + number))
    other, new, old = folder / f"tile-{0:016x}-{'0' * 64}.onnx", folder / ".model-new.part", folder / ".model-old.part"
    for path in (other, new, old):
        path.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    opened(cache, graph)
    left = kept(tmp_path)
    assert other in left
    assert new in left
    assert old not in left
    models = [path for path in left if path.name.startswith("model-")]
    assert len(models) == KEPT
    assert {f"model-{number:016x}" for number in (3, 4, 5)} <= {path.name[:22] for path in models}

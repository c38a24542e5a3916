"""A user's own classifier, from its file to the answer: are there class maps of it, may windows slide, and why not."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

from service.engine import Engine
from service.errors import OptionInvalid
from service.repository.build import describe, fingerprint, read_record
from service.repository.progress import Silent
from service.repository.spec import load_spec
from service.repository.store import ensure, verify_built
from service.runtime.session import run_once
from service.settings import Settings

SIDE = 64
MANIFEST = """
name = "mine"
version = "1"
task = "classify"
family = "adopted"
summary = "Three classes"
labels = "labels.txt"

[licence]
spdx = "MIT"
url = "https://example.org"
commercial_use = true

[[files]]
name = "mine.onnx"
sha256 = "{sha256}"
size = {size}

[export]
recipe = "adopt"

[adapter]
decoder = "logits"
scale = 0.00392156862745098
size = [64, 64]
classes = 3

[input]
size = [64, 64]
resize = "stretch"
"""


def node(operator: str, *names: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, names[:-1], names[-1:], **attributes)


POOLED = [
    node("GlobalAveragePool", "x", "pooled"),
    node("Flatten", "pooled", "flat"),
    node("Gemm", "flat", "w", "b", "out", transB=1),
]
PLACED = [node("Add", "y", "place", "x"), *POOLED]
FLAT = [node("Flatten", "y", "flat"), node("Gemm", "flat", "wide", "b", "out", transB=1)]


def put(folder: Path, nodes: list[NodeProto], kernel: int = 8) -> Path:
    """A classifier in `folder` that tells red, green and blue; "y" is its feature map [1, 3, 64 / kernel, 64 / kernel]."""
    cells = SIDE // kernel
    color = np.zeros((3, 3, kernel, kernel), np.float32)
    color[range(3), range(3)] = 8 / kernel**2
    weights: dict[str, NDArray[Any]] = {
        "color": color,
        "place": np.random.default_rng(0).normal(0, 0.01, (1, 3, cells, cells)),
        "w": np.eye(3),
        "b": np.array([0.5, 0, -0.5]),
        "wide": np.ones((3, 3 * cells * cells)),
    }
    body = [node("Conv", "image", "color", "c", strides=[kernel] * 2, kernel_shape=[kernel] * 2), node("Relu", "c", "y")]
    nodes = [*body, *([] if nodes is not POOLED else [node("Identity", "y", "x")]), *nodes]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    mine = folder / "mine"
    mine.mkdir(parents=True)
    graph = helper.make_graph(nodes, "mine", [image], [out], initializers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), mine / "mine.onnx")
    body_ = (mine / "mine.onnx").read_bytes()
    (mine / "model.toml").write_text(MANIFEST.format(sha256=sha256(body_).hexdigest(), size=len(body_)))
    (mine / "labels.txt").write_text("red\ngreen\nblue\n")
    return folder


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """Black, with a large blue square on the right and a small red one on the left; 128 x 256."""
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[32:112, 160:240, 2] = 255
    pixels[16:32, 16:48, 0] = 255
    return pixels


def settings(folder: Path, tmp_path: Path) -> Settings:
    return Settings(device="cpu", models=("mine",), model_repository=(folder,), data_dir=tmp_path / "data", tune=False)


def test_a_users_own_classifier_is_explained(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with Engine(settings(put(tmp_path / "own", POOLED), tmp_path), progress=Silent()) as engine:
        (card,) = engine.describe()
        assert (card.explains, card.slides) == (True, True)
        answer = engine.classify(picture, explain=True, sliding_window=True)
        assert answer.predictions[0].label == "blue"
        assert np.shape(answer.predictions[0].activation.grid) == (8, 8)  # type: ignore[union-attr]
        assert answer.localization is not None
        box = answer.localization.box
        np.testing.assert_allclose((box.x_min, box.y_min, box.x_max, box.y_max), (160, 32, 240, 112), atol=24)
        windows = answer.windows
        assert windows is not None
        assert (windows.size, windows.stride, windows.rows, windows.columns) == (64, 8, 9, 25)
        assert [windows.labels[str(windows.class_ids[4][c])] for c in (0, 20)] == ["red", "blue"]
        plain = engine.classify(picture)
        assert plain.predictions[0].confidence == pytest.approx(answer.predictions[0].confidence, abs=1e-5)


def test_a_network_of_one_size_is_explained_and_does_not_slide(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with Engine(settings(put(tmp_path / "own", PLACED), tmp_path), progress=Silent()) as engine:
        (card,) = engine.describe()
        assert (card.explains, card.slides) == (True, False)
        assert engine.classify(picture, explain=True).localization is not None
        with pytest.raises(OptionInvalid, match="mine cannot do that: its network takes pictures of 64 x 64 only"):
            engine.classify(picture, sliding_window=True)


def test_cells_that_do_not_divide_the_picture_do_not_slide(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with Engine(settings(put(tmp_path / "own", POOLED, kernel=5), tmp_path), progress=Silent()) as engine:
        assert np.shape(engine.classify(picture, explain=True).predictions[0].activation.grid) == (12, 12)  # type: ignore[union-attr]
        with pytest.raises(OptionInvalid, match="map of 12 x 12 does not divide pictures of 64 x 64"):
            engine.classify(picture, sliding_window=True)


def test_a_network_without_an_average_answers_and_is_not_explained(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with Engine(settings(put(tmp_path / "own", FLAT), tmp_path), progress=Silent()) as engine:
        (card,) = engine.describe()
        assert (card.explains, card.slides) == (False, False)
        assert len(engine.classify(picture).predictions) == 3
        with pytest.raises(OptionInvalid, match=r"is Relu; models that can: none that is loaded") as caught:
            engine.classify(picture, explain=True)
    assert caught.value.option == "explain"


def test_a_build_notes_what_it_left_out_and_counts_as_whole(tmp_path: Path) -> None:
    chosen = settings(put(tmp_path / "own", FLAT), tmp_path)
    spec = load_spec(tmp_path / "own" / "mine")
    built = ensure(spec, chosen, run_once, Silent())
    assert set(built.graphs) == {"model"}
    assert "Relu" in built.lacks["maps"]
    record = read_record(spec, built.folder)
    assert record is not None
    assert describe(spec, built.folder) == verify_built(spec, chosen) == built


def test_maps_that_contradict_the_classifier_are_left_out(tmp_path: Path) -> None:
    chosen = settings(put(tmp_path / "own", POOLED), tmp_path)
    spec = load_spec(tmp_path / "own" / "mine")

    def turned(path: Path, feeds: Any) -> Any:
        found = dict(run_once(path, feeds))
        if path.name == "maps.onnx":
            found["maps"] = found["maps"][:, ::-1]
        return found

    built = ensure(spec, chosen, turned, Silent())
    assert "the means of its maps are not its logits" in built.lacks["maps"]
    assert not (built.folder / "maps.onnx").exists()


def test_other_code_for_maps_is_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "own", POOLED)
    spec = load_spec(tmp_path / "own" / "mine")
    before = fingerprint(spec)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "class_maps.py" else b""))
    assert fingerprint(spec) != before

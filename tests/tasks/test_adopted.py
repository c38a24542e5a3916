"""Other people's networks from file to answer: tiny ONNX graphs adopted, run by onnxruntime and asked through the engine."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, save
from PIL import Image

from service.engine import Engine
from service.export.adopt import adopt
from service.export.contract import Contract
from service.loaded import LoadedModel
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import own_manifests
from service.runtime.providers import CPU, Choice
from service.runtime.scheduler import Lane
from service.runtime.session import OrtSession
from service.settings import Settings
from service.tasks.task import Tensors

Array = NDArray[Any]
SIDE = 64


def node(operator: str, *names: str, **attributes: Any) -> NodeProto:
    """The last of `names` is the output."""
    return helper.make_node(operator, names[:-1], names[-1:], **attributes)


def network(path: Path, nodes: Sequence[NodeProto], weights: Mapping[str, Array], channels: int = 3) -> Path:
    """From "image" [1, channels, SIDE, SIDE] to "out"."""
    pixels = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, SIDE, SIDE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "network", [pixels], [out], [numpy_helper.from_array(x, name) for name, x in weights.items()])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def loaded(path: Path, base: str, given: dict[str, Any], resize: str, **contract: Any) -> LoadedModel:
    """The network at `path` as a model of the manifest `base`, with another name, rule and contract."""
    adapter = Contract.model_validate(contract)
    model = path.with_suffix(".house.onnx")
    save(adopt(path, adapter), model)
    spec: ModelSpec = load_spec(own_manifests() / base)
    wanted = spec.input.model_copy(update={"resize": resize, "size": (SIDE, SIDE), "multiple_of": 1})
    update = {"name": path.stem, "family": "adopted", "adapter": adapter, "input": wanted, "styles": None, "parity": None}
    spec = spec.model_copy(update=update | {"default": True, "files": spec.files[:1]} | given)
    session = OrtSession(model, Choice(CPU))

    def run(_: str, feeds: Tensors) -> Tensors:
        return session.run(feeds)

    found = LoadedModel(spec, {"model": session}, "0" * 64, Lane(spec.name, run, workers=1, queue_length=4), warm=True)
    found.labels = ("cat", "dog", "bird")
    return found


ROWS = np.array([(0, 0, 0, 32, 32, 2, 0.9), (0, 16, 16, 64, 64, 0, 0.8), (0, 17, 16, 64, 64, 0, 0.7)], np.float32)
BRIGHTNESS = np.array([50, 150, 150], np.float32)
"""Of the photo, above which each row is found."""


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine of a detector with NMS inside, a classifier of grey pictures, and a painter that inverts."""
    folder = tmp_path_factory.mktemp("adopted")
    mean = node("ReduceMean", "image", "mean", axes=[0, 1, 2, 3], keepdims=0)
    picked = [node("Greater", "mean", "levels", "is"), node("NonZero", "is", "places"), node("Reshape", "places", "flat", "at")]
    rows = [mean, *picked, node("Gather", "rows", "at", "out", axis=0)]
    grey = [node("GlobalAveragePool", "image", "mean"), node("Conv", "mean", "w", "out")]
    detector = network(folder / "rows.onnx", rows, {"rows": ROWS, "levels": BRIGHTNESS, "flat": np.array([-1])})
    classifier = network(folder / "grey.onnx", grey, {"w": np.float32([0, 0.1, 0.02]).reshape(3, 1, 1, 1)}, 1)
    painter = network(folder / "negative.onnx", [node("Sub", "one", "image", "out")], {"one": np.float32(1)})
    models = [
        loaded(detector, "yolov3-tiny", {"nms": False}, "stretch", decoder="nms-rows", classes=3, free_batch=False),
        loaded(classifier, "efficientnet-lite0", {}, "stretch", decoder="logits", classes=3, color="GRAY"),
        loaded(painter, "multistyle26", {"family": "one-style"}, "none", decoder="picture", scale=1 / 255),
    ]
    engine = Engine(Settings(device="cpu", tune=False), models={model.spec.name: model for model in models})
    yield engine
    engine.close()


def flat(level: int | tuple[int, int, int], height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(("level", "labels"), [(10, []), (100, ["bird"]), (200, ["bird", "cat", "cat"])])
def test_a_detector_answers_as_many_boxes_as_it_chose(level: int, labels: list[str], adopted: Engine) -> None:
    found = adopted.detect(flat(level)).predictions
    assert [one.label for one in found] == labels
    if found:
        box = found[0].box
        assert (box.x_min, box.y_min, box.x_max, box.y_max) == (0, 0, 64, 48)


def test_what_is_asked_of_boxes_that_were_chosen_still_holds(adopted: Engine) -> None:
    def confidences(**given: Any) -> list[float]:
        return [round(one.confidence, 2) for one in adopted.detect(flat(200), **given).predictions]

    assert confidences(confidence=0.75) == [0.9, 0.8]
    assert confidences(max_detections=1) == [0.9]
    assert confidences(classes="cat") == [0.8, 0.7]
    assert confidences(class_agnostic=True) == [0.9, 0.8]


def test_a_classifier_of_one_channel_sees_the_greys_of_a_photo(adopted: Engine) -> None:
    (best, second, _) = adopted.classify(flat((255, 0, 0))).predictions
    assert (best.label, second.label) == ("dog", "bird")
    assert np.log(best.confidence / second.confidence) == pytest.approx(76 * 0.08, rel=1e-3)


@pytest.mark.parametrize("shape", [(96, 128), (300, 40)])
def test_a_painter_of_one_size_paints_photos_of_any(shape: tuple[int, int], adopted: Engine) -> None:
    answer = adopted.stylize(flat((250, 100, 3), *shape), style="negative")
    assert answer.pixels.tolist() == flat((5, 155, 252), *shape).tolist()
    assert answer.model.name == "negative"


def test_its_style_is_listed_with_a_thumbnail(adopted: Engine) -> None:
    assert [style.name for style in adopted.styles()] == ["negative"]
    with Image.open(BytesIO(adopted.thumbnail("negative"))) as picture:
        assert picture.width == 192
        assert picture.getpixel((3, 3)) == pytest.approx((255 - 70, 255 - 130, 255 - 200), abs=12)  # the example's sky

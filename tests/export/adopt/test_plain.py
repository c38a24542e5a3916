"""Classes, embeddings and pictures: tiny graphs through adopt() and onnxruntime against numpy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.contract import Contract
from service.runtime.session import run_once
from service.tasks.classify import softmax

Array = NDArray[Any]
Adopted = Callable[..., dict[str, Array]]
OPSETS = (7, 9, 11, 13, 18)
SIZE = (6, 8)
Shape = Sequence[int | str]


@pytest.fixture
def adopted(tmp_path: Path) -> Adopted:
    """What the adopted form of a foreign graph answers: nodes from the input "image" (and "style") to the output "out"."""

    def run(
        nodes: Sequence[Any],
        weights: dict[str, Array],
        feeds: dict[str, Array],
        opset: int = 13,
        shape: Shape = (1, 3, *SIZE),
        out: Shape | None = None,
        style: Shape | None = None,
        **given: Any,
    ) -> dict[str, Array]:
        inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
        if style is not None:
            inputs.append(helper.make_tensor_value_info("style", TensorProto.FLOAT, style))
        graph = helper.make_graph(
            list(nodes),
            "network",
            inputs,
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, out)],
            [numpy_helper.from_array(values, name) for name, values in weights.items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        save(helper.make_model(graph, opset_imports=opsets, ir_version=4 if opset < 15 else 8), tmp_path / "foreign.onnx")
        save(adopt(tmp_path / "foreign.onnx", Contract(**given)), tmp_path / "model.onnx")
        return run_once(tmp_path / "model.onnx", feeds)

    return run


def pixels(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def classifier(flat: bool, softened: bool) -> list[Any]:
    """Means of the channels, mixed to five numbers [n, 5, 1, 1] or [n, 5]."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["mean"]), helper.make_node("Conv", ["mean", "w"], ["mixed"])]
    same = helper.make_node("Identity", ["mixed"], ["rows"])
    nodes.append(helper.make_node("Flatten", ["mixed"], ["rows"], axis=1) if flat else same)
    last = helper.make_node("Softmax", ["rows"], ["out"], axis=1)
    return [*nodes, last if softened else helper.make_node("Identity", ["rows"], ["out"])]


WEIGHTS = {"w": np.random.default_rng(1).normal(size=(5, 3, 1, 1)).astype(np.float32) / 40}


def mixed(pictures: Array) -> Array:
    return np.asarray(pictures.mean(axis=(1, 2)) @ WEIGHTS["w"][:, :, 0, 0].T)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("first", "classes"), [(0, 5), (1, 4), (0, 0)])
def test_logits_are_rows_without_the_background(opset: int, flat: bool, first: int, classes: int, adopted: Adopted) -> None:
    given = {"decoder": "logits", "first_class": first, "classes": classes}
    found = adopted(classifier(flat, False), WEIGHTS, {"pixels": pixels(2, *SIZE)}, opset, **given)["logits"]
    np.testing.assert_allclose(found, mixed(pixels(2, *SIZE))[:, first:], rtol=1e-4)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_softmax_gives_probabilities_back(opset: int, adopted: Adopted) -> None:
    feeds = {"pixels": pixels(1, *SIZE)}
    found = adopted(classifier(opset > 9, True), WEIGHTS, feeds, opset, decoder="probabilities", classes=5)["logits"]
    np.testing.assert_allclose(softmax(found[0]), softmax(mixed(feeds["pixels"])[0]), atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("behind_softmax", [False, True])
def test_a_file_that_may_answer_either_is_read_right(opset: int, behind_softmax: bool, adopted: Adopted) -> None:
    feeds = {"pixels": pixels(2, *SIZE)}
    nodes = classifier(opset > 9, behind_softmax)
    found = adopted(nodes, WEIGHTS, feeds, opset, decoder="logits-or-probabilities", classes=5, out=[1, 5])["logits"]
    for row, wanted in zip(found, mixed(feeds["pixels"]), strict=True):
        np.testing.assert_allclose(softmax(row), softmax(wanted), atol=1e-6)


def test_a_probability_of_nothing_stays_finite(adopted: Adopted) -> None:
    weights = {"w": np.zeros((5, 3, 1, 1), np.float32)}
    found = adopted(classifier(True, False), weights, {"pixels": pixels(1, *SIZE)}, decoder="probabilities", classes=5)["logits"]
    np.testing.assert_allclose(found, np.log(1e-12), rtol=1e-5)


def test_a_row_without_a_batch_is_one_row(adopted: Adopted) -> None:
    nodes = [*classifier(True, False)[:-1], helper.make_node("Squeeze", ["rows", "first"], ["out"])]
    weights = {**WEIGHTS, "first": np.array([0])}
    found = adopted(nodes, weights, {"pixels": pixels(1, *SIZE)}, decoder="logits", classes=5, free_batch=False, out=[5])
    assert found["logits"].shape == (1, 5)


def test_fewer_numbers_than_classes_are_refused(adopted: Adopted) -> None:
    with pytest.raises(ExportFailed, match=r"'out' \[\?, 5, 1, 1\] has no room for 5 classes from 1 on"):
        adopted(classifier(False, False), WEIGHTS, {}, decoder="logits", classes=5, first_class=1)


@pytest.mark.parametrize("opset", OPSETS)
def test_embeddings_are_rows(opset: int, adopted: Adopted) -> None:
    found = adopted(classifier(False, False), WEIGHTS, {"pixels": pixels(2, *SIZE)}, opset, decoder="embedding")["embedding"]
    np.testing.assert_allclose(found, mixed(pixels(2, *SIZE)), rtol=1e-4)


SAME = [helper.make_node("Identity", ["image"], ["out"])]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [
        (1.0, (0.0,), (1.0,)),
        (1 / 255, (0.0,), (1.0,)),
        (1 / 127.5, (1.0,), (1.0,)),
        (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_a_network_that_changes_nothing_gives_the_picture_back(
    opset: int, color: str, layout: str, scale: float, mean: tuple[float, ...], std: tuple[float, ...], adopted: Adopted
) -> None:
    shape = (1, 3, "h", "w") if layout == "NCHW" else (1, "h", "w", 3)
    given = {"decoder": "picture", "color": color, "layout": layout, "scale": scale, "mean": mean, "std": std}
    picture = pixels(2, 5, 7)
    found = adopted(SAME, {}, {"pixels": picture}, opset, shape, **given)["painted"]
    assert found.dtype == np.uint8
    assert found.tolist() == picture.tolist()


@pytest.mark.parametrize(
    ("picture_range", "values", "wanted"),
    [
        ("unit", (-0.1, 0.5, 1.3), (0, 128, 255)),
        ("byte", (-7.0, 99.5, 300.0), (0, 100, 255)),
        ("signed", (-1.0, 0.0, 2.0), (0, 128, 255)),
        ("input", (-1.0, 0.25, 2.0), (0, 64, 255)),
    ],
)
@pytest.mark.parametrize("opset", [9, 13])
def test_pictures_are_clipped_and_rounded(
    picture_range: str, values: tuple[float, ...], wanted: tuple[int, ...], opset: int, adopted: Adopted
) -> None:
    nodes = [helper.make_node("Mul", ["image", "no"], ["black"]), helper.make_node("Add", ["black", "values"], ["out"])]
    weights = {"no": np.zeros(1, np.float32), "values": np.array(values, np.float32).reshape(1, 3, 1, 1)}
    given = {"decoder": "picture", "scale": 1 / 255, "picture_range": picture_range}
    found = adopted(nodes, weights, {"pixels": pixels(1, *SIZE)}, opset, **given)["painted"]
    assert found.reshape(-1, 3).tolist() == [list(wanted)] * (SIZE[0] * SIZE[1])


def test_a_grey_picture_is_grey(adopted: Adopted) -> None:
    feeds = {"pixels": np.full((1, *SIZE, 3), (255, 0, 0), np.uint8)}
    found = adopted(SAME, {}, feeds, 13, (1, 1, *SIZE), decoder="picture", color="GRAY")["painted"]
    assert found.tolist() == np.full((1, *SIZE, 3), 76).tolist()


def test_the_axis_of_the_channels_shows_where_the_file_turns_them(adopted: Adopted) -> None:
    nodes = [helper.make_node("Transpose", ["image"], ["out"], perm=[0, 2, 3, 1])]
    picture = pixels(1, *SIZE)
    assert adopted(nodes, {}, {"pixels": picture}, decoder="picture")["painted"].tolist() == picture.tolist()


MEAN_OF_BOTH = [helper.make_node("Add", ["image", "style"], ["sum"]), helper.make_node("Mul", ["sum", "half"], ["out"])]
HALF = {"half": np.array(0.5, np.float32)}


@pytest.mark.parametrize("shape", [(1, 3, *SIZE), ("n", 3, *SIZE), ("n", 3, "h", "w")])
def test_the_style_is_a_second_picture(shape: Shape, adopted: Adopted) -> None:
    feeds = {"pixels": pixels(2, *SIZE) // 2 * 2, "style_pixels": pixels(2, *SIZE, seed=4) // 2 * 2}
    given = {"decoder": "picture-and-style", "color": "BGR", "scale": 1 / 255}
    found = adopted(MEAN_OF_BOTH, HALF, feeds, shape=shape, style=shape, **given)["painted"]
    assert found.tolist() == (feeds["pixels"] // 2 + feeds["style_pixels"] // 2).tolist()


@pytest.mark.parametrize("shape", [(1, 3, *SIZE), (1, 3, "h", "w")])
def test_the_style_may_have_a_size_of_its_own(shape: Shape, adopted: Adopted) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["style"], ["mean"]), helper.make_node("Mul", ["mean", "half"], ["strength"])]
    nodes.append(helper.make_node("Add", ["image", "strength"], ["out"]))
    feeds = {"pixels": pixels(1, *SIZE) // 4, "style_pixels": np.full((1, 6, 10, 3), 200, np.uint8)}
    given = {"decoder": "picture-and-style", "style_size": (6, 10)}
    found = adopted(nodes, HALF, feeds, shape=shape, style=(1, 3, 6, 10), **given)["painted"]
    assert found.tolist() == (feeds["pixels"] + 100).tolist()


@pytest.mark.parametrize(
    ("shape", "style", "message"),
    [
        ((1, 3, "h", "w"), (1, 3, *SIZE), "'style' has a fixed size and the picture's is free"),
        ((1, 3, *SIZE), (1, 3, 6, 9), "'style' is 9 pixels wide, fixed by its file, and cannot be 8"),
        ((1, 3, *SIZE), None, r"one input, the style's; found: \(none\)"),
    ],
)
def test_pictures_of_two_sizes_are_refused(shape: Shape, style: Shape | None, message: str, adopted: Adopted) -> None:
    nodes = MEAN_OF_BOTH if style else SAME
    with pytest.raises(ExportFailed, match=message):
        adopted(nodes, HALF, {}, shape=shape, style=style, decoder="picture-and-style")


def test_a_picture_has_three_or_four_axes(adopted: Adopted) -> None:
    with pytest.raises(ExportFailed, match="should be a picture"):
        adopted(classifier(True, False), WEIGHTS, {}, decoder="picture")

"""The darknet recipe: against plain numpy on a small network, against OpenCV 4's answers on real photos, and what it refuses."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export.darknet import Weights, build, export, parse_cfg

GOLDEN = Path(__file__).parents[1] / "golden" / "yolov3-tiny.npz"
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
BOX_TOLERANCE, SCORE_TOLERANCE = 5e-3, 5e-5  # pixels; probability

SMALL = """[net]
width=32
height=32
channels=3

[convolutional]   # 0
batch_normalize=1
filters=4
size=3
stride=1
pad=1
activation=leaky

[maxpool]  ; 1
size=2
stride=2

[convolutional]
batch_normalize=1
filters=6
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=1

[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear

[yolo]
mask = 1,2
anchors = 10,14, 23,27, 37,58
classes=2
num=3

[route]
layers = -3

[upsample]
stride=2

[route]
layers = -1, 1

[convolutional]
filters=7
size=3
stride=1
pad=1
activation=linear

[yolo]
mask = 0
anchors = 10,14, 23,27, 37,58
classes=2
num=3
"""

Array = NDArray[Any]


def make_weights(rng: np.random.Generator, version: tuple[int, int] = (0, 2)) -> tuple[bytes, list[Array]]:
    """A .weights file for SMALL and the arrays in it, in its order."""
    arrays: list[Array] = []
    for filters, channels, size, normalised in ((4, 3, 3, True), (6, 4, 3, True), (14, 6, 1, False), (7, 10, 3, False)):
        arrays.append(rng.normal(size=filters))
        if normalised:
            arrays += [rng.uniform(0.5, 2, filters), rng.normal(size=filters), rng.uniform(0.1, 2, filters)]
        arrays.append(rng.normal(size=(filters, channels, size, size)) / np.sqrt(channels * size * size))
    arrays = [array.astype(np.float32) for array in arrays]
    head = struct.pack("<iii", *version, 5) + struct.pack("<q" if version[0] * 10 + version[1] >= 2 else "<i", 1 << 20)
    return head + b"".join(array.tobytes() for array in arrays), arrays


def run(model: ModelProto, pixels: Array) -> tuple[Array, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"pixels": np.ascontiguousarray(pixels)})
    return boxes, scores


def windows(x: Array, size: int, stride: int, before: int, after: int, fill: float) -> Array:
    """[c, rows, columns, size, size] of x [c, h, w]."""
    padded = np.pad(x, ((0, 0), (before, after), (before, after)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]


def conv(x: Array, bias: Array, weight: Array, stride: int = 1) -> Array:
    pad = weight.shape[2] // 2
    return np.einsum("crsij,ocij->ors", windows(x, weight.shape[2], stride, pad, pad, 0), weight) + bias[:, None, None]


def leaky(x: Array, gamma: Array, mean: Array, variance: Array, beta: Array) -> Array:
    x = (x - mean[:, None, None]) / np.sqrt(variance + 1e-6)[:, None, None] * gamma[:, None, None] + beta[:, None, None]
    return np.where(x > 0, x, 0.1 * x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def head(x: Array, anchors: list[tuple[int, int]], stride: int) -> tuple[Array, Array]:
    """Boxes and scores of one [yolo] head, cell by cell."""
    boxes, scores = [], []
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for (width, height), t in zip(anchors, x[:, row, column].reshape(len(anchors), -1), strict=True):
                cx, cy = (sigmoid(t[0]) + column) * stride, (sigmoid(t[1]) + row) * stride
                w, h = np.exp(t[2]) * width, np.exp(t[3]) * height
                boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
                scores.append(sigmoid(t[4]) * sigmoid(t[5:]))
    return np.array(boxes), np.array(scores)


def reference(arrays: list[Array], pixels: Array) -> tuple[Array, Array]:
    """SMALL in float64 numpy, as darknet's C code does it, for one picture [h, w, 3]."""
    beta0, gamma0, mean0, var0, w0, beta1, gamma1, mean1, var1, w1, bias2, w2, bias3, w3 = (a.astype(np.float64) for a in arrays)
    x = pixels.transpose(2, 0, 1) / 255.0
    x = leaky(conv(x, np.zeros(4), w0), gamma0, mean0, var0, beta0)
    pooled = windows(x, 2, 2, 0, 0, 0).max(axis=(3, 4))
    x = leaky(conv(pooled, np.zeros(6), w1, stride=2), gamma1, mean1, var1, beta1)
    deep = windows(x, 2, 1, 0, 1, -np.inf).max(axis=(3, 4))
    first = head(conv(deep, bias2, w2), [(23, 27), (37, 58)], 4)
    joined = np.concatenate([deep.repeat(2, axis=1).repeat(2, axis=2), pooled])
    second = head(conv(joined, bias3, w3), [(10, 14)], 2)
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


@pytest.mark.parametrize("version", [(0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40)])
def test_a_small_network_against_numpy(height: int, width: int, version: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    data, arrays = make_weights(rng, version)
    pixels = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    boxes, scores = run(build(parse_cfg(SMALL), Weights(data)), pixels)
    assert boxes.shape == (2, height * width * (2 / 16 + 1 / 4), 4)
    for index, picture in enumerate(pixels):
        want_boxes, want_scores = reference(arrays, picture)
        np.testing.assert_allclose(boxes[index], want_boxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(scores[index], want_scores, rtol=1e-4, atol=1e-6)


def test_the_graph_says_what_it_takes_and_gives() -> None:
    graph = build(parse_cfg(SMALL), Weights(make_weights(np.random.default_rng(0))[0]), "small").graph

    def describe(values: Any) -> dict[str, tuple[int, list[int | str]]]:
        types = {value.name: value.type.tensor_type for value in values}
        return {name: (t.elem_type, [d.dim_param or d.dim_value for d in t.shape.dim]) for name, t in types.items()}

    assert graph.name == "small"
    assert describe(graph.input) == {"pixels": (2, ["n", "h", "w", 3])}
    assert describe(graph.output) == {"boxes": (1, ["n", "k", 4]), "scores": (1, ["n", "k", 2])}


BROKEN_CFGS = {
    "unknown section": ("[upsample]", "[shortcut]", r"line 46: the section \[shortcut\] is not known; known are: convolutional"),
    "unknown option": ("layers = -3", "layers = -3\ngroups=2", r"line 45: \[route\] groups is not known; known are: layers"),
    "option that changes boxes": ("num=3", "num=3\nscale_x_y=1.05", r"\[yolo\] scale_x_y is not known"),
    "no option": ("stride=2", "stride", r"line 16: 'stride' is neither a \[section\] nor an option"),
    "no [net]": ("[net]", "[maxpool]", r"line 2: \[maxpool\] width is not known"),
    "unknown activation": ("activation=leaky", "activation=mish", r"line 6: \[convolutional\] activation=mish is not known"),
    "missing number": ("filters=6\n", "", r"line 18: \[convolutional\] lacks filters"),
    "not a number": ("filters=6", "filters=many", r"line 18: \[convolutional\] filters=many should be whole numbers"),
    "two numbers": ("filters=6", "filters=6,6", r"line 18: \[convolutional\] filters should be one number"),
    "zero stride": ("stride=2", "stride=0", r"line 14: \[maxpool\] stride=0 should be whole numbers of at least 1"),
    "grey input": ("channels=3", "channels=1", r"line 1: \[net\] channels must be 3"),
    "route ahead": ("layers = -1, 1", "layers = -1, 9", r"layers=-1, 9 points outside"),
    "route before the start": ("layers = -3", "layers = -7", r"line 43: \[route\] layers=-7 should be .* at least -6"),
    "route of two sizes": ("layers = -1, 1", "layers = -1, 3", "joins maps of different sizes"),
    "too fine": ("[upsample]\nstride=2", "[upsample]\nstride=8", "finer than the input"),
    "classes that do not fit": ("classes=2", "classes=3", r"one number of classes, it has \[2, 3\]"),
    "anchor that is not there": ("mask = 1,2", "mask = 1,3", r"line 37: \[yolo\] has other classes or anchors"),
    "filters that do not fit": ("mask = 0\n", "mask = 0,1\n", r"has other classes or anchors than the 7 filters"),
    "more weights than the cfg": ("filters=7\nsize=3", "filters=7\nsize=1", r"the cfg uses \d+; they do not belong together"),
    "fewer weights than the cfg": ("filters=7\nsize=3", "filters=7\nsize=5", "the cfg needs more"),
}


@pytest.mark.parametrize(("old", "new", "message"), BROKEN_CFGS.values(), ids=list(BROKEN_CFGS))
def test_a_cfg_that_is_not_understood_is_refused_by_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in SMALL
    (tmp_path / "a.cfg").write_text(SMALL.replace(old, new, 1))
    (tmp_path / "a.weights").write_bytes(make_weights(np.random.default_rng(0))[0])
    with pytest.raises(ExportFailed, match=rf"(?s)a\.cfg with a\.weights: .*({message})"):
        export({name: tmp_path / name for name in ("a.cfg", "a.weights")})


@pytest.mark.parametrize(
    ("text", "message"),
    [(SMALL[: SMALL.index("[yolo]")], "no heads"), ("", r"start with \[net\]"), ("[yolo]\n", r"start with \[net\]")],
)
def test_a_cfg_without_beginning_or_end_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExportFailed, match=message):
        build(parse_cfg(text), Weights(make_weights(np.random.default_rng(0))[0]))


@pytest.mark.parametrize("data", [b"", b"\0" * 12, struct.pack("<iiiq", 0, 2, 0, 0) + b"\0\0\0", b"PK\x03\x04" + b"\xff" * 40])
def test_weights_that_are_no_darknet_file_are_refused(data: bytes) -> None:
    with pytest.raises(ExportFailed, match="the weights"):
        build(parse_cfg(SMALL), Weights(data))


@pytest.mark.parametrize("names", [[], ["a.cfg"], ["a.weights", "b.onnx"]])
def test_both_files_are_needed(names: list[str]) -> None:
    with pytest.raises(ExportFailed, match=r"needs a \.cfg and a \.weights file"):
        export({name: Path(name) for name in names})


# The real network against OpenCV 4.14's darknet importer; tests/golden/make_yolov3_tiny.py wrote the answers.


@pytest.fixture(scope="module")
def answer(models: Callable[[str], Path]) -> Callable[[Array], tuple[Array, Array]]:
    session = onnxruntime.InferenceSession(models("yolov3-tiny") / "model.onnx", providers=["CPUExecutionProvider"])

    def run_(pixels: Array) -> tuple[Array, Array]:
        boxes, scores = session.run(["boxes", "scores"], {"pixels": np.ascontiguousarray(pixels[None])})
        return boxes[0], scores[0]

    return run_


def cut(pixels: Array) -> Array:
    """To multiples of 32, from the top left corner."""
    height, width = (side // 32 * 32 for side in pixels.shape[:2])
    return pixels[:height, :width]


def differences(name: str, answered: tuple[Array, Array]) -> tuple[float, float]:
    """Largest difference to the stored boxes (pixels) and scores."""
    with np.load(GOLDEN) as stored:
        rows = stored[f"{name}/rows"]
        pairs = zip(answered, (stored[f"{name}/boxes"], stored[f"{name}/scores"]), strict=True)
        boxes, scores = (float(np.abs(got[rows] - wanted).max()) for got, wanted in pairs)
        return boxes, scores


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_answer_as_opencv_answers(name: str, answer: Any, photo: Callable[[str], Array]) -> None:
    boxes, scores = differences(name, answer(cut(photo(name))))
    assert boxes < BOX_TOLERANCE
    assert scores < SCORE_TOLERANCE


FAULTS: dict[str, Callable[[Array], Array]] = {
    "swapped channels": lambda pixels: pixels[..., ::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "half a pixel to the right": lambda pixels: (pixels.astype(int) + np.roll(pixels, 1, axis=1)).astype(int) // 2,
    "half a pixel down": lambda pixels: (pixels.astype(int) + np.roll(pixels, 1, axis=0)).astype(int) // 2,
    "a little brighter": lambda pixels: np.minimum(pixels, 252) + 3,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_the_tolerance_catches_faults_in_the_input(
    fault: Callable[[Array], Array], answer: Any, photo: Callable[[str], Array]
) -> None:
    boxes, scores = differences("coffee", answer(fault(cut(photo("coffee"))).astype(np.uint8)))
    assert boxes > 100 * BOX_TOLERANCE
    assert scores > 20 * SCORE_TOLERANCE


def test_the_tolerance_catches_boxes_off_by_half_a_pixel(answer: Any, photo: Callable[[str], Array]) -> None:
    boxes, scores = answer(cut(photo("coffee")))
    assert differences("coffee", (boxes + 0.5, scores))[0] > 50 * BOX_TOLERANCE

"""The EfficientNet-Lite0 recipe: what it refuses, and torch's answers on drawn pictures and real photos."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from service.errors import ExportFailed
from service.export.efficientnet_lite import CLASSES, HEAD, STAGES, STEM, build, export, same_padding

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet-lite0.npz"
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
TOLERANCE = 1e-4

Array = NDArray[Any]


def make_state() -> dict[str, Array]:
    """A state dict of the right names and shapes, all zeros."""
    state: dict[str, Array] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = np.zeros(shape, np.float32)
        state[f"{norm}.num_batches_tracked"] = np.array(1, np.int64)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = np.zeros(shape[0], np.float32)

    add("_conv_stem", "_bn0", STEM, 3, 3, 3)
    index = 0
    for repeats, kernel, _, expansion, first, channels in STAGES:
        for repeat in range(repeats):
            before, name = channels if repeat else first, f"_blocks.{index}"
            inside = before * expansion
            if expansion != 1:
                add(f"{name}._expand_conv", f"{name}._bn0", inside, before, 1, 1)
            add(f"{name}._depthwise_conv", f"{name}._bn1", inside, 1, kernel, kernel)
            add(f"{name}._project_conv", f"{name}._bn2", channels, inside, 1, 1)
            index += 1
    add("_conv_head", "_bn1", HEAD, 320, 1, 1)
    return state | {"_fc.weight": np.zeros((CLASSES, HEAD), np.float32), "_fc.bias": np.arange(CLASSES, dtype=np.float32)}


def test_the_graph_says_what_it_takes_and_gives() -> None:
    graph = build(make_state()).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}
    assert shapes == {"pixels": ["n", 224, 224, 3], "logits": ["n", 1000]}
    assert {node.op_type for node in graph.node if "Norm" in node.op_type} == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_fc.bias": None}, "lack _fc.bias"),
        ({"_blocks.3._bn1.running_var": None}, "lack _blocks.3._bn1.running_var"),
        (
            {"_fc.weight": np.zeros((10, HEAD), np.float32)},
            r"_fc.weight is of shape \[10, 1280\], EfficientNet-Lite0 has \[1000, 1280\]",
        ),
        ({"_blocks.0._se_reduce.weight": np.zeros(1, np.float32)}, "hold _blocks.0._se_reduce.weight, which"),
    ],
)
def test_another_network_is_refused_by_name(change: Mapping[str, Array | None], message: str) -> None:
    state = {name: array for name, array in (make_state() | change).items() if array is not None}
    with pytest.raises(ExportFailed, match=message):
        build(state)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"not weights")
    with pytest.raises(ExportFailed, match=r"w\.pth"):
        export({"w.pth": tmp_path / "w.pth"})


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pads", "after"),
    [
        (224, 3, 2, (0, 0, 1, 1), 112),
        (56, 5, 2, (1, 1, 2, 2), 28),
        (14, 5, 1, (2, 2, 2, 2), 14),
        (7, 3, 2, (1, 1, 1, 1), 4),
        (5, 1, 2, (0, 0, 0, 0), 3),
    ],
)
def test_same_padding_is_tensorflows(side: int, kernel: int, stride: int, pads: tuple[int, ...], after: int) -> None:
    assert same_padding(side, kernel, stride) == (pads, after)


# The real network against torch; tests/golden/make_efficientnet_lite0.py wrote the answers.


@pytest.fixture(scope="module")
def answer(models: Callable[[str], Path]) -> Callable[[Array], Array]:
    session = onnxruntime.InferenceSession(models("efficientnet-lite0") / "model.onnx", providers=["CPUExecutionProvider"])

    def run(pixels: Array) -> Array:
        logits: Array = session.run(["logits"], {"pixels": np.ascontiguousarray(pixels)})[0]
        return logits

    return run


def cut(pixels: Array) -> Array:
    """The central 224 x 224 pixels as they are."""
    top, left = ((side - 224) // 2 for side in pixels.shape[:2])
    return pixels[top : top + 224, left : left + 224]


def difference(name: str, logits: Array) -> float:
    with np.load(GOLDEN) as stored:
        return float(np.abs(logits - stored[f"{name}/cut"]).max())


def test_photos_answer_as_torch_answers(answer: Callable[[Array], Array], photo: Callable[[str], Array]) -> None:
    batch = answer(np.stack([cut(photo(name)) for name in PHOTOS]))
    assert {name: difference(name, logits) < TOLERANCE for name, logits in zip(PHOTOS, batch, strict=True)} == dict.fromkeys(
        PHOTOS, True
    )


FAULTS: dict[str, Callable[[Array], Array]] = {
    "swapped channels": lambda pixels: pixels[..., ::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "half a pixel to the right": lambda pixels: (pixels.astype(int) + np.roll(pixels, 1, axis=1)) // 2,
    "half a pixel down": lambda pixels: (pixels.astype(int) + np.roll(pixels, 1, axis=0)) // 2,
    "a mean of 127.5": lambda pixels: np.where(np.indices(pixels.shape).sum(axis=0) % 2, pixels, np.maximum(pixels, 1) - 1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
@pytest.mark.parametrize("name", PHOTOS)
def test_the_tolerance_catches_faults_in_the_input(
    name: str, fault: Callable[[Array], Array], answer: Callable[[Array], Array], photo: Callable[[str], Array]
) -> None:
    assert difference(name, answer(fault(cut(photo(name))).astype(np.uint8)[None])[0]) > 50 * TOLERANCE

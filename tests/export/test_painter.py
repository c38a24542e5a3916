"""The painter's two graphs against plain numpy on a small random network: any batch, any size, statistics in and out."""

import numpy as np
import onnxruntime
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import ModelProto

from service.export.painter import EPSILON, Affine, Layer, Painter

STYLES = 3
Array = NDArray[np.float64]


def layer(generator: np.random.Generator, shape: tuple[int, int, int], *, norm: bool = True, **given: object) -> Layer:
    out, into, kernel = shape
    weight = generator.normal(0, 1 / (kernel * into**0.5), (out, into, kernel, kernel)).astype(np.float32)
    bias = generator.normal(0, 0.3, out).astype(np.float32)

    def affine(centre: float) -> Affine:
        return Affine(*(generator.normal(centre, 0.3, size).astype(np.float32) for size in ((STYLES, out), (out,))))

    return Layer(weight, bias, **given, scale=affine(0.7) if norm else None, shift=affine(0) if norm else None)


def network(*, norm_first: bool) -> Painter:
    generator = np.random.default_rng(3)
    return Painter(
        contract=[
            layer(generator, (4, 3, 9), norm=norm_first),
            layer(generator, (5, 4, 3), norm=norm_first, stride=2),
            layer(generator, (6, 5, 3), norm=norm_first, stride=2),
        ],
        residual=[(layer(generator, (6, 6, 3)), layer(generator, (6, 6, 3)))],
        expand=[
            layer(generator, (4, 6, 3), upsample=True),
            layer(generator, (3, 4, 3), upsample=True),
            layer(generator, (3, 3, 9)),
        ],
    )


class Numpy:
    """The same network on one picture, in float64, with the statistics met on the way."""

    def __init__(self, style: Array) -> None:
        self.style = style
        self.means: list[Array] = []
        self.variances: list[Array] = []

    def layer(self, x: Array, part: Layer) -> Array:
        """x: [c, h, w]."""
        if part.upsample:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
        kernel = part.weight.shape[2]
        half = kernel // 2
        x = np.pad(x, ((0, 0), (half, half), (half, half)), mode="reflect")
        windows = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, :: part.stride, :: part.stride]
        x = np.einsum("chwij,ocij->ohw", windows, part.weight.astype(np.float64)) + part.bias[:, None, None]
        if part.scale is None or part.shift is None:
            return x
        self.means.append(x.mean(axis=(1, 2)))
        self.variances.append(x.var(axis=(1, 2)))
        scale, shift = (self.style @ affine.weight + affine.bias for affine in (part.scale, part.shift))
        x = (x - self.means[-1][:, None, None]) / np.sqrt(self.variances[-1] + EPSILON)[:, None, None]
        return x * scale[:, None, None] + shift[:, None, None]

    def paint(self, painter: Painter, pixels: NDArray[np.uint8]) -> Array:
        """Levels 0..255, [h, w, 3], unrounded."""
        x = pixels.transpose(2, 0, 1) / 255
        for part in painter.contract:
            x = np.maximum(self.layer(x, part), 0)
        for first, second in painter.residual:
            x = x + self.layer(np.maximum(self.layer(x, first), 0), second)
        for part in painter.expand[:-1]:
            x = np.maximum(self.layer(x, part), 0)
        return 255 / (1 + np.exp(-self.layer(x, painter.expand[-1]).transpose(1, 2, 0)))


def run(model: ModelProto, **feeds: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("norm_first", [True, False], ids=["all layers normalised", "contracting layers plain"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40)])
def test_both_graphs_paint_a_batch_as_numpy_does(norm_first: bool, height: int, width: int) -> None:
    painter = network(norm_first=norm_first)
    graphs = painter.export()
    generator = np.random.default_rng(height)
    pixels = generator.integers(0, 256, (2, height, width, 3), np.uint8)
    style = generator.random((2, STYLES)).astype(np.float32)

    whole = run(graphs["model"], pixels=pixels, style=style)
    tile = run(graphs["tile"], pixels=pixels, style=style, statistics=whole["statistics"])

    for item in range(2):
        reference = Numpy(style[item].astype(np.float64))
        levels = reference.paint(painter, pixels[item])
        statistics = np.stack([np.concatenate(reference.means), np.concatenate(reference.variances)])
        np.testing.assert_allclose(whole["statistics"][item], statistics, rtol=1e-3, atol=1e-4)
        assert whole["painted"].dtype == np.uint8
        assert np.abs(whole["painted"][item] - levels).max() < 0.51  # rounded to the nearest level
        assert np.abs(tile["painted"][item] - levels).max() < 0.51


def test_frozen_statistics_are_used_and_not_measured() -> None:
    graphs = network(norm_first=True).export()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    style = np.full((1, STYLES), 1 / STYLES, np.float32)
    whole = run(graphs["model"], pixels=pixels, style=style)
    wider = whole["statistics"] * np.array([1, 4], np.float32).reshape(1, 2, 1)
    assert (run(graphs["tile"], pixels=pixels, style=style, statistics=wider)["painted"] != whole["painted"]).mean() > 0.5

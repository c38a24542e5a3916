"""Writes what onnx's ReferenceEvaluator answers on the published files of the two style models, as they are.

    pip install onnx==1.23.* numpy
    python tests/golden/make_styles.py multistyle26.onnx arbitrary_predict.onnx arbitrary_transform.onnx

The two arbitrary_* files are int8; here their QuantizeLinear lets float32 pass unrounded, which is what the export promises.
    models/multistyle26/parity.npz        "model" and "tile" on a drawn picture of 64 x 96
    models/magenta-arbitrary/parity.npz   the same, and "predict" on a drawn picture of 96 x 64
Of the paintings only values that rounding leaves no doubt about are kept, so that they can be compared exactly.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

MODELS = Path(__file__).parents[2] / "models"
HEIGHT, WIDTH = 64, 96
KEPT = 1500

Array = NDArray[Any]


class QuantizeLinear(OpRun):
    def _run(self, x, scale, zero_point=None, **_):  # type: ignore[no-untyped-def]
        return (x,)


class DequantizeLinear(OpRun):
    def _run(self, x, scale, zero_point=None, axis=1, **_):  # type: ignore[no-untyped-def]
        if x.dtype.kind == "f":
            return (x,)
        shape = [-1 if i == axis and scale.ndim else 1 for i in range(x.ndim)]
        return (((x.astype(np.int32) - zero_point.reshape(shape)) * scale.reshape(shape)).astype(np.float32),)


def drawing(height: int, width: int) -> Array:
    """A coloured ramp with a disc and stripes, uint8 [height, width, 3]; no flip, shift or swapped channel leaves the answer be."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([columns * 255 // width, 255 - rows * 255 // height, (rows + columns) * 2 % 256], axis=-1).astype(np.uint8)
    picture[(rows - 0.4 * height) ** 2 + (columns - 0.6 * width) ** 2 < (0.25 * height) ** 2] = (250, 120, 20)
    picture[(rows > 0.7 * height) & (columns // 7 % 2 == 0)] = (30, 40, 90)
    return picture


def intermediates(path: str, feeds: dict[str, Array]) -> dict[str, Array]:
    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=[QuantizeLinear, DequantizeLinear])
    return evaluator.run(None, feeds, intermediate=True)


def cases(pixels: Array, style: Array, painted: Array, means: list[Array], variances: list[Array]) -> dict[str, Array]:
    """The graphs "model" and "tile". painted: float32 [h, w, 3], 0..1; means and variances: [1, c, 1, 1] of each norm."""
    levels = painted.astype(np.float64).ravel() * 255
    certain = np.flatnonzero(np.abs(levels - np.round(levels)) < 0.2)
    at = np.sort(np.random.default_rng(7).choice(certain, KEPT, replace=False)).astype(np.int32)
    statistics = np.stack([np.concatenate([part.ravel() for part in parts]) for parts in (means, variances)])[None]
    stored: dict[str, Array] = {"tile/in/statistics": statistics.astype(np.float32)}
    for graph in ("model", "tile"):
        stored[f"{graph}/in/pixels"], stored[f"{graph}/in/style"] = pixels[None], style
        stored[f"{graph}/at/painted"], stored[f"{graph}/values/painted"] = at, np.round(levels[at]).astype(np.uint8)
    return stored


def multistyle(path: str) -> dict[str, Array]:
    pixels = drawing(HEIGHT, WIDTH)
    blend = np.zeros(26, np.float32)
    blend[[2, 17, 24]] = 0.5, 0.3, 0.2
    image = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    found = intermediates(path, {"image": image, "style_weights": blend})
    means = [array for name, array in found.items() if name.endswith("/norm/ReduceMean_output_0")]
    variances = [array for name, array in found.items() if name.endswith("/norm/ReduceMean_1_output_0")]
    return cases(pixels, blend[None], found["stylized"][0].transpose(1, 2, 0), means, variances)


def magenta(predict: str, transform: str) -> dict[str, Array]:
    picture, pixels = drawing(WIDTH, HEIGHT)[::-1, :, ::-1].copy(), drawing(HEIGHT, WIDTH)
    vector = intermediates(predict, {"style_image": (picture[None] / 255).astype(np.float32)})["mobilenet_conv/Conv/BiasAdd"]
    feeds = {"content_image": (pixels[None] / 255).astype(np.float32), "mobilenet_conv/Conv/BiasAdd": vector}
    found = intermediates(transform, feeds)
    means = [array for name, array in found.items() if name.endswith("/moments/mean")]
    variances = [array for name, array in found.items() if name.endswith("/moments/variance")]
    style = vector.reshape(1, -1)
    stored = cases(pixels, style, found["transformer/expand/conv3/conv/Sigmoid"][0], means, variances)
    return stored | {"predict/in/pixels": picture[None], "predict/out/style": style}


def main(styles: str, predict: str, transform: str) -> None:
    np.savez_compressed(MODELS / "multistyle26" / "parity.npz", **multistyle(styles))
    np.savez_compressed(MODELS / "magenta-arbitrary" / "parity.npz", **magenta(predict, transform))


if __name__ == "__main__":
    main(*sys.argv[1:])

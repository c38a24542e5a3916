"""multistyle26: 26 styles in one network, from its float32 ONNX file, any batch and size, uint8 pixels in and out.

Input "style" float32 [n, 26]: the weights of the styles, which sum to 1. Everything else: service.export.painter.
The published file takes one blend for the whole batch and pads by shapes computed at run time; here the same weights are written
anew.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from service.errors import ExportFailed
from service.export.painter import Affine, Array, Layer, Painter
from service.export.rewrite import constants

BLOCKS = 6


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The graphs "model" and "tile" from the .onnx file among `files`. Raises ExportFailed when a weight is missing."""
    path = next(path for path in files.values() if path.suffix == ".onnx")
    weights = constants(onnx.load(path))
    try:
        return build(weights).export()
    except KeyError as error:
        raise ExportFailed(f"{path.name} has no weight {error}; this is not multistyle26") from None


def build(weights: Mapping[str, Array], blocks: int = BLOCKS) -> Painter:
    """The network from `weights` by name: <layer>.w [out, in, k, k], <layer>.norm.gamma and .norm.beta [styles, out]."""

    def layer(name: str, stride: int = 1, *, upsample: bool = False) -> Layer:
        weight, gamma, beta = (weights[f"{name}.{part}"] for part in ("w", "norm.gamma", "norm.beta"))
        none = np.zeros(len(weight), np.float32)
        return Layer(weight, none, stride, upsample, Affine(gamma, none), Affine(beta, none))

    return Painter(
        contract=[layer(f"contract.{i}", stride) for i, stride in enumerate((1, 2, 2))],
        residual=[(layer(f"res.{i}.0"), layer(f"res.{i}.1")) for i in range(blocks)],
        expand=[layer(f"expand.{i}", upsample=upsample) for i, upsample in enumerate((True, True, False))],
    )

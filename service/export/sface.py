"""SFace, OpenCV Zoo's block-quantised file, to float32 without PRelu.

Input "pixels": uint8 RGB [n, 112, 112, 3], a face aligned to the template in service.tasks.face_embedding. Output "embedding":
float32 [n, 128], as the network gives it, not of unit length; compare by cosine.

Reference: Zhong, Deng, Hu, Zhao, Li and Wen 2021, SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition,
IEEE Transactions on Image Processing 30, 2587-2598.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, checker

from service.errors import ExportFailed
from service.export.fold import fold_batch_norms
from service.export.rewrite import drop_initializer_inputs, fold_dequantize, free_batch, pixels_input, replace_prelu

SIZE, LENGTH = 112, 128


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The graph "model" from the one .onnx file given. Raises ExportFailed when its input or output is not SFace's."""
    (path,) = files.values()
    weights = fold_dequantize(drop_initializer_inputs(onnx.load(path)))
    model = free_batch(replace_prelu(fold_batch_norms(weights)))
    sides = [[dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in (*model.graph.input, *model.graph.output)]
    if sides != [[3, SIZE, SIZE], [LENGTH]]:
        raise ExportFailed(f"{path.name} takes and gives {sides}; SFace takes 3 x {SIZE} x {SIZE} and gives {LENGTH} numbers")
    output = model.graph.output[0]
    model.graph.node[-1].output[0] = output.name = "embedding"
    model = pixels_input(model, model.graph.input[0].name)
    checker.check_model(model, full_check=True)
    return {"model": model}

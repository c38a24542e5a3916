"""magenta-arbitrary: any picture as the style, from the two int8 ONNX files, back in float32, any batch and size.

    predict      "pixels" uint8 RGB [n, h, w, 3], sides multiples of 32 -> "style" float32 [n, 100]
    model, tile  "style" float32 [n, 100] as predict gives it; everything else: service.export.painter

The files quantise activations to int8 with ranges found at 384 x 384 pixels. Leaving that out is 1.7 times faster in onnxruntime,
free of its grain, and right at other sizes, where instance norm's statistics leave those ranges.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, checker, helper

from service.errors import ExportFailed
from service.export.painter import Affine, Array, Layer, Painter
from service.export.rewrite import constants, copy_of, drop_unused, fold_dequantize, free_batch, pixels_input

PREDICT, TRANSFORM = "arbitrary_predict.onnx", "arbitrary_transform.onnx"
STYLE_LENGTH = 100
BLOCKS = 5


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The graphs "model", "tile" and "predict". Raises ExportFailed when a file or a weight is missing."""
    try:
        predict, transform = (onnx.load(files[name]) for name in (PREDICT, TRANSFORM))
        return {**build(convolutions(transform)).export(), "predict": export_predict(predict)}
    except KeyError as error:
        raise ExportFailed(f"{error} is missing; this is not Magenta's arbitrary style transfer") from None


def export_predict(model: ModelProto) -> ModelProto:
    """MobileNetV2 up to its global average pooling and the 100 numbers of the style, as one float32 graph."""
    model = free_batch(drop_quantization(fold_dequantize(model)))
    picture, vector = model.graph.input[0], model.graph.output[0]
    for dim, name in zip(picture.type.tensor_type.shape.dim[1:3], ("h", "w"), strict=True):
        dim.dim_param = name
    model.graph.node.append(helper.make_node("Flatten", [vector.name], ["style"], "style"))
    vector.CopyFrom(helper.make_tensor_value_info("style", TensorProto.FLOAT, ["n", STYLE_LENGTH]))
    model = pixels_input(model, picture.name, layout="NHWC", scale=1 / 255)
    checker.check_model(model, full_check=True)
    return model


def drop_quantization(model: ModelProto) -> ModelProto:
    """Let activations pass where QuantizeLinear and DequantizeLinear stood; what these clipped or rounded is no more.

    Weights must be folded before. Raises ExportFailed where an integer tensor would be left without its DequantizeLinear.
    """
    model = copy_of(model)
    known = constants(model)
    instead: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if node.input[0] in known:
                raise ExportFailed(f"the weight {node.input[0]!r} is still quantised")
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    kept += [helper.make_node("Identity", [instead[o.name]], [o.name]) for o in model.graph.output if o.name in instead]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    return drop_unused(model)


def convolutions(model: ModelProto) -> dict[str, tuple[Array, Array]]:
    """Weight [out, in, k, k] and bias [out] of every convolution in float32, by the name of its layer."""
    model = fold_dequantize(model)
    known = constants(model)
    found = [node.input for node in model.graph.node if node.op_type == "Conv"]
    return {weight.removesuffix("/weights_dequant"): (known[weight], known[bias]) for _, weight, bias in found}


def build(layers: Mapping[str, tuple[Array, Array]]) -> Painter:
    """The network from its convolutions by name. The contracting ones have no norm; the others take theirs from the style."""

    def plain(name: str, stride: int = 1) -> Layer:
        return Layer(*layers[f"transformer/{name}"], stride)

    def normed(name: str, *, upsample: bool = False) -> Layer:
        scale, shift = (_affine(*layers[f"style_params/transformer/{name}/StyleNorm/{part}"]) for part in ("Conv_1", "Conv"))
        return Layer(*layers[f"transformer/{name}"], 1, upsample, scale, shift)

    blocks = [f"residual/residual{i}" for i in range(1, BLOCKS + 1)]
    return Painter(
        contract=[plain(f"contract/conv{i}", stride) for i, stride in enumerate((1, 2, 2), start=1)],
        residual=[(normed(f"{block}/conv1"), normed(f"{block}/conv2")) for block in blocks],
        expand=[normed(f"expand/conv{i}/conv", upsample=upsample) for i, upsample in enumerate((True, True, False), start=1)],
    )


def _affine(weight: Array, bias: Array) -> Affine:
    return Affine(weight[:, :, 0, 0].T, bias)

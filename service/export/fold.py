"""Batch norms into the layers beside them, so that no arithmetic of theirs is left in the graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from service.errors import ExportFailed
from service.export.rewrite import attribute, constants, copy_of, drop_unused, replace_nodes

Array = NDArray[Any]
Affine = tuple[Array, Array]
"""y = x * scale + shift, float64 [channels] each."""


def fold_batch_norms(model: ModelProto) -> ModelProto:
    """Each BatchNormalization becomes part of the Conv or Gemm before it, or of the Gemm behind the Flatten after it.

    A layer takes over the name of the tensor that it now gives. Dropout, which does nothing at inference, goes too. Computed in
    float64, then float32 again. Raises ExportFailed for a batch norm that stands elsewhere, or whose layer others read too.
    """
    model = copy_of(model)
    known, readers = constants(model), _reader_counts(model)
    producers: dict[str, NodeProto] = {}
    waiting: dict[str, Affine] = {}  # by the name of the tensor that was normalised
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        x, out = node.input[0] if node.input else "", node.output[0]
        if node.op_type == "Dropout":
            renamed[out] = x
        elif node.op_type == "BatchNormalization" and readers[x] == 1:
            layer = producers.get(x)
            if layer is not None and layer.op_type in ("Conv", "Gemm"):
                _fold_behind(model, layer, _affine(node, known), known)
                layer.output[0], producers[out] = out, layer
            else:
                waiting[x], renamed[out] = _affine(node, known), x
        else:
            if node.op_type == "Flatten" and x in waiting:
                waiting[out] = waiting.pop(x)
            elif node.op_type == "Gemm" and x in waiting:
                _fold_before(model, node, waiting.pop(x), known)
            producers[out] = node
            kept.append(node)
    left = [*waiting, *(node.output[0] for node in kept if node.op_type == "BatchNormalization")]
    if left:
        raise ExportFailed(f"the batch norm at {left[0]!r} has no layer beside it that could take it in")
    replace_nodes(model, kept)
    return drop_unused(model)


def _affine(node: NodeProto, known: Mapping[str, Array]) -> Affine:
    gamma, beta, mean, variance = (known[name].astype(np.float64) for name in node.input[1:])
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return scale, beta - mean * scale


def _fold_behind(model: ModelProto, layer: NodeProto, affine: Affine, known: dict[str, Array]) -> None:
    scale, shift = affine
    weight, bias = _layer(layer, known)
    _set_layer(model, layer, known, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift)


def _fold_before(model: ModelProto, layer: NodeProto, affine: Affine, known: dict[str, Array]) -> None:
    """W (s x + t) + b, where each channel of x spans as many columns of W as it has pixels."""
    weight, bias = _layer(layer, known)
    scale, shift = (np.repeat(part, weight.shape[1] // len(part)) for part in affine)
    _set_layer(model, layer, known, weight * scale, bias + weight @ shift)


def _layer(layer: NodeProto, known: Mapping[str, Array]) -> tuple[Array, Array]:
    """Weight [out, ...] and bias [out] in float64."""
    if layer.op_type == "Gemm" and not attribute(layer, "transB", 0):
        raise ExportFailed(f"the Gemm {layer.output[0]!r} holds its weight transposed, which is not folded here")
    weight = known[layer.input[1]].astype(np.float64)
    return weight, known[layer.input[2]].astype(np.float64) if len(layer.input) > 2 else np.zeros(len(weight))


def _set_layer(model: ModelProto, layer: NodeProto, known: dict[str, Array], weight: Array, bias: Array) -> None:
    for position, (kind, value) in enumerate((("weight", weight), ("bias", bias)), 1):
        name = f"{layer.name or layer.output[0]}/{kind}"
        while name in known:
            name += "/folded"
        known[name] = value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(known[name], name))
        del layer.input[position:]
        layer.input.append(name)


def _reader_counts(model: ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in [name for node in model.graph.node for name in node.input] + [value.name for value in model.graph.output]:
        counts[name] = counts.get(name, 0) + 1
    return counts

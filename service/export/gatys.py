"""Style transfer by optimisation: one graph that gives the losses of a picture and their exact gradient by its pixels.

    features  "picture" -> "features/<layer>" [1, c, h', w'] of every layer: what service.export.backbones makes of the weights
    targets   "picture" -> "features/<layer>" of the content layers, "gram/<layer>" [1, c, c] of the style layers
    model     "picture", what `targets` gave, and the weights "content_weight", "style_weight", "variation_weight" [1] ->
              "content", "style", "variation" [1], and "gradient" [1, 3, h, w] of
              content_weight * content + style_weight * style + variation_weight * variation

"picture" is float32 RGB [1, 3, h, w], 0..255, of any size. With F the features of a layer, P those of the photo,
G = F F^T / (h' w') the Gram matrix and A that of the style picture:
    content    mean over the layers of sum (F - P)^2 / sum P^2
    style      mean over the layers of sum (G - A)^2 / sum A^2
    variation  mean squared difference of neighbours, downwards and across, of the picture as 0..1
These are the paper's, with a weight of each layer that makes it count the same whatever its activations' size, in any backbone.

References: Gatys, Ecker and Bethge, "A neural algorithm of artistic style", 2015 (arXiv 1508.06576), and CVPR 2016; the total
variation: Mahendran and Vedaldi 2015 (arXiv 1412.0035), with beta = 2.
"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto

from service.errors import ExportFailed
from service.export.gradient import append_gradient
from service.export.graph import Axis, Graph

PICTURE = "picture"
TINY = 1e-12  # keeps a layer that is silent on the whole style picture from dividing by zero


def export(features: ModelProto, content: Sequence[str], style: Sequence[str]) -> dict[str, ModelProto]:
    """The graphs "model", "targets" and "features" of a backbone with these layers."""
    return {"model": losses(features, content, style), "targets": targets(features, content, style), "features": features}


def layers(features: ModelProto) -> list[str]:
    """The names of the layers that a graph of features gives, the shallowest first."""
    return [value.name.removeprefix("features/") for value in features.graph.output]


def targets(features: ModelProto, content: Sequence[str], style: Sequence[str]) -> ModelProto:
    """The graph "targets". Raises ExportFailed for a layer that the backbone lacks."""
    graph = _resumed(features, content, style)
    shapes = graph.shapes()
    for layer in content:
        graph.expose(f"features/{layer}", shapes[f"features/{layer}"])
    for layer in style:
        channels = shapes[f"features/{layer}"][1]
        graph.output(_gram(graph, f"features/{layer}", channels), f"gram/{layer}", [1, channels, channels])
    graph.prune()
    return graph.build()


def losses(features: ModelProto, content: Sequence[str], style: Sequence[str]) -> ModelProto:
    """The graph "model". Raises ExportFailed for a layer that the backbone lacks."""
    graph = _resumed(features, content, style)
    shapes = graph.shapes()

    def of_content(layer: str) -> str:
        f = f"features/{layer}"
        p = graph.input(f"content/{layer}", [1, shapes[f][1], f"h/{layer}", f"w/{layer}"])
        return _relative_error(graph, f, p)

    def of_style(layer: str) -> str:
        f = f"features/{layer}"
        channels = shapes[f][1]
        return _relative_error(graph, _gram(graph, f, channels), graph.input(f"gram/{layer}", [1, channels, channels]))

    found = {
        "content": _mean(graph, [of_content(layer) for layer in content]),
        "style": _mean(graph, [of_style(layer) for layer in style]),
        "variation": _variation(graph),
    }
    weighted = [graph.node("Mul", graph.input(f"{name}_weight", [1]), loss) for name, loss in found.items()]
    gradient = append_gradient(graph, _sum(graph, weighted), PICTURE)
    for name, loss in found.items():
        graph.output(loss, name, [1])
    graph.output(gradient, "gradient", [1, 3, "h", "w"])
    graph.prune()
    return graph.build()


def _resumed(features: ModelProto, content: Sequence[str], style: Sequence[str]) -> Graph:
    known = layers(features)
    for layer in (*content, *style):
        if layer not in known:
            raise ExportFailed(f"there is no layer {layer!r}; the layers are: {', '.join(known)}")
    if not content or not style:
        raise ExportFailed("at least one layer for the content and one for the style are needed")
    return Graph.resumed(features)


def _gram(graph: Graph, features: str, channels: Axis) -> str:
    """F F^T / (h w) of features [1, c, h, w]: [1, c, c]."""
    rows = graph.node("Reshape", features, graph.constant(np.array([channels, -1])))
    product = graph.node("Gemm", rows, rows, transB=1)
    area = graph.node("Slice", graph.node("Shape", rows), *(graph.constant(np.array([n])) for n in (1, 2)))
    share = graph.node("Mul", product, graph.node("Reciprocal", graph.node("Cast", area, to=TensorProto.FLOAT)))
    return graph.node("Reshape", share, graph.constant(np.array([1, channels, channels])))


def _relative_error(graph: Graph, x: str, target: str) -> str:
    """sum (x - target)^2 / sum target^2, [1]."""
    difference = graph.node("Sub", x, target)
    power = graph.node("ReduceMean", graph.node("Mul", target, target), keepdims=0)
    scale = graph.node("Reciprocal", graph.node("Add", power, graph.constant(np.float32(TINY))))
    error = graph.node("ReduceMean", graph.node("Mul", difference, difference), keepdims=0)
    return graph.node("Reshape", graph.node("Mul", error, scale), graph.constant(np.array([1])))


def _variation(graph: Graph) -> str:
    picture = graph.node("Mul", PICTURE, graph.constant(np.float32(1 / 255)))
    return _sum(graph, [_roughness(graph, picture, axis) for axis in (2, 3)])


def _roughness(graph: Graph, picture: str, axis: int) -> str:
    """The mean squared difference of neighbours along an axis, [1]."""
    along, start, second, last, end = (graph.constant(np.array([n])) for n in (axis, 0, 1, -1, 2**31 - 1))
    later, earlier = (graph.node("Slice", picture, *ends, along) for ends in ((second, end), (start, last)))
    step = graph.node("Sub", later, earlier)
    roughness = graph.node("ReduceMean", graph.node("Mul", step, step), keepdims=0)
    return graph.node("Reshape", roughness, graph.constant(np.array([1])))


def _sum(graph: Graph, parts: Sequence[str]) -> str:
    total, *rest = parts
    for part in rest:
        total = graph.node("Add", total, part)
    return total


def _mean(graph: Graph, parts: Sequence[str]) -> str:
    return graph.node("Mul", _sum(graph, parts), graph.constant(np.float32(1 / len(parts))))

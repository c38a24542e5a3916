"""Batch norms fold away without a trace, and only where they can."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export.fold import fold_batch_norms
from service.export.graph import Graph

RNG = np.random.default_rng(5)


def norm(graph: Graph, x: str, channels: int) -> str:
    """A batch norm with numbers of its own."""
    gamma, beta, mean = (RNG.normal(size=channels) for _ in range(3))
    parts = (gamma, beta, mean, RNG.uniform(0.5, 2, channels))
    return graph.node("BatchNormalization", x, *(graph.constant(part.astype(np.float32)) for part in parts), epsilon=1e-3)


def gemm(graph: Graph, x: str, out: int, into: int, **attributes: Any) -> str:
    weight, bias = RNG.normal(size=(out, into)).astype(np.float32), RNG.normal(size=out).astype(np.float32)
    return graph.node("Gemm", x, graph.constant(weight), graph.constant(bias), **{"transB": 1, **attributes})


def run(model: ModelProto) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(6).integers(0, 256, (2, 6, 6, 3), np.uint8)
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def test_norms_behind_layers_and_before_a_classifier_fold_exactly() -> None:
    graph = Graph("norms")
    x = graph.conv(graph.pixels(6, 6, std=255.0), RNG.normal(size=(4, 3, 3, 3)), RNG.normal(size=4))
    x = graph.node("Relu", norm(graph, x, 4))
    x = graph.node("Dropout", norm(graph, x, 4))
    x = norm(graph, gemm(graph, graph.node("Flatten", x), 5, 64), 5)
    graph.output(x, "y", ["n", 5])
    model = graph.build()
    folded = fold_batch_norms(model)
    assert {"BatchNormalization", "Dropout"}.isdisjoint(node.op_type for node in folded.graph.node)
    np.testing.assert_allclose(run(folded), run(model), rtol=1e-4, atol=1e-4)
    names = [node.output[0] for node in folded.graph.node]
    assert any(name.startswith("batchnormalization") for name in names)  # the layer goes by what it now gives


def misplaced(graph: Graph, x: str) -> str:
    return graph.node("Relu", norm(graph, x, 3))


def read_twice(graph: Graph, x: str) -> str:
    y = graph.conv(x, RNG.normal(size=(3, 3, 1, 1)), np.zeros(3))
    return graph.node("Add", y, norm(graph, y, 3))


def transposed(graph: Graph, x: str) -> str:
    return norm(graph, gemm(graph, graph.node("Flatten", x), 108, 108, transB=0), 108)


@pytest.mark.parametrize(
    ("build", "shape", "said"),
    [
        (misplaced, ["n", 3, 6, 6], "has no layer beside it"),
        (read_twice, ["n", 3, 6, 6], "has no layer beside it"),
        (transposed, ["n", 108], "holds its weight transposed"),
    ],
)
def test_a_norm_that_cannot_fold_is_refused(build: Any, shape: list[Any], said: str) -> None:
    graph = Graph("norms")
    graph.output(build(graph, graph.pixels(6, 6, std=255.0)), "y", shape)
    with pytest.raises(ExportFailed, match=said):
        fold_batch_norms(graph.build())

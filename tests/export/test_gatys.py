"""The losses of style transfer and their gradient on small random backbones, next to the formulae in numpy."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export import gatys
from service.export.backbones import Layer, build

Array = NDArray[Any]
CONTENT, STYLE = ["b"], ["a", "c"]


@pytest.fixture(scope="module")
def features() -> ModelProto:
    draw = np.random.default_rng(5)

    def layer(name: str, out: int, into: int, *, pooled: bool = False) -> Layer:
        return Layer(name, draw.normal(0, 0.4, (out, into, 3, 3)), draw.normal(0, 0.5, out), pooled)

    layers = [layer("a", 4, 3), layer("b", 6, 4, pooled=True), layer("c", 5, 6, pooled=True)]
    return build(layers, "tiny", mean=(120, 110, 100), std=60, slope=0.1)


def run(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def picture(height: int = 21, width: int = 18, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0, 255, (1, 3, height, width)).astype(np.float32)


def asked(features: ModelProto, *weights: float) -> dict[str, Array]:
    """What the graph "model" is fed beside the picture, of a photo and a style picture of another size."""
    graph = gatys.targets(features, CONTENT, STYLE)
    seen, wanted = run(graph, {"picture": picture(seed=1)}), run(graph, {"picture": picture(30, 13, seed=2)})
    named = zip(("content_weight", "style_weight", "variation_weight"), weights, strict=True)
    return {
        "content/b": seen["features/b"],
        **{f"gram/{layer}": wanted[f"gram/{layer}"] for layer in STYLE},
        **{name: np.array([weight], np.float32) for name, weight in named},
    }


def gram(f: Array) -> Array:
    rows = f[0].reshape(f.shape[1], -1).astype(np.float64)
    return rows @ rows.T / rows.shape[1]


def test_targets_are_features_and_gram_matrices(features: ModelProto) -> None:
    x = picture()
    every, found = run(features, {"picture": x}), run(gatys.targets(features, CONTENT, STYLE), {"picture": x})
    assert set(found) == {"features/b", "gram/a", "gram/c"}
    assert np.array_equal(found["features/b"], every["features/b"])
    for layer in STYLE:
        assert np.allclose(found[f"gram/{layer}"][0], gram(every[f"features/{layer}"]), rtol=1e-4, atol=1e-5)


def test_losses_are_the_formulae(features: ModelProto) -> None:
    x, feeds = picture(), asked(features, 1, 1, 1)
    found = run(gatys.losses(features, CONTENT, STYLE), {"picture": x, **feeds})
    f = run(features, {"picture": x})
    content = ((f["features/b"] - feeds["content/b"]) ** 2).sum() / (feeds["content/b"] ** 2).sum()
    style = np.mean(
        [
            ((gram(f[f"features/{layer}"]) - feeds[f"gram/{layer}"]) ** 2).sum() / (feeds[f"gram/{layer}"].astype(float) ** 2).sum()
            for layer in STYLE
        ]
    )
    unit = x.astype(np.float64) / 255
    variation = (np.diff(unit, axis=2) ** 2).mean() + (np.diff(unit, axis=3) ** 2).mean()
    assert found["content"] == pytest.approx(content, rel=1e-4)
    assert found["style"] == pytest.approx(style, rel=1e-4)
    assert found["variation"] == pytest.approx(variation, rel=1e-4)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 5, 3)])
def test_the_gradient_is_that_of_the_weighted_sum(features: ModelProto, weights: tuple[float, ...]) -> None:
    graph, x, feeds = gatys.losses(features, CONTENT, STYLE), picture(), asked(features, *weights)
    gradient = run(graph, {"picture": x, **feeds})["gradient"].astype(np.float64)
    assert gradient.shape == x.shape

    def total(x: Array) -> float:
        found = run(graph, {"picture": x.astype(np.float32), **feeds})
        return sum(weight * float(found[name][0]) for weight, name in zip(weights, ("content", "style", "variation"), strict=True))

    for seed in range(4):
        way = np.random.default_rng(seed).normal(0, 1, x.shape) + 3 * gradient / np.abs(gradient).max()
        step = 0.5 / np.abs(way).max()
        slope = (total(x + step * way) - total(x - step * way)) / (2 * step)
        assert slope == pytest.approx(float((gradient * way).sum()), rel=0.02)


def test_at_the_targets_there_is_nothing_to_gain(features: ModelProto) -> None:
    x = picture()
    own = run(gatys.targets(features, CONTENT, STYLE), {"picture": x})
    feeds = {**asked(features, 1, 1, 0), "content/b": own["features/b"], **{name: own[name] for name in ("gram/a", "gram/c")}}
    found = run(gatys.losses(features, CONTENT, STYLE), {"picture": x, **feeds})
    assert float(found["content"][0]) < 1e-9
    assert float(found["style"][0]) < 1e-9
    assert np.abs(found["gradient"]).max() < 1e-6


def test_a_silent_layer_divides_by_no_zero(features: ModelProto) -> None:
    feeds = {name: value * (0 if "/" in name else 1) for name, value in asked(features, 1, 1, 1).items()}
    found = run(gatys.losses(features, CONTENT, STYLE), {"picture": picture(), **feeds})
    assert all(np.isfinite(value).all() for value in found.values())


def test_what_the_losses_do_not_need_is_not_in_their_graph(features: ModelProto) -> None:
    shallow = gatys.losses(features, ["a"], ["a"])
    assert [node.op_type for node in shallow.graph.node].count("Conv") == 2  # forwards and back
    assert "AveragePool" not in {node.op_type for node in shallow.graph.node}
    assert len(shallow.graph.initializer) < len(gatys.losses(features, CONTENT, STYLE).graph.initializer)


def test_a_layer_that_is_not_there_is_named_with_those_that_are(features: ModelProto) -> None:
    with pytest.raises(ExportFailed, match="no layer 'conv9'; the layers are: a, b, c"):
        gatys.losses(features, ["conv9"], STYLE)
    with pytest.raises(ExportFailed, match="at least one layer"):
        gatys.targets(features, [], STYLE)


def test_a_backbone_exports_three_graphs(features: ModelProto) -> None:
    assert list(gatys.export(features, CONTENT, STYLE)) == ["model", "targets", "features"]
    assert gatys.layers(features) == ["a", "b", "c"]

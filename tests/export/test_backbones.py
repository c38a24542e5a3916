"""Weights of both backbones read from small files of their formats, and the order and scaling of pixels in their graphs."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export import gatys
from service.export.backbones import CAFFE_MEAN, VGG16, Layer, build, export_darknet, export_vgg16, read_vgg16
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import own_manifests

Array = NDArray[Any]
VGG, TINY = (load_spec(own_manifests() / name) for name in ("vgg16-hed", "yolov3-tiny-features"))


@pytest.fixture
def keras(tmp_path: Path) -> Path:
    """A file of Keras with VGG-16's names, and few channels: 2 in block 1, 3 in block 2, and so on."""
    draw, path, into = np.random.default_rng(0), tmp_path / "vgg.weights.h5", 3
    with h5py.File(path, "w") as file:
        for block, count in enumerate(VGG16, 1):
            for index in range(count):
                group = file.create_group(f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars")
                group["0"] = draw.normal(0, 0.3, (3, 3, into, block + 1)).astype(np.float32)
                group["1"] = draw.normal(0, 0.3, block + 1).astype(np.float32)
                into = block + 1
    return path


def run(model: ModelProto, x: Array) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"picture": x}), strict=True))


def test_vgg16_has_its_thirteen_layers_and_four_poolings(keras: Path) -> None:
    layers = read_vgg16(keras)
    assert tuple(layer.name for layer in layers) == VGG.layers.known
    assert [layer.name for layer in layers if layer.pooled] == ["conv2_1", "conv3_1", "conv4_1", "conv5_1"]
    assert [layer.weight.shape for layer in layers[:3]] == [(2, 3, 3, 3), (2, 2, 3, 3), (3, 2, 3, 3)]


def test_vgg16_sees_blue_first_and_without_the_mean(keras: Path) -> None:
    """The middle of conv1_1 on plain colour: each kernel summed, channels in the file's order BGR."""
    rgb = np.array([200.0, 90.0, 20.0])
    with h5py.File(keras) as file:
        kernel, bias = (file[f"block1/layers/conv2d/vars/{part}"][()].astype(np.float64) for part in (0, 1))
    wanted = np.maximum((rgb - CAFFE_MEAN)[::-1] @ kernel.sum(axis=(0, 1)) + bias, 0)
    x = np.broadcast_to(rgb[None, :, None, None], (1, 3, 32, 32)).astype(np.float32)
    found = run(export_vgg16({"w": keras})["features"], x)["features/conv1_1"][0, :, 16, 16]
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-3)
    assert not np.allclose(found, np.maximum((rgb - CAFFE_MEAN) @ kernel.sum(axis=(0, 1)) + bias, 0), rtol=0.01, atol=0.1)


def test_each_block_is_half_as_large_and_odd_sizes_are_rounded_down(keras: Path) -> None:
    found = run(export_vgg16({"w": keras})["features"], np.zeros((1, 3, 45, 34), np.float32))
    assert [found[f"features/conv{block}_1"].shape[2:] for block in range(1, 6)] == [(45, 34), (22, 17), (11, 8), (5, 4), (2, 2)]


def test_pooling_is_by_averages() -> None:
    unit = np.zeros((3, 3, 3, 3), np.float32)
    unit[range(3), range(3), 1, 1] = 1
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, 4, 6)).astype(np.float32)
    layers = [Layer("a", unit, np.zeros(3)), Layer("b", unit, np.zeros(3), pooled=True)]
    found = run(build(layers, "tiny"), x)["features/b"]
    assert np.allclose(found, x.reshape(1, 3, 2, 2, 3, 2).mean(axis=(3, 5)), rtol=1e-5)


def test_a_file_that_is_not_vgg16_is_refused(keras: Path) -> None:
    with h5py.File(keras, "r+") as file:
        del file["block4/layers/conv2d_1/vars/0"]
    with pytest.raises(ExportFailed, match="has no block4/layers/conv2d_1/vars"):
        read_vgg16(keras)
    with h5py.File(keras, "r+") as file:
        file["block4/layers/conv2d_1/vars/0"] = np.zeros((3, 3, 5, 7), np.float32)
    with pytest.raises(ExportFailed, match=r"has the shape \(3, 3, 5, 7\), not \(3, 3, 5, 5\)"):
        read_vgg16(keras)


CFG = """[net]
[convolutional]
batch_normalize=1
filters=2
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=3
size=3
pad=1
activation=leaky
"""
REST = "[maxpool]\nsize=2\nstride=1\n[convolutional]\nfilters=9\nsize=1\nactivation=linear\n"


def test_darknet_s_layers_end_where_the_size_stays(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    numbers = [draw.uniform(0.5, 1.5, count) for count in (2, 2, 2, 2, 54, 3, 3, 3, 3, 54)]
    more = ("[maxpool]\nsize=2\nstride=2\n" + CFG.partition("stride=2\n")[2]) * 3
    rest = [draw.uniform(0.5, 1.5, count) for _ in range(3) for count in (3, 3, 3, 3, 81)]
    (tmp_path / "net.cfg").write_text(CFG + more + REST)
    header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
    (tmp_path / "net.weights").write_bytes(header + np.concatenate([*numbers, *rest, np.ones(36)]).astype("<f4").tobytes())
    graphs = export_darknet({name: tmp_path / name for name in ("net.cfg", "net.weights")})
    assert gatys.layers(graphs["features"]) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    x = np.full((1, 3, 64, 64), 51.0, np.float32)
    beta, gamma, mean, variance, kernel = numbers[:5]
    plain = 0.2 * kernel.reshape(2, -1).sum(axis=1)
    wanted = (plain - mean) * gamma / np.sqrt(variance + 1e-6) + beta
    found = run(graphs["features"], x)["features/conv1"][0, :, 9, 9]
    assert np.allclose(found, np.where(wanted > 0, wanted, 0.1 * wanted), rtol=1e-4)


@pytest.mark.parametrize("spec", [VGG, TINY], ids=lambda spec: spec.name)
def test_manifests_name_the_layers_that_the_recipes_export(spec: ModelSpec, models: Any) -> None:
    import onnx

    folder = models(spec.name)
    graphs = {name: onnx.load(folder / f"{name}.onnx") for name in spec.export.graphs}
    assert tuple(gatys.layers(graphs["features"])) == spec.layers.known
    asked = {value.name for value in graphs["model"].graph.input}
    assert {name for name in asked if name.startswith("content/")} == {f"content/{layer}" for layer in spec.layers.content}
    assert {name for name in asked if name.startswith("gram/")} == {f"gram/{layer}" for layer in spec.layers.style}

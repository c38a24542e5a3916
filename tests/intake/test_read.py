"""Untrusted files are refused in words, and nothing of them is run to find that out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from service.errors import ModelRefused
from service.intake import inspect
from service.intake.read import read
from service.intake.told import NOTHING
from service.settings import Settings

Save = Callable[..., Path]
RELU = [helper.make_node("Relu", ["x"], ["y"])]
BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "two bytes": (b"ok", "too short"),
    "a web page": (b"  <!DOCTYPE html><html><body>404</body></html>", "web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "a torch file": (b"PK\x03\x04" + bytes(100), "PyTorch"),
    "noise": (bytes(range(256)) * 4, "not a valid ONNX model"),
    "zeros": (bytes(500), "not a valid ONNX model"),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_model(name: str, tmp_path: Path, settings: Settings) -> None:
    data, words = BYTES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelRefused, match=words):
        read(path, settings)


def test_a_truncated_file(graph: Callable[..., Path], settings: Settings) -> None:
    path = graph({"o": np.zeros((1, 500), np.float32)})
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelRefused, match="cut short"):
            read(path, settings)


def test_a_file_over_the_limit(graph: Callable[..., Path], settings: Settings) -> None:
    path = graph({"o": np.zeros((1, 500), np.float32)})
    with pytest.raises(ModelRefused, match="VISION_MAX_MODEL_BYTES"):
        read(path, settings.model_copy(update={"max_model_bytes": 1024}))


def value(kind: str) -> Any:
    if kind == "text":
        return helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    return helper.make_map_sequence_value_info("y", TensorProto.INT64, None) if kind == "map" else None


def external(location: str) -> list[Any]:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=text)
    return [tensor]


def picture(*shape: Any, name: str = "x") -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def out(name: str = "y") -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


MODELS: dict[str, tuple[Callable[[Save], Path], str]] = {
    "foreign operators": (
        lambda s: s([helper.make_node("Warp", ["x"], ["y"], domain="my.ops")], domains={"my.ops": 1}),
        "never loaded",
    ),
    "TensorRT's": (
        lambda s: s([helper.make_node("EfficientNMS_TRT", ["x"], ["y"], domain="TRT")], domains={"TRT": 1}),
        "EfficientNMS_TRT",
    ),
    "unknown operator": (lambda s: s([helper.make_node("Frobnicate", ["x"], ["y"])]), "Frobnicate"),
    "inside a loop": (
        lambda s: s(
            [
                helper.make_node(
                    "If",
                    ["c"],
                    ["y"],
                    then_branch=helper.make_graph([helper.make_node("Bad", ["x"], ["t"], domain="evil")], "t", [], [out("t")]),
                )
            ]
        ),
        "evil:Bad",
    ),
    "unknown of microsoft": (
        lambda s: s([helper.make_node("Nothing", ["x"], ["y"], domain="com.microsoft")], domains={"com.microsoft": 1}),
        "not known here",
    ),
    "newer opset": (lambda s: s(RELU, domains={"": 99}), "newer set of operators"),
    "newer IR": (lambda s: s(RELU, ir_version=99), "newer version of ONNX"),
    "training": (lambda s: s(RELU, domains={"ai.onnx.preview.training": 1}), "for training"),
    "no inputs": (lambda s: s(RELU, weights=[numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "x")]), "no inputs"),
    "text": (lambda s: s([helper.make_node("Identity", ["x"], ["y"])], [value("text")]), "is text"),
    "not a picture": (lambda s: s(RELU, [picture(1, 16)]), "takes a picture"),
    "two pictures": (
        lambda s: s(
            [helper.make_node("Add", ["x", "z"], ["t"]), helper.make_node("GlobalMaxPool", ["t"], ["y"])],
            [picture(1, 3, 8, 8), picture(1, 3, 8, 8, name="z")],
            [helper.make_tensor_value_info("y", 1, [1, 3])],
        ),
        "picture inputs",
    ),
    "another input": (
        lambda s: s([helper.make_node("Mul", ["x", "k"], ["y"])], [picture(1, 3, 8, 8), picture(1, 7, name="k")]),
        "height and width",
    ),
    "of doubles": (lambda s: s(RELU, [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 3, 8, 8])]), "float64"),
}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_that_cannot_be_used(name: str, save: Save, settings: Settings) -> None:
    make, words = MODELS[name]
    with pytest.raises(ModelRefused, match=words):
        inspect(make(save), NOTHING, settings)


def test_maps_as_scikit_learn_makes_them(save: Save, settings: Settings) -> None:
    inside = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    path = save(RELU, outputs=[helper.make_value_info("y", helper.make_sequence_type_proto(inside))])
    with pytest.raises(ModelRefused, match="zipmap"):
        read(path, settings)


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "inner/weights.bin", "link.bin", "", "..\\weights.bin"])
def test_weights_outside_the_folder(location: str, save: Save, tmp_path: Path, settings: Settings) -> None:
    aside = tmp_path.parent / f"{tmp_path.name}-aside"
    aside.mkdir()
    (aside / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "inner").symlink_to(aside)
    (tmp_path / "link.bin").symlink_to(aside / "weights.bin")
    path = save([helper.make_node("Identity", ["w"], ["y"])], weights=external(location))
    with pytest.raises(ModelRefused, match="outside its own folder"):
        read(path, settings)


@pytest.mark.parametrize("attribute", ["value", "sparse_value"])
def test_weights_outside_the_folder_of_a_graph_within_a_function(attribute: str, save: Save, settings: Settings) -> None:
    (weights,) = external("../weights.bin")
    given = weights if attribute == "value" else SparseTensorProto(values=weights, dims=[4])
    constant = helper.make_node("Constant", [], ["w"], **{attribute: given})
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
    choose = helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("own", "F", ["on"], ["y"], [choose], [helper.make_opsetid("", 17)])
    path = save([helper.make_node("F", ["x"], ["y"], domain="own")], domains={"own": 1})
    model = onnx.load(path)
    model.functions.append(function)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="outside its own folder"):
        read(path, settings)


def test_weights_beside_the_model(save: Save, tmp_path: Path, settings: Settings) -> None:
    path = save([helper.make_node("Identity", ["w"], ["y"])], weights=external("weights.bin"))
    with pytest.raises(ModelRefused, match="missing"):
        read(path, settings)
    (tmp_path / "weights.bin").write_bytes(bytes(15))
    with pytest.raises(ModelRefused, match="shorter"):
        read(path, settings)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert read(path, settings).external == (tmp_path / "weights.bin",)


def test_what_a_file_says_of_itself(graph: Callable[..., Path], settings: Settings) -> None:
    path = graph({"o": np.zeros((1, 5), np.float16)}, ("n", 3, 8, 8), metadata={"a": "b"})
    found = read(path, settings)
    assert found.inputs[0].shape == ("n", 3, 8, 8)
    assert found.outputs[0].dtype == "float16"
    assert (found.metadata, found.opset, found.precision) == ({"a": "b"}, 17, "float16")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["whole"], ["q", "s", "z"]))
    onnx.save(model, path)
    assert read(path, settings).precision == "int8"

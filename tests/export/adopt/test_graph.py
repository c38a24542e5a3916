"""Files as they come: colours and types of the input, weights beside the file, what fixes a batch, and what is no model at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.adopt.graph import find_decoder
from service.export.adopt.tail import Tail
from service.export.contract import Contract, Decoder
from service.runtime.session import run_once

Array = NDArray[Any]
ROWS = Contract(decoder="yolov8", classes=4)


def rows_file(foreign: Any, path: Path, **options: Any) -> Path:
    """A YOLOv8 of one stride whose rows are a linear function of the picture."""
    file = foreign(size=options.pop("size", (64, 96)), **options)
    file.output(file.rows(8, (32,)), "output0", [file.batch, 8, 6])
    return Path(file.save(path))


def by_hand(path: Path, feed: Array) -> Array:
    """Scores [n, k, 4] that the file itself gives for what it is fed."""
    (found,) = run_once(path, {"images": np.ascontiguousarray(feed)}).values()
    return found[:, 4:].transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("changed", "fed"),
    [
        ({}, lambda x: x),
        ({"color": "BGR"}, lambda x: x[..., ::-1]),
        ({"scale": 1 / 255}, lambda x: x / 255),
        ({"scale": 1 / 255, "mean": (0.5,), "std": (0.25,)}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"mean": (10, 20, 30), "std": (2, 4, 8)}, lambda x: (x - [10, 20, 30]) / [2, 4, 8]),
        ({"mean": (10, 20, 30), "std": (2, 4, 8), "color": "BGR"}, lambda x: (x[..., ::-1] - [10, 20, 30]) / [2, 4, 8]),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_file_is_fed_what_the_contract_says(
    foreign: Any,
    pictures: Callable[..., Array],
    house: Callable[..., Any],
    tmp_path: Path,
    changed: dict[str, Any],
    fed: Callable[[Array], Array],
    layout: Any,
) -> None:
    path, pixels = rows_file(foreign, tmp_path / "their.onnx", layout=layout), pictures(1)
    feed = fed(pixels.astype(np.float64)).astype(np.float32)
    wanted = by_hand(path, feed if layout == "NHWC" else feed.transpose(0, 3, 1, 2))
    found = house(path, ROWS.model_copy(update={**changed, "layout": layout}), pixels)
    np.testing.assert_allclose(found["scores"], wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_one_channel_is_grey(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path, dtype: str
) -> None:
    path, pixels = rows_file(foreign, tmp_path / "their.onnx", channels=1, dtype=dtype), pictures(1)
    grey = np.floor(pixels @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(dtype)[:, None]
    found = house(path, ROWS.model_copy(update={"color": "GRAY"}), pixels)
    np.testing.assert_allclose(found["scores"], by_hand(path, grey), rtol=1e-4, atol=0.2)  # a half may round up or down


@pytest.mark.parametrize(
    ("options", "changed", "said"),
    [
        ({"channels": 1}, {}, "the input 'images' has no 3 channels as RGB in NCHW needs"),
        ({}, {"layout": "NHWC"}, "has no 3 channels as RGB in NHWC needs"),
        ({"dtype": "uint8"}, {"scale": 1 / 255}, "takes whole numbers: scale, mean and std must be left"),
        ({}, {"input": "image"}, "there is no input 'image'; the inputs are: images"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(
    foreign: Any, tmp_path: Path, options: dict[str, Any], changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportFailed, match=said):
        adopt(rows_file(foreign, tmp_path / "their.onnx", **options), ROWS.model_copy(update=changed))


def test_a_batch_fixed_to_several_is_freed(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    path, pixels = rows_file(foreign, tmp_path / "their.onnx", batch=4), pictures(4)
    wanted = by_hand(path, pixels.transpose(0, 3, 1, 2).astype(np.float32))
    for count in (1, 3, 4):
        np.testing.assert_allclose(house(path, ROWS, pixels[:count])["scores"], wanted[:count], rtol=1e-4, atol=2e-3)


def test_nodes_that_are_out_of_order_do_not_fix_the_batch(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    """As converters to float16 leave them: the cast of the input stands behind all that reads it."""
    file = foreign()
    file.picture = file.node("Cast", file.picture, to=TensorProto.FLOAT)
    file.output(file.rows(8, (32,)), "output0", [1, 8, 6])
    file.nodes.append(file.nodes.pop(0))
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    wanted = [by_hand(path, pixels[i : i + 1].transpose(0, 3, 1, 2).astype(np.float32))[0] for i in range(2)]
    np.testing.assert_allclose(house(path, ROWS, pixels)["scores"], wanted, rtol=1e-4, atol=2e-3)


def test_factors_of_a_resize_that_are_cast_do_not_fix_the_batch(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    """As float16 exports have it: without the factors' values nothing is known of any shape behind the Resize."""
    file = foreign()
    factors = file.node("Cast", file.constant(np.array([1, 1, 2, 2], np.float16)), to=TensorProto.FLOAT)
    x = file.reshape(file.node("Resize", file.head(8, 32), "", factors), 8, -1)
    file.output(file.node("Add", x, file.constant(np.zeros((1, 8, 24), np.float32))), "output0", [1, 8, 24])
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    wanted = [by_hand(path, pixels[i : i + 1].transpose(0, 3, 1, 2).astype(np.float32))[0] for i in range(2)]
    np.testing.assert_allclose(house(path, ROWS, pixels)["scores"], wanted, rtol=1e-4, atol=2e-3)


def test_a_second_input_that_nothing_feeds_is_named_and_one_that_nothing_reads_is_dropped(foreign: Any, tmp_path: Path) -> None:
    file = foreign()
    file.input("unread", [1, 2])
    x = file.rows(8, (32,))
    file.output(x, "output0", [1, 8, 6])
    model = adopt(file.save(tmp_path / "their.onnx"), ROWS)
    assert [value.name for value in model.graph.input] == ["pixels"]
    file.node("Add", x, file.input("thresholds", [1, 8, 1]), name="later")
    file.nodes[-2].input[0] = "later"
    file.nodes[-2], file.nodes[-1] = file.nodes[-1], file.nodes[-2]
    with pytest.raises(ExportFailed, match=r"a further input 'thresholds' \['n', 8, 1\], which nothing is known of"):
        adopt(file.save(tmp_path / "their.onnx"), ROWS)


def test_a_picture_without_a_batch_axis_or_without_any_axes(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    path, pixels = rows_file(foreign, tmp_path / "their.onnx", opset=13), pictures(1)
    wanted = by_hand(path, pixels.transpose(0, 3, 1, 2).astype(np.float32))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    found = house(path, ROWS.model_copy(update={"size": (64, 96), "free_batch": False}), pixels)
    np.testing.assert_allclose(found["scores"], wanted, rtol=1e-4, atol=2e-3)

    alone = helper.make_tensor_value_info("alone", TensorProto.FLOAT, [3, 64, 96])
    model.graph.node.insert(0, helper.make_node("Unsqueeze", ["alone", "front"], ["images"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "front"))
    model.graph.input[0].CopyFrom(alone)
    onnx.save(model, path)
    with pytest.raises(ExportFailed, match="the input 'alone' takes one picture, without a batch axis"):
        adopt(path, ROWS)
    found = house(path, ROWS.model_copy(update={"free_batch": False}), pixels)
    np.testing.assert_allclose(found["scores"], wanted, rtol=1e-4, atol=2e-3)


def test_a_file_older_than_opset_7_is_refused(foreign: Any, tmp_path: Path) -> None:
    model = onnx.load(rows_file(foreign, tmp_path / "their.onnx"))
    model.opset_import[0].version = 6
    onnx.save(model, tmp_path / "their.onnx")
    with pytest.raises(ExportFailed, match="the file is of opset 6; 7 and later are read"):
        adopt(tmp_path / "their.onnx", ROWS)


# weights in other files


def outside(foreign: Any, tmp_path: Path, location: str = "weights.bin") -> Path:
    path = rows_file(foreign, tmp_path / "their.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_come_into_it(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    inside = house(rows_file(foreign, tmp_path / "inside.onnx"), ROWS, pictures(1))
    found = house(outside(foreign, tmp_path), ROWS, pictures(1))
    np.testing.assert_array_equal(found["scores"], inside["scores"])
    assert [file.name for file in (tmp_path / "house").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/weights.bin", ""])
def test_weights_elsewhere_are_refused(foreign: Any, tmp_path: Path, location: str) -> None:
    with pytest.raises(ExportFailed, match="only files in the model's own folder are read"):
        adopt(outside(foreign, tmp_path, location), ROWS)


def test_a_link_out_of_the_folder_is_refused_and_missing_weights_are_named(foreign: Any, tmp_path: Path) -> None:
    path = outside(foreign, tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportFailed, match=r"a second file 'weights\.bin', which is not there"):
        adopt(path, ROWS)
    (tmp_path / "weights.bin").symlink_to("/etc/hostname")
    with pytest.raises(ExportFailed, match="only files in the model's own folder are read"):
        adopt(path, ROWS)


def test_weights_cut_short_are_refused(foreign: Any, tmp_path: Path) -> None:
    path = outside(foreign, tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with pytest.raises(ExportFailed, match="its weights cannot be read"):
        adopt(path, ROWS)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x08\x07<html>" * 50])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "their.onnx").write_bytes(content)
    with pytest.raises(ExportFailed, match=r"their\.onnx (is no ONNX file|holds no graph)"):
        adopt(tmp_path / "their.onnx", ROWS)


# what fixes a batch


def test_a_resize_to_a_fixed_size_lets_the_batch_go(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    for opset in (11, 13, 18):
        file = foreign(opset=opset, size=(64, 96))
        x = file.head(8, 32)
        sizes = file.constant(np.array([1, 8, 5, 7], np.int64))
        x = file.node("Resize", x, "" if opset > 11 else file.constant(np.zeros(0, np.float32)), "", sizes, mode="nearest")
        if opset == 11:
            file.nodes[-1].input[2] = file.constant(np.zeros(0, np.float32))
        file.output(file.reshape(x, 8, -1), "output0", [1, 8, 35])
        path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
        found = house(path, ROWS, pixels)
        for index in range(2):
            wanted = by_hand(path, pixels[index : index + 1].transpose(0, 3, 1, 2).astype(np.float32))
            np.testing.assert_allclose(found["scores"][index], wanted[0], rtol=1e-4, atol=2e-3)


def test_a_batch_that_cannot_be_freed_is_said_and_can_stay(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    file = foreign()
    x = file.node("Concat", file.rows(8, (32,)), file.constant(np.ones((1, 8, 2), np.float32)), axis=2)  # fits one picture only
    x = file.node("ReduceMax", x, axes=[0], keepdims=1)
    file.output(x, "output0", [1, 8, 8])
    path = file.save(tmp_path / "their.onnx")
    with pytest.raises(ExportFailed, match=r"the batch cannot be freed: 'boxes' .* would stay that of 1"):
        adopt(path, ROWS)
    assert house(path, ROWS.model_copy(update={"free_batch": False}), pictures(1))["scores"].shape == (1, 8, 4)


def branching(foreign: Any, path: Path, batch: int | str) -> Path:
    """A file with an If whose bodies take what they need from outside, a weight that only they read among it."""
    file = foreign(batch=batch)
    rows, more = file.rows(8, (32,)), file.constant(np.float32(2))
    bodies = []
    for operator, name in (("Mul", "then"), ("Div", "else")):
        answer = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        bodies.append(helper.make_graph([helper.make_node(operator, [rows, more], [name])], name, [], answer))
    x = file.node("If", file.constant(np.array(True)), then_branch=bodies[0], else_branch=bodies[1])
    file.output(x, "output0", [batch, 8, 6])
    return Path(file.save(path))


def test_branches_keep_what_they_take_from_outside(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    pixels = pictures(2)
    free = branching(foreign, tmp_path / "free.onnx", "n")
    wanted = by_hand(free, pixels.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(house(free, ROWS, pixels)["scores"], wanted, rtol=1e-4, atol=2e-3)
    fixed = branching(foreign, tmp_path / "fixed.onnx", 1)
    with pytest.raises(ExportFailed, match="the graph has branches or loops"):
        adopt(fixed, ROWS)
    found = house(fixed, ROWS.model_copy(update={"free_batch": False}), pixels[:1])
    np.testing.assert_allclose(found["scores"], wanted[:1], rtol=1e-4, atol=2e-3)


def test_quantised_files_keep_their_arithmetic(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    file = foreign(opset=13)
    scale, zero = file.constant(np.float32(0.05)), file.constant(np.uint8(128))
    whole = file.node("QuantizeLinear", file.rows(8, (32,)), scale, zero)
    file.output(file.node("DequantizeLinear", whole, scale, zero), "output0", [1, 8, 6])
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    contract = ROWS.model_copy(update={"scale": 1 / 255})
    operators = [node.op_type for node in adopt(path, contract).graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(operators)
    found = house(path, contract, pixels)["scores"]
    feed = (pixels / np.float32(255)).transpose(0, 3, 1, 2)
    wanted = np.concatenate([by_hand(path, feed[index : index + 1]) for index in range(2)])
    assert np.abs(found - wanted).max() < 0.051  # one step, where rounding falls the other way
    assert np.mean(np.abs(found - wanted) < 1e-5) > 0.9


def test_operators_of_the_runtime_itself_are_let_through(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    file = foreign()
    file.output(file.node("Gelu", file.rows(8, (32,)), domain="com.microsoft"), "output0", [1, 8, 6])
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    wanted = by_hand(path, pixels[1:].transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(house(path, ROWS, pixels)["scores"][1:], wanted, rtol=1e-4, atol=2e-3)


def test_weights_of_a_body_lie_beside_the_file_too(foreign: Any, tmp_path: Path) -> None:
    path = branching(foreign, tmp_path / "their.onnx", "n")
    model = onnx.load(path)
    body = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.ones(300, np.float32), "inner"))
    body.node[0].input[1] = "inner"
    onnx.external_data_helper.set_external_data(body.initializer[0], "../secret.bin")
    body.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportFailed, match=r"weights are said to lie in '\.\./secret\.bin'"):
        adopt(path, ROWS)


def test_one_file_of_weights_read_a_thousand_times_is_refused(foreign: Any, tmp_path: Path) -> None:
    path = outside(foreign, tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(2**30)  # sparse: it takes no room
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(2**31)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportFailed, match="its weights are larger than the 2 GiB"):
        adopt(path, ROWS)


# the tail


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_decoder_of_the_contract_is_there(decoder: Any) -> None:
    assert callable(find_decoder(decoder))


def test_nodes_run_in_order_and_what_nothing_reads_is_gone() -> None:
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["given/y"]), helper.make_node("Exp", ["given/old"], ["unread"])]
    weights = [numpy_helper.from_array(np.zeros(3, np.float32), "given/weight")]
    graph = helper.make_graph(nodes, "g", [info("x", 1, [3]), info("given/old", 1, [3])], [info("given/y", 1, [3])], weights)
    tail = Tail(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    tail.graph.node[0].input[0] = "given/old"
    tail.replace_input("given/old", tail.add("x", 1.0))
    tail.expose("given/y", "y", [3])
    tail.finish()
    assert [node.op_type for node in tail.graph.node] == ["Add", "Identity", "Relu", "Identity"]
    assert [value.name for value in tail.graph.input] == ["x"]
    assert "given/weight" not in {tensor.name for tensor in tail.graph.initializer}
    onnx.checker.check_model(tail.model, full_check=True)


def test_nodes_in_a_circle_are_refused() -> None:
    info = helper.make_tensor_value_info("y", 1, [3])
    nodes = [helper.make_node("Add", ["z", "z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    tail = Tail(helper.make_model(helper.make_graph(nodes, "g", [], [info])))
    tail.expose("y", "house", [3])
    with pytest.raises(ExportFailed, match="circle"):
        tail.finish()

"""`models add`, `models inspect`, `models remove`, on a small classifier."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("VISION_DATA_DIR", str(tmp_path / "data"))

    def go(*argv: object) -> tuple[int, str, str]:
        status = main(["models", *map(str, argv)])
        told = capsys.readouterr()
        return status, told.out, told.err

    return go


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    pictures = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])
    answers = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [pictures], [answers], [numpy_helper.from_array(weights, "w")])
    path = tmp_path / "Fruit.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_is_missing_is_asked_and_then_it_is_added_and_removed(run: Run, classifier: Path, tmp_path: Path) -> None:
    status, out, err = run("inspect", classifier)
    assert status == 1
    assert "--preprocess: torchvision" in out
    assert "needs --preprocess" in err
    status, _, err = run("add", classifier)
    assert status == 1
    assert "preprocess" in err
    labels = tmp_path / "fruit.txt"
    labels.write_text("apple\npear, green\nfig\nplum\n")
    status, out, _ = run("inspect", classifier, "--preprocess", "unit", "--labels", labels)
    assert status == 0
    assert out.startswith("fruit: classify")
    assert "two pictures at once as one by one" in out
    assert "--resize says otherwise" in out
    status, out, _ = run("add", classifier, "--preprocess", "unit", "--labels", labels)
    folder = tmp_path / "data" / "repository" / "fruit"
    assert status == 0
    assert str(folder) in out
    assert (folder / "labels.txt").read_text().splitlines()[1] == "pear, green"
    status, _, err = run("add", classifier, "--preprocess", "unit")
    assert status == 1
    assert "already" in err
    assert run("add", classifier, "--preprocess", "unit", "--replace")[0] == 0
    status, out, _ = run("remove", "fruit")
    assert status == 0
    assert not folder.exists()


@pytest.mark.parametrize("given", ["apple,pear,fig,plum", "{file}"])
def test_labels_are_a_list_or_a_file(run: Run, classifier: Path, tmp_path: Path, given: str) -> None:
    labels = tmp_path / "fruit, and more.txt"
    labels.write_bytes(b"\xef\xbb\xbfapple\r\npear\r\nfig\r\nplum\r\n")  # as Notepad saves it
    assert run("add", classifier, "--preprocess", "unit", "--labels", given.format(file=labels))[0] == 0
    written = tmp_path / "data" / "repository" / "fruit" / "labels.txt"
    assert written.read_text(encoding="utf-8").splitlines() == ["apple", "pear", "fig", "plum"]


def test_labels_that_are_too_long_are_not_read_to_their_end(run: Run, classifier: Path, tmp_path: Path) -> None:
    labels = tmp_path / "endless.txt"
    with labels.open("wb") as file:
        file.truncate(2**40)  # bytes that take no room, and could never be read
    status, _, err = run("inspect", classifier, "--labels", labels)
    assert (status, "more than 1048576 bytes" in err) == (1, True)
    long = ",".join(["a name"] * 100)  # longer than a file's name may be
    assert "100 labels were given" in run("inspect", classifier, "--preprocess", "unit", "--labels", long)[2]


def test_what_a_terminal_would_obey_is_spelt_out(run: Run, classifier: Path) -> None:
    model = onnx.load(classifier)
    model.producer_name = "\x1b]0;mine\x07\nfound:"
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[31m"
    onnx.save(model, classifier)
    for words in (("--preprocess", "unit"), (), ("--input", "\x1b[0m")):
        _, out, err = run("inspect", classifier, *words)
        assert "\\x1b[31m" in out + err
        assert "\x1b" not in out + err
        assert "\x07" not in out + err


@pytest.mark.parametrize(("labels", "words"), [("apple, pear,fig,plum", "4 labels as given"), ("apple", "1 labels were given")])
def test_labels_may_be_the_classes_themselves(run: Run, classifier: Path, labels: str, words: str) -> None:
    _, out, err = run("inspect", classifier, "--preprocess", "unit", "--labels", labels)
    assert words in out + err


def test_inspect_as_json_says_what_is_inside(run: Run, classifier: Path) -> None:
    status, out, _ = run("inspect", classifier, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["inputs"] == [{"name": "x", "dtype": "float", "shape": ["n", 3, 16, 16]}]
    assert found["parameters"] == 12


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("inspect", "{file}", "--mean", "x"), "--mean"),
        (("inspect", "{file}", "--face-scale", "99"), "--face-scale"),
        (("inspect", "{file}", "--labels", "no-such.txt"), "--labels no-such.txt"),
        (("inspect", "{file}", "--decoder", "yolov8"), "cannot be read as yolov8"),
        (("add", "no-such.onnx"), "no-such.onnx"),
        (("add", "{file}", "--preprocess", "unit", "--name", "yunet"), "comes with the service"),
        (("remove", "yunet"), "comes with the service"),
        (("remove", "nope"), "no model 'nope'"),
        (("remove", ".."), "no model '..'"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, classifier: Path, argv: tuple[str, ...], words: str) -> None:
    status, _, err = run(*(word.format(file=classifier) for word in argv))
    assert status == 1
    assert words in err
    assert "Traceback" not in err

"""Tensors of the Open Inference Protocol: read, checked and written, without HTTP."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from service.errors import InputError, MalformedBody
from service.http import tensors
from service.http.tensors import KINDS, Wanted, read_feeds, read_request, read_wanted, write_answer
from service.runtime.session import TensorInfo

PIXELS = TensorInfo("pixels", ("n", "h", "w", 3), "tensor(uint8)")
STYLE = TensorInfo("style", ("n", 2), "tensor(float)")


def body(*inputs: dict[str, Any], behind: bytes = b"", **more: Any) -> tuple[bytes, int | None]:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + behind, len(header) if behind else None


def feeds(*inputs: dict[str, Any], behind: bytes = b"", infos: tuple[TensorInfo, ...] = (PIXELS,)) -> dict[str, Any]:
    return read_feeds(*read_request(*body(*inputs, behind=behind)), infos)


def pixels(**given: Any) -> dict[str, Any]:
    return {"name": "pixels", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [1, 2, 3, 4, 5, 6]} | given


def one(dtype: str, **given: Any) -> Any:
    """What is read for an input of two values."""
    return feeds(
        {"name": "x", "shape": [2], "datatype": KINDS[dtype][0], **given},
        infos=(TensorInfo("x", ("n",), dtype),),
    )["x"]


@pytest.mark.parametrize("dtype", KINDS)
def test_each_type_is_read_as_json_and_as_bytes_and_written_as_both(dtype: str) -> None:
    values = np.array([1, 0], KINDS[dtype][1])
    given = one(dtype, data=values.tolist())
    assert given.dtype == values.dtype
    assert given.tolist() == values.tolist()
    info = (TensorInfo("x", ("n",), dtype),)
    asked = {"name": "x", "shape": [2], "datatype": KINDS[dtype][0], "parameters": {"binary_data_size": values.nbytes}}
    raw = feeds(asked, behind=values.tobytes(), infos=info)["x"]
    assert raw.dtype == values.dtype
    assert raw.tolist() == values.tolist()
    for binary in (False, True):
        written, length = write_answer({}, [Wanted("y", binary, 0)], {"y": values}, ())
        told = json.loads(written[:length])["outputs"][0]
        assert (told["datatype"], told["shape"]) == (KINDS[dtype][0], [2])
        assert (told["parameters"]["binary_data_size"] if binary else told["data"]) == (
            values.nbytes if binary else values.tolist()
        )
        assert written[len(written) if length is None else length :] == (values.tobytes() if binary else b"")


def test_bytes_behind_the_json_are_in_the_order_of_the_inputs_wherever_they_begin() -> None:
    style = np.array([[0.25, 0.75]], "<f4")
    for filler in range(8):  # the header's length decides how the numbers lie in memory
        found = feeds(
            {
                "name": "pixels",
                "shape": [1, 1, 1, 3],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": 3, "x": "x" * filler},
            },
            {"name": "style", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            behind=b"abc" + style.tobytes(),
            infos=(PIXELS, STYLE),
        )
        assert found["pixels"].tolist() == [[[[97, 98, 99]]]]
        assert found["style"].tolist() == style.tolist()
        assert found["style"].flags.aligned


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[[[1, 2, 3], [4, 5, 6]]]]])
def test_numbers_come_in_one_list_or_nested_as_the_shape_is(data: list[Any]) -> None:
    assert feeds(pixels(data=data))["pixels"].tolist() == [[[[1, 2, 3], [4, 5, 6]]]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "image"}, "there is no input 'image'; the model's inputs are: pixels"),
        ({"datatype": "FP32"}, "is UINT8, not 'FP32'"),
        ({"datatype": "BYTES"}, "BYTES is not taken"),
        ({"datatype": "BF16"}, "BF16 is not taken"),
        ({"shape": [1, 1, 2, 4]}, "has the shape [1, 1, 2, 4], but the model wants [-1, -1, -1, 3]"),
        ({"shape": [6]}, "has the shape [6]"),
        ({"shape": [0, 1, 2, 3]}, "inputs.0.shape.0"),
        ({"shape": [-1, 1, 2, 3]}, "inputs.0.shape.0"),
        ({"shape": ["1", 1, 2, 3]}, "inputs.0.shape.0"),
        ({"shape": [2**31, 2**31, 2**31, 3]}, "needs"),
        ({"data": [1, 2, 3]}, "has 3 numbers, but [1, 1, 2, 3] needs 6"),
        ({"data": [[1, 2], [3, 4], [5, 6]]}, "has data of the shape [3, 2]"),
        ({"data": [1, 2, 3, 4, 5, 256]}, "holds numbers that UINT8 has not"),
        ({"data": [1, 2, 3, 4, 5, -1]}, "holds numbers that UINT8 has not"),
        ({"data": [1, 2, 3, 4, 5, 10**30]}, "holds numbers that UINT8 has not"),
        ({"data": [1, 2, 3, 4, 5, 6.0]}, "its data hold a float"),
        ({"data": [1, 2, 3, 4, 5, True]}, "its data hold a bool"),
        ({"data": [1, 2, 3, 4, 5, "6"]}, "its data hold a str"),
        ({"data": [1, 2, 3, 4, 5, None]}, "its data hold a NoneType"),
        ({"data": [1, 2, 3, 4, 5, {}]}, "its data hold a dict"),
        ({"data": [1, 2, 3, 4, 5, [6]]}, "pixels"),
        ({"data": [[[1, 2], [3]], [[4, 5], [6, 7]]]}, "pixels"),
        ({"data": "abc"}, "has no data"),
        ({"data": None}, "has no data"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
        ({"parameters": {"binary_data_size": 6}}, "give one of them"),
        ({"parameters": {"binary_data_size": 6}, "data": None}, "has 6 bytes, but 0 are left"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
        ({"parameters": {"binary_data_size": "6"}}, "binary_data_size"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused_in_words(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        feeds(pixels(**given))
    assert told in str(caught.value)


def test_numbers_beyond_a_type_of_floats_are_refused() -> None:
    for given in ([1e39, 0], [10**400, 0]):
        with pytest.raises(InputError, match="FP32 has not"):
            one("tensor(float)", data=given)
    assert one("tensor(double)", data=[1e39, 2]).tolist() == [1e39, 2]


def test_bytes_of_the_wrong_number_are_refused() -> None:
    asked = pixels(parameters={"binary_data_size": 5}, data=None)
    with pytest.raises(InputError, match=r"has 5 bytes, but UINT8 \[1, 1, 2, 3\] needs 6"):
        feeds(asked, behind=b"12345")
    with pytest.raises(InputError, match="2 bytes at the end of the body belong to no input"):
        feeds(pixels(parameters={"binary_data_size": 6}, data=None), behind=b"12345678")
    boolean = {"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    with pytest.raises(InputError, match="other bytes than 0 and 1"):
        feeds(boolean, behind=b"\x00\x02", infos=(TensorInfo("x", ("n",), "tensor(bool)"),))


def test_every_input_is_needed_once_and_all_have_one_batch() -> None:
    style = {"name": "style", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}
    with pytest.raises(InputError, match="the input 'style' is missing; the model's inputs are: pixels, style"):
        feeds(pixels(), infos=(PIXELS, STYLE))
    with pytest.raises(InputError, match="'style' is given more than once"):
        feeds(pixels(), style, style, infos=(PIXELS, STYLE))
    with pytest.raises(InputError, match="where the axis 'n' is 1 already"):
        feeds(pixels(), style | {"shape": [2, 2], "data": [0, 0, 0, 0]}, infos=(PIXELS, STYLE))
    nameless = TensorInfo("style", (None, 2), "tensor(float)")
    with pytest.raises(InputError, match="differ in their first axis"):
        feeds(pixels(), style | {"shape": [2, 2], "data": [0, 0, 0, 0]}, infos=(PIXELS, nameless))
    assert list(feeds(style, pixels(), infos=(PIXELS, STYLE))) == ["pixels", "style"]


@pytest.mark.parametrize(
    ("raw", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff{}", None),
        (b"{}", None),
        (b'{"inputs": []}', None),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', None),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}", None),
        (b'{"inputs": [1]}', None),
        (b'{"id": 7, "inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}', None),
        (b'{"inputs": []}', 15),
        (b'{"inputs": []}abc', None),
    ],
)
def test_what_is_no_request_is_refused(raw: bytes, length: int | None) -> None:
    with pytest.raises(InputError):
        read_request(raw, length)


def test_long_json_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_HEADER", 100)
    raw, _ = body(pixels())
    assert len(raw) > 100
    with pytest.raises(MalformedBody, match="send the tensors as binary data"):
        read_request(raw, None)
    monkeypatch.undo()
    read_request(raw, None)
    monkeypatch.setattr(tensors, "MAX_LISTS", 4)
    with pytest.raises(MalformedBody, match="more than 4 lists"):
        read_request(raw, None)


def test_outputs_are_those_asked_for_in_that_order() -> None:
    infos = [TensorInfo("boxes", ("n", "k", 4), "tensor(float)"), TensorInfo("scores", ("n", "k"), "tensor(float)")]

    def wanted(**given: Any) -> list[Wanted]:
        return read_wanted(read_request(*body(pixels(), **given))[0], infos)

    assert wanted() == [Wanted("boxes", False, 0), Wanted("scores", False, 0)]
    assert wanted(outputs=[]) == wanted()
    assert wanted(parameters={"binary_data_output": True}) == [Wanted("boxes", True, 0), Wanted("scores", True, 0)]
    asked = [{"name": "scores", "parameters": {"binary_data": False, "classification": 2}}, {"name": "boxes"}]
    assert wanted(outputs=asked, parameters={"binary_data_output": True}) == [Wanted("scores", False, 2), Wanted("boxes", True, 0)]
    for outputs, told in (
        ([{"name": "logits"}], "there is no output 'logits'; the model's outputs are: boxes, scores"),
        ([{"name": "boxes"}, {"name": "boxes"}], "asked for more than once"),
        ([{"name": "boxes", "parameters": {"shared_memory_region": "r"}}], "shared memory"),
    ):
        with pytest.raises(InputError, match=told):
            wanted(outputs=outputs)
    with pytest.raises(InputError, match="is BYTES, which cannot be answered"):
        read_wanted(read_request(*body(pixels()))[0], [TensorInfo("text", ("n",), "tensor(string)")])


def test_the_largest_values_come_as_texts_with_labels_where_there_are_some() -> None:
    values = {"y": np.array([[0.5, 2, -1], [3, 3, 4]], np.float32)}
    written, length = write_answer({"id": "7"}, [Wanted("y", False, 2)], values, ("cat", "dog", "eel"))
    assert length is None
    assert json.loads(written) == {
        "id": "7",
        "outputs": [
            {
                "name": "y",
                "datatype": "BYTES",
                "shape": [2, 2],
                "data": ["2.000000:1:dog", "0.500000:0:cat", "4.000000:2:eel", "3.000000:0:cat"],
            }
        ],
    }
    written, length = write_answer({}, [Wanted("y", True, 9)], values, ("cat",))
    told = json.loads(written[:length])["outputs"][0]
    assert told["shape"] == [2, 3]  # there are no more
    assert written[length:].startswith(struct.pack("<I", 10) + b"2.000000:1" + struct.pack("<I", 10) + b"0.500000:0")
    assert told["parameters"]["binary_data_size"] == len(written) - (length or 0)


def test_json_is_not_made_to_say_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"y": np.array([math.nan, 1], np.float32)}
    with pytest.raises(InputError, match="not finite"):
        write_answer({}, [Wanted("y", False, 0)], values, ())
    written, length = write_answer({}, [Wanted("y", True, 0)], values, ())
    assert written[length:] == values["y"].tobytes()
    monkeypatch.setattr(tensors, "MAX_NUMBERS", 1)
    with pytest.raises(InputError, match="too many for JSON"):
        write_answer({}, [Wanted("y", False, 0)], {"y": np.zeros(2, np.float32)}, ())


def test_null_is_as_good_as_nothing() -> None:
    nothing = {"id": None, "parameters": None, "outputs": None}
    header, _ = body(pixels(parameters={"binary_data_size": None}), **nothing)
    request, behind = read_request(header, None)
    assert read_feeds(request, behind, (PIXELS,))["pixels"].tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    assert (request.id, request.outputs) == ("", [])
    with pytest.raises(InputError, match="inputs: Field required"):
        read_request(b'{"inputs": null}', None)

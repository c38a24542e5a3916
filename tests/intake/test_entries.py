"""The parts of a graph are counted without making them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelRefused
from service.intake import entries
from service.intake.entries import check_entries


def length(number: int, data: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    size, shown = len(data), b""
    while size > 127:
        shown += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + shown + bytes([size]) + data


def test_a_graph_of_too_many_parts_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(b"\x08\x08" + length(7, length(1, b"") * (entries.MOST + 1)))
    with pytest.raises(ModelRefused, match="more than 200000 parts"):
        check_entries(path)
    path.write_bytes(b"\x08\x08" + length(7, length(1, b"") * entries.MOST))
    check_entries(path)


@pytest.mark.parametrize("data", [b"no", b"\xff" * 40, b"\x3a\xff\x01", b"\x0b", b"\x3d\x00\x00"])
def test_what_is_no_message_is_left_to_the_parser(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    check_entries(tmp_path / "x.onnx")


def test_a_real_graph_passes(graph: Callable[..., Path], tables: Any) -> None:
    check_entries(graph({"o": tables.noise(1, 7)}))

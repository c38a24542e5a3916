"""How many parts a graph has, counted without parsing it: objects for ten million empty nodes would take gigabytes of memory.

An ONNX file is a protobuf message (https://protobuf.dev/programming-guides/encoding/): fields, each a key with its wire type and a
value. A model's graph is its field 7, and the graph's nodes, weights and others are its fields.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from service.errors import ModelRefused

GRAPH = 7
MOST = 200_000
"""Nodes, weights, inputs and other parts of one graph; the largest networks have some tens of thousands."""
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Span = tuple[int, int]


def check_entries(path: Path) -> None:
    """Raises ModelRefused where a graph has more than MOST parts. What is no protobuf is left to the parser to say."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for number, span in _fields(data, (0, len(data))):
                if number == GRAPH and any(count >= MOST for count, _ in enumerate(_fields(data, span))):
                    raise ModelRefused(f"{path.name} has a graph of more than {MOST} parts, which no network needs")
        except (IndexError, ValueError):
            return


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and extent of each field of the message at `span`. Raises ValueError or IndexError where it is none."""
    at, end = span
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        start = at
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == LENGTH:
            size, start = _varint(data, at)
            at = start + size
        elif kind in {FIXED32, FIXED64}:
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"there is no wire type {kind}")
        if at > end:
            raise ValueError("a field reaches out of its message")
        yield key >> 3, (start, at)


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")

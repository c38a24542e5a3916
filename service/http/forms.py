"""multipart/form-data (RFC 7578) in memory; nothing ever touches the disk.

    a body of the usual kind -> read_at_once -> parts, which are views of the body
    any other body           -> FormReader.feed ... finish -> the same parts, for ten times the work

Only parts that may be images are kept whole. Of any other part MAX_TEXT bytes are kept: enough for every option, and for saying
which fields arrived.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedBody

MAX_PARTS = 64
MAX_TEXT = 64 * 2**10
MAX_HEADERS = 16
MAX_HEADER_BYTES = 8 * 2**10

# The head of a part as nearly every client writes it: nothing escaped, nothing encoded.
USUAL_HEAD = re.compile(
    rb'content-disposition: form-data; name="([\w.-]+)"(?:; filename="([\w. ()+-]*)")?'
    rb"(?:\r\ncontent-(?:type|length): [\w.+/ ;=-]+)*",
    re.ASCII | re.IGNORECASE,
)
USUAL_HEAD_BYTES = 512


Data = bytes | bytearray | memoryview


def grown(data: Data, piece: Data) -> Data:
    """`data` with `piece` behind it: no copy where data is empty, in place from the third piece on."""
    if not data:
        return piece
    if not isinstance(data, bytearray):
        data = bytearray(data)
    data += piece
    return data


@dataclass
class Part:
    """One field of the form. `filename` is None where the client did not call it a file; `cut`: only its beginning is in `data`."""

    name: str
    filename: str | None
    data: Data = b""
    cut: bool = False


def read_at_once(body: Data, boundary: bytes, whole: Collection[str]) -> list[Part] | None:
    """The parts of a form that has arrived whole; None where anything about it is unusual, and FormReader must decide.

    `whole` names the fields that are kept whole. The parts' data are views of `body`.
    """
    body = bytes(body) if isinstance(body, memoryview) else body
    delimiter, parts = b"\r\n--" + boundary, list[Part]()
    at = len(delimiter)
    if not body.startswith(delimiter[2:] + b"\r\n") or b"\r" in boundary:
        return None
    while len(parts) < MAX_PARTS:
        start = body.find(b"\r\n\r\n", at, at + USUAL_HEAD_BYTES)
        head = USUAL_HEAD.fullmatch(body, at, start) if start >= 0 else None
        end = body.find(delimiter, start + 4) if head else -1
        if head is None or end < 0:
            return None
        name, filename = str(head[1], "ascii"), None if head[2] is None else str(head[2], "ascii")
        if name not in whole and end - start - 4 > MAX_TEXT:
            return None
        parts.append(Part(name, filename, memoryview(body)[start + 4 : end]))
        at = end + len(delimiter) + 2
        match body[at - 2 : at]:
            case b"\r\n":
                continue
            case b"--" if body[at:] in (b"", b"\r\n"):
                return parts
            case _:
                return None
    return None


class FormReader:
    """Push parser of one form. `whole` names the fields that are kept whole. Raises MalformedBody."""

    def __init__(self, boundary: bytes, whole: Collection[str]) -> None:
        self._whole = whole
        self._parts: list[Part] = []
        self._header = bytearray()
        self._value = bytearray()
        self._disposition: bytes | None = None
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_begin": self._on_header_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise MalformedBody(f"the multipart boundary cannot be used: {error}") from None

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedBody(f"the multipart body cannot be parsed: {error}") from None

    def finish(self) -> list[Part]:
        """All parts in the order they came. Raises MalformedBody when the form was cut short."""
        if not self._ended:
            raise MalformedBody("the multipart body ends before its closing boundary; it was cut short, or the boundary is wrong")
        return self._parts

    def _on_part_begin(self) -> None:
        if len(self._parts) == MAX_PARTS:
            raise MalformedBody(f"the form has more than {MAX_PARTS} fields, files and options together; no more are taken at once")
        self._disposition = None

    def _on_header_begin(self) -> None:
        self._header.clear()
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)

    def _on_headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name, filename = parameters.get(b"name"), parameters.get(b"filename")
        if name is None:
            raise MalformedBody(
                'a part of the form has no name; its header should be like: Content-Disposition: form-data; name="image"'
            )
        self._parts.append(Part(name.decode(errors="replace"), None if filename is None else filename.decode(errors="replace")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        if part.name not in self._whole and len(part.data) + end - start > MAX_TEXT:
            end, part.cut = start + MAX_TEXT - len(part.data), True
        part.data = grown(part.data, memoryview(data)[start:end])

    def _on_end(self) -> None:
        self._ended = True

"""The portable file of faces: gzipped JSON lines, the same whatever database they come from or go to.

    {"format": "vision-service faces", "version": 1, "model": {...}, "collections": ["default"], "faces": 2}
    {"collection": "default", "subject": "...", "embedding": "base64 of little-endian float32", "box": [4], "quality": {...}, ...}
    ...
    {"end": true, "faces": 2, "sha256": "of all lines before this one"}

A million faces pass through line by line. Nothing in a file is trusted: whatever is not as it should be is refused by its line's
number, and without its last line a file counts as cut short.
"""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError

from service.errors import GalleryMismatch, OptionInvalid
from service.gallery.faces import from_bytes, to_bytes
from service.gallery.gallery import EmbeddingModel, Entry
from service.gallery.names import MAX_NAME, check_name
from service.tasks.face_quality import FaceQuality

FORMAT = "vision-service faces"
VERSION = 1
MAX_LINE = 2**18
"""Bytes of one line: a face with an embedding of 4,096 numbers takes some 23,000."""
UNIT = 1e-3
"""How far the length of an embedding may be from 1."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelLine(_Line):
    """An EmbeddingModel."""

    name: str
    version: str
    digest: str
    method: str
    dimension: StrictInt = Field(gt=0)


class Header(_Line):
    """`faces`: how many were counted when the file was begun; the last line has the true number."""

    format: Literal["vision-service faces"]
    version: Literal[1]
    model: ModelLine
    collections: list[str]
    faces: StrictInt = Field(ge=0)


class FaceLine(_Line):
    collection: str
    subject: str
    embedding: str
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    quality: FaceQuality
    enrolled_at: AwareDatetime


class Trailer(_Line):
    end: Literal[True]
    faces: StrictInt
    sha256: str


Line = TypeVar("Line", bound=_Line)


def write_faces(file: BinaryIO, model: EmbeddingModel, collections: Sequence[str], faces: int, entries: Iterable[Entry]) -> int:
    """Write `entries` of `collections` to `file`: how many they were. `faces`: how many to expect. Raises what `entries` raises."""
    count, digest = 0, hashlib.sha256()
    header = {"format": FORMAT, "version": VERSION, "model": vars(model), "collections": list(collections), "faces": faces}
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as zipped:

        def put(record: dict[str, Any]) -> None:
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            digest.update(line)
            zipped.write(line)

        put(header)
        for entry in entries:
            put(_record(entry))
            count += 1
        put({"end": True, "faces": count, "sha256": digest.hexdigest()})
    return count


def read_faces(file: BinaryIO, model: EmbeddingModel) -> tuple[Header, Iterator[Entry]]:
    """The first line of a file made for `model`, and its faces. The iterator ends only where the whole file is as it was written.

    Raises OptionInvalid naming the line, at once or from the iterator, and GalleryMismatch where another model made the file.
    """
    digest = hashlib.sha256()
    lines = _lines(file)
    number, first = next(lines, (1, b""))
    header = _header(number, first)
    if EmbeddingModel(**header.model.model_dump()) != model:
        raise GalleryMismatch(", ".join(header.collections), EmbeddingModel(**header.model.model_dump()), model)
    digest.update(first)
    return header, _entries(lines, header, digest)


def _entries(lines: Iterator[tuple[int, bytes]], header: Header, digest: Any) -> Iterator[Entry]:
    collections, count = frozenset(header.collections), 0
    for number, line in lines:
        if line.startswith(b'{"end"'):
            trailer = _parsed(Trailer, number, line)
            if trailer.faces != count or trailer.sha256 != digest.hexdigest():
                raise _refused(
                    number, f"the file was altered: {count} faces came before its last line, which tells of {trailer.faces}"
                )
            if next(lines, None) is not None:  # reading on also has gzip check its own sum
                raise _refused(number + 1, "the file goes on after its last line")
            return
        yield _entry(number, _parsed(FaceLine, number, line), header.model.dimension, collections)
        digest.update(line)
        count += 1
    raise OptionInvalid("FILE", f"the file is cut short: it ends after {count} of {header.faces} faces; export or copy it again")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1 on. Raises OptionInvalid where the bytes are not what gzip wrote, or a line is too long."""
    number = 1
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as zipped:
            while line := zipped.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise _refused(number, f"the line has more than {MAX_LINE} bytes")
                yield number, line
                number += 1
    except EOFError:
        raise _refused(number, "the file is cut short; export or copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _refused(number, f"the file is damaged, or was not written by faces export: {error}") from None


def _header(number: int, line: bytes) -> Header:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _refused(number, f"the file was not written by faces export: its first line does not say {FORMAT!r}")
    if found.get("version") != VERSION:
        version = json.dumps(found.get("version"))[:20]
        raise _refused(number, f"the file has version {version} of its format; this release reads version {VERSION}")
    header = _parsed(Header, number, line)
    for name in header.collections:
        _name(number, "collection", name)
    for part in ("name", "version", "digest", "method"):  # messages repeat them
        _name(number, f"model.{part}", getattr(header.model, part))
    return header


def _parsed(kind: type[Line], number: int, line: bytes) -> Line:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _refused(number, f"{place!r:.80}: {first['msg']}" if place else first["msg"]) from None


def _entry(number: int, face: FaceLine, dimension: int, collections: frozenset[str]) -> Entry:
    if face.collection not in collections:
        raise _refused(number, f"the first line does not name the collection {face.collection!r:.{MAX_NAME}}")
    try:
        quality = face.quality.model_dump()
        if "\\u0000" in json.dumps(quality, allow_nan=False):
            raise ValueError("quality holds the control character U+0000")
        embedding = _embedding(face.embedding, dimension)
        enrolled_at = face.enrolled_at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _refused(number, str(error)) from None
    collection, subject = _name(number, "collection", face.collection), _name(number, "subject", face.subject)
    return Entry(collection, subject, embedding, face.box, quality, enrolled_at)


def _embedding(text: str, dimension: int) -> NDArray[np.float32]:
    data = base64.b64decode(text, validate=True)
    if len(data) != 4 * dimension:
        raise ValueError(f"embedding: it has {len(data)} bytes, the model's has {4 * dimension}")
    embedding = from_bytes(data)
    length = float(np.linalg.norm(embedding.astype(np.float64)))
    if not abs(length - 1) <= UNIT:  # also where it is no number
        raise ValueError(f"embedding: its length is {length:g} instead of 1")
    return embedding


def _name(number: int, option: str, text: str) -> str:
    try:
        return check_name(option, text)
    except OptionInvalid as error:
        raise _refused(number, str(error)) from None


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "collection": entry.collection,
        "subject": entry.subject,
        "embedding": base64.b64encode(to_bytes(entry.embedding)).decode(),
        "box": list(entry.box),
        "quality": dict(entry.quality),
        "enrolled_at": entry.enrolled_at.astimezone(UTC).isoformat(),
    }


def _refused(number: int, text: str) -> OptionInvalid:
    return OptionInvalid("FILE", f"line {number}: {text}")

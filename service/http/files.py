"""A large body as a file: never whole in memory, never written on the event loop, and gone as soon as nobody needs it any more.

    request -> pieces -> BLOCK bytes -> a thread: the form's parser, or nothing -> uploads/<random>/<name> in the data folder

A body may take as long as it needs while its bytes flow: each BLOCK of it has the time that another request has as a whole.
"""

import asyncio
import errno
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, Busy, MalformedBody, ModelFixed, UnsupportedMedia
from service.http.forms import MAX_TEXT, FormReader, grown
from service.http.guards import Meter, Workers
from service.http.negotiation import JSON
from service.http.uploads import BYTES, FORM

FILE = "file"
"""The form field that holds the file."""
BLOCK = 2**18  # bytes that are handed to a thread at once
MAX_TOLD = 4 * 2**20  # bytes of all other fields of the form together
OVERHEAD = MAX_TOLD + 2**20  # that a form may have more than its file
STALE = 24 * 3600.0  # seconds after which an upload is one that a process left behind when it was killed
NAMELESS = "model.onnx"  # what a file is called that its owner gave no name, or that of every second export
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class StoredFile:
    """An upload in a folder of its own, which is made below `root`. Safe to use from several threads.

    It is deleted by the one who works with it when that is done, or by the one who waits where that never began: whoever comes
    first to take() is the one who must delete(). Raises ModelFixed where the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            self._folder = Path(tempfile.mkdtemp(dir=root))
        except OSError as error:
            raise ModelFixed(f"models cannot be added, for the service cannot write its data folder: {error.strerror}") from None
        self.path = self._folder / NAMELESS
        self._lock, self._taken = threading.Lock(), False
        self._file = self.path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        """Nothing after end() or delete(). Raises Busy where the disk is full."""
        with self._lock, _room():
            if not self._file.closed:
                self._file.write(data)

    def end(self, name: str | None) -> None:
        """The file is whole; `name` is what its owner calls it, of which it keeps what is safe."""
        with self._lock, _room():
            self._file.close()
            self.path = self.path.rename(self._folder / safe_name(name))

    def take(self) -> bool:
        """True for the first who asks."""
        with self._lock:
            taken, self._taken = self._taken, True
            return not taken

    def delete(self) -> None:
        with self._lock:
            with suppress(OSError):  # what could not be written before cannot be now
                self._file.close()
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _room() -> Iterator[None]:
    """Says in words that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise Busy("the disk of the service has no room for this file", retry_after=60.0) from None
        raise


def safe_name(name: str | None) -> str:
    """A file name out of what a client calls its file: no folders, plain characters, ending in .onnx."""
    last = PureWindowsPath(PurePosixPath(name or "").name).name
    stem = UNSAFE.sub("-", last.removesuffix(".onnx")).strip(".-")[:100]
    return f"{stem or 'model'}.onnx"


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        with suppress(OSError):  # another process has deleted it
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > STALE:
                shutil.rmtree(folder)


async def store_body(request: Request, file: StoredFile, limit: int, workers: Workers) -> list[tuple[str, str]]:
    """Write the body's file, of at most `limit` bytes, into `file`; gives the other fields of a form as text, in their order.

    A raw body is the file itself. Raises BodyTooLarge, UnsupportedMedia, MalformedBody, DeadlineExceeded for a block that takes too
    long, Busy where the disk is full, ClientDisconnect.
    """
    boundary = _boundary(request)
    most = limit if boundary is None else limit + OVERHEAD
    _check_announced(request, most, limit)
    request.scope.setdefault("state", {})["body_limit"] = 2 * most  # see service.http.protocol
    form = None if boundary is None else FileForm(boundary, file.write, limit)
    block, received, more = bytearray(), 0, True
    while more:
        async with workers.deadline():
            while more and len(block) < BLOCK:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                block += message.get("body", b"")
                more = message.get("more_body", False)
        received += len(block)
        if received > most:
            raise _too_large(limit)
        await asyncio.to_thread(file.write if form is None else form.feed, bytes(block))
        block.clear()
    texts, name = ([], request.query_params.get("name")) if form is None else form.told()
    await asyncio.to_thread(file.end, name)
    return texts


async def read_json(request: Request, meter: Meter) -> Any:
    """A JSON body of any value; no body is an empty object.

    Raises BodyTooLarge, UnsupportedMedia, MalformedBody, ClientDisconnect.
    """
    media, _ = parse_options_header(request.headers.get("content-type"))
    if media not in (b"", JSON.encode()):
        raise UnsupportedMedia(f"the content type is {media.decode('latin-1')!r:.80}; send {JSON}")
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += meter.count(message.get("body", b""))
        more = message.get("more_body", False)
    try:
        return json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from None


def _boundary(request: Request) -> bytes | None:
    """The boundary of a form; None for a raw body."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("the body is encoded; send it as it is, without Content-Encoding")
    media, parameters = parse_options_header(request.headers.get("content-type"))
    if media == BYTES.encode():
        return None
    if media != FORM.encode():
        ways = f"send {FORM} with the file in {FILE!r}, or the file itself as {BYTES} with the options in the query"
        raise UnsupportedMedia(f"the content type is {media.decode('latin-1') or 'missing'!r:.80}; {ways}")
    if not parameters.get(b"boundary"):
        raise MalformedBody("the Content-Type of the form names no boundary; let the HTTP client set this header")
    return parameters[b"boundary"]


def _check_announced(request: Request, most: int, limit: int) -> None:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise MalformedBody(f"Content-Length {length!r:.40} is not a number")
    if int(length) > most:
        raise _too_large(limit, int(length))


def _too_large(limit: int, size: int | None = None) -> BodyTooLarge:
    has = f"has more than {limit}" if size is None else f"comes in a body of {size}"
    return BodyTooLarge(f"the file {has} bytes; at most {limit} are taken, which the operator sets by VISION_MAX_MODEL_BYTES")


class FileForm(FormReader):
    """Push parser of a form with one file, of at most `limit` bytes, which goes to `keep` as it comes. Raises MalformedBody,
    BodyTooLarge, and what `keep` raises."""

    def __init__(self, boundary: bytes, keep: Callable[[memoryview], None], limit: int) -> None:
        super().__init__(boundary, ())
        self._keep, self._limit = keep, limit
        self._size = self._told = 0

    def told(self) -> tuple[list[tuple[str, str]], str | None]:
        """The other fields as text, and what the client calls its file."""
        parts = self.finish()
        files = [part for part in parts if part.name == FILE]
        if not files:
            arrived = ", ".join(repr(part.name)[:80] for part in parts[:10]) or "none"
            raise MalformedBody(f"there is no file in the field {FILE!r}; the fields that arrived: {arrived}")
        if len(files) > 1:
            raise MalformedBody(f"there are {len(files)} files in the field {FILE!r}; send one model at a time")
        if files[0].filename is None and self._size < MAX_TEXT:
            raise MalformedBody(f"the field {FILE!r} holds a text, not a file; with curl a file is sent as -F {FILE}=@path")
        texts = [(part.name, str(part.data, errors="replace")) for part in parts if part.name != FILE]
        return texts, files[0].filename

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part, piece = self._parts[-1], memoryview(data)[start:end]
        if part.name == FILE:
            self._size += len(piece)
            if self._size > self._limit:
                raise _too_large(self._limit)
            self._keep(piece)
            return
        self._told += len(piece)
        if self._told > MAX_TOLD:
            raise MalformedBody(f"the fields beside the file have more than {MAX_TOLD} bytes; options are never that long")
        part.data = grown(part.data, piece)

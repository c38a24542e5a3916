"""A request's body as images and options: multipart form, raw image, or JSON with base64.

    Request -> media type -> form | whole body -> base64 -> images and options as given -> checked -> Upload

The body is counted while it streams in and refused as soon as it is over the limit; by Content-Length before a byte is read.
JSON is measured before it is parsed: a short text can become very many objects.
"""

import asyncio
import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, ImageMissing, MalformedBody, OptionInvalid, UnsupportedMedia
from service.http.forms import MAX_PARTS, MAX_TEXT, Data, FormReader, Part, read_at_once
from service.http.guards import Meter
from service.http.negotiation import JSON
from service.http.options import read_options, too_long
from service.tasks.task import Strict

Options = TypeVar("Options", bound=Strict)
BODY_HEADERS = frozenset((b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"))
USUAL_FORM = re.compile(r"multipart/form-data; ?boundary=([\w'()+,./:?-]{1,70})", re.ASCII)
FORM, BYTES, PLAIN_FORM = "multipart/form-data", "application/octet-stream", "application/x-www-form-urlencoded"
LONG_JSON = 256 * 2**10  # bytes from which JSON is parsed off the event loop
STRING = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)  # possessive: linear on any text
DATA_URI = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Fields:
    """The image fields of a route: `required` ones first, in the order that the route names them. None: it takes options only.

    `repeated` is the one of them that may come up to MAX_PARTS times: as parts of the same name, or as a list in JSON.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    repeated: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional

    @property
    def raw(self) -> str | None:
        """The field that a raw body stands for: the required one, where there is just one."""
        return self.required[0] if len(self.required) == 1 else None


@dataclass(frozen=True)
class Upload(Generic[Options]):
    """What arrived: encoded images by field name ("image[1]", "image[2]", ... where a field came more than once), and the validated
    options."""

    images: Mapping[str, Data]
    options: Options


@dataclass
class _Given:
    """What a body held, before it is checked against the route: `several` came in the repeated field, `arrived` names every field,
    for messages."""

    images: dict[str, Data] = field(default_factory=dict)
    several: list[Data] = field(default_factory=list)
    options: list[tuple[str, Any]] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key given twice can be told."""


async def read_upload(request: Request, fields: Fields, kind: type[Options], meter: Meter) -> Upload[Options]:
    """Read and check a request's body and query. The images are not decoded here.

    Raises BodyTooLarge, UnsupportedMedia, MalformedBody, ImageMissing, OptionInvalid; QueueFull when the bodies that the service
    holds leave no room for this one; ClientDisconnect when the client goes away.
    """
    headers = _headers(request)
    announced = _announced(headers, meter.limit)
    given = await _read_body(request, headers, fields, meter, announced)
    if fields.repeated is not None:
        _number(given, fields.repeated)
    _check_images(given, fields)
    if given.cut:
        raise too_long(kind, given.cut[0], fields.names)
    options = read_options(
        kind, request.query_params.multi_items() if request.scope["query_string"] else (), given.options, fields.names
    )
    return Upload(given.images, options)


async def read_body(request: Request, meter: Meter) -> Data:
    """The body as it is, whatever it holds, still packed where Content-Encoding says so.

    For protocols that are not this service's own. Raises BodyTooLarge, MalformedBody, QueueFull, ClientDisconnect.
    """
    return await _read_whole(request, meter, _announced(_headers(request), meter.limit))


async def read_parts(request: Request, meter: Meter, whole: Collection[str]) -> list[Part]:
    """The fields of a form of either kind in the order they came, whatever their names; none where there is no body.

    `whole` names the fields that are kept whole. For protocols that are not this service's own. Raises as read_upload does, but
    nothing about the fields.
    """
    headers = _headers(request)
    announced = _announced(headers, meter.limit)
    _check_encoding(headers)
    body = await _read_whole(request, meter, announced) if announced != 0 else b""
    if not body:
        return []
    media, boundary = _content_type(headers.get(b"content-type"))
    if media == FORM:
        return _parts(body, boundary, whole)
    if media == PLAIN_FORM:
        return [Part(name, None, str(value).encode()) for name, value in _from_plain_form(body).options]
    raise UnsupportedMedia(f"the content type is {media or 'missing'!r:.80}; send {FORM}")


def _check_encoding(headers: Mapping[bytes, str]) -> None:
    encoding = headers.get(b"content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"the body is encoded as {encoding!r:.80}; send it as it is, without Content-Encoding")


async def _read_body(request: Request, headers: Mapping[bytes, str], fields: Fields, meter: Meter, announced: int | None) -> _Given:
    _check_encoding(headers)
    if announced == 0:
        return _Given()
    media, boundary = _content_type(headers.get(b"content-type"))
    if media == FORM:
        return _read_form(await _read_whole(request, meter, announced), boundary, fields)
    if media == JSON:
        body = await _read_whole(request, meter, announced)
        return await asyncio.to_thread(_from_json, body, fields) if len(body) > LONG_JSON else _from_json(body, fields)
    if (media.startswith("image/") or media == BYTES) and fields.raw:
        return _Given({fields.raw: await _read_whole(request, meter, announced)}, arrived=[fields.raw])
    if media == PLAIN_FORM and not fields.names:
        return _from_plain_form(await _read_whole(request, meter, announced))
    raise _refusal(media, fields)


def _content_type(header: str | None) -> tuple[str, bytes | None]:
    """The media type in lower case, and the boundary of a form."""
    usual = USUAL_FORM.fullmatch(header or "")
    if usual:
        return FORM, usual[1].encode()
    media, parameters = parse_options_header(header)
    return media.decode("latin-1"), parameters.get(b"boundary")


def _headers(request: Request) -> dict[bytes, str]:
    """Those that say what the body is: the first of each name."""
    found: dict[bytes, str] = {}
    for name, value in request.scope["headers"]:
        if name in BODY_HEADERS and name not in found:
            found[name] = value.decode("latin-1")
    return found


def _announced(headers: Mapping[bytes, str], max_bytes: int) -> int | None:
    """Bytes that the request says it carries; None when it does not say (chunked)."""
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise MalformedBody(f"Content-Length {length!r:.40} is not a number")
    if int(length) > max_bytes:
        raise BodyTooLarge(f"the body has {int(length)} bytes; at most {max_bytes} are taken")
    return int(length)


async def _receive(request: Request, meter: Meter) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return meter.count(message.get("body", b"")), message.get("more_body", False)


async def _read_whole(request: Request, meter: Meter, announced: int | None) -> Data:
    """The body in one piece: the server's own where it came so, else one buffer of the announced size, filled piece by piece."""
    piece, more = await _receive(request, meter)
    if not more:
        return piece
    body, end = bytearray(announced or 0), 0
    while True:
        if end + len(piece) > len(body):  # chunked: nobody has said how much it will be
            body.extend(bytes(max(len(piece), len(body))))
        body[end : end + len(piece)] = piece
        end += len(piece)
        if not more:
            del body[end:]
            return body
        piece, more = await _receive(request, meter)


def _read_form(body: Data, boundary: bytes | None, fields: Fields) -> _Given:
    return _from_parts(_parts(body, boundary, fields.names), fields)


def _parts(body: Data, boundary: bytes | None, whole: Collection[str]) -> list[Part]:
    if not boundary:
        raise MalformedBody("the Content-Type of the form names no boundary; let the HTTP client set this header")
    if not body:
        return []
    parts = read_at_once(body, boundary, whole)
    if parts is None:
        reader = FormReader(boundary, whole)
        reader.feed(bytes(body))
        parts = reader.finish()
    return parts


def _from_parts(parts: Sequence[Part], fields: Fields) -> _Given:
    given = _Given()
    for part in parts:
        given.arrived.append(part.name)
        if part.name in fields.names:
            _add_image_part(given, part, fields.repeated)
        else:
            given.options.append((part.name, str(part.data, errors="replace")))
            if part.cut:
                given.cut.append(part.name)
    return given


def _from_plain_form(body: Data) -> _Given:
    """Options as `curl -d` and the forms of browsers send them."""
    if len(body) > MAX_TEXT:
        raise MalformedBody(f"the form has {len(body)} bytes; options have at most {MAX_TEXT}")
    try:
        pairs = parse_qsl(bytes(body).decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS)
    except ValueError as error:
        raise MalformedBody(f"the body is not a form of UTF-8 texts: {error}") from None
    return _Given(options=list(pairs), arrived=[name for name, _ in pairs])


def _number(given: _Given, name: str) -> None:
    """Name the images of the repeated field."""
    for number, data in enumerate(given.several, 1):
        given.images[name if len(given.several) == 1 else f"{name}[{number}]"] = data


def _add_image_part(given: _Given, part: Part, repeated: str | None) -> None:
    if not part.data and not part.filename:
        return  # what a browser sends for a file input that was left empty
    if part.name in given.images:
        raise MalformedBody(f"the image {part.name!r} is given more than once")
    if part.filename is None and len(part.data) < 1024 and bytes(part.data).isascii():
        hint = f"the field {part.name!r} holds the text {str(part.data, 'ascii')[:60]!r}, not a file"
        raise ImageMissing(f"{hint}; with curl a file is sent as -F {part.name}=@path")
    if part.name == repeated:
        given.several.append(part.data)
    else:
        given.images[part.name] = part.data


def _from_json(body: Data, fields: Fields) -> _Given:
    if not body:
        return _Given()
    try:
        body = bytes(body)
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        _check_bare(text)
        pairs = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(pairs, _Pairs):
        example = f' like {{"{fields.names[0]}": "<base64>"}}' if fields.names else ""
        raise MalformedBody(f"the JSON body is not an object; send one{example}")
    if len(pairs) > MAX_PARTS:
        raise MalformedBody(f"the JSON object has more than {MAX_PARTS} keys")
    given = _Given()
    for name, value in pairs:
        if name in given.arrived:
            raise MalformedBody(f"the JSON key {name!r:.80} is given more than once")
        given.arrived.append(name)
        if name not in fields.names:
            if isinstance(value, _Pairs) or (isinstance(value, list) and any(isinstance(item, list) for item in value)):
                raise OptionInvalid(name[:80], f"{name!r:.80} holds nested values; an option is one value or a list of values")
            given.options.append((name, value))
            if len(value if isinstance(value, str) else json.dumps(value)) > MAX_TEXT:
                given.cut.append(name)
        elif name == fields.repeated and isinstance(value, list) and not isinstance(value, _Pairs):
            given.several = _from_list(name, value)
        elif value is not None and value != "":
            given.images[name] = _from_base64(name, value)
    return given


def _from_list(name: str, values: list[Any]) -> list[Data]:
    if len(values) > MAX_PARTS:
        raise MalformedBody(f"{name} holds {len(values)} images; at most {MAX_PARTS} are taken at once, send the others after them")
    return [_from_base64(f"{name}[{number}]", value) for number, value in enumerate(values, 1)]


def _check_bare(text: str) -> None:
    """Raises MalformedBody when what JSON has outside of its strings could be no options: each value takes some of it."""
    bare = end = 0
    for string in STRING.finditer(text):
        bare += string.start() - end + len('""')
        end = string.end()
        if bare > MAX_TEXT:
            break
    if bare + len(text) - end > MAX_TEXT:
        raise MalformedBody(f"the JSON body has more than {MAX_TEXT} bytes outside of its texts; options are never that long")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_base64(name: str, value: object) -> bytes:
    """Bytes of base64 text or of a data: URI; both alphabets (RFC 4648, sections 4 and 5), line breaks and missing padding go."""
    if not isinstance(value, str):
        raise MalformedBody(f"{name} is not a text; send the image as base64 or as a data: URI")
    if value[:8].lower().startswith(("http://", "https://")):
        raise MalformedBody(f"{name} is a link; links are not followed, send the image itself as base64")
    if value[:5].lower() == "data:":
        prefix = DATA_URI.match(value)
        if prefix is None:
            raise MalformedBody(f"{name} is a data: URI that cannot be read; it should be like data:image/jpeg;base64,...")
        value = value[prefix.end() :]
    if any(mark in value for mark in "\r\n\t -_="):
        value = "".join(value.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return binascii.a2b_base64(value + "=" * (-len(value) % 4), strict_mode=True)
    except ValueError as error:
        raise MalformedBody(f"{name} is not valid base64: {str(error).lower()}") from None


def _check_images(given: _Given, fields: Fields) -> None:
    for name in fields.names:
        if name in given.images and not given.images[name]:
            raise ImageMissing(f"the image {name!r} is empty")
    for name in fields.required:
        if name not in given.images and not given.several:
            arrived = ", ".join(repr(other)[:80] for other in given.arrived[:10]) or "none"
            raise ImageMissing(f"there is no image in the field {name!r}; the fields that arrived: {arrived}")


def _refusal(media: str, fields: Fields) -> UnsupportedMedia:
    if not fields.names:
        return UnsupportedMedia(f"the content type is {media or 'missing'!r:.80}; send {JSON}, {FORM} or {PLAIN_FORM}")
    names = " and ".join(f"'{name}'" for name in fields.required)
    raw = "" if fields.raw is None else "a raw body with an image/* content type, "
    ways = f"send {FORM} with the file in {names}, {raw}or {JSON} with base64 in {names}"
    return UnsupportedMedia(f"the content type is {media or 'missing'!r:.80}; {ways}")

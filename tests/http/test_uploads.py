import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import Field
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, ImageMissing, MalformedBody, OptionInvalid, QueueFull, UnsupportedMedia, VisionError
from service.http.forms import MAX_HEADER_BYTES, MAX_PARTS, MAX_TEXT, FormReader, read_at_once
from service.http.guards import Meter, UploadBudget
from service.http.uploads import Fields, Upload, read_upload
from service.tasks.task import Strict

ONE, TWO, STYLE = Fields(("image",)), Fields(("image1", "image2")), Fields(("image",), ("style_image",))
PHOTO = bytes(range(256)) * 40 + b"\r\n--XX\r\n--XY--"  # bytes that look nearly like the boundary
Chunks = list[bytes]


class Options(Strict):
    top_k: int = Field(5, ge=1, le=10)
    model: str | None = None


def part(name: str, data: bytes, filename: str | None = "a.jpg", extra: str = "") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--XYZ\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{extra}\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XYZ--\r\n"


FORM = {"content-type": "multipart/form-data; boundary=XYZ"}
JSON = {"content-type": "application/json"}


def read(
    chunks: Chunks | bytes,
    headers: dict[str, str],
    fields: Fields = ONE,
    query: str = "",
    limit: int = 5_000_000,
    length: bool = True,
) -> Upload[Any]:
    """Run read_upload on a request with this body; `length`: announce its Content-Length, else send it chunked."""
    chunks = [chunks] if isinstance(chunks, bytes) else chunks
    told = {"content-length": str(sum(map(len, chunks)))} if length else {"transfer-encoding": "chunked"}
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if len(chunks) == 1:
        messages[0]["more_body"] = False  # as a server tells of a body that has arrived whole
    else:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    return run(messages, {**told, **headers}, fields, query, limit)


def run(
    messages: list[dict[str, Any]], headers: dict[str, str], fields: Fields, query: str = "", limit: int = 5_000_000
) -> Upload[Any]:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": query.encode()}
    return asyncio.run(read_upload(Request(scope, receive), fields, Options, Meter(limit, UploadBudget(8 * limit))))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 100_000])
def test_a_form_is_the_same_however_it_is_cut_into_chunks(size: int) -> None:
    body = form(part("image", PHOTO), part("top_k", b"3", None), part("model", "größe".encode(), None))
    upload = read([body[at : at + size] for at in range(0, len(body), size)], FORM)
    assert bytes(upload.images["image"]) == PHOTO
    assert upload.options == Options(top_k=3, model="größe")


@pytest.mark.parametrize(
    ("body", "headers", "fields"),
    [
        (form(part("image", PHOTO)), FORM, ONE),
        (form(part("image", PHOTO, None)), FORM, ONE),
        (form(part("image", PHOTO), part("style_image", b"", "")), FORM, STYLE),  # a browser's untouched file input
        (form(part("image", PHOTO), part("style_image", b"", None)), FORM, STYLE),
        (b"a preamble\r\n" * 0 + form(part("image", PHOTO)), {"content-type": 'multipart/form-data; boundary="XYZ"'}, ONE),
        (PHOTO, {"content-type": "image/jpeg"}, ONE),
        (PHOTO, {"content-type": "IMAGE/PNG; x=1"}, STYLE),
        (PHOTO, {"content-type": "application/octet-stream"}, ONE),
        (json.dumps({"image": base64.b64encode(PHOTO).decode()}).encode(), JSON, ONE),
        (json.dumps({"image": base64.b64encode(PHOTO).decode().rstrip("=")}).encode(), JSON, ONE),
        (json.dumps({"image": base64.urlsafe_b64encode(PHOTO).decode(), "style_image": None}).encode(), JSON, STYLE),
        (json.dumps({"image": base64.encodebytes(PHOTO).decode()}).encode("utf-16"), JSON, ONE),
        (json.dumps({"image": "data:image/png;base64," + base64.b64encode(PHOTO).decode()}).encode(), JSON, ONE),
        (json.dumps({"image": "data:;base64," + base64.b64encode(PHOTO).decode()}).encode(), JSON, ONE),
    ],
)
@pytest.mark.parametrize("length", [True, False])
def test_one_image_arrives_in_each_way(body: bytes, headers: dict[str, str], fields: Fields, length: bool) -> None:
    upload = read(body, headers, fields, query="top_k=2", length=length)
    assert {name: bytes(data) for name, data in upload.images.items()} == {"image": PHOTO}
    assert upload.options == Options(top_k=2)


def test_long_json_is_parsed_too() -> None:
    photo = PHOTO * 40
    upload = read(json.dumps({"image": base64.b64encode(photo).decode(), "top_k": 4}).encode(), JSON, limit=10**7)
    assert upload.images["image"] == photo
    assert upload.options.top_k == 4


def b64(name: str, text: Any) -> bytes:
    return json.dumps({name: text}).encode()


@pytest.mark.parametrize(
    ("body", "headers", "fields", "error", "words"),
    [
        (b"", {}, ONE, ImageMissing, ["'image'", "none"]),
        (b"", FORM, ONE, ImageMissing, ["'image'"]),
        (b"", JSON, ONE, ImageMissing, ["'image'"]),
        (b"", {"content-type": "image/png"}, ONE, ImageMissing, ["'image'"]),
        (form(), FORM, ONE, ImageMissing, ["'image'", "none"]),
        (form(part("file", PHOTO)), FORM, ONE, ImageMissing, ["'image'", "'file'"]),
        (form(part("file", PHOTO * 20)), FORM, ONE, ImageMissing, ["'image'", "'file'"]),
        (form(part("image1", PHOTO)), FORM, TWO, ImageMissing, ["'image2'", "'image1'"]),
        (form(part("image", b"")), FORM, ONE, ImageMissing, ["'image' is empty"]),
        (form(part("image", PHOTO), part("style_image", b"")), FORM, STYLE, ImageMissing, ["'style_image' is empty"]),
        (form(part("image", b"cat.jpg", None)), FORM, ONE, ImageMissing, ["'cat.jpg'", "-F image=@path"]),
        (b64("image", ""), JSON, ONE, ImageMissing, ["'image'"]),
        (b64("image", None), JSON, ONE, ImageMissing, ["'image'"]),
        (b"{}", JSON, ONE, ImageMissing, ["none"]),
        (form(part("image", PHOTO), part("image", PHOTO)), FORM, ONE, MalformedBody, ["'image'", "more than once"]),
        (form(part("image", PHOTO))[:-9], FORM, ONE, MalformedBody, ["closing boundary"]),
        (form(part("image", PHOTO))[:500], FORM, ONE, MalformedBody, ["closing boundary"]),
        (b"nonsense", FORM, ONE, MalformedBody, ["multipart"]),
        (form(part("image", PHOTO)), {"content-type": "multipart/form-data"}, ONE, MalformedBody, ["boundary"]),
        (
            form(part("image", PHOTO)),
            {"content-type": "multipart/form-data; boundary=" + "x" * 300},
            ONE,
            MalformedBody,
            ["boundary"],
        ),
        (b"--XYZ\r\nContent-Type: image/png\r\n\r\nxx\r\n--XYZ--\r\n", FORM, ONE, MalformedBody, ["no name"]),
        (form(*[part("x", b"1", None)] * (MAX_PARTS + 1)), FORM, ONE, MalformedBody, [str(MAX_PARTS)]),
        (form(part("image", PHOTO, "x" * MAX_HEADER_BYTES)), FORM, ONE, MalformedBody, ["header size"]),
        (form(part("image", PHOTO, extra="X-Y: z\r\n" * 50)), FORM, ONE, MalformedBody, ["header count"]),
        (b"{", JSON, ONE, MalformedBody, ["not valid JSON"]),
        (b"\xff\xfe{", JSON, ONE, MalformedBody, ["not valid JSON"]),
        (b"[1]", JSON, ONE, MalformedBody, ["not an object", '{"image"']),
        (b"[" * 60_000, JSON, ONE, MalformedBody, ["not valid JSON"]),
        (b"[" * 90_000, JSON, ONE, MalformedBody, [f"more than {MAX_TEXT} bytes outside of its texts"]),
        (json.dumps({"image": "AAAA", "top_k": [1.5] * 20_000}).encode(), JSON, ONE, MalformedBody, ["outside of its texts"]),
        (b'{"top_k": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, ONE, OptionInvalid, ["'top_k' holds nested values"]),
        (b'{"top_k": {"a": 1}}', JSON, ONE, OptionInvalid, ["'top_k' holds nested values"]),
        (json.dumps({"image": "AAAA", "top_k": ["a"] * 20_000}).encode(), JSON, ONE, MalformedBody, ["outside of its texts"]),
        (json.dumps({"image": "AAAA", "top_k": ["a" * 20_000] * 4}).encode(), JSON, ONE, OptionInvalid, ["top_k is too long"]),
        (json.dumps({"image": "AAAA", "model": "a" * (MAX_TEXT + 1)}).encode(), JSON, ONE, OptionInvalid, ["model is too long"]),
        (json.dumps({"image": "AAAA", "mode": "a" * (MAX_TEXT + 1)}).encode(), JSON, ONE, OptionInvalid, ["no option 'mode'"]),
        (json.dumps({"image": "AAAA", "m" * 10**6: 1}).encode(), JSON, ONE, OptionInvalid, ["no option 'mmm"]),
        (json.dumps({f"k{n}": 1 for n in range(MAX_PARTS + 1)}).encode(), JSON, ONE, MalformedBody, [str(MAX_PARTS)]),
        (b'{"image": NaN}', JSON, ONE, MalformedBody, ["NaN"]),
        (b'{"image": "", "image": ""}', JSON, ONE, MalformedBody, ["more than once"]),
        (b64("image", 7), JSON, ONE, MalformedBody, ["image is not a text"]),
        (b64("image", ["x"]), JSON, ONE, MalformedBody, ["image is not a text"]),
        (b64("image", "****"), JSON, ONE, MalformedBody, ["image is not valid base64"]),
        (b64("image", "aGVsbG8=aGVsbG8="), JSON, ONE, MalformedBody, ["image is not valid base64"]),
        (b64("image", "abcde"), JSON, ONE, MalformedBody, ["image is not valid base64"]),
        (b64("image", "gr\u00fcn"), JSON, ONE, MalformedBody, ["image is not valid base64"]),
        (b64("image", "data:image/png,%89PNG"), JSON, ONE, MalformedBody, ["data: URI"]),
        (b64("image", "https://example.org/cat.jpg"), JSON, ONE, MalformedBody, ["links are not followed"]),
        (
            PHOTO,
            {"content-type": "application/x-www-form-urlencoded"},
            ONE,
            UnsupportedMedia,
            ["multipart/form-data", "raw", "json"],
        ),
        (PHOTO, {}, ONE, UnsupportedMedia, ["missing", "multipart/form-data", "image/*", "application/json"]),
        (PHOTO, {"content-type": "image/jpeg"}, TWO, UnsupportedMedia, ["'image1' and 'image2'"]),
        (PHOTO, {"content-type": "image/jpeg", "content-encoding": "gzip"}, ONE, UnsupportedMedia, ["gzip"]),
        (PHOTO, {"content-type": "image/jpeg", "content-length": "many"}, ONE, MalformedBody, ["many"]),
        (form(part("image", PHOTO), part("tok_k", b"3", None)), FORM, ONE, OptionInvalid, ["'tok_k'", "top_k, model", "image"]),
        (form(part("image", PHOTO), part("more", PHOTO)), FORM, ONE, OptionInvalid, ["'more'", "top_k"]),
        (form(part("image", PHOTO), part("top_k", b"99", None)), FORM, ONE, OptionInvalid, ["from 1 to 10"]),
        (form(part("image", PHOTO), part("model", b"x" * MAX_TEXT + b"y", None)), FORM, ONE, OptionInvalid, ["too long"]),
        (form(part("image", PHOTO), *[part("top_k", b"1", None)] * 2), FORM, ONE, OptionInvalid, ["more than once"]),
        (json.dumps({"image": "AAAA", "top_k": "x"}).encode(), JSON, ONE, OptionInvalid, ["top_k=x"]),
    ],
)
def test_what_is_wrong_with_a_body_is_said(
    body: bytes, headers: dict[str, str], fields: Fields, error: type[VisionError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        read(body, headers, fields)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(getattr(caught.value, "option", "")) < 100


def test_an_option_of_just_the_limit_is_taken() -> None:
    longest = "a" * MAX_TEXT
    assert read(json.dumps({"image": "AAAA", "model": longest}).encode(), JSON).options.model == longest
    assert read(form(part("image", PHOTO), part("model", longest.encode(), None)), FORM).options.model == longest


@pytest.mark.parametrize(
    "text",
    ['"' + '\\"' * 10**6, '"' + '\\"' * 10**6 + "\\", '""' * 10**6, '{"image": "' + "A" * 10**6, "{" + '"a":[],' * 10**6 + "}"],
)
def test_odd_json_is_refused_soon(text: str) -> None:
    start = time.process_time()
    with pytest.raises(MalformedBody):
        read(text.encode(), JSON, limit=10**7)
    assert time.process_time() - start < 1


def test_uploads_share_a_budget_and_give_it_back() -> None:
    budget = UploadBudget(1000)

    async def upload(go: asyncio.Event, size: int) -> Upload[Any]:
        async def receive() -> dict[str, Any]:
            if first:
                return {"type": "http.request", "body": b"x" * first.pop(), "more_body": True}
            await go.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        first = [size]
        headers = [(b"content-type", b"image/png"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
        with Meter(1000, budget) as meter:
            return await read_upload(Request(scope, receive), ONE, Options, meter)

    async def test() -> None:
        go = asyncio.Event()
        held = [asyncio.ensure_future(upload(go, 400)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert budget.used == 800
        with pytest.raises(QueueFull) as caught:
            await upload(go, 201)
        assert caught.value.retry_after >= 1
        held.pop().cancel()
        await asyncio.sleep(0.01)
        assert budget.used == 400
        go.set()
        assert len((await upload(go, 600)).images["image"]) == 600
        assert len((await held[0]).images["image"]) == 400

    asyncio.run(test())
    assert budget.used == 0


def test_an_option_in_query_and_form_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="both"):
        read(form(part("image", PHOTO), part("top_k", b"3", None)), FORM, query="top_k=3")


@pytest.mark.parametrize("headers", [FORM, JSON, {"content-type": "image/png"}])
def test_a_body_announced_too_large_is_refused_before_it_is_read(headers: dict[str, str]) -> None:
    with pytest.raises(BodyTooLarge, match=r"5000 bytes.*1000"):
        run([], {**headers, "content-length": "5000"}, ONE, limit=1000)  # reading would find no message


@pytest.mark.parametrize(
    ("headers", "start"),
    [(FORM, part("image", b"")[:-2]), (JSON, b'{"image": "'), ({"content-type": "image/png"}, b"")],
)
def test_a_chunked_body_is_refused_at_the_first_byte_too_many(headers: dict[str, str], start: bytes) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        yield {"type": "http.request", "body": start, "more_body": True}
        while True:
            taken += 100
            yield {"type": "http.request", "body": b"A" * 100, "more_body": True}

    with pytest.raises(BodyTooLarge, match="more than 1000 bytes"):
        run(endless(), {**headers, "transfer-encoding": "chunked"}, ONE, limit=1000)
    assert 800 < taken <= 1100


def test_a_body_of_just_the_limit_is_taken() -> None:
    body = form(part("image", PHOTO))
    assert read(body, FORM, limit=len(body)).images
    assert read(body, FORM, limit=len(body), length=False).images
    with pytest.raises(BodyTooLarge):
        read(body, FORM, limit=len(body) - 1, length=False)


def test_a_client_that_goes_away_is_no_error_of_the_body() -> None:
    messages = [{"type": "http.request", "body": part("image", PHOTO)[:300], "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(ClientDisconnect):
        run(messages, {**FORM, "content-length": "5000"}, ONE)


def test_unknown_fields_do_not_fill_the_memory(make_picture: Callable[..., bytes]) -> None:
    with pytest.raises(ImageMissing, match="'blob'"):
        read([part("blob", b"")[:-2], *[b"x" * 65_536] * 200, b"\r\n--XYZ--\r\n"], FORM, limit=2**25)


NAMES = some.one_of(some.sampled_from(["image", "top_k", "a.b-c"]), some.text('aä\\% ;="', max_size=4))
FILES = some.one_of(some.none(), some.sampled_from(["", "photo (1).jpg", "C:\\x.jpg", 'a"b', "ä.png"]), some.text(max_size=5))
EXTRAS = some.sampled_from(
    ["", "Content-Type: image/jpeg\r\n", "content-type: text/plain; charset=utf-8\r\n", "X-Y: z\r\n", " folded\r\n"]
)
DATA = some.one_of(some.binary(max_size=40), some.sampled_from([b"\r\n--XYZ", b"\r\n--XYZ--", b"--XYZ\r\n", PHOTO, b"\r\n\r\n"]))


@settings(max_examples=300, deadline=None)
@given(
    some.lists(some.tuples(NAMES, DATA, FILES, EXTRAS), max_size=3),
    some.sampled_from([b"--XYZ--\r\n", b"--XYZ--", b"--XYZ--\r\nepilogue", b"--XYZ-", b"", b"--XYZ\r\n"]),
)
def test_a_form_read_at_once_is_read_as_in_pieces_or_not_at_all(fields: list[Any], end: bytes) -> None:
    body = b"".join(part(name, data, filename, extra) for name, data, filename, extra in fields) + end
    quick = read_at_once(body, b"XYZ", ("image",))
    if quick is not None:
        reader = FormReader(b"XYZ", ("image",))
        reader.feed(body)
        assert [(p.name, p.filename, bytes(p.data), p.cut) for p in quick] == [
            (p.name, p.filename, bytes(p.data), p.cut) for p in reader.finish()
        ]


@pytest.mark.parametrize(
    "parts",
    [
        (part("image", PHOTO, "a.jpg", "Content-Type: image/jpeg\r\n"),),  # curl, browsers
        (part("image", PHOTO, "image"), part("top_k", b"3", None)),  # requests, httpx
        (
            part("top_k", b"3", None, "Content-Type: text/plain; charset=utf-8\r\n"),
            part("image", PHOTO, "my photo (2).JPG"),
        ),  # aiohttp
    ],
)
def test_what_usual_clients_send_is_read_at_once(parts: tuple[bytes, ...]) -> None:
    found = read_at_once(form(*parts), b"XYZ", ("image",))
    assert found is not None
    assert bytes(next(p for p in found if p.name == "image").data) == PHOTO


MANY = Fields(("image",), repeated="image")


@pytest.mark.parametrize("filename", ["a.jpg", "Füße.jpg"])  # read at once, and by the streaming parser
@pytest.mark.parametrize("count", [1, 3])
def test_a_repeated_field_numbers_its_images(filename: str, count: int) -> None:
    photos = [PHOTO + bytes([number]) for number in range(count)]
    empty = part("image", b"", "")  # a file input that was left alone
    body = form(*[part("image", photo, filename) for photo in photos], empty, part("top_k", b"3", None))
    upload = read(body, FORM, MANY)
    names = ["image"] if count == 1 else ["image[1]", "image[2]", "image[3]"]
    assert [(name, bytes(data)) for name, data in upload.images.items()] == list(zip(names, photos, strict=True))
    assert upload.options == Options(top_k=3)


def test_a_list_of_images_is_taken_only_where_a_field_may_be_repeated() -> None:
    body = json.dumps({"image": [base64.b64encode(PHOTO).decode()] * 2}).encode()
    assert list(read(body, JSON, MANY).images) == ["image[1]", "image[2]"]
    with pytest.raises(MalformedBody, match="image is not a text"):
        read(body, JSON, ONE)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"top_k": 3, "model": "a b"}', JSON),
        (b"top_k=3&model=a+b", {"content-type": "application/x-www-form-urlencoded"}),
        (form(part("top_k", b"3", None), part("model", b"a b", None)), FORM),
    ],
)
def test_a_route_may_take_options_only(body: bytes, headers: dict[str, str]) -> None:
    assert read(body, headers, Fields()) == Upload({}, Options(top_k=3, model="a b"))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"model=" + b"x" * 70_000, MalformedBody),
        (b"&".join([b"model=x"] * 65), MalformedBody),
        (b"model=%FF", MalformedBody),
        (b"model=\xff", MalformedBody),
        (b"model=a&model=b", OptionInvalid),
        (b"image=x", OptionInvalid),
    ],
)
def test_a_plain_form_has_limits(body: bytes, error: type[VisionError]) -> None:
    with pytest.raises(error):
        read(body, {"content-type": "application/x-www-form-urlencoded"}, Fields())

"""The gallery's routes on a fake engine: shapes, names, limits, refusals, and what is never told."""

import base64
import io
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.annotate import draw_identified
from service.errors import GalleryMismatch, GalleryUnavailable, ModelUnknown
from service.http.app import create_app
from service.http.examples import ANSWERS
from service.http.faces import SubjectRoute
from service.http.tracing import Tracing
from service.tasks.people import IdentifyAnswer

NAMES = [
    "a/b",
    "..",
    ".",
    "%41",
    "ä",
    "🦊 Reineke",
    "a?b#c",
    "Ada Lovelace",
    "faces",
    "a\\b",
    "'; drop table subjects; --",
    "x" * 200,
]
Make = Callable[..., bytes]


def address(name: str, more: str = "") -> str:
    """As a client that leaves paths alone writes it: every byte that could mean something is encoded, dots too."""
    return "/subjects/" + quote(name, safe="").replace(".", "%2E") + more


def enroll(client: TestClient, name: str, *pictures: bytes, **options: str) -> Any:
    files = [("image", (f"{number}.jpg", picture)) for number, picture in enumerate(pictures)]
    return client.post(address(name, "/faces"), files=files, data=options)


@pytest.fixture(scope="module")
def pictures(make_picture: Make) -> list[bytes]:
    return [make_picture("PNG", 64 + number, 64) for number in range(4)]


def test_a_subject_comes_is_listed_is_renamed_and_goes(client: TestClient, pictures: list[bytes]) -> None:
    first = enroll(client, "Ada", *pictures[:2])
    assert first.status_code == 201
    assert [face["photo"] for face in first.json()["faces"]] == ["image[1]", "image[2]"]
    ids = [face["face_id"] for face in first.json()["faces"]]
    again = enroll(client, "Ada", pictures[0])
    assert (again.status_code, again.json()["faces"][0]["face_id"]) == (200, ids[0])
    assert (again.json()["faces"][0]["photo"], again.json()["faces"][0]["known"]) == ("image", True)

    listed = client.get("/subjects").json()
    assert (listed["gallery"], listed["subjects_total"], listed["faces_total"], listed["next"]) == ("default", 1, 2, None)
    assert (listed["subjects"][0]["subject"], listed["subjects"][0]["faces"]) == ("Ada", 2)
    card = client.get("/subjects/Ada").json()
    assert [face["face_id"] for face in card["faces"]] == ids
    assert card["model"] == {"name": "sface", "version": "2021dec", "digest": "d" * 64, "method": "aligned-1", "dimension": 2}

    renamed = client.patch("/subjects/Ada", json={"subject": "Bea"})
    assert (renamed.status_code, renamed.json()["subject"], renamed.json()["faces"]) == (200, "Bea", 2)
    assert client.get("/subjects/Ada").json()["code"] == "subject_unknown"
    left = client.delete(f"/subjects/Bea/faces/{ids[0]}").json()
    assert left == {"gallery": "default", "subject": "Bea", "face_id": ids[0], "faces": 1}
    assert client.delete("/subjects/Bea").json() == {"gallery": "default", "subject": "Bea", "faces": 1}
    assert client.delete("/subjects/Bea").status_code == 404


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_a_name(client: TestClient, fake: Any, pictures: list[bytes], name: str) -> None:
    answer = enroll(client, name, pictures[0])
    assert (answer.status_code, answer.json()["subject"]) == (201, name)
    assert list(fake.gallery.held["default"]) == [name]
    face_id = answer.json()["faces"][0]["face_id"]
    assert client.get(address(name)).json()["subject"] == name
    assert client.patch(address(name), json={"subject": f"{name}"[:198] + "/2"}).status_code == 200
    assert client.delete(address(name[:198] + "/2", f"/faces/{face_id}")).json()["faces"] == 0
    assert fake.gallery.held["default"] == {}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/subjects/", 404, "path_unknown"),
        ("/subjects//faces", 404, "path_unknown"),
        ("/subjects/Ada/", 404, "path_unknown"),
        ("/subjects/a/b", 404, "path_unknown"),
        ("//subjects/Ada", 404, "path_unknown"),
        ("/subjects%2FAda", 404, "path_unknown"),
        ("/subjects/%FF", 422, "option_invalid"),
        ("/subjects/%C3", 422, "option_invalid"),
        ("/subjects/%20", 422, "option_invalid"),
        ("/subjects/%00", 422, "option_invalid"),
        ("/subjects/" + "x" * 201, 422, "option_invalid"),
        ("/subjects/%ED%A0%80", 422, "option_invalid"),
        ("/%73ubjects/Ada", 404, "subject_unknown"),
    ],
)
def test_what_is_no_name_is_refused(client: TestClient, path: str, status: int, code: str) -> None:
    answer = client.get(f"http://testserver{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json().get("option") == ("subject" if code == "option_invalid" else None)


@pytest.mark.parametrize(
    ("root", "path", "raw", "found"),
    [
        ("", "/subjects/a/b", b"/subjects/a%2Fb", {"subject": b"a%2Fb"}),
        ("/vision", "/vision/subjects/a", b"/vision/subjects/a", {"subject": b"a"}),
        ("/vision", "/subjects/a", b"/subjects/a", {"subject": b"a"}),
        ("/my apps/vision/", "/my apps/vision/subjects/ä", b"/my%20apps/vision/subjects/%C3%A4", {"subject": b"%C3%A4"}),
        ("", "/subjects/ä", None, {"subject": b"%C3%A4"}),
        ("/vision", "/visionary/subjects/a", b"/visionary/subjects/a", None),
    ],
)
def test_a_service_may_be_mounted_anywhere(root: str, path: str, raw: bytes | None, found: dict[str, bytes] | None) -> None:
    async def nothing(_: Any) -> None: ...

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": raw, "root_path": root}
    _, child = SubjectRoute("/subjects/{subject}", nothing, methods=["GET"]).matches(scope)
    assert child.get("path_params") == found


def test_pages_lead_to_each_other(fake: Any, open_client: Any, pictures: list[bytes]) -> None:
    client = open_client(fake)
    names = sorted(NAMES)
    for name in names:
        enroll(client, name, pictures[0], gallery="Süd & West")
    seen, path = [], "/subjects?gallery=S%C3%BCd+%26+West&limit=5"
    while path:
        page = client.get(path).json()
        assert (page["subjects_total"], page["faces_total"]) == (len(names), len(names))
        assert page["after"] in (None, page["subjects"][-1]["subject"])
        seen += [card["subject"] for card in page["subjects"]]
        path = page["next"]
    assert seen == names
    assert client.get("/subjects").json()["subjects_total"] == 0


def test_nothing_leaks_between_galleries(client: TestClient, pictures: list[bytes]) -> None:
    enroll(client, "Ada", pictures[0], gallery="north")
    assert client.get("/subjects/Ada").status_code == 404
    assert client.delete("/subjects/Ada?gallery=south").status_code == 404
    assert client.patch("/subjects/Ada", json={"subject": "Bea", "gallery": "north"}).json()["gallery"] == "north"
    assert client.get("/subjects/Bea?gallery=north").json()["gallery"] == "north"


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({"json": {"subject": "Bea"}}, 409, "subject_exists"),
        ({"data": {"subject": "Cleo"}}, 200, None),
        ({"files": {"subject": (None, "Cleo")}}, 200, None),
        ({"params": {"subject": "Cleo"}}, 200, None),
        ({"json": {"subject": "Ada"}}, 200, None),
        ({}, 422, "option_invalid"),
        ({"json": {"subject": " Cleo"}}, 422, "option_invalid"),
        ({"json": {"subject": 7}}, 422, "option_invalid"),
        ({"json": {"name": "Cleo"}}, 422, "option_invalid"),
        ({"json": ["Cleo"]}, 400, "body_malformed"),
        ({"content": b"subject=%FF", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400, "body_malformed"),
        ({"content": b"Cleo", "headers": {"content-type": "text/plain"}}, 415, "media_type_unsupported"),
    ],
)
def test_a_name_is_changed_in_any_of_the_ways(
    client: TestClient, pictures: list[bytes], given: Any, status: int, code: str | None
) -> None:
    enroll(client, "Ada", pictures[0])
    enroll(client, "Bea", pictures[1])
    answer = client.patch("/subjects/Ada", **given)
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    if code == "option_invalid":
        assert answer.json()["option"] in ("subject", "name")
    assert client.get("/subjects").json()["subjects_total"] == 2


@pytest.mark.parametrize("path", ["/subjects", "/subjects/Ada"])
@pytest.mark.parametrize(
    "query", ["galery=x", "gallery=", "limit=0", "limit=1001", "after=%00", "gallery=%20", "gallery=a&gallery=b"]
)
def test_unknown_and_wrong_options_are_refused(client: TestClient, path: str, query: str) -> None:
    answer = client.get(f"{path}?{query}")
    expected = 200 if query == "gallery=" else 422  # empty: not given, as everywhere
    assert answer.status_code in (expected, 404 if expected == 200 else 422)
    assert expected == 200 or answer.json()["code"] == "option_invalid"


@pytest.mark.parametrize("face_id", ["0" * 32, "0" * 31, "A" * 32, "x", "%2E%2E", "%27%20or%201%3D1"])
def test_a_face_that_is_not_there_is_told(client: TestClient, pictures: list[bytes], face_id: str) -> None:
    enroll(client, "Ada", pictures[0])
    answer = client.delete(f"/subjects/Ada/faces/{face_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "face_unknown")
    assert client.get("/subjects/Ada").status_code == 200


def test_photos_come_as_a_body_and_in_json_too(client: TestClient, fake: Any, pictures: list[bytes]) -> None:
    raw = client.post("/subjects/Ada/faces?gallery=g&face=largest", content=pictures[0], headers={"content-type": "image/png"})
    assert raw.status_code == 201
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    one = client.post("/subjects/Ada/faces", json={"image": texts[0], "gallery": "g"})
    assert one.status_code == 200
    several = client.post("/subjects/Ada/faces", json={"image": texts[:3], "gallery": "g"})
    assert (several.status_code, len(several.json()["faces"])) == (201, 3)
    assert [list(call[1][1]) for call in fake.calls] == [["image"], ["image"], ["image[1]", "image[2]", "image[3]"]]
    assert fake.calls[0][1][2].face == "largest"


def test_a_refused_photo_is_named_and_nothing_is_stored(client: TestClient, fake: Any, make_picture: Make) -> None:
    good, small = make_picture("PNG", 64, 64), make_picture("PNG", 20, 64)
    alone = enroll(client, "Ada", small)
    problem = alone.json()
    assert (alone.status_code, problem["code"], problem["photo"]) == (422, "face_too_small", "image")
    assert (problem["measured"], problem["limit"]) == (20, 32)
    several = enroll(client, "Ada", good, small, b"no picture", good[:-40], b"")
    problem = several.json()
    assert (several.status_code, problem["code"]) == (422, "enrollment_refused")
    assert {refusal["photo"]: refusal["code"] for refusal in problem["refused"]} == {
        "image[2]": "face_too_small",
        "image[3]": "not_an_image",
        "image[4]": "image_damaged",
        "image[5]": "image_missing",
    }
    assert problem["refused"][0]["limit"] == 32
    assert "limit" not in problem["refused"][1]
    assert fake.gallery.held == {}
    partial = enroll(client, "Ada", good, small, partial="true")
    assert (partial.status_code, len(partial.json()["faces"]), len(partial.json()["refused"])) == (201, 1, 1)


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        ({"json": {"image": []}}, "image_missing", "'image'"),
        ({"json": {"image": [""]}}, "image_missing", "empty"),
        ({"json": {"image": [[]]}}, "body_malformed", "image[1]"),
        ({"json": {"image": ["aGk=", 7]}}, "body_malformed", "image[2]"),
        ({"json": {"image": ["aGk="] * 65}}, "body_malformed", "64"),
        ({"files": [("image", ("a", b"x"))] * 65}, "body_malformed", "64"),
        ({"files": [("image", (None, b"a.jpg"))]}, "image_missing", "curl"),
        ({"files": {"image": b"x"}, "data": {"top_k": "1"}}, "option_invalid", "top_k"),
        ({"content": b""}, "image_missing", "none"),
        (
            {"content": b"x", "headers": {"content-type": "application/x-www-form-urlencoded"}},
            "media_type_unsupported",
            "multipart",
        ),
    ],
)
def test_a_body_that_is_no_enrolment_is_refused(client: TestClient, fake: Any, given: Any, code: str, told: str) -> None:
    answer = client.post("/subjects/Ada/faces", **given)
    assert answer.json()["code"] == code
    assert told in answer.json()["detail"]
    assert fake.calls == []


def test_as_many_photos_as_there_may_be_are_taken(client: TestClient, make_picture: Make) -> None:
    files = [("image", (f"{n}.png", make_picture("PNG", 64 + n, 8))) for n in range(64)]
    assert len(client.post("/subjects/Ada/faces", files=files).json()["faces"]) == 64


def test_a_name_is_refused_before_the_body_is_read(client: TestClient) -> None:
    def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    answer = client.post("/subjects/%00/faces", content=unread(), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["option"]) == (422, "subject")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/subjects", "GET, HEAD, OPTIONS"),
        ("/subjects/Ada", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("/subjects/a%2Fb/faces", "POST, OPTIONS"),
        ("/subjects/Ada/faces/1", "DELETE, OPTIONS"),
    ],
)
def test_paths_say_what_they_answer(client: TestClient, path: str, allowed: str) -> None:
    options = client.options(path)
    assert (options.status_code, options.headers["allow"]) == (204, allowed)
    refused = client.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


def test_head_is_get_without_a_body(client: TestClient, pictures: list[bytes]) -> None:
    enroll(client, "Ada", pictures[0])
    head, get = client.head("/subjects/Ada"), client.get("/subjects/Ada")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", get.headers["content-length"])
    assert get.headers["cache-control"] == "no-store"


def test_no_log_metric_or_span_holds_a_name(fake: Any, pictures: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from service.http import app as module

    spans = InMemorySpanExporter()
    caplog.set_level(logging.DEBUG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.tracing, "from_env", lambda: Tracing([SimpleSpanProcessor(spans)]))
        app = create_app(fake)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert fake.started.wait(5)
        enroll(client, "Zaphod", pictures[0], gallery="Zaphods")
        fake.gallery.before = lambda: 1 / 0
        assert client.get("/subjects/Zaphod").status_code == 500
        for slip in ("/subjects/Zaphod/", "/subjects/Zaphod/face", "/subject/Zaphod", "/Subjects/Zaphod", "/subjects%2FZaphod"):
            assert client.get(slip).status_code == 404
        client.put("/subjects/Zaphod")
        page = client.get("/metrics").text
    lines = [record for record in caplog.records if record.name == "service.access" and record.message == "request"]
    assert [line.path for line in lines[:2]] == ["/subjects/{subject}/faces", "/subjects/{subject}"]
    assert "/subject/..." in {line.path for line in lines}
    told = [json.dumps(vars(record), default=str) for record in caplog.records if not record.name.startswith("httpx")]
    told += [span.to_json() for span in spans.get_finished_spans()]
    assert len(spans.get_finished_spans()) > 8
    assert not [text for text in (*told, page) if "zaphod" in text.lower()]
    assert 'route="/subjects/{subject}/faces"' in page
    assert 'task="enroll"' in page


def test_the_database_is_asked_on_a_worker_and_a_slow_one_is_given_up(make_engine: Any, open_client: Any) -> None:
    engine, threads, go = make_engine(request_timeout=0.3), [], threading.Event()
    client = open_client(engine)
    engine.gallery.before = lambda: threads.append(threading.current_thread().name)
    assert client.get("/subjects").status_code == 200
    assert threads[0].startswith("quick")
    engine.gallery.before = lambda: go.wait(10)
    answers: list[Any] = []
    asker = threading.Thread(target=lambda: answers.append(client.get("/subjects")))
    asker.start()
    assert client.get("/health/live").status_code == 200
    asker.join(5)
    go.set()
    assert (answers[0].status_code, answers[0].json()["code"]) == (504, "deadline_exceeded")


def test_an_enrolment_knows_how_long_it_has_waited_and_may_take(fake: Any, client: TestClient, pictures: list[bytes]) -> None:
    clocks: list[Any] = []
    enroll_really = fake.enroll
    fake.enroll = lambda *args, timing: (clocks.append(timing), enroll_really(*args, timing=timing))[1]
    before = time.perf_counter()
    enroll(client, "Ada", pictures[0])
    assert before < clocks[0].deadline - fake.settings.request_timeout < time.perf_counter()
    assert clocks[0].stages["queue"] > 0


def test_a_database_that_does_not_answer_is_named_in_the_log_only(client: TestClient, fake: Any, caplog: Any) -> None:
    def fail() -> None:
        raise GalleryUnavailable("no answer from db.internal", retry_after=5)

    fake.gallery.before = fail
    answer = client.get("/subjects")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "gallery_unavailable", "5")
    assert "db.internal" not in answer.text
    assert "db.internal" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (GalleryMismatch("default", "old 1", "new 2"), 503, "gallery_mismatch"),
        (ModelUnknown("(default)", []), 404, "model_unknown"),
    ],
)
def test_a_gallery_that_cannot_be_used_says_why(client: TestClient, fake: Any, error: Exception, status: int, code: str) -> None:
    def fail() -> None:
        raise error

    fake.gallery.before = fail
    answer = client.get("/subjects")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert str(error) in answer.json()["detail"]
    assert answer.headers.get("retry-after") == ("5" if code == "gallery_unavailable" else None)


@pytest.mark.parametrize("error", [GalleryUnavailable("no answer from it"), GalleryMismatch("default", "old 1", "new 2")])
def test_without_its_gallery_the_service_does_not_start(make_engine: Any, wait: Callable[..., None], error: Exception) -> None:
    engine, reasons = make_engine(), []

    def fail() -> None:
        raise error

    engine.on_open = fail
    with TestClient(create_app(engine, give_up=reasons.append)) as client:
        wait(lambda: reasons)
        assert reasons == [str(error)]
        assert client.get("/subjects").json()["code"] == "not_ready"
        assert client.post("/subjects/Ada/faces").json()["code"] == "not_ready"


def test_the_service_is_not_ready_before_the_gallery_is(make_engine: Any, wait: Callable[..., None]) -> None:
    engine, go = make_engine(), threading.Event()
    engine.on_open = lambda: go.wait(5)
    with TestClient(create_app(engine)) as client:
        assert client.get("/health/ready").status_code == 503
        go.set()
        wait(lambda: client.get("/health/ready").status_code == 200)


def faces_of(*names: str | None) -> list[Any]:
    """One identified face for each name; None: unknown."""
    known, unknown = ANSWERS["/identify"]["faces"]
    answer = ANSWERS["/identify"] | {
        "faces": [
            unknown if name is None else known | {"candidates": [known["candidates"][0] | {"subject": name}]} for name in names
        ]
    }
    return IdentifyAnswer.model_validate(answer).faces


@pytest.mark.parametrize("name", [*NAMES, "Ада", "李小龍", "ناصر", "Zoë Müller", "A😀", "\u202eevil", "e\u0301" * 100])
def test_every_name_can_be_drawn(name: str) -> None:
    pixels = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_identified(pixels, faces_of(name))
    assert drawn.shape == pixels.shape
    assert (drawn != draw_identified(pixels, faces_of(None))).any()


def test_names_that_cannot_be_written_are_told_apart_by_their_faces_id() -> None:
    pixels = np.full((480, 640, 3), 90, np.uint8)
    face = faces_of("李小龍")[0]
    other = face.candidates[0].model_copy(update={"face_id": "b" * 32})
    drawn = [draw_identified(pixels, [face.model_copy(update={"candidates": [best]})]) for best in (face.candidates[0], other)]
    assert (drawn[0] != drawn[1]).any()


def test_a_subject_keeps_its_colour(client: TestClient, make_picture: Make) -> None:
    pixels = np.full((480, 640, 3), 90, np.uint8)
    at = 110, 212  # on the left edge of the box
    colors = [tuple(draw_identified(pixels, faces_of(*names))[at]) for names in (["Ada"], ["Ada", None], [None], ["Bea"])]
    assert colors[0] == colors[1]
    assert len(set(colors)) == 3


def test_who_is_on_a_photo_is_told_or_drawn(client: TestClient, fake: Any, jpeg: bytes) -> None:
    told = client.post("/identify?top_k=2&gallery=g", files={"image": jpeg}).json()
    assert [face["unknown"] for face in told["faces"]] == [False, True]
    drawn = client.post("/identify", files={"image": jpeg}, headers={"accept": "image/png"})
    assert Image.open(io.BytesIO(drawn.content)).size == (640, 480)
    assert drawn.headers["x-model"] == "sface"
    assert [options.gallery for _, options in fake.calls] == ["g", "default"]


def test_the_examples_of_the_api_page_are_answered(client: TestClient) -> None:
    document = client.app.app.openapi()
    enrolled = document["paths"]["/subjects/{subject}/faces"]["post"]["requestBody"]["content"]["application/json"]
    told = client.post("/subjects/Ada%20Lovelace/faces", json=enrolled["examples"]["json"]["value"])
    assert (told.status_code, len(told.json()["faces"])) == (201, 2)
    renaming = document["paths"]["/subjects/{subject}"]["patch"]["requestBody"]["content"]
    sent = {media: content["examples"]["rename"]["value"] for media, content in renaming.items()}
    assert client.patch("/subjects/Ada%20Lovelace", json=sent["application/json"]).json()["subject"] == "Ada King"
    assert client.patch("/subjects/Ada%20King", data=sent["application/x-www-form-urlencoded"]).status_code == 200
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert {"get_subjects", "patch_subjects_subject", "delete_subjects_subject_faces_face_id"} <= set(ids)
    assert set(document["paths"]["/subjects/{subject}/faces"]["post"]["responses"]) > {"200", "201", "422", "503", "504"}


def test_names_arrive_whole_over_a_real_connection(serve: Any, fake: Any, connect: Any) -> None:
    connection = connect(serve(fake))
    for path, name in (("/subjects/..", ".."), ("/subjects/a%2fb", "a/b"), ("/subjects/%C3%A4", "ä"), ("/subjects/%2541", "%41")):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, _, problem = connection.answer()
        assert (status, problem["code"]) == (404, "subject_unknown")
        assert repr(name) in problem["detail"]


def test_the_links_lead_to_the_gallery(client: TestClient) -> None:
    assert client.get("/").json()["subjects"] == "/subjects"
    assert "/identify" in client.get("/").json()["tasks"]


@pytest.mark.parametrize("body", [{"data": {"gallery": "office"}}, {"json": {"gallery": "office"}}], ids=["form", "json"])
def test_a_gallery_named_in_the_body_is_heard(client: TestClient, fake: Any, jpeg: bytes, body: dict[str, Any]) -> None:
    for gallery in ("default", "office"):
        client.post(f"/subjects/Zed/faces?gallery={gallery}", content=jpeg, headers={"Content-Type": "image/jpeg"})
    answer = client.request("DELETE", "/subjects/Zed", **body)
    assert answer.json()["gallery"] == "office"
    assert list(fake.gallery.held["default"]) == ["Zed"]
    assert not fake.gallery.held.get("office")


def test_bytes_that_are_no_utf8_name_no_gallery(client: TestClient) -> None:
    answer = client.get("/subjects?gallery=site%FC")
    assert (answer.status_code, answer.json()["option"]) == (422, "gallery")

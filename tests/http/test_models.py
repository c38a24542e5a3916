"""Models over HTTP: a file arrives without ever being whole in memory, the fleet is asked, and nothing is left behind."""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import errors
from service.catalogue import ModelCard
from service.export.contract import Contract
from service.http import files
from service.http.examples import ANSWERS
from service.http.files import FileForm, StoredFile, safe_name
from service.http.models import PLACES
from service.intake import Told
from service.repository.spec import InputContract

MODEL = bytes(range(256)) * 1200
"""Larger than a block, with what could be taken for a boundary."""
BOUNDARY = "b0undary"


class FakeFleet:
    """`calls` are (method, what it was given); `before` runs at the start of each; `raises` is what add() raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.files: list[tuple[str, bytes]] = []
        self.before: Callable[[], None] = lambda: None
        self.raises: Exception | None = None
        self.busy = self.most = 0
        self.cards = [ModelCard.model_validate(card) for card in ANSWERS["/models"]["models"]]

    def names(self) -> list[str]:
        return [*(card.name for card in self.cards), "broken"]

    def describe(self) -> list[ModelCard]:
        return self.cards

    def state(self, name: str) -> str:
        return "failed" if name == "broken" else "ready"

    def reason(self, name: str) -> str | None:
        return "its graph is cut short" if name == "broken" else None

    def inspect(self, file: Path, told: Any) -> Any:
        self.files.append((file.name, file.read_bytes()))
        contract = Contract(decoder="yolov8", classes=2)
        found = {"name": told.name or file.stem, "task": "detect", "contract": contract, "labels": ("cat", "dog")}
        return SimpleNamespace(
            **found, input=InputContract(resize="letterbox"), facts=("two classes",), assumptions=("RGB; `color` says otherwise",)
        )

    def add(self, file: Path, told: Any, *, replace: bool, finding: Any) -> ModelCard:
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.before()
        self.busy -= 1
        assert file.read_bytes() == self.files[-1][1]
        self.calls.append(("add", told.said(), replace))
        assert finding.labels == ("cat", "dog")  # is not looked for twice
        if self.raises is not None:
            raise self.raises
        return self.cards[0].model_copy(update={"name": told.name or file.stem})

    def change(self, name: str, told: Any) -> ModelCard:
        self.calls.append(("change", name, told.said()))
        if name not in self.names():
            raise errors.ModelUnknown(name, self.names())
        return self.cards[0]

    def remove(self, name: str) -> None:
        self.calls.append(("remove", name))
        if name == "yolov3-tiny":
            raise errors.ModelFixed("yolov3-tiny comes with the service")
        self.cards = [card for card in self.cards if card.name != name]


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def make(make_engine: Callable[..., Any], fleet: FakeFleet, tmp_path: Path) -> Callable[..., Any]:
    """An engine with the fake fleet and a data folder of its own; bodies of tasks may have 64 kB at most."""

    def made(**settings: Any) -> Any:
        engine = make_engine(**{"data_dir": tmp_path, "max_body_bytes": 2**16, "max_model_bytes": 2**20, **settings})
        engine.fleet = fleet
        return engine

    return made


@pytest.fixture
def client(make: Callable[..., Any], open_client: Callable[..., TestClient]) -> TestClient:
    return open_client(make())


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], list[Path]]:
    """What lies in the folder of uploads: folders, and the file in each."""

    def listed() -> list[Path]:
        walked = os.walk(tmp_path / "uploads")  # which does not mind what goes meanwhile
        return [Path(folder) / name for folder, folders, names in walked for name in (*folders, *names)]

    return listed


def form(model: bytes = MODEL, name: str = "best.onnx") -> dict[str, Any]:
    return {"files": {"file": (name, model)}}


RAW = {"content": MODEL, "headers": {"content-type": "application/octet-stream"}}


def test_a_form_adds_a_model_and_leaves_no_file(client: TestClient, fleet: FakeFleet, left: Any) -> None:
    response = client.post("/models", **form(), data={"labels": "cat\ndog", "size": "640", "std": ""})
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/models/best"
    answer = response.json()
    assert (answer["model"]["name"], answer["facts"]) == ("best", ["two classes"])
    assert answer["assumptions"] == ["RGB; `color` says otherwise"]
    assert fleet.files == [("best.onnx", MODEL)]
    assert fleet.calls == [("add", {"labels": "cat\ndog", "size": (640, 640)}, False)]
    assert left() == []


def test_a_raw_body_has_its_options_in_the_query(client: TestClient, fleet: FakeFleet, left: Any) -> None:
    response = client.post("/models?name=parts&replace=true", **RAW)
    assert (response.status_code, response.headers["location"]) == (201, "/models/parts")
    assert fleet.files == [("parts.onnx", MODEL)]
    assert fleet.calls == [("add", {"name": "parts"}, True)]
    assert left() == []


def test_a_file_without_a_name_is_asked_for_one(client: TestClient, fleet: FakeFleet, left: Any) -> None:
    for response in (client.post("/models", **RAW), client.post("/models", **form(name="model.onnx"))):
        assert (response.status_code, response.json()["code"], response.json()["missing"]) == (422, "model_unclear", ["name"])
    assert client.post("/models?dry_run=true", **RAW).status_code == 200
    assert (fleet.calls, left()) == ([], [])


def test_labels_may_come_as_a_file_of_many_lines(client: TestClient, fleet: FakeFleet) -> None:
    labels = "\n".join(f"a thing of the kind {number}" for number in range(21_000))
    both = {"file": ("best.onnx", MODEL), "labels": ("labels.txt", labels.encode())}
    assert client.post("/models", files=both).status_code == 201
    assert fleet.calls[0][1]["labels"] == labels


def test_a_dry_run_says_what_the_file_is_and_adds_nothing(client: TestClient, fleet: FakeFleet, left: Any) -> None:
    response = client.post("/models", **form(), data={"dry_run": "true"})
    found = response.json()
    assert (response.status_code, found["name"], found["task"], found["classes"]) == (200, "best", "detect", 2)
    assert (found["adapter"]["decoder"], found["facts"]) == ("yolov8", ["two classes"])
    assert (fleet.calls, left()) == ([], [])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ModelRefused("a segmentation model"), 422),
        (errors.ModelUnclear("give labels", ["labels"]), 422),
        (errors.ModelExists("there is one"), 409),
        (errors.ModelFixed("it comes with the service"), 409),
        (errors.OptionInvalid("size", "size=9: give another"), 422),
        (ZeroDivisionError(), 500),
    ],
    ids=lambda given: getattr(given, "code", str(given)),
)
def test_what_the_fleet_refuses_is_told_and_deleted(
    client: TestClient, fleet: FakeFleet, left: Any, error: Exception, status: int
) -> None:
    fleet.raises = error
    response = client.post("/models", **form())
    assert response.status_code == status
    assert response.json()["code"] == getattr(error, "code", "internal")
    assert response.json().get("missing") == (["labels"] if isinstance(error, errors.ModelUnclear) else None)
    assert left() == []


def test_what_is_refused_stays_in_no_memory(client: TestClient, fleet: FakeFleet) -> None:
    class Whole:
        """Stands for a file of a gigabyte, read."""

    held: list[weakref.ref[Whole]] = []

    def parse() -> None:
        whole = Whole()
        held.append(weakref.ref(whole))
        raise ValueError

    def before() -> None:
        try:
            parse()
        except ValueError:
            raise errors.ModelRefused("it cannot be parsed") from None

    fleet.before = before
    gc.collect()
    gc.disable()
    try:
        assert client.post("/models", **form()).status_code == 422
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("query", "sent", "status", "code", "said"),
    [
        ("", {"files": {"model": ("best.onnx", MODEL)}}, 400, "body_malformed", "the fields that arrived: 'model'"),
        ("", {"data": {"file": "best.onnx"}, "files": {"x": b""}}, 400, "body_malformed", "-F file=@path"),
        ("", {"files": [("file", ("a", MODEL)), ("file", ("b", MODEL))]}, 400, "body_malformed", "2 files"),
        ("", form() | {"data": {"labls": "x"}}, 422, "option_invalid", "no option 'labls'"),
        ("?name=a", form() | {"data": {"name": "a"}}, 422, "option_invalid", "name is given more than once"),
        ("?name=A b", RAW, 422, "option_invalid", "name=A b"),
        ("?task=segment", RAW, 422, "option_invalid", "classify"),
        ("?name=a&default=2", RAW, 422, "option_invalid", "true or false"),
        ("", {"json": {"file": "AAAA"}}, 415, "media_type_unsupported", "application/octet-stream"),
        ("", {"content": MODEL, "headers": {"content-type": "multipart/form-data"}}, 400, "body_malformed", "no boundary"),
        ("", RAW | {"headers": RAW["headers"] | {"content-encoding": "gzip"}}, 415, "media_type_unsupported", "Content-Encoding"),  # type: ignore[operator]
    ],
)
def test_what_is_sent_wrong_is_told(
    client: TestClient, fleet: FakeFleet, left: Any, query: str, sent: dict[str, Any], status: int, code: str, said: str
) -> None:
    response = client.post(f"/models{query}", **sent)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert said in response.json()["detail"]
    assert (fleet.calls, left()) == ([], [])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_a_file_over_the_limit_is_413(client: TestClient, left: Any, raw: bool, chunked: bool) -> None:
    large = b"x" * (2**20 + 1)
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
    body = large if raw else head + large + f"\r\n--{BOUNDARY}--\r\n".encode()
    media = "application/octet-stream" if raw else f"multipart/form-data; boundary={BOUNDARY}"
    pieces = iter([body[: 2**19], body[2**19 :]])
    response = client.post("/models", content=pieces if chunked else body, headers={"content-type": media})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "VISION_MAX_MODEL_BYTES" in response.json()["detail"]
    assert left() == []


def test_the_other_fields_of_a_form_are_bounded_together(left: Any) -> None:
    reader = FileForm(BOUNDARY.encode(), lambda _: None, 2**30)
    reader.feed(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="labels"\r\n\r\n'.encode())
    reader.feed(b"x" * (4 * 2**20 - 100))
    with pytest.raises(errors.MalformedBody, match="beside the file"):
        reader.feed(b"x" * 200)


def test_a_model_may_be_larger_than_all_uploads_of_tasks_together(
    make: Callable[..., Any], open_client: Callable[..., TestClient], fleet: FakeFleet, jpeg: bytes
) -> None:
    client = open_client(make(max_body_bytes=2**12))
    assert client.post("/models", **form(MODEL)).status_code == 201  # 300 kB, where tasks have 32 kB
    assert fleet.files[0][1] == MODEL
    assert client.post("/classify", content=jpeg, headers={"content-type": "image/jpeg"}).status_code == 413


def test_cards(client: TestClient) -> None:
    assert client.get("/models").json()["models"][0] == client.get("/models/yolov3-tiny").json()
    unknown = client.get("/models/nope")
    assert (unknown.status_code, unknown.json()["known"]) == (404, ["yolov3-tiny", "broken"])
    broken = client.get("/models/broken")
    assert (broken.status_code, broken.json()["code"]) == (503, "not_ready")
    assert "broken is failed: its graph is cut short" in broken.json()["detail"]


def test_a_model_is_changed(client: TestClient, fleet: FakeFleet) -> None:
    response = client.patch("/models/yolov3-tiny", json={"labels": ["cat", "dog"], "mean": [0.5, 0.5, 0.5], "task": None})
    assert (response.status_code, response.json()["name"]) == (200, "yolov3-tiny")
    assert fleet.calls == [("change", "yolov3-tiny", {"labels": "cat\ndog", "mean": (0.5, 0.5, 0.5)})]
    assert client.patch("/models/nope", json={}).status_code == 404


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"content": b"{"}, "body_malformed"),
        ({"content": b"[" * 100_000}, "body_malformed"),
        ({"json": ["labels"]}, "body_malformed"),
        ({"json": {"replace": True}}, "option_invalid"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, "media_type_unsupported"),
        ({"content": b" " * (4 * 2**20 + 1)}, "body_too_large"),
    ],
)
def test_a_change_that_is_sent_wrong_is_told(
    make: Callable[..., Any], open_client: Callable[..., TestClient], fleet: FakeFleet, sent: dict[str, Any], code: str
) -> None:
    client = open_client(make(max_body_bytes=2**24))
    response = client.patch("/models/yolov3-tiny", **sent)
    assert (response.json()["code"], fleet.calls) == (code, [])


def test_a_model_is_removed(client: TestClient, fleet: FakeFleet) -> None:
    fixed = client.delete("/models/yolov3-tiny")
    assert (fixed.status_code, fixed.json()["code"]) == (409, "model_fixed")
    response = client.delete("/models/parts")
    assert (response.status_code, response.json()) == (200, {"removed": "parts", "models": ["yolov3-tiny", "broken"]})


def test_a_key_needs_the_scope_manage(make: Callable[..., Any], open_client: Callable[..., TestClient], left: Any) -> None:
    user = "u" * 32
    client = open_client(make(api_keys=f"web:use:{user}"))
    for method, path in (("POST", "/models"), ("PATCH", "/models/a"), ("DELETE", "/models/a"), ("GET", "/models/a")):
        response = client.request(method, path, headers={"x-api-key": user}, content=MODEL)
        assert (response.status_code, response.json()["code"]) == (403, "scope_missing")
    assert left() == []


# Time and clients that go away, on a server that really listens

HEAD = "POST /models?name=parts HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"


def upload(connect: Any, port: int, size: int) -> Any:
    """A connection on which `size` bytes of a model are announced."""
    client = connect(port)
    client.sendall(f"{HEAD}Content-Length: {size}\r\n\r\n".encode())
    return client


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(
    make: Any, serve: Any, connect: Any, wait: Any, left: Any, fleet: FakeFleet
) -> None:
    client = upload(connect, serve(make()), 2**20)
    client.sendall(b"x" * 2**19)
    wait(lambda: any(path.is_file() and path.stat().st_size for path in left()))
    client.close()
    wait(lambda: left() == [])
    assert fleet.files == []


def test_a_client_that_goes_away_later_does_not_stop_the_work(
    make: Any, serve: Any, connect: Any, wait: Any, left: Any, fleet: FakeFleet
) -> None:
    go = threading.Event()
    fleet.before = partial(go.wait, 10)
    client = upload(connect, serve(make()), len(MODEL))
    client.sendall(MODEL)
    wait(lambda: fleet.busy == 1)
    client.close()
    time.sleep(0.5)  # the server looks for clients that have gone
    assert [path.name for path in left() if path.is_file()] == ["parts.onnx"]
    go.set()
    wait(lambda: left() == [])
    assert fleet.calls == [("add", {"name": "parts"}, False)]


def test_an_upload_may_take_longer_than_a_request_while_its_bytes_flow(
    make: Any, serve: Any, connect: Any, fleet: FakeFleet
) -> None:
    port = serve(make(request_timeout=0.6, client_timeout=0.4, max_model_bytes=2**22))
    client = upload(connect, port, 4 * len(MODEL))
    for _ in range(4):
        client.sendall(MODEL)
        time.sleep(0.25)
    assert client.answer()[0] == 201
    assert fleet.files[0][1] == 4 * MODEL


def test_an_upload_that_dribbles_or_stops_is_given_up(make: Any, serve: Any, connect: Any, wait: Any, left: Any) -> None:
    port = serve(make(request_timeout=0.8, client_timeout=0.4))
    client, quiet = upload(connect, port, len(MODEL)), upload(connect, port, len(MODEL))
    quiet.sendall(b"x")
    for _ in range(6):
        client.sendall(b"x")
        time.sleep(0.2)
    status, _, body = client.answer()
    assert (status, body["code"]) == (504, "deadline_exceeded")
    status, _, body = quiet.answer()
    assert (status, body["code"]) == (408, "request_timeout")
    wait(lambda: left() == [])


def test_a_body_may_be_longer_than_the_server_takes_for_tasks(make: Any, serve: Any, connect: Any, fleet: FakeFleet) -> None:
    port = serve(make(max_body_bytes=2**10, max_model_bytes=2**22))
    client = upload(connect, port, 2**22)
    client.sendall(b"x" * 2**22)
    assert client.answer()[0] == 201
    assert len(fleet.files[0][1]) == 2**22


def test_one_is_worked_on_at_a_time_and_few_wait(
    make: Any, serve: Any, connect: Any, wait: Any, left: Any, fleet: FakeFleet
) -> None:
    go = threading.Event()
    fleet.before = partial(go.wait, 10)
    port = serve(make())
    clients = [upload(connect, port, len(MODEL)) for _ in range(PLACES)]
    for client in clients:
        client.sendall(MODEL)
    wait(lambda: fleet.busy == 1 and len([path for path in left() if path.is_file()]) == PLACES)
    status, headers, body = upload(connect, port, len(MODEL)).answer()
    assert (status, body["code"], headers["retry-after"]) == (503, "queue_full", "10")
    go.set()
    assert [client.answer()[0] for client in clients] == [201] * PLACES
    assert (fleet.most, left()) == (1, [])


# The file


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("best.onnx", "best.onnx"),
        ("C:\\models\\my best.onnx", "my-best.onnx"),
        ("../../etc/passwd", "passwd.onnx"),
        ("..", "model.onnx"),
        (".onnx", "model.onnx"),
        ("größe\x00.onnx", "gr-e.onnx"),
        (None, "model.onnx"),
        ("x" * 300, "x" * 100 + ".onnx"),
    ],
)
def test_names_of_files_are_made_safe(given: str | None, kept: str) -> None:
    assert safe_name(given) == kept


def test_only_the_first_takes_a_file(tmp_path: Path) -> None:
    file = StoredFile(tmp_path)
    assert [file.take(), file.take()] == [True, False]
    file.delete()
    file.write(b"late")  # whoever still writes is not disturbed
    assert list(tmp_path.iterdir()) == []


def test_uploads_that_a_killed_process_left_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = StoredFile(tmp_path)
    left.write(b"half")
    left.end("a.onnx")
    StoredFile(tmp_path).delete()
    assert left.path.exists()
    monkeypatch.setattr(files, "STALE", -1.0)
    StoredFile(tmp_path).delete()
    assert not left.path.exists()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[StoredFile]:
    file = StoredFile(tmp_path)
    file._file.close()
    with Path("/dev/full").open("wb") as file._file:
        yield file
        file.delete()


def test_a_full_disk_is_said_in_words(full: StoredFile) -> None:
    with pytest.raises(errors.Busy, match="no room"):
        full.write(MODEL)


def test_a_data_folder_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_bytes(b"in the way")
    with pytest.raises(errors.ModelFixed, match="cannot write its data folder"):
        StoredFile(tmp_path / "uploads")


def test_every_option_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = text.partition("| option | says |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() if row.startswith("| ") for name in row.split("|")[1].replace(" ", "").split(",")}
    assert named - {"---"} == set(Told.model_fields)

"""Pulling public models by name from a host on this machine, which serves real files and goes wrong in every way."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.errors import DigestMismatch, FetchFailed
from service.repository.spec import load_spec
from service.repository.store import BuiltModel, ensure, find_built
from service.runtime.session import run_once
from service.settings import Settings

PAGE = b"<!DOCTYPE html><html><body>Sign in to go on</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1779\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def raw_host() -> Iterator[Callable[..., str]]:
    """raw_host(answer, hang=False): the address of a host that answers every request with these bytes, and then hangs up or not."""
    servers: list[socket.socket] = []
    held: list[socket.socket] = []

    def serve(server: socket.socket, answer: bytes, hang: bool) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.sendall(answer)
            held.append(connection)
            if not hang:
                connection.shutdown(socket.SHUT_WR)

    def start(answer: bytes, *, hang: bool = False) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=serve, args=(server, answer, hang), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/one.onnx"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
    for one in (*servers, *held):
        one.close()


@pytest.fixture
def pull(shop_of: Any, settings: Settings, heard: Any) -> Callable[..., Any]:
    """pull(*urls): the model `one`, published at these addresses, fetched and built."""

    def run(*urls: str) -> Any:
        return ensure(shop_of.public("one", *urls), settings, run_once, heard)

    return run


def again(shop_of: Any, settings: Settings, heard: Any) -> BuiltModel:
    return ensure(load_spec(shop_of.root / "catalogue" / "one"), settings, run_once, heard)


def left(shop_of: Any) -> list[str]:
    """The files of the model's folder and of the downloads."""
    catalogue = shop_of.root / "catalogue"
    places = [catalogue / "one", catalogue / ".downloads"]
    return sorted(path.name for place in places for path in place.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """command("models", ...): exit status, stdout and stderr."""
    monkeypatch.setenv("VISION_DATA_DIR", str(settings.data_dir))

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return status, *capsys.readouterr()

    return run


def test_by_alias_on_the_command_line(shop_of: Any, shelf: Any, command: Any) -> None:
    spec = shop_of.public("one", f"{shelf.url}/one.onnx", aliases=["first"])
    shelf.put("/one.onnx", shop_of.body)
    status, out, _ = command("models", "list", "--available", "--json")
    card = json.loads(out)
    assert (status, card["name"], card["aliases"], card["built"]) == (0, "one", ["first"], False)
    assert (card["bytes"], card["licence"]["spdx"], card["accuracy"][0]["value"]) == (len(shop_of.body), "Apache-2.0", 0.4)
    assert command("models", "pull", "first")[:2] == (0, f"one: ready at {spec.folder}\n")
    status, out, _ = command("models", "list", "--available")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["one", "first", "detect", "0.0", "mAP", "0.4", "Apache-2.0", "yes", "yes"]
    assert "one" in command("models", "list")[1]
    assert command("models", "pull", "first")[0] == 0  # in place: nothing is asked
    assert shelf.asked("/one.onnx") == [None]
    assert command("models", "remove", "one")[0] == 0
    assert left(shop_of) == ["model.toml"]
    assert command("models", "remove", "one")[0] == 1


def test_an_unknown_name_and_terms_that_are_not_accepted(shop_of: Any, shelf: Any, command: Any) -> None:
    shop_of.public("one", f"{shelf.url}/one.onnx", spdx="CC-BY-NC-4.0", commercial_use=False)
    shelf.put("/one.onnx", shop_of.body)
    status, _, err = command("models", "pull", "onee")
    assert (status, "use one of: one" in err) == (1, True)
    status, _, err = command("models", "pull", "one")
    assert (status, "forbids commercial use" in err) == (1, True)
    assert shelf.log == []
    assert command("models", "pull", "one", "--accept-licence", "one")[0] == 0


def test_all_that_serving_needs_with_the_detector_of_choice(shop_of: Any, shelf: Any, command: Any) -> None:
    shop_of.own("yolov3-tiny", f"{shelf.url}/tiny.onnx")
    shop_of.public("yolox-s", f"{shelf.url}/x.onnx")
    shop_of.public("other", f"{shelf.url}/x.onnx")
    for path in ("/tiny.onnx", "/x.onnx"):
        shelf.put(path, shop_of.body)
    status, out, _ = command("models", "pull")
    assert (status, [line.split(":")[0] for line in out.splitlines()]) == (0, ["yolov3-tiny", "yolox-s"])
    assert "the default detector is yolox-s: its host answered" in command("models", "list")[1]


def test_a_cut_is_taken_up_where_it_was(shop_of: Any, shelf: Any, pull: Any, settings: Settings, heard: Any) -> None:
    page = shelf.put("/one.onnx", shop_of.body, cuts=1)
    with pytest.raises(FetchFailed):
        pull(f"{shelf.url}/one.onnx")
    assert "one.onnx.part" in left(shop_of)
    assert find_built(load_spec(shop_of.root / "catalogue" / "one"), settings) is None
    assert page.cuts == 0
    built = again(shop_of, settings, heard)
    assert shelf.asked("/one.onnx") == [None, f"bytes={len(shop_of.body) // 2}-"]
    assert (built.folder / "weights" / "one.onnx").read_bytes() == shop_of.body
    assert [name for name in left(shop_of) if ".part" in name] == []


def test_the_half_of_one_host_is_made_whole_by_the_next(shop_of: Any, shelf: Any, pull: Any) -> None:
    """The digest of the whole is known, so it matters little who sends which half."""
    shelf.put("/cut.onnx", shop_of.body, cuts=9, etag=None)
    shelf.put("/one.onnx", shop_of.body, etag=None)
    built = pull(f"{shelf.url}/cut.onnx", f"{shelf.url}/one.onnx")
    assert (built.folder / "weights" / "one.onnx").read_bytes() == shop_of.body
    assert shelf.asked("/one.onnx") == [f"bytes={len(shop_of.body) // 2}-"]


def test_a_host_that_knows_no_ranges(shop_of: Any, shelf: Any, pull: Any, settings: Settings, heard: Any) -> None:
    shelf.put("/one.onnx", shop_of.body, cuts=1, ranges=False)
    with pytest.raises(FetchFailed):
        pull(f"{shelf.url}/one.onnx")
    again(shop_of, settings, heard)
    assert [sent is None for sent in shelf.asked("/one.onnx")] == [True, False]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PAGE, rf"it has {len(PAGE)} bytes, not \d+; it is an HTML page, such as a host shows instead of the file"),
        (PAGE * 99, r"it has \d+ bytes, not \d+; it is an HTML page"),
        (POINTER, rf"it has {len(POINTER)} bytes, not \d+; it is a Git LFS pointer, which only says where the file is"),
        (b"\x08" * 99, r"it has 99 bytes, not \d+\n"),
        (b'{"error": "gone"}', r"it has 17 bytes, not \d+; it is a message of the host instead of the file"),
    ],
)
def test_what_is_not_the_file_is_called_by_its_name(shop_of: Any, shelf: Any, pull: Any, body: bytes, said: str) -> None:
    shelf.put("/one.onnx", body, type="text/html")
    with pytest.raises(DigestMismatch, match=said):
        pull(f"{shelf.url}/one.onnx")
    assert left(shop_of) == ["model.toml"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda body: bytes(len(body)), "does not have the sha256 [0-9a-f]{64} that was promised"),
        (lambda body: (PAGE + b" " * len(body))[: len(body)], "does not have the sha256 .*; it is an HTML page"),
    ],
)
def test_other_bytes_of_the_same_length(shop_of: Any, shelf: Any, pull: Any, body: Any, said: str) -> None:
    shelf.put("/one.onnx", body(shop_of.body))
    with pytest.raises(DigestMismatch, match=said):
        pull(f"{shelf.url}/one.onnx")
    assert left(shop_of) == ["model.toml"]


@pytest.mark.parametrize(
    ("status", "said"), [(403, "HTTP 403 Forbidden"), (404, "HTTP 404 Not Found"), (500, "HTTP 500 Internal Server Error")]
)
def test_a_host_that_says_no(shop_of: Any, shelf: Any, pull: Any, status: int, said: str) -> None:
    shelf.put("/one.onnx", shop_of.body, answers=[status] * 9)
    with pytest.raises(FetchFailed, match=f"{shelf.url}/one.onnx: {said}"):
        pull(f"{shelf.url}/one.onnx")
    assert left(shop_of) == ["model.toml"]


def test_a_length_that_is_not_said(shop_of: Any, pull: Any, raw_host: Any, settings: Settings, heard: Any) -> None:
    """The end of the connection is the end of the file, or a cut: only the size tells."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    with pytest.raises(FetchFailed, match=rf"it ended after 100 of {len(shop_of.body)} bytes"):
        pull(raw_host(head + shop_of.body[:100]))
    built = ensure(shop_of.public("two", raw_host(head + shop_of.body)), settings, run_once, heard)
    assert (built.folder / "weights" / "two.onnx").read_bytes() == shop_of.body


def test_more_bytes_than_were_asked_for(shop_of: Any, pull: Any, raw_host: Any) -> None:
    with pytest.raises(DigestMismatch, match=r"it is larger than \d+ bytes; it is an HTML page"):
        pull(raw_host(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PAGE * 999))


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", None])
def test_a_connection_that_stalls(shop_of: Any, pull: Any, raw_host: Any, monkeypatch: Any, sent: bytes | None) -> None:
    """Before the answer, within it, and within the file, of which the beginning is kept."""
    monkeypatch.setenv("PIP_TIMEOUT", "0.2")
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(shop_of.body) + shop_of.body[:100]
    with pytest.raises(FetchFailed, match="it stalled: no more bytes came, and it was given up"):
        pull(raw_host(begun if sent is None else sent, hang=True))
    parts = list((shop_of.root / "catalogue").rglob("one.onnx.part"))
    assert [path.read_bytes() for path in parts] == ([shop_of.body[:100]] if sent is None else [])


def test_the_next_address_is_tried(shop_of: Any, shelf: Any, pull: Any, raw_host: Any, monkeypatch: Any) -> None:
    """Whatever is wrong with the first ones; and nobody is asked for what is there."""
    monkeypatch.setenv("PIP_TIMEOUT", "0.2")
    shelf.put("/page", PAGE)
    shelf.put("/pointer", POINTER)
    shelf.put("/one.onnx", shop_of.body)
    shelf.put("/never", shop_of.body)
    wrong = ["http://127.0.0.1:9/dead", raw_host(b"", hang=True), *(f"{shelf.url}/{path}" for path in ("gone", "page", "pointer"))]
    built = pull(*wrong, f"{shelf.url}/one.onnx", f"{shelf.url}/never")
    assert (built.folder / "weights" / "one.onnx").read_bytes() == shop_of.body
    assert [path for path, _ in shelf.log] == ["/gone", "/page", "/pointer", "/one.onnx"]


def test_all_that_was_tried_is_said(shop_of: Any, shelf: Any, pull: Any) -> None:
    shelf.put("/page", PAGE)
    with pytest.raises(DigestMismatch) as caught:
        pull("http://127.0.0.1:9/dead", f"{shelf.url}/gone", f"{shelf.url}/page")
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  - http://127.0.0.1:9/dead: no answer: ")
    assert lines[2] == f"  - {shelf.url}/gone: HTTP 404 Not Found"
    assert lines[3].startswith(f"  - {shelf.url}/page: it has {len(PAGE)} bytes")
    assert "To place it by hand, put the file at" in lines[4]


def test_one_address_of_several_is_asked_no_more_than_twice(shop_of: Any, shelf: Any, pull: Any, monkeypatch: Any) -> None:
    """Where another one may have the file, waiting for the first helps nobody; the last one gets all the tries."""
    monkeypatch.setenv("PIP_RETRIES", "3")
    monkeypatch.setattr("service.repository.attempt.time.sleep", lambda seconds: None)
    shelf.put("/busy", shop_of.body, answers=[503] * 9)
    shelf.put("/one.onnx", shop_of.body, answers=[503] * 3)
    pull(f"{shelf.url}/busy", f"{shelf.url}/one.onnx")
    assert (len(shelf.asked("/busy")), len(shelf.asked("/one.onnx"))) == (2, 4)


def test_a_part_is_never_taken_for_the_file(shop_of: Any, shelf: Any, settings: Settings, heard: Any) -> None:
    """Not even one of the right length, where a killed process left it."""
    spec = shop_of.public("one", f"{shelf.url}/one.onnx")
    shelf.put("/one.onnx", shop_of.body, etag=None)
    downloads = spec.folder.parent / ".downloads" / spec.files[0].sha256
    for place in (downloads, spec.folder / "weights"):
        place.mkdir(parents=True)
    (downloads / "one.onnx.part").write_bytes(bytes(len(shop_of.body)))
    (spec.folder / "weights" / ".one.onnx.part").write_bytes(bytes(len(shop_of.body)))
    built = ensure(spec, settings, run_once, heard)
    assert (built.folder / "weights" / "one.onnx").read_bytes() == shop_of.body
    assert [name for name in left(shop_of) if ".part" in name] == []

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.repository.attempt import Refused
from service.repository.index import Place, find_archives, open_client, places
from service.repository.pipconfig import PipConfig
from service.repository.spec import PackageSource

SOURCE = PackageSource(package="Shelf_Ware", version="1.0", member="w")
FILES = {
    "shelf_ware-1.0.tar.gz": b"s",
    "shelf_ware-1.0-py2-none-any.whl": b"w",
    "shelf_ware-1.1-py3-none-any.whl": b"later",
    "shelf_ware_more-1.0-py3-none-any.whl": b"another package",
}
Find = Callable[..., list[Any]]


@pytest.fixture
def find(heard: Any) -> Find:
    def run(place: Place, config: PipConfig | None = None, retries: int = 0) -> list[Any]:
        with open_client(config or PipConfig(timeout=5)) as client:
            return find_archives(SOURCE, place, client, retries, heard)

    return run


@pytest.mark.parametrize("style", ["json", "html"])
def test_the_pinned_wheel_then_the_pinned_sdist(shelf: Any, find: Find, style: str) -> None:
    shelf.release("shelf-ware", FILES, style=style)
    found = find(Place(f"{shelf.url}/simple"))
    assert [remote.filename for remote in found] == ["shelf_ware-1.0-py2-none-any.whl", "shelf_ware-1.0.tar.gz"]
    assert found[0].url == f"{shelf.url}/files/shelf_ware-1.0-py2-none-any.whl"
    assert found[0].digest[0] == "sha256"
    assert found[0].local is None


@pytest.mark.parametrize("style", ["json", "html"])
def test_an_index_may_give_no_digests(shelf: Any, find: Find, style: str) -> None:
    shelf.release("shelf-ware", FILES, style=style, hashes=False)
    assert [remote.digest for remote in find(Place(f"{shelf.url}/simple/"))] == [None, None]


@pytest.mark.parametrize("form", ["folder", "url", "page"])
def test_find_links(tmp_path: Path, find: Find, form: str) -> None:
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "links.html").write_text('<a href="shelf_ware-1.0.tar.gz">x</a>')
    url = {"folder": str(tmp_path), "url": tmp_path.as_uri(), "page": (tmp_path / "links.html").as_uri()}[form]
    found = find(Place(url, find_links=True))
    assert found[-1].local == tmp_path / "shelf_ware-1.0.tar.gz"
    assert len(found) == (1 if form == "page" else 2)


def test_find_links_below_the_home_folder(tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shelf_ware-1.0.tar.gz").write_bytes(b"s")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find(Place(f"~/{tmp_path.name}", find_links=True))[0].local == tmp_path / "shelf_ware-1.0.tar.gz"


def refusal(find: Find, place: Place, config: PipConfig | None = None) -> str:
    with pytest.raises(Refused) as error:
        find(place, config)
    return str(error.value)


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ({}, "Client Error(404)"),
        ({"/simple/shelf-ware/": {"body": b"", "answers": [403]}}, "Client Error(403)"),
        ({"/simple/shelf-ware/": {"body": b"", "login": "Basic x"}}, "Client Error(401)"),
        ({"/simple/shelf-ware/": {"body": b"", "answers": [503]}}, "Server Error(503)"),
        ({"/simple/shelf-ware/": {"body": b"Please log in", "type": "text/plain"}}, "Content-Type unsupported"),
        ({"/simple/shelf-ware/": {"body": b"<html></html>", "type": "text/html"}}, "it has no Shelf_Ware 1.0"),
        (
            {"/simple/shelf-ware/": {"body": b"{", "type": "application/vnd.pypi.simple.v1+json"}},
            "its answer cannot be read: Expecting property name",
        ),
    ],
)
def test_an_index_that_does_not_have_it(shelf: Any, find: Find, pages: Mapping[str, Any], reason: str) -> None:
    for path, options in pages.items():
        shelf.put(path, **options)
    assert reason in refusal(find, Place(f"{shelf.url}/simple"))


def test_places_that_are_not_there(tmp_path: Path, find: Find) -> None:
    assert refusal(find, Place(str(tmp_path / "none"), find_links=True)) == "there is no such folder"
    assert refusal(find, Place((tmp_path / "none").as_uri())) == "it has no Shelf_Ware 1.0"
    assert "no answer: " in refusal(find, Place("http://127.0.0.1:9"))


def test_plain_http_beyond_this_machine_needs_a_trusted_host(find: Find) -> None:
    assert "not being trusted" in refusal(find, Place("http://index.invalid/simple"))
    proxied = PipConfig(trusted_hosts=("index.invalid",), proxy="http://127.0.0.1:9", timeout=5)
    assert "no answer: " in refusal(find, Place("http://index.invalid/simple"), proxied)


def test_a_busy_index_is_asked_again(shelf: Any, find: Find, heard: Any) -> None:
    shelf.release("shelf-ware", FILES)
    shelf.pages["/simple/shelf-ware/"].answers = [503]
    assert len(find(Place(f"{shelf.url}/simple"), retries=1)) == 2
    assert "Server Error(503)" in heard.notes[0]


def test_a_login_in_the_url_is_used_and_never_shown(shelf: Any, find: Find) -> None:
    shelf.release("shelf-ware", FILES)
    shelf.pages["/simple/shelf-ware/"].login = "Basic dXNlcjpzM2NyZXQ="  # user:s3cret
    place = Place(f"http://user:s3cret@{shelf.host}/simple")
    assert find(place, PipConfig(indexes=(place.url,), timeout=5))[0].url.startswith(shelf.url)
    shelf.pages["/simple/shelf-ware/"].login = "Basic other"
    assert "s3cret" not in f"{place}: {refusal(find, place, PipConfig(indexes=(place.url,), timeout=5))}"


def test_a_login_from_netrc_is_used(shelf: Any, find: Find, tmp_path: Path) -> None:
    shelf.release("shelf-ware", FILES)
    shelf.pages["/simple/shelf-ware/"].login = "Basic dXNlcjpzM2NyZXQ="
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password s3cret\n")
    assert len(find(Place(f"{shelf.url}/simple"))) == 2


def test_complaints_do_not_reach_the_log(shelf: Any, find: Find, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "unearth"):
        refusal(find, Place(f"{shelf.url}/simple"))
    assert "Failed to collect" not in caplog.text


@pytest.mark.parametrize("name", ["cert", "client_cert"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=r"cert or client-cert cannot be read: .*none\.pem"):
        open_client(PipConfig(**{name: str(tmp_path / "none.pem")}))


def test_places_are_local_folders_then_indexes() -> None:
    config = PipConfig(indexes=(None, "https://u:p@extra"), find_links=("/wheels",))
    assert [str(place) for place in places(config)] == ["/wheels", "the default index", "https://***@extra"]

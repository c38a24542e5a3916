import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.repository.attempt import Refused, Transient, no_answer, persist, redact
from service.repository.download import Downloader
from service.repository.index import Remote, open_client
from service.repository.pipconfig import PipConfig

LIMIT = 10_000_000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "a.whl"


@pytest.fixture
def download(shelf: Any, heard: Any, weights: bytes, target: Path) -> Iterator[Any]:
    """download(digest=True, retries=0, limit=...) from /a.whl to `target`."""
    with open_client(PipConfig(timeout=5)) as client:

        def run(*, digest: bool = True, retries: int = 0, limit: int = LIMIT) -> None:
            promised = ("sha256", hashlib.sha256(weights).hexdigest()) if digest else None
            Downloader(client, retries, heard).download(Remote(f"{shelf.url}/a.whl", "a.whl", promised), target, limit)

        yield run


def leave_half(target: Path, body: bytes, tag: str | None) -> int:
    """What a killed process leaves: part of the bytes, and the server's tag."""
    target.parent.mkdir()
    half = len(body) // 2
    target.with_name("a.whl.part").write_bytes(body[:half])
    if tag is not None:
        target.with_name("a.whl.part.tag").write_text(tag)
    return half


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_whole_download(shelf: Any, download: Any, target: Path, weights: bytes, heard: Any) -> None:
    shelf.put("/a.whl", weights)
    download()
    assert target.read_bytes() == weights
    assert left(target) == ["a.whl"]
    assert heard.bars == [["a.whl", len(weights), 0, len(weights)]]
    download()
    assert len(shelf.log) == 1


def test_it_goes_on_where_it_stopped(shelf: Any, download: Any, target: Path, weights: bytes, heard: Any) -> None:
    shelf.put("/a.whl", weights)
    half = leave_half(target, weights, '"v1"')
    download()
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [f"bytes={half}-"]
    assert heard.bars == [["a.whl", len(weights), half, len(weights) - half]]


def test_a_known_digest_is_enough_to_go_on(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights, etag=None)
    half = leave_half(target, weights, None)
    download()
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [f"bytes={half}-"]


@pytest.mark.parametrize(
    ("tag", "options", "digest"),
    [
        ('"v0"', {}, True),  # the file on the server has changed
        (None, {"etag": None}, False),  # nothing says that the half belongs to this file
        ('"v1"', {"ranges": False}, True),  # the server sends it all anyway
    ],
)
def test_it_starts_again_where_it_cannot_go_on(
    shelf: Any, download: Any, target: Path, weights: bytes, tag: str | None, options: Any, digest: bool
) -> None:
    shelf.put("/a.whl", weights, **options)
    leave_half(target, b"?" * len(weights), tag)
    download(digest=digest)
    assert target.read_bytes() == weights
    assert left(target) == ["a.whl"]


def test_a_half_that_does_not_fit_is_thrown_away(shelf: Any, download: Any, target: Path, weights: bytes, heard: Any) -> None:
    shelf.put("/a.whl", weights, etag=None)
    half = leave_half(target, b"?" * len(weights), None)
    download()
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [f"bytes={half}-", None]
    assert "does not fit; starting again" in heard.notes[0]


def test_killed_between_the_last_byte_and_the_name(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights)
    leave_half(target, weights * 2, '"v1"')
    download()
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [f"bytes={len(weights)}-"]


def test_a_half_that_is_longer_than_the_file(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights)
    leave_half(target, weights * 3, '"v1"')
    download(retries=1)
    assert target.read_bytes() == weights
    assert left(target) == ["a.whl"]


def test_another_range_than_asked_for_is_not_glued_on(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights, shift=1)
    half = leave_half(target, weights, '"v1"')
    download(retries=1)
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [f"bytes={half}-", None]


def test_a_broken_connection_is_taken_up_again(shelf: Any, download: Any, target: Path, weights: bytes, heard: Any) -> None:
    shelf.put("/a.whl", weights, cuts=1)
    download(retries=1)
    assert target.read_bytes() == weights
    assert shelf.asked("/a.whl") == [None, f"bytes={len(weights) // 2}-"]
    assert "trying again in 0.5 s" in heard.notes[0]


def test_a_connection_that_keeps_breaking_is_given_up_and_kept_for_later(
    shelf: Any, download: Any, target: Path, weights: bytes
) -> None:
    shelf.put("/a.whl", weights, cuts=1)
    with pytest.raises(Refused):
        download()
    assert not target.exists()
    assert left(target) == ["a.whl.part", "a.whl.part.tag"]
    download()
    assert target.read_bytes() == weights


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(shelf: Any, download: Any, target: Path, weights: bytes, status: int) -> None:
    shelf.put("/a.whl", weights, answers=[status])
    download(retries=1)
    assert target.read_bytes() == weights


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_clear_no_is_not_asked_again(shelf: Any, download: Any, target: Path, weights: bytes, status: int) -> None:
    shelf.put("/a.whl", weights, answers=[status])
    with pytest.raises(Refused, match=f"HTTP {status}"):
        download(retries=3)
    assert len(shelf.log) == 1
    assert not target.exists()


def test_redirects_are_followed(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", b"", location="/elsewhere.whl")
    shelf.put("/elsewhere.whl", weights)
    download()
    assert target.read_bytes() == weights


def test_other_bytes_than_promised_are_refused_and_removed(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights[:-1] + b"!")
    with pytest.raises(Refused, match="it does not have the sha256") as error:
        download()
    assert error.value.wrong_digest
    assert left(target) == []
    assert len(shelf.log) == 1


def test_no_more_than_the_limit_is_written(shelf: Any, download: Any, target: Path, weights: bytes) -> None:
    shelf.put("/a.whl", weights)
    with pytest.raises(Refused, match="larger than 100000 bytes"):
        download(limit=100_000)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) < 100


def test_nobody_answers(heard: Any, target: Path) -> None:
    with open_client(PipConfig(timeout=5)) as client, pytest.raises(Refused, match=r"no answer: .*[Rr]efused"):
        Downloader(client, 0, heard).download(Remote("http://127.0.0.1:9/a.whl", "a.whl"), target, LIMIT)


@pytest.mark.parametrize(
    ("error", "passing", "shown"),
    [
        (httpx2.ConnectError("[Errno 111] Connection refused"), True, "no answer: [Errno 111] Connection refused"),
        (httpx2.ReadTimeout(""), True, "it stalled: no more bytes came"),
        (httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), False, "CERTIFICATE_VERIFY_FAILED"),
        (httpx2.TooManyRedirects("20 times"), False, "no answer: 20 times"),
        (httpx2.InvalidURL("http://u:p@host:x"), False, "no answer: http://***@host:x"),
    ],
)
def test_what_the_network_may_get_over(error: Any, passing: bool, shown: str) -> None:
    refused = no_answer(error)
    assert isinstance(refused, Transient) == passing
    assert shown in str(refused)


def test_persist_counts_only_tries_without_a_gain(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("service.repository.attempt.time.sleep", slept.append)
    size, tries = 0, 0

    def fails(gain: int, until: int) -> str:
        nonlocal size, tries
        size, tries = size + gain, tries + 1
        if tries < until:
            raise Transient("cut")
        return "done"

    assert persist(lambda: fails(2**20, 9), "a.whl", 1, heard, lambda: size) == "done"
    assert slept == [0.5] * 8
    assert heard.notes[0] == "a.whl: cut; trying again in 0.5 s"
    slept.clear()
    tries = 0
    with pytest.raises(Transient, match="cut"):
        persist(lambda: fails(1000, 99), "a.whl", 3, heard, lambda: size)
    assert (tries, slept) == (4, [0.5, 1.0, 2.0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/simple", "https://***@host/simple"),
        ("at https://token@host:8080/x and http://a:b@c", "at https://***@host:8080/x and http://***@c"),
        ("https://user:p@ss@host/", "https://***@host/"),
        ("https://host/path@1.0", "https://host/path@1.0"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown

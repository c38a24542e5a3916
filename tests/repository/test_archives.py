import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from service.repository.archives import open_member
from service.repository.attempt import Refused

DATA = bytes(range(256)) * 500


def read(path: Path, member: str) -> bytes:
    with open_member(path, member) as stream:
        return stream.read()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tar_with(*infos: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_wheel_member_is_found_by_its_whole_path(tmp_path: Path, make_wheel: Any) -> None:
    path = written(tmp_path / "a-1-py3-none-any.whl", make_wheel({"other/pkg/w.bin": b"no", "pkg/w.bin": DATA}))
    assert read(path, "pkg/w.bin") == DATA


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_sdist_member_is_found_below_the_top_folder(tmp_path: Path, make_wheel: Any, make_sdist: Any, suffix: str) -> None:
    files = {"w.bin": b"no", "pkg/w.bin": DATA}
    body = make_sdist("a-1", files) if suffix == ".tar.gz" else make_wheel({f"a-1/{name}": data for name, data in files.items()})
    path = written(tmp_path / f"a-1{suffix}", body)
    assert read(path, "pkg/w.bin") == DATA


@pytest.mark.parametrize("suffix", [".whl", ".tar.gz", ".zip"])
def test_a_member_that_is_not_there(tmp_path: Path, make_wheel: Any, make_sdist: Any, suffix: str) -> None:
    body = make_sdist("a-1", {"b": b"1"}) if suffix == ".tar.gz" else make_wheel({"a-1/b": b"1"})
    path = written(tmp_path / f"a-1{suffix}", body)
    with pytest.raises(Refused, match=r"holds no file pkg/w\.bin"):
        read(path, "pkg/w.bin")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_regular_files_are_read(tmp_path: Path, kind: bytes) -> None:
    path = written(tmp_path / "a-1.tar.gz", tar_with(entry("a-1/w", kind, "/etc/hostname")))
    with pytest.raises(Refused, match="holds no file w"):
        read(path, "w")


def test_a_zip_folder_is_not_a_file(tmp_path: Path, make_wheel: Any) -> None:
    path = written(tmp_path / "a.whl", make_wheel({"pkg/": b""}))
    with pytest.raises(Refused, match="holds no file pkg/"):
        read(path, "pkg/")


def test_reading_writes_nothing_anywhere(tmp_path: Path, make_wheel: Any) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    path = written(inside / "a.whl", make_wheel({"../../evil": b"1", "/evil": b"1", "pkg/w": DATA}))
    assert read(path, "pkg/w") == DATA
    assert sorted(tmp_path.rglob("*")) == [inside, path]


def damaged(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [(suffix, harm) for suffix in (".whl", ".tar.gz") for harm in ("cut", "garbage", "empty")] + [(".whl", "changed")],
)
def test_damaged_archives_are_refused_and_named(tmp_path: Path, make_wheel: Any, make_sdist: Any, suffix: str, harm: str) -> None:
    body = make_wheel({"w": DATA}) if suffix == ".whl" else make_sdist("a-1", {"w": DATA})
    harmed = {
        "cut": body[: len(body) // 2],
        "changed": damaged(body, len(body) // 2),
        "garbage": b"<html>no</html>" * 99,
        "empty": b"",
    }
    path = written(tmp_path / f"a-1{suffix}", harmed[harm])
    with pytest.raises(Refused, match="it is damaged"):
        read(path, "w")


def test_an_encrypted_member_is_refused(tmp_path: Path, make_wheel: Any) -> None:
    body = bytearray(make_wheel({"w": DATA}))
    body[6] |= 1  # the flag in the local header, and in the central directory
    body[body.index(b"PK\x01\x02") + 8] |= 1
    path = written(tmp_path / "a.whl", bytes(body))
    with pytest.raises(Refused, match="encrypted"):
        read(path, "w")


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w", DATA)
    body = bytearray(path.read_bytes())
    body[body.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(bytes(body))
    with pytest.raises(Refused, match="is damaged"):
        read(path, "w")

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service.repository.files import digest_of, locked, write_whole


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digest_of(tmp_path: Path, algorithm: str) -> None:
    data = b"0123456789" * 100_000
    (tmp_path / "file").write_bytes(data)
    assert digest_of(tmp_path / "file", algorithm) == hashlib.new(algorithm, data).hexdigest()


def test_write_whole_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for data in (b"old", b"new and longer"):
        write_whole(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lock_keeps_others_out_and_says_so_once(tmp_path: Path, heard: Any) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "folder" / ".lock", heard, "someone is at it"):
            order.append("second")

    with locked(tmp_path / "folder" / ".lock", heard, "nobody waits for the first"):
        thread = threading.Thread(target=second)
        thread.start()
        while not heard.notes:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert heard.notes == ["someone is at it"]


def test_a_lock_is_given_back_after_an_error(tmp_path: Path, heard: Any) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / ".lock", heard, "waiting"):
        raise ValueError("inside")
    with locked(tmp_path / ".lock", heard, "waiting"):
        pass
    assert heard.notes == []

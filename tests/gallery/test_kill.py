"""kill -9 amid a thousand concurrent enrolments, on both databases: all that was acknowledged is there, nothing by half."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def wait_for_last_commit(server: Any, url: str) -> None:
    """PostgreSQL goes on with what the killed process had asked for, and only then notices that nobody listens."""
    name = url.partition("?")[0].rpartition("/")[2]
    sql = f"SELECT 'clients ' || count(*) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend';"
    deadline = time.monotonic() + 30
    while "clients 0" not in server.psql(sql):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("turn", range(20))
def test_a_kill_loses_nothing_that_was_acknowledged(
    database: Any, kill_script: Path, turn: int, request: pytest.FixtureRequest
) -> None:
    child = subprocess.Popen(
        [sys.executable, str(kill_script), database.url], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(random.Random(turn).randrange(1, 960))]
    child.kill()
    lines += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    assert child.wait() < 0  # killed, not done
    acknowledged = [int(line) for line in lines if line.endswith(b"\n")]
    if database.kind == "postgres":
        wait_for_last_commit(request.getfixturevalue("postgres_server"), database.url)

    gallery = database.open()
    subjects = {subject.name: subject.faces for subject in gallery.subjects("default", limit=1000).subjects}
    assert {f"subject {number}" for number in acknowledged} <= subjects.keys()
    assert all(faces == 1 + int(name.split()[1]) % 5 for name, faces in subjects.items())
    (counted,) = gallery.collections()
    assert (counted.subjects, counted.faces) == (len(subjects), sum(subjects.values()))
    for number in acknowledged:
        vectors = np.stack([np.random.default_rng([number, face]).standard_normal(16) for face in range(1 + number % 5)])
        queries = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        for (match,) in gallery.search("default", queries).matches:
            assert match.subject == f"subject {number}"
            assert match.similarity > 0.9999
    database.close()
    if database.kind == "sqlite":
        db = sqlite3.connect(database.url.removeprefix("sqlite://"))
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.close()

"""What SQLite alone promises: the file, several processes, a kill at any moment, and nothing left of what was deleted."""

import multiprocessing
import random
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import GalleryUnavailable, SettingInvalid
from service.gallery import sqlite_file, sqlite_follow, sqlite_rows
from service.gallery.gallery import EmbeddingModel, Entry, NewFace
from service.gallery.sqlite import SqliteGallery

Face = Callable[..., NewFace]
Vector = Callable[..., NDArray[np.float32]]
MODEL = EmbeddingModel("sface", "1", "ab" * 32, "plain", 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "gallery.sqlite3"


def left_in(path: Path, *parts: bytes) -> list[bytes]:
    """Those of `parts` that stand in any file of the gallery."""
    contents = [file.read_bytes() for file in path.parent.iterdir()]
    return [part for part in parts if any(part in content for content in contents)]


def test_nobody_else_may_read_the_file(path: Path, face: Face) -> None:
    gallery = SqliteGallery(path, MODEL)
    gallery.enroll("default", "Ada", [face(1)])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {
        path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600,
    }  # fmt: skip
    assert gallery.place == str(path)
    gallery.close()


def test_the_path_may_hold_what_means_something_in_a_url(tmp_path: Path, face: Face) -> None:
    odd = tmp_path / "a?mode=ro#b %41" / "g.sqlite3"
    gallery = SqliteGallery(odd, MODEL)
    gallery.enroll("default", "Ada", [face(1)])
    gallery.close()
    assert odd.stat().st_size > 0


def test_a_newer_schema_is_refused(path: Path) -> None:
    SqliteGallery(path, MODEL).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SettingInvalid, match="schema 99"):
        SqliteGallery(path, MODEL)


def test_another_kind_of_file_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(GalleryUnavailable, match="no SQLite database"):
        SqliteGallery(path, MODEL)
    assert path.read_bytes() == b"this is no database" * 100


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(GalleryUnavailable, match=r"gallery\.sqlite3"):
        SqliteGallery(path, MODEL)


def test_a_file_that_is_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GalleryUnavailable, match="cannot be made"):
        SqliteGallery(tmp_path / "file" / "gallery.sqlite3", MODEL)


def test_a_full_disk_leaves_all_as_it_was(path: Path, face: Face, vector: Vector) -> None:
    gallery = SqliteGallery(path, MODEL)
    gallery.enroll("default", "Ada", [face(1)])
    writer = gallery._file._writer
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(GalleryUnavailable, match="no room"):
        gallery.enroll("default", "Bob", [face(number) for number in range(200)])
    assert [subject.name for subject in gallery.subjects("default").subjects] == ["Ada"]
    writer.execute("PRAGMA max_page_count = 100000")
    gallery.enroll("default", "Bob", [face(number) for number in range(200)])
    assert gallery.search("default", vector(150)[np.newaxis]).matches[0][0].subject == "Bob"
    gallery.close()


def test_a_file_held_by_another_is_no_end_of_it(path: Path, face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    gallery = SqliteGallery(path, MODEL)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryUnavailable, match="another process"):
        gallery.enroll("default", "Ada", [face(1)])
    assert gallery.collections() == []
    other.execute("ROLLBACK")
    assert not gallery.enroll("default", "Ada", [face(1)])[0].known
    other.close()
    gallery.close()


def test_a_closed_gallery_says_so(path: Path, face: Face) -> None:
    gallery = SqliteGallery(path, MODEL)
    gallery.close()
    for call in (gallery.collections, lambda: gallery.enroll("default", "Ada", [face(1)])):
        with pytest.raises(GalleryUnavailable, match="closed"):
            call()


def test_a_job_that_fails_does_not_fail_its_neighbours(path: Path, face: Face) -> None:
    gallery = SqliteGallery(path, MODEL)
    tickets = [sqlite_file._Ticket[Any](job) for job in (lambda db: 1, lambda db: 1 // 0, lambda db: 3)]
    gallery._file._write_together(tickets)
    assert (tickets[0].result(), tickets[2].result()) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        tickets[1].result()
    gallery.close()


def _open_and_enroll(path: Path, number: int, start: Any) -> None:
    vector = np.eye(16, dtype=np.float32)[number]
    start.wait()
    gallery = SqliteGallery(path, MODEL)
    gallery.enroll("default", f"s{number}", [NewFace(vector, (0, 0, 1, 1), {})])
    gallery.close()


def test_several_processes_may_make_it_at_the_same_time(path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    start = processes.Barrier(5)
    workers = [processes.Process(target=_open_and_enroll, args=(path, number, start)) for number in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 5
    gallery = SqliteGallery(path, MODEL)
    assert gallery.subjects("default").subjects_total == 5
    gallery.close()


def test_nothing_is_left_of_what_was_deleted(path: Path, face: Face, vector: Vector) -> None:
    gallery, other = SqliteGallery(path, MODEL), SqliteGallery(path, MODEL)
    rng = random.Random(7)
    subjects = {number: f"Persönliche {rng.getrandbits(64):016x}" for number in range(300)}
    for number, name in subjects.items():
        gallery.enroll("default", name, [face(number), face(number + 1000)])
    other.warm()
    order = list(subjects)
    rng.shuffle(order)
    for step, number in enumerate(order[:60]):
        name = subjects[number]
        parts = [name.encode(), vector(number).tobytes(), vector(number + 1000).tobytes()]
        assert left_in(path, *parts) == parts
        if step % 3 == 0:
            gallery.delete_subject("default", name)
            assert left_in(path, *parts) == []
        elif step % 3 == 1:
            ids = [one.face_id for one in gallery.subject("default", name)[1]]
            gallery.delete_face("default", name, ids[0])
            assert left_in(path, *parts) == [parts[0], parts[2]]
        else:
            other.rename("default", name, f"other {number}")
            assert left_in(path, *parts) == parts[1:]
    gallery.replace("default", [])
    assert left_in(path, vector(order[70]).tobytes(), subjects[order[70]].encode(), b"other ") == []
    other.close()
    gallery.close()


@pytest.mark.parametrize("copy_found", [False, True])
def test_a_large_file_is_written_anew_only_where_a_copy_is_left(
    path: Path, face: Face, vector: Vector, monkeypatch: pytest.MonkeyPatch, copy_found: bool
) -> None:
    monkeypatch.setattr(sqlite_file, "REWRITE_BYTES", 0)
    searched: list[bytes] = []
    monkeypatch.setattr(sqlite_file, "_holds", lambda _, wanted: bool(searched.extend(wanted)) or copy_found)
    gallery, statements = SqliteGallery(path, MODEL), list[str]()
    for number in range(3):
        gallery.enroll("default", f"Persönliche {number}", [face(number), face(number + 10)])
    gallery._file._writer.set_trace_callback(statements.append)
    gallery.delete_subject("default", "Persönliche 1")
    assert set(searched) == {vector(1).tobytes(), vector(11).tobytes()}
    assert ("VACUUM" in statements) == copy_found
    assert left_in(path, *searched, "Persönliche 1".encode()) == []
    gallery.close()


def test_a_copy_is_found_though_its_ends_were_written_over(path: Path, vector: Vector) -> None:
    wanted = vector(1).tobytes()
    path.parent.mkdir()
    path.write_bytes(b"x" * 999 + wanted[8:-8] + b"y" * 999)
    assert sqlite_file._holds(path, [vector(2).tobytes(), wanted])
    assert not sqlite_file._holds(path, [vector(2).tobytes()])


def test_what_a_reader_held_back_is_wiped_when_it_ends(
    path: Path, face: Face, vector: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "WIPE_SECONDS", 0.02)
    gallery = SqliteGallery(path, MODEL)
    for number in range(3):
        gallery.enroll("default", f"subject {number}", [face(number)])
    reading = gallery.export()
    next(reading)
    gallery.delete_subject("default", "subject 2")
    assert left_in(path, vector(2).tobytes()) != []
    assert [entry.subject for entry in reading] == ["subject 1", "subject 2"]
    assert left_in(path, vector(2).tobytes(), b"subject 2") == []
    gallery.close()


def test_what_a_killed_process_left_is_wiped_at_the_next_start(path: Path, face: Face, vector: Vector) -> None:
    gallery = SqliteGallery(path, MODEL)
    gallery.enroll("default", "Ada", [face(1)])
    gallery.enroll("default", "Bob", [face(2)])
    gallery._file._wipe = lambda wait=0.0: None  # type: ignore[method-assign]
    gallery.delete_subject("default", "Ada")
    assert left_in(path, vector(1).tobytes()) != []
    SqliteGallery(path, MODEL).close()
    assert left_in(path, vector(1).tobytes(), b"Ada") == []
    gallery.close()


def test_who_missed_too_many_removals_reads_anew(path: Path, face: Face, vector: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sqlite_follow, sqlite_rows):
        monkeypatch.setattr(module, "REMOVALS_KEPT", 3)
    gallery, other = SqliteGallery(path, MODEL), SqliteGallery(path, MODEL)
    for number in range(12):
        gallery.enroll("default", f"s{number}", [face(number)])
    other.warm()
    for number in range(8):
        gallery.delete_subject("default", f"s{number}")
        if number in {2, 7}:
            query = np.stack([vector(one) for one in range(12)])
            found = other.search("default", query, threshold=0.9999).matches
            assert [[match.subject for match in matches] for matches in found] == [
                [f"s{one}"] if one > number else [] for one in range(12)
            ]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM removed").fetchone() == (3,)
    db.close()
    other.close()
    gallery.close()


def test_an_older_snapshot_is_not_answered_from_newer_memory(path: Path, face: Face, vector: Vector) -> None:
    gallery = SqliteGallery(path, MODEL)
    gallery.enroll("default", "Ada", [face(1)])
    with gallery._file.read() as db:
        stored = sqlite_rows.find(db, "default")
        assert stored is not None
        gallery.enroll("default", "Bob", [face(2)])
        gallery.search("default", vector(2)[np.newaxis])
        assert gallery._followers.at(db, stored) is None
    assert gallery.search("default", vector(2)[np.newaxis]).matches[0][0].subject == "Bob"
    gallery.close()


def test_a_large_import_and_replace(path: Path, face: Face, vector: Vector) -> None:
    gallery = SqliteGallery(path, MODEL)
    moment = gallery.enroll("default", "Ada", [face(1)])[0].enrolled_at
    entries = [Entry("default", f"s{n // 3}", vector(n), (0.0, 0.0, 1.0, 1.0), {"n": n}, moment) for n in range(2, 3000)]
    assert gallery.import_(entries) == 2998
    queries = np.stack([vector(n) for n in range(2, 3000, 100)])
    found = [matches[0].subject for matches in gallery.search("default", queries).matches]
    assert found == [f"s{n // 3}" for n in range(2, 3000, 100)]
    assert gallery.replace("default", gallery.export()) == 2999
    assert [matches[0].subject for matches in gallery.search("default", queries).matches] == found
    gallery.close()

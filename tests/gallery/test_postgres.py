"""What only PostgreSQL has: a server that may be away, migrations that race, indexes, several servers at once."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import GalleryUnavailable, SettingInvalid, SubjectUnknown
from service.gallery.gallery import EmbeddingModel, Entry, NewFace
from service.gallery.postgres import PostgresGallery
from service.gallery.postgres_index import PREFIX
from service.gallery.postgres_pool import Pool
from service.gallery.postgres_url import parse

MODEL = EmbeddingModel("sface", "1", "ab" * 32, "plain", 32)
NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
_numbers = itertools.count()


@pytest.fixture
def url(postgres_server: Any) -> str:
    """A new, empty database."""
    name = f"own_{next(_numbers)}"
    postgres_server.psql(f"CREATE DATABASE {name};")
    return str(postgres_server.get_uri(name))


@pytest.fixture
def opened(url: str) -> Iterator[Callable[..., PostgresGallery]]:
    """Opens the database, as often as asked."""
    galleries = list[PostgresGallery]()

    def make(model: EmbeddingModel = MODEL, exact_faces: int = 20_000) -> PostgresGallery:
        galleries.append(PostgresGallery(url, model, exact_faces))
        return galleries[-1]

    yield make
    for gallery in galleries:
        gallery.close()


@pytest.fixture
def sql(url: str) -> Iterator[Callable[[str], list[list[Any]]]]:
    """Runs SQL beside the gallery."""
    pool = Pool(parse(url))
    yield lambda statements: pool.write(lambda session: session.simple(statements))
    pool.close()


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _random(count: int, seed: int = 0) -> NDArray[np.float32]:
    return _unit(np.random.default_rng(seed).standard_normal((count, MODEL.dimension)))


def _entries(embeddings: NDArray[np.float32], collection: str = "large", faces_each: int = 2) -> Iterator[Entry]:
    for number, embedding in enumerate(embeddings):
        yield Entry(collection, f"s{number // faces_each:06}", embedding, (1.5, 2.0, 30.0, 40.0), {"size": 80.5}, NOW)


def _face(number: int) -> NewFace:
    return NewFace(_random(1, number)[0], (0.0, 0.0, 9.0, 9.0), {"size": 80.5})


def _python(program: str, *arguments: str) -> subprocess.Popen[str]:
    given = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(given, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


_OPEN = """
import sys, json, numpy as np
from service.gallery.gallery import EmbeddingModel, NewFace
from service.gallery.postgres import PostgresGallery
model = EmbeddingModel("sface", "1", "ab" * 32, "plain", 32)
def vector(number):
    rows = np.random.default_rng(number).standard_normal((1, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)[0]
"""


def test_migrations_by_four_processes_at_once(url: str, sql: Callable[[str], list[list[Any]]]) -> None:
    program = _OPEN + (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "gallery = PostgresGallery(sys.argv[1], model)\n"
        "gallery.enroll('c', sys.argv[2], [NewFace(vector(1), (0, 0, 1, 1), {})]); gallery.close(); print('done')"
    )
    processes = [_python(program, url, f"subject {number}") for number in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=30)[0] for process in processes] == ["done\n"] * 4
    assert sql("SELECT version FROM vision_gallery.schema_version") == [[1]]
    assert sql("SELECT subjects, faces FROM vision_gallery.collection") == [[4, 4]]


def test_everything_lies_in_a_schema_of_its_own(
    opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]
) -> None:
    opened().enroll("c", "Ann", [_face(1)])
    outside = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('vision_gallery', 'pg_catalog', 'information_schema')"
    assert sql(outside) == [[0]]


def test_an_extension_in_another_schema_is_found(
    opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]
) -> None:
    sql('CREATE SCHEMA "Ext ensions"; CREATE EXTENSION vector SCHEMA "Ext ensions"')
    gallery = opened()
    gallery.enroll("c", "Ann", [_face(1)])
    assert gallery.search("c", _random(1, 1)).matches[0][0].subject == "Ann"


def test_a_newer_schema_is_refused(opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]) -> None:
    opened()
    sql("INSERT INTO vision_gallery.schema_version VALUES (99)")
    with pytest.raises(SettingInvalid, match="schema 99, made by a newer release"):
        opened()


def test_what_is_wrong_with_the_database_is_said(postgres_server: Any, url: str, sql: Callable[[str], list[list[Any]]]) -> None:
    with pytest.raises(GalleryUnavailable, match="createdb no_such"):
        PostgresGallery(postgres_server.get_uri("no_such"), MODEL)
    with pytest.raises(GalleryUnavailable, match="'nobody'"):
        PostgresGallery(url.replace("postgres:", "nobody:hunter2", 1), MODEL)
    sql("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN; CREATE EXTENSION vector")
    with pytest.raises(GalleryUnavailable, match="GRANT CREATE ON DATABASE"):
        PostgresGallery(url.replace("postgres:", "guest:", 1), MODEL)
    latin = "latin"
    postgres_server.psql(f"CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;")
    with pytest.raises(GalleryUnavailable, match="encoding=UTF8"):
        PostgresGallery(postgres_server.get_uri(latin), MODEL)


def test_without_pgvector_it_says_what_to_type(url: str, sql: Callable[[str], list[list[Any]]]) -> None:
    sql("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN")
    with pytest.raises(GalleryUnavailable, match=r"CREATE EXTENSION vector") as raised:
        PostgresGallery(url.replace("postgres:", "plain:hunter2", 1), MODEL)
    assert "hunter2" not in str(raised.value)


def test_where_it_is_without_the_password(url: str) -> None:
    gallery = PostgresGallery(url.replace("postgres:", "postgres:hunter2", 1), MODEL)
    gallery.close()
    assert gallery.place.startswith("postgresql://postgres@:5432/own_")
    assert "hunter2" not in gallery.place + repr(gallery) + str(vars(gallery))


def test_embeddings_times_and_qualities_come_back_to_the_last_bit(opened: Callable[..., PostgresGallery]) -> None:
    gallery = opened()
    odd = _random(1)[0].copy()
    odd[:5] = [-0.0, 1e-45, 1.1754942e-38, 0.1, -3.4e-20]
    odd[5:] *= np.float32(np.sqrt(0.99)) / np.linalg.norm(odd[5:])
    quality = {"size": 0.1 + 0.2, "text": 'ü "\\ \U0001f600', "none": None, "list": [1, 1e22]}
    gallery.enroll("c", "Ann", [NewFace(odd, (0.1, -2.5, 1e-7, 1e6), quality)])
    first = list(gallery.export())
    gallery.replace("d", first)
    for entry in (first[0], next(gallery.export("d"))):
        assert entry.embedding.tobytes() == odd.tobytes()
        assert (entry.box, entry.quality, entry.enrolled_at) == ((0.1, -2.5, 1e-7, 1e6), quality, first[0].enrolled_at)


def test_names_that_sql_might_mistake(opened: Callable[..., PostgresGallery]) -> None:
    gallery = opened()
    names = sorted(
        ["null", "NULL", "{a,b}", "x'; DROP TABLE face; --", 'q"', "\\", "%s", ":name", "$1", "\u2028", "é", "\U0001f600", "Z"]
    )
    for number, name in enumerate(names):
        gallery.enroll(name, name, [_face(number)])
        gallery.enroll("all", name, [_face(number)])
    assert [subject.name for subject in gallery.subjects("all").subjects] == names
    assert {one.name for one in gallery.collections()} == {*names, "all"}
    assert gallery.import_(list(gallery.export())) == 0


def test_the_index_answers_as_comparing_all_does(
    opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]
) -> None:
    embeddings = _random(4000)
    gallery, exact = opened(exact_faces=500), opened()
    assert gallery.import_(_entries(embeddings)) == 4000
    rng = np.random.default_rng(1)
    asked = _unit(embeddings[rng.integers(0, 4000, 200)] + 0.1 * rng.standard_normal((200, MODEL.dimension)))
    by_index, by_all = gallery.search("large", asked, top_k=3), exact.search("large", asked, top_k=3)
    assert (by_index.faces, by_index.subjects) == (by_all.faces, by_all.subjects) == (4000, 2000)
    same = [first[0] == second[0] for first, second in zip(by_index.matches, by_all.matches, strict=True)]
    assert np.mean(same) >= 0.99
    best = (asked @ embeddings.T).argmax(1)
    assert [matches[0].subject for matches in by_all.matches] == [f"s{number // 2:06}" for number in best]
    assert all(len(matches) == 3 for matches in by_index.matches)
    gallery._pool.read(lambda session: session.simple("SELECT pg_stat_force_next_flush()"))
    assert sql(f"SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname LIKE '{PREFIX}%'") == [[True]]


def test_a_subject_with_most_faces_hides_nobody(opened: Callable[..., PostgresGallery]) -> None:
    rng = np.random.default_rng(2)
    crowd = _unit(np.ones(MODEL.dimension) + 0.01 * rng.standard_normal((1500, MODEL.dimension)))
    gallery = opened(exact_faces=1000)
    gallery.import_(
        [
            *_entries(crowd, faces_each=10_000),
            *[Entry("large", f"other {n}", _random(1, n)[0], (0, 0, 1, 1), {}, NOW) for n in range(3)],
        ]
    )
    found = gallery.search("large", crowd[:1], top_k=3).matches[0]
    assert found[0].subject == "s000000"
    assert len({match.subject for match in found}) == 3
    assert len(gallery.search("large", crowd[:1], top_k=3, threshold=0.9).matches[0]) == 1


def test_an_enrolment_that_makes_a_collection_large_has_its_index_built(
    opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]
) -> None:
    gallery, large = opened(exact_faces=50), opened()
    large.import_(_entries(_random(50)))
    gallery.enroll("large", "Ann", [_face(77)])
    indexes = f"SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indisvalid AND relname LIKE '{PREFIX}%'"
    deadline = time.monotonic() + 20
    while not sql(indexes):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert gallery.search("large", _random(1, 77)).matches[0][0].subject == "Ann"
    gallery.enroll("large", "Bob", [_face(78)])
    gallery.delete_subject("large", "Ann")
    found = gallery.search("large", np.concatenate([_random(1, 77), _random(1, 78)]), top_k=50)
    assert found.matches[1][0].subject == "Bob"
    assert [len(matches) for matches in found.matches] == [26, 26]
    assert "Ann" not in {match.subject for matches in found.matches for match in matches}

    gallery.replace("large", _entries(_random(10)))
    assert sql(indexes) == []


def test_two_processes_read_each_others_writes(url: str, opened: Callable[..., PostgresGallery]) -> None:
    program = _OPEN + (
        "gallery = PostgresGallery(sys.argv[1], model)\n"
        "for line in sys.stdin:\n"
        "    do, number = json.loads(line)\n"
        "    if do == 'enroll': gallery.enroll('c', f'p{number}', [NewFace(vector(number), (0, 0, 1, 1), {})])\n"
        "    if do == 'delete': gallery.delete_subject('c', f'p{number}')\n"
        "    found = gallery.search('c', vector(number)[None], threshold=0.999).matches[0]\n"
        "    print(json.dumps([match.subject for match in found]), flush=True)\n"
        "gallery.close()"
    )
    here, other = opened(), _python(program, url)

    def ask(do: str, number: int) -> list[str]:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(json.dumps([do, number]) + "\n")
        other.stdin.flush()
        return list(json.loads(other.stdout.readline()))

    for number in range(20):
        here.enroll("c", f"p{number}", [_face(number)])
        assert ask("search", number) == [f"p{number}"]
        here.delete_subject("c", f"p{number}")
        assert ask("search", number) == []
        ask("enroll", number)
        assert [match.subject for match in here.search("c", _random(1, number), threshold=0.999).matches[0]] == [f"p{number}"]
        ask("delete", number)
        assert here.search("c", _random(1, number)).matches == [[]]
    other.communicate(timeout=30)
    assert other.returncode == 0


def test_the_last_face_goes_while_others_come(
    opened: Callable[..., PostgresGallery], sql: Callable[[str], list[list[Any]]]
) -> None:
    galleries = [opened(), opened()]
    failures, kept = list[BaseException](), set[int]()
    lock = threading.Lock()

    def work(number: int) -> None:
        gallery = galleries[number % 2]
        try:
            for turn in range(12):
                gallery.enroll("c", "shared", [_face(number)])
                gallery.enroll("c", f"mine {number}", [_face(turn)])
                with pytest.raises(SubjectUnknown):
                    gallery.rename("c", f"mine {number + 100}", "shared")
                gallery.rename("c", f"mine {number}", f"yours {number}")
                gallery.delete_subject("c", f"yours {number}")
                if turn < 11 or number % 2:
                    face_id = next(s.face_id for s in gallery.enroll("c", "shared", [_face(number)]))
                    gallery.delete_face("c", "shared", face_id)
                else:
                    with lock:
                        kept.add(number)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    page = galleries[0].subjects("c")
    assert [(subject.name, subject.faces) for subject in page.subjects] == [("shared", len(kept))]
    assert (page.subjects_total, page.faces_total) == (1, 3)
    orphans = "SELECT (SELECT count(*) FROM vision_gallery.face), (SELECT count(*) FROM vision_gallery.subject)"
    assert sql(orphans) == [[3, 1]]


def test_an_export_shows_one_moment(opened: Callable[..., PostgresGallery]) -> None:
    gallery = opened()
    gallery.import_(_entries(_random(30)))
    entries = gallery.export()
    first = next(entries)
    for subject in gallery.subjects("large").subjects:
        gallery.delete_subject("large", subject.name)
    assert gallery.collections() == []
    assert [first, *entries][-1].subject == "s000014"


def test_an_import_that_fails_leaves_nothing(opened: Callable[..., PostgresGallery]) -> None:
    gallery = opened()

    def entries() -> Iterator[Entry]:
        yield from _entries(_random(2500))
        raise ValueError("the file ends here")

    with pytest.raises(ValueError, match="the file ends here"):
        gallery.import_(entries())
    assert gallery.collections() == []
    gallery.enroll("large", "Ann", [_face(1)])
    with pytest.raises(ValueError, match="the file ends here"):
        gallery.replace("large", entries())
    assert [(one.subjects, one.faces) for one in gallery.collections()] == [(1, 1)]

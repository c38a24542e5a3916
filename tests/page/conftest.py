"""A real Chromium in front of the real application with the real models; whatever a page asks, says and breaks is watched."""

import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine import Engine
from service.http.app import create_app
from service.http.listening import listen
from service.http.server import Server
from service.repository.progress import Silent
from service.settings import Settings

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 20_000  # milliseconds until a thing that is waited for counts as missing
WATCH = """addEventListener("securitypolicyviolation", (event) => {
    console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});"""


@pytest.fixture(scope="module")
def browser(browser_required: bool) -> Iterator[Any]:
    """One for each module: Playwright's loop must not outlive the tests that need it, for others run their own."""
    missing = _missing()
    if missing:
        (pytest.fail if browser_required else pytest.skip)(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield chromium
        chromium.close()


def _missing() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "tests of the page need the extra `browser`: .venv/bin/pip install -c constraints.txt '.[browser]'"
    if shutil.which("chromium") is None:
        return "tests of the page need Chromium: apt install chromium"
    return None


@pytest.fixture(scope="session")
def run_server() -> Iterator[Callable[..., str]]:
    """Serves the real engine with the given settings on a free port until all tests are over; gives its address."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(**given: Any) -> str:
        usual = {"device": "cpu", "precision": "float", "tune": False, "detector": "yolov3-tiny", "shutdown_seconds": 2}
        settings = Settings(**{**usual, **given})
        engine = Engine(settings, progress=Silent())
        server = Server(create_app(engine, give_up=pytest.fail), settings, listen("127.0.0.1", 0))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        end = time.monotonic() + 300  # the first test of all fetches and builds the models
        while not (server.started and engine.ready):
            assert thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.port}/"

    yield start
    for server, _ in running:
        server.stop()
    for _, thread in running:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def here(run_server: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the service with all its models, no keys and an empty gallery."""
    folder = tmp_path_factory.mktemp("page")
    return run_server(gallery_url=f"sqlite:///{folder}/gallery.sqlite3", data_dir=folder, reload_seconds=0)


class Visitor:
    """A page of the browser and what happened on it. `expected`: texts of console errors that a test means to cause."""

    def __init__(self, browser: Any, base: str, **options: Any) -> None:
        self.base = base
        self.context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce", **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.expected: tuple[str, ...] = ()
        self.page.add_init_script(WATCH)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def go(self, view: str) -> Any:
        """The root of a view that is shown."""
        self.page.goto(f"{self.base}#{view}")
        return self.view(view)

    def view(self, name: str) -> Any:
        found = self.page.locator(f"[data-view={name}]")
        found.wait_for()
        return found

    def put(self, photo: Path, stage: int = 0) -> None:
        """Choose a file on the stage of that number."""
        self.page.locator("[data-view]:not([hidden]) .stage:visible input[type=file]:not([capture])").nth(stage).set_input_files(
            photo
        )

    def check(self) -> None:
        """Nothing was asked of anybody else, no policy was violated, nothing broke."""
        local = (self.base, "blob:", "data:")
        assert [url for url in self.asked if not url.startswith(local)] == []
        assert [error for error in self.errors if not any(part in error for part in self.expected)] == []


@pytest.fixture
def visit(browser: Any, here: str) -> Iterator[Callable[..., Visitor]]:
    """Opens a Visitor of the service; after the test it is held to what is always true."""
    visitors: list[Visitor] = []

    def open_(base: str = here, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, base, **options))
        return visitors[-1]

    yield open_
    for visitor in visitors:
        visitor.context.close()
    for visitor in visitors:
        visitor.check()

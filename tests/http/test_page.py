"""The page over HTTP: its policy, what browsers may keep of it, and that it works wherever a proxy has put it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from service.http import page
from service.http.page import FOLDER, POLICY, load
from service.repository.spec import Task

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture
def index(client: TestClient) -> Any:
    return client.get("/", headers=HTML)


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline(index: Any) -> None:
    policies = index.headers.get_list("content-security-policy")
    assert policies == [POLICY]
    rules = dict(rule.split(" ", 1) for rule in policies[0].split("; "))
    assert {rules[name] for name in ("default-src", "form-action", "base-uri", "frame-ancestors")} == {"'none'"}
    assert {rules[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in policies[0]
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", index.text)


def test_what_the_page_names_is_there_and_may_be_kept_for_good(client: TestClient, index: Any) -> None:
    named = re.findall(r'(?:src|href)="(static/[^"]+)"', index.text)
    assert len(named) > 5
    for path in named:
        answer = client.get(f"/{path}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "public, max-age=31536000, immutable"), path
        assert answer.headers["content-type"].split(";")[0] in page.MEDIA.values()
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_module_that_a_module_imports_is_there() -> None:
    for name in [name for name in FILES if name.endswith(".js")]:
        text = (FOLDER / name).read_text(encoding="utf-8")
        for imported in re.findall(r'(?:from|import\()\s*"(\.[^"]+)"', text):
            assert ((FOLDER / name).parent / imported).is_file(), f"{name} imports {imported}"


def test_models_of_every_task_are_listed() -> None:
    (titles,) = re.findall(r"const TASKS = \{(.+?)\};", (FOLDER / "views" / "models.js").read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r'"?([\w-]+)"?: "', titles) == list(get_args(Task))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_modules_stay_small_and_name_no_other_host(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    assert [url for url in re.findall(r"https?://[\w.]+", text) if not url.startswith("http://www.w3.org")] == []


def test_what_has_not_changed_is_not_sent_again(client: TestClient, index: Any) -> None:
    asset = "/" + re.findall(r'src="(static/[^"]+)"', index.text)[0]
    for path, headers in (("/", HTML), (asset, {})):
        first = client.get(path, headers=headers)
        for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
            again = client.get(path, headers={**headers, "if-none-match": tag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert client.get(path, headers={**headers, "if-none-match": '"other"'}).status_code == 200
    assert index.headers["cache-control"] == "no-cache"
    assert index.headers["vary"] == "Accept"


def test_a_page_of_another_release_still_gets_its_modules_but_keeps_none(client: TestClient) -> None:
    answer = client.get("/static/0123456789abcdef/views/detect.js")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "../page.py", "..%2fpage.py", "views/../../page.py", "views"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/0/{name}").status_code == 404


def test_any_change_gives_the_assets_another_address(tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    (tmp_path / "index.html").write_text('{version} <script src="{assets}/a.js"></script>')
    digests = []
    for text in ("1", "2"):
        (tmp_path / "views" / "a.js").write_text(text)
        found = load("9.9", tmp_path)
        assert found.index.body == f'9.9 <script src="static/{found.digest}/a.js"></script>'.encode()
        assert list(found.assets) == ["views/a.js"]
        digests.append(found.digest)
    assert digests[0] != digests[1]


def test_behind_a_prefix_all_addresses_are_relative(fake: Any, open_client: Callable[..., TestClient]) -> None:
    client = open_client(fake)
    mounted = TestClient(client.app, root_path="/vision")
    text = mounted.get("/vision/", headers=HTML).text
    path = re.findall(r'src="(static/[^"]+)"', text)[0]
    assert mounted.get(f"/vision/{path}").status_code == 200
    assert not re.search(r'(?:src|href)="/', text)


def test_head_and_other_methods(client: TestClient, index: Any) -> None:
    asset = "/" + re.findall(r'src="(static/[^"]+)"', index.text)[0]
    head = client.head(asset)
    assert (head.status_code, head.content) == (200, b"")
    assert client.post(asset).status_code == 405

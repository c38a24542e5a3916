"""Who may come in: keys and their scopes on every route, other sites' pages, and what is never told."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.routing import Match
from starlette.testclient import TestClient

from service.errors import SettingInvalid
from service.http import gate, keys
from service.http.app import create_app, from_env
from service.http.keys import Keyring, load
from service.http.problems import KeyUnknown
from service.settings import Settings

USER, MANAGER, BOTH = "u" * 20, "m" * 20, "b" * 20
THREE = f"web:use:{USER}, office:manage:{MANAGER},all.of-it_1:manage+use:{BOTH}"
WRONG = "w" * 20

# The route's template -> what it needs. A route that is not here fails a test.
OPEN = (
    *("/", "/health/live", "/health/ready", "/problems/{code}", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    *("/static-offline-docs", "/static/{digest}/{name:path}"),
)
TENSORS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
COMPREFACE_USED = (
    *("verification/verify", "detection/detect", "recognition/recognize"),
    "recognition/faces/{image_id}/verify",
)
COMPREFACE_MANAGED = (
    *("faces", "faces/delete", "faces/{image_id}", "subjects", "subjects/"),
    *("subjects/{subject}", "subjects/{subject:path}"),
)
NEEDS = {
    **dict.fromkeys(OPEN, "nothing"),
    **dict.fromkeys(["/classify", "/detect", "/detect-faces", "/verify-face", "/stylize", "/identify"], "use"),
    **dict.fromkeys(["/styles", "/styles/{name}/thumbnail.jpg"], "use"),
    **dict.fromkeys(["/stylize/optimize", "/jobs/{id}", "/jobs/{id}/events", "/jobs/{id}/result"], "use"),
    **dict.fromkeys(["/models", "/models/{name}", "/subjects", "/subjects/{subject}", "/subjects/{subject}/faces"], "manage"),
    "/subjects/{subject}/faces/{face_id}": "manage",
    "/metrics": "any",
    **dict.fromkeys(["/v2", "/v2/health/live", "/v2/health/ready"], "nothing"),
    **{model + end: "use" for model in TENSORS for end in ("", "/ready", "/config", "/infer")},
    **dict.fromkeys(["/v2/repository/index", *(f"/v2/repository/models/{{model}}/{do}" for do in ("load", "unload"))], "manage"),
    **dict.fromkeys([f"/v1/vision/{name}" for name in ("detection", "custom/{model}", "custom/list", "scene", "face")], "use"),
    **dict.fromkeys(["/v1/vision/face/match", "/v1/vision/face/recognize"], "use"),
    **dict.fromkeys([f"/v1/vision/face/{name}" for name in ("register", "list", "delete")], "manage"),
    **dict.fromkeys([f"/api/v1/{way}" for way in COMPREFACE_USED], "use"),
    **dict.fromkeys([f"/api/v1/recognition/{way}" for way in COMPREFACE_MANAGED], "manage"),
    **{f"/v1{place}/status/{name}": "nothing" for place in ("", "/server") for name in ("ping", "version", "updateavailable")},
}
FILLED = {
    "/static-offline-docs": "/static-offline-docs/swagger-ui.css",
    "{digest}": "0",
    "{name:path}": "app.js",
    "{code}": "no_face",
    "{name}": "ink-wash",
    "{id}": "h3Jx0ZbqS8mP1vY7tKc2wA",
    "{subject}": "Ada",
    "{subject:path}": "Ada",
    "{face_id}": "1",
    "{image_id}": "1",
    "{model}": "efficientnet-lite0",
    "{version}": "1",
}


def filled(template: str) -> str:
    """A path of the route."""
    for name, value in FILLED.items():
        template = template.replace(name, value)
    return template


def allows(need: str, key: str | None) -> bool:
    enough = {"nothing": {None, USER, MANAGER, BOTH}, "use": {USER, BOTH}, "manage": {MANAGER, BOTH}, "any": {USER, MANAGER, BOTH}}
    return key in enough[need]


def ring(text: str) -> Keyring:
    found = load(Settings(api_keys=text))
    assert found is not None
    return found


@pytest.fixture
def keyed(make_engine: Any, open_client: Any) -> TestClient:
    client: TestClient = open_client(make_engine(api_keys=THREE))
    return client


def code_of(response: Any) -> str | None:
    return response.json().get("code") if "problem" in response.headers.get("content-type", "") else None


# What is written.


def test_keys_have_names_scopes_and_are_kept_as_digests_only() -> None:
    found = ring(THREE).keys
    assert [(key.name, set(key.scopes)) for key in found] == [
        ("web", {"use"}),
        ("office", {"manage"}),
        ("all.of-it_1", {"use", "manage"}),
    ]
    assert found[0].digest == hashlib.sha256(USER.encode()).digest()
    assert USER not in repr(found) + repr(vars(ring(THREE)))


def test_a_file_has_one_a_line_with_comments_and_adds_to_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# clients\n\n  web:use:{USER}\r\noffice:manage:{MANAGER}  \n", encoding="utf-8")
    found = load(Settings(api_keys_file=path, api_keys=f"all:use+manage:{BOTH}"))
    assert found is not None
    assert [key.name for key in found.keys] == ["all", "web", "office"]


def test_neither_setting_means_no_keys() -> None:
    assert load(Settings()) is None
    assert load(Settings.from_env({"VISION_API_KEYS": ""})) is None


SECRET = "hunter2-hunter2-hunter2"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (" ", "holds no key"),
        (",,", "holds no key"),
        (SECRET, "entry 1 of VISION_API_KEYS has 1 part"),
        (f"a:use:{USER},b:{SECRET}", "entry 2 of VISION_API_KEYS has 2 parts"),
        (f"a:use:{SECRET}:x", "4 parts"),
        (f":use:{SECRET}", "1 to 64 letters"),
        (f"{'a' * 65}:use:{SECRET}", "1 to 64 letters"),
        (f"ä:use:{SECRET}", "1 to 64 letters"),
        (f"a/b:use:{SECRET}", "1 to 64 letters"),
        (f"a::{SECRET}", "use, manage or use+manage"),
        (f"a:admin:{SECRET}", "use, manage or use+manage"),
        (f"a:use+use:{SECRET}", "use, manage or use+manage"),
        (f"a:{SECRET}:use", "use, manage or use+manage"),
        (f"{SECRET}:use:shop", "at least 16"),
        ("a:use:hunter2-15chars", "at least 16"),
        ("a:use:hunter2", "openssl rand -hex 32"),
        (f"a:use:{SECRET} {SECRET}", "none of them a comma, a colon or a space"),
        (f"a:use:{SECRET}é", "printable ASCII"),
        (f"a:use:{SECRET},a:use:{USER}", "entry 2 of VISION_API_KEYS has the same name as entry 1"),
        (f"a:use:{SECRET},b:manage:{SECRET}", "entry 2 of VISION_API_KEYS has the same key as entry 1"),
    ],
)
def test_a_wrong_entry_is_told_by_its_position_and_never_quoted(text: str, told: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        load(Settings(api_keys=text))
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nobody yet\n", "VISION_API_KEYS_FILE is set but holds no key"),
        (b"", "holds no key"),
        (b"# one\na:use:short\n", "line 2 of VISION_API_KEYS_FILE"),
        (b"\xff\xfe", "UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_wrong_file_is_never_silently_open(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / f"a:use:{SECRET}"  # someone may take the setting for the other one
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingInvalid, match=told) as caught:
        load(Settings(api_keys_file=path))
    assert SECRET not in str(caught.value)


def test_a_service_with_wrong_keys_does_not_start(make_engine: Any) -> None:
    with pytest.raises(SettingInvalid, match="holds no key"):
        create_app(make_engine(api_keys=","))


@pytest.mark.parametrize("name", ["VISION_API_KEYS", "VISION_GALLERY_URL"])
def test_settings_that_are_secret_are_in_no_message(name: str) -> None:
    settings = Settings.from_env({name: SECRET})
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
    wrong: Any = [SECRET]  # what the environment cannot give, but another caller can
    with pytest.raises(SettingInvalid, match=f"^{name}: ") as caught:
        Settings.from_env({name: wrong})
    assert SECRET not in str(caught.value)
    with pytest.raises(ValidationError) as refused:
        Settings(**{name.removeprefix("VISION_").lower(): wrong})
    assert SECRET not in str(refused.value)


def test_a_name_that_is_nearly_a_secret_one_tells_nothing_either() -> None:
    with pytest.raises(SettingInvalid, match="VISION_API_KEY is not a setting") as caught:
        Settings.from_env({"VISION_API_KEY": SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("origin", ["https://example.org/", "example.org", "https://*.example.org", "null"])
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    with pytest.raises(SettingInvalid, match=r"VISION_CORS_ORIGINS.*is no origin"):
        Settings.from_env({"VISION_CORS_ORIGINS": f"https://example.org, {origin}"})


# What is sent.


@pytest.mark.parametrize("sent", [USER, BOTH, WRONG])
def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    compared: list[bytes] = []

    def count(one: bytes, other: bytes) -> bool:
        compared.append(one)
        assert len(one) == len(other) == 32  # digests: their length tells nothing of the key's
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "compare_digest", count)
    some = ring(THREE)
    found = some.find(sent.encode())
    assert (found is None) is (sent == WRONG)
    assert compared == [key.digest for key in some.keys]


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([], "key_missing"),
        ([("x-api-key", USER)], "web"),
        ([("Authorization", f"Bearer {USER}")], "web"),
        ([("Authorization", f"bEARER   {USER} ")], "web"),
        ([("Authorization", f"Bearer {USER}"), ("x-api-key", USER)], "web"),
        ([("Authorization", f"Bearer {USER}"), ("x-api-key", BOTH)], "key_unknown"),
        ([("x-api-key", USER), ("x-api-key", WRONG)], "key_unknown"),
        ([("Authorization", f"Basic {WRONG}"), ("x-api-key", USER)], "web"),
        ([("Authorization", f"Basic {USER}")], "key_missing"),
        ([("Authorization", "Bearer")], "key_missing"),
        ([("x-api-key", "")], "key_unknown"),
        ([("x-api-key", USER[:-1])], "key_unknown"),
        ([("x-api-key", USER + "u")], "key_unknown"),
        ([("x-api-key", USER.upper())], "key_unknown"),
        ([("x-api-key", "web")], "key_unknown"),
    ],
)
def test_a_key_comes_in_either_header(
    keyed: TestClient, caplog: pytest.LogCaptureFixture, headers: list[tuple[str, str]], told: str
) -> None:
    caplog.set_level("INFO", "service.access")
    response = keyed.get("/styles", headers=headers)
    (line,) = [record for record in caplog.records if record.name == "service.access"]
    if told == "web":
        assert (response.status_code, line.key) == (200, "web")
        return
    assert (response.status_code, code_of(response), line.reason) == (401, told, told)
    assert response.headers["www-authenticate"] == 'Bearer realm="vision-service"'
    assert not hasattr(line, "key")


def test_no_key_is_in_an_answer_a_log_or_a_metric(keyed: TestClient, caplog: pytest.LogCaptureFixture, jpeg: bytes) -> None:
    caplog.set_level("DEBUG")
    told = ""
    for key in (USER, MANAGER, WRONG):
        for path in ("/classify", "/models", "/nothing", "/metrics"):
            response = keyed.post(path, content=jpeg, headers={"x-api-key": key, "content-type": "image/jpeg"})
            told += response.text + str(response.headers)
    told += keyed.get("/metrics", headers={"x-api-key": USER}).text + keyed.get("/openapi.json").text
    told += "".join(repr(vars(record)) for record in caplog.records if record.name.startswith("service"))
    assert "scope_missing" in told
    assert not [key for key in (USER, MANAGER, BOTH, WRONG) if key in told]


def test_an_unknown_key_is_no_header_of_the_error() -> None:
    with pytest.raises(KeyUnknown) as caught:
        ring(THREE).identify([(b"x-api-key", WRONG.encode())])
    assert WRONG not in repr(caught.value)


# What each route needs.


def routes(client: TestClient) -> set[tuple[str, str]]:
    found = set()
    for route in client.app.app.routes:  # type: ignore[attr-defined]
        for method in getattr(route, "methods", None) or {"GET"}:
            found.add((method, route.path))
    return found


def test_every_route_needs_what_the_table_says(keyed: TestClient) -> None:
    unlisted = {path for _, path in routes(keyed)} - set(NEEDS)
    assert not unlisted, "say in NEEDS, and in service.http.gate, which scope these need"
    for method, template in sorted(routes(keyed)):
        path = filled(template)
        for key in (None, USER, MANAGER, BOTH, WRONG):
            headers = {} if key is None else {"x-api-key": key}
            response = keyed.request(method, path, headers=headers, follow_redirects=False)
            if allows(NEEDS[template], None if key == WRONG else key):
                assert response.status_code not in (401, 403), (method, path, key)
            elif key in (None, WRONG):
                assert response.status_code == 401, (method, path, key)
            else:
                assert response.status_code == 403, (method, path, key)


def test_no_path_belongs_to_routes_of_different_needs(keyed: TestClient) -> None:
    """What is asked for is told by the first route that a path matches, whatever its methods."""
    for _, template in routes(keyed):
        path = filled(template)
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
        found = [route for route in keyed.app.app.routes if route.matches(scope)[0] is not Match.NONE]  # type: ignore[attr-defined]
        assert len({NEEDS[route.path] for route in found}) == 1, path


def test_a_new_route_is_not_open_by_accident(keyed: TestClient) -> None:
    async def secret(request: Any) -> None:
        raise AssertionError("it was reached")

    keyed.app.app.add_route("/secret", secret)  # type: ignore[attr-defined]
    assert [keyed.get("/secret", headers=h).status_code for h in ({}, {"x-api-key": USER})] == [401, 403]


@pytest.mark.parametrize("path", ["/nothing", "/classify/", "/subjects/", "/docs/", "/problems/no_face/x", "/health", "/%2fdocs"])
def test_where_nothing_is_a_key_is_needed_to_learn_so(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 401
    assert keyed.get(path, headers={"x-api-key": USER}).status_code == 404


def test_head_needs_what_get_needs_and_options_nothing(keyed: TestClient) -> None:
    assert [keyed.head(path).status_code for path in ("/models", "/metrics", "/health/live")] == [401, 401, 200]
    assert keyed.head("/models", headers={"x-api-key": USER}).status_code == 403
    assert keyed.options("/classify").status_code == 204


def test_the_static_files_of_the_pages_are_open(keyed: TestClient) -> None:
    page = keyed.get("/docs").text
    assert "/static-offline-docs/swagger-ui.css" in page
    assert keyed.get("/static-offline-docs/swagger-ui.css").status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/stylize", "/subjects/Ada/faces", "/nothing"])
def test_who_has_no_key_has_no_byte_read_and_learns_no_state(make_engine: Any, path: str) -> None:
    def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    client = TestClient(create_app(make_engine(api_keys=THREE)))  # never started: else a task would answer 503
    response = client.post(path, content=unread(), headers={"content-type": "image/jpeg", "content-length": str(10**9)})
    assert (response.status_code, code_of(response)) == (401, "key_missing")


def test_below_a_mount_the_same_is_needed(make_engine: Any) -> None:
    client = TestClient(create_app(make_engine(api_keys=THREE)), root_path="/vision")
    assert [client.post(f"/vision{path}").status_code for path in ("/classify", "/subjects/Ada/faces")] == [401, 401]
    assert client.get("/vision/health/live").status_code == 200


def test_a_scope_that_is_missing_is_named(keyed: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.access")
    response = keyed.get("/models", headers={"x-api-key": USER})
    assert response.json()["detail"] == "this needs a key with the scope manage; the one that was sent has use"
    (line,) = [record for record in caplog.records if record.name == "service.access"]
    assert (line.key, line.route, line.reason) == ("web", "/models", "scope_missing")


# Without keys.


CROSS = {"sec-fetch-site": "cross-site"}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "PUT"])
@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        (CROSS, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "http://elsewhere.org"}, False),  # a proxy that changes the host
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://localhost:8000"}, False),
        ({"origin": "http://LOCALHOST:8000"}, False),
        ({"origin": "http://localhost:3000"}, True),
        ({"origin": "https://example.org"}, True),
        ({"origin": "null"}, True),
        ({**CROSS, "origin": "http://localhost:8000"}, True),
        ({**CROSS, "origin": "https://friend.org"}, False),
        ({"origin": "https://friend.org:444"}, True),
    ],
)
def test_a_page_of_another_site_may_change_nothing(make_engine: Any, method: str, headers: dict[str, str], foreign: bool) -> None:
    client = TestClient(create_app(make_engine(cors_origins="https://friend.org")))
    response = client.request(method, "/classify", headers={"host": "localhost:8000", **headers})
    refused = foreign and method != "GET"
    assert (code_of(response) == "cross_site") is refused
    assert (response.status_code == 403) is refused


@pytest.mark.parametrize(
    ("settings", "refused"), [({}, True), ({"open": True}, True), ({"cors_origins": "*"}, False), ({"api_keys": THREE}, False)]
)
def test_what_lets_other_sites_pages_in(make_engine: Any, settings: dict[str, Any], refused: bool) -> None:
    client = TestClient(create_app(make_engine(**settings)))
    response = client.post("/detect", headers={**CROSS, "x-api-key": USER})
    assert (code_of(response) == "cross_site") is refused


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LocalHost.:8000", True),
        ("127.0.0.1:8000", True),
        ("192.168.1.20", True),
        ("[::1]:8000", True),
        ("vision-service:8000", True),
        ("api.localhost", True),
        ("host.docker.internal:8000", True),
        ("example.org", False),
        ("example.org.:80", False),
        ("127.0.0.1.example.org", False),
        ("localhost.example.org:8000", False),
        ("[example.org]", False),
        ("1.2.3", False),
        ("laptop.example.net", True),
    ],
)
def test_a_name_that_a_page_could_have_given_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, make_engine: Any, host: str, own: bool
) -> None:
    gate.is_own.cache_clear()
    monkeypatch.setattr("socket.gethostname", lambda: "Laptop.example.net")
    for settings in ({}, {"open": True}, {"api_keys": THREE}):
        client = TestClient(create_app(make_engine(**settings)))
        response = client.get("/health/live", headers={"host": host})
        assert response.status_code == (200 if own or settings else 403), settings
        assert code_of(response) == (None if own or settings else "host_unknown")
    gate.is_own.cache_clear()


# Pages that may come in.


def preflight(client: TestClient, path: str, method: str = "POST", origin: str = "https://friend.org") -> Any:
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": "x-api-key,content-type"}
    return client.options(path, headers=asked)


def test_cors_is_off_unless_asked_for(client: TestClient) -> None:
    assert not [name for name in preflight(client, "/classify").headers if name.startswith("access-control")]
    assert "access-control-allow-origin" not in client.get("/models", headers={"origin": "https://friend.org"}).headers


@pytest.mark.parametrize(("path", "method"), [("/classify", "POST"), ("/models", "GET"), ("/subjects/Ada", "DELETE")])
def test_a_page_that_may_come_in_is_told_so(make_engine: Any, open_client: Any, path: str, method: str) -> None:
    client = open_client(make_engine(api_keys=THREE, cors_origins="https://friend.org,https://other.org"))
    answer = preflight(client, path, method)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.org"
    assert method in answer.headers["access-control-allow-methods"]
    assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()
    assert answer.headers["x-request-id"]
    refused = client.request(method, path, headers={"origin": "https://friend.org"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://friend.org")
    assert "Retry-After" in refused.headers["access-control-expose-headers"]
    assert preflight(client, path, method, "https://example.org").status_code == 400


def test_a_page_sees_the_answers_of_tasks(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    client = open_client(make_engine(cors_origins="*"))
    answer = client.post("/classify", files={"image": jpeg}, headers={"origin": "https://friend.org", **CROSS})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


# What is said.


def test_the_document_tells_keys_where_there_are_some(make_engine: Any) -> None:
    documents = [create_app(make_engine(**settings)).app.openapi() for settings in ({"api_keys": THREE}, {})]
    assert set(documents[0]["components"]["securitySchemes"]) == {"key", "bearer"}
    assert "securitySchemes" not in documents[1]["components"]
    for path, item in documents[0]["paths"].items():
        for method, operation in item.items():
            guarded = NEEDS[path] != "nothing"
            assert ("security" in operation) is guarded, path
            assert "security" not in documents[1]["paths"][path][method]
            examples = [answer["content"] for status, answer in operation["responses"].items() if status in ("401", "403")]
            codes = {code for content in examples for code in content["application/problem+json"]["examples"]}
            expected = {"host_unknown"} | ({"key_missing", "key_unknown", "scope_missing"} if guarded else set())
            assert codes == expected | (set() if method == "get" else {"cross_site"}), path


def test_another_server_needs_keys_or_a_word() -> None:
    with pytest.raises(SettingInvalid, match="VISION_API_KEYS, or VISION_OPEN=true"):
        from_env()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"VISION_OPEN": "true"}, ["no keys are set"]),
        ({"VISION_API_KEYS": THREE}, []),
        ({"VISION_API_KEYS_FILE": "{file}"}, ["can be read by every user"]),
    ],
)
def test_another_server_is_warned(
    monkeypatch: pytest.MonkeyPatch,
    restored_logging: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    given: dict[str, str],
    told: list[str],
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"web:use:{USER}\n")
    file.chmod(0o644)
    for name, value in given.items():
        monkeypatch.setenv(name, value.format(file=file))
    from_env()
    lines = [line for line in capsys.readouterr().err.splitlines() if '"level":"warning"' in line]
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines, strict=True))
    assert USER not in "".join(lines)


def test_a_file_that_others_cannot_read_is_no_worry(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"web:use:{USER}\n")
    for mode, worries in ((0o640, 0), (0o604, 1)):
        file.chmod(mode)
        assert len(gate.worries(Settings(api_keys_file=file), ring(THREE), elsewhere=True)) == worries

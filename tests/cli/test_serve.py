"""Real server processes, ended and killed under load."""

import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from service.cli import main, serve
from service.errors import SettingInvalid
from service.settings import Settings

PathOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def bench(models: Callable[[str], Path]) -> ModuleType:
    """benchmarks/shutdown.py, with the model that its server loads in place."""
    models("efficientnet-lite0")
    path = Path(__file__).parents[2] / "benchmarks" / "shutdown.py"
    spec = importlib.util.spec_from_file_location("shutdown", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shutdown"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def jpeg(photo_path: PathOf) -> bytes:
    return photo_path("china").read_bytes()


@pytest.mark.parametrize(("workers", "fresh"), [(1, 8), (2, 4)])
def test_sigterm_under_load_loses_no_request(bench: Any, jpeg: bytes, workers: int, fresh: int) -> None:
    outcome = bench.trial(jpeg, workers=workers, fresh=fresh, seconds=0.6)
    assert outcome.status == 0
    assert outcome.seen["lost"] == 0
    assert outcome.seen["200"] > 0


def half_a_request(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nabc")
    return connection


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_sigterm_is_obeyed_at_once(bench: Any, workers: int) -> None:
    with bench.server(workers) as running:
        bench.wait_until(running.answers)
        with half_a_request(running.port):
            time.sleep(0.2)
            running.process.terminate()
            time.sleep(0.5)
            assert running.process.poll() is None
            running.process.terminate()
            assert running.process.wait(5) == 0


# The real command on an engine that never gets done, with loading or with any painting.
STUCK = """
import time
from service.cli import main, worker

class Stuck(worker.Engine):
    pending, ready = ["all"], property(lambda self: ready)
    start = stylize = lambda *_, **__: time.sleep(600)

worker.Engine, ready = Stuck, READY
raise SystemExit(main())
"""


@pytest.fixture
def stuck(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Servers with that engine; `ready`: does it say that it is loaded?"""

    def serve(*, ready: bool) -> Any:
        script = STUCK.replace("READY", str(ready))
        monkeypatch.setattr(bench, "SERVE", [sys.executable, "-c", script, "serve"])
        return bench.server(VISION_SHUTDOWN_SECONDS="0.5")

    return serve


def test_sigterm_while_models_load(bench: Any, stuck: Any) -> None:
    with stuck(ready=False) as running:
        bench.wait_until(lambda: running.answers("/health/live"))
        assert not running.answers()
        status, seconds = running.end()
    assert status == 0
    assert seconds < 15


def test_when_time_is_up_what_runs_or_waits_is_503_and_keeps_nothing_alive(bench: Any, stuck: Any, jpeg: bytes) -> None:
    with stuck(ready=True) as running:
        bench.wait_until(running.answers)
        with half_a_request(running.port) as waiting, socket.create_connection(("127.0.0.1", running.port), timeout=10) as painted:
            head = f"POST /stylize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            painted.sendall(head.encode() + jpeg)
            time.sleep(0.5)
            status, seconds = running.end()
            assert [b" 503 " in connection.recv(1000) for connection in (waiting, painted)] == [True, True]
    assert status == 0
    assert seconds < 15


def test_a_killed_worker_is_replaced_and_loses_only_what_it_had(bench: Any, jpeg: bytes) -> None:
    with bench.server(2) as running:
        bench.wait_until(lambda: running.log.read_text().count('"ready"') == 2)
        load = bench.Load(running.port, jpeg)
        load.start(kept=6, fresh=2)
        time.sleep(0.5)
        before = load.seen["200"]
        os.kill(running.pids()[0], signal.SIGKILL)
        bench.wait_until(lambda: running.log.read_text().count('"ready"') == 3)
        time.sleep(0.3)
        status, _ = running.end()
        load.stop()
        assert len(running.pids()) == 3
    assert status == 0
    assert load.seen["lost"] <= 8
    assert load.seen["200"] > before > 0
    assert load.seen["503"] <= 8  # at the end: nobody is sent to the new one before it is ready


def test_workers_end_when_their_supervisor_is_killed(bench: Any) -> None:
    with bench.server(2) as running:
        bench.wait_until(running.answers)
        pids = running.pids()
        running.process.kill()
        bench.wait_until(lambda: not any(_lives(pid) for pid in pids), 20)
        assert not running.answers("/health/live")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_what_keeps_a_process_from_serving_is_told_and_the_status_is_1(
    bench: Any, models: Callable[[str], Path], tmp_path: Path, workers: int
) -> None:
    folder = shutil.copytree(models("yunet"), tmp_path / "yunet")
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('family = "yunet"', 'family = "unheard-of"'))
    with bench.server(workers, VISION_MODEL_REPOSITORY=str(tmp_path), VISION_MODELS="yunet") as running:
        assert running.process.wait(60) == 1
        last = running.log.read_text().splitlines()[-1]
    assert last.startswith("vision-service: ")
    assert "unheard-of" in last


KEYS = "web:use:" + "k" * 20


@pytest.mark.parametrize(
    ("published", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.20", False),
        ("::ffff:192.168.1.20", False),
        ("no-such-host.invalid", False),
    ],
)
def test_without_keys_only_this_machine_is_served(capsys: pytest.CaptureFixture[str], published: str, loopback: bool) -> None:
    assert serve.check_reach(published, Settings(api_keys=KEYS)) == []
    assert serve.check_reach("127.0.0.1", Settings(open=True)) == []
    assert capsys.readouterr().err == ""
    if loopback:
        assert serve.check_reach(published, Settings()) == []
        return
    with pytest.raises(SettingInvalid, match=r"set VISION_API_KEYS=.*, or VISION_OPEN=true.*--published-on 127\.0\.0\.1"):
        serve.check_reach(published, Settings())
    (told,) = serve.check_reach(published, Settings(open=True))
    assert "no keys are set" in told
    assert f"warning: {told}" in capsys.readouterr().err


def test_a_name_is_loopback_only_where_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, 0, 0, "", (address, 0)) for address in ("127.0.0.1", "192.168.1.20")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    assert not serve.is_loopback("both.example.org")
    found.pop()
    assert serve.is_loopback("both.example.org")


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "told"),
    [
        (["--host", "0.0.0.0"], {}, 1, "set VISION_API_KEYS="),
        (["--host", "0.0.0.0", "--published-on", "192.168.1.20"], {}, 1, "192.168.1.20 can be reached"),
        (["--host", "127.0.0.1", "--published-on", "0.0.0.0"], {}, 1, "set VISION_API_KEYS="),
        (["--host", "0.0.0.0"], {"VISION_API_KEYS": "web:use:k"}, 1, "entry 1 of VISION_API_KEYS"),
        (["--host", "127.0.0.1"], {"VISION_API_KEYS": ","}, 1, "holds no key"),
        (["--host", "0.0.0.0"], {"VISION_OPEN": "true"}, 7, "warning: no keys are set"),
        (["--host", "0.0.0.0"], {"VISION_API_KEYS": KEYS}, 7, ""),
        (["--host", "0.0.0.0", "--published-on", "127.0.0.1"], {}, 7, ""),
        ([], {}, 7, ""),
    ],
)
def test_who_could_come_in_is_checked_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    status: int,
    told: str,
) -> None:
    def begin(_: str) -> None:
        raise SystemExit(7)  # what comes after the check

    monkeypatch.setattr(serve, "choose", begin)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    try:
        ended = main(["serve", "--port", "0", *arguments])
    except SystemExit as left:
        ended = left.code
    shown = capsys.readouterr().err
    assert ended == status
    assert told in shown
    assert shown or status == 7
    assert "kkk" not in shown


def test_an_open_service_logs_one_warning_whatever_its_workers(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SERVE", [*bench.SERVE, "--published-on", "192.0.2.1"])
    with bench.server(2, VISION_OPEN="true") as running:
        bench.wait_until(lambda: running.answers("/health/live"))
        log = running.log.read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("{") and '"level":"warning"' in line]
    assert "no keys are set" in line


def test_a_service_with_keys_tells_them_nowhere(bench: Any, jpeg: bytes) -> None:
    with bench.server(VISION_API_KEYS=KEYS) as running:
        bench.wait_until(running.answers)
        codes = []
        for key in ("", "X-API-Key: " + "w" * 20, "X-API-Key: " + "k" * 20, "authorization: bearer " + "k" * 20):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
                head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n"
                connection.sendall((head + (f"{key}\r\n" if key else "") + "\r\n").encode() + jpeg)
                codes.append(connection.recv(12)[9:])
        assert running.end()[0] == 0
        log = running.log.read_text()
    assert codes == [b"401", b"401", b"200", b"200"]
    assert log.count('"key":"web"') == 2
    assert "kkk" not in log
    assert "www" not in log


@pytest.mark.parametrize("workers", [1, 2])
def test_any_worker_tells_of_a_job_and_sigterm_ends_it_and_its_stream(
    bench: Any, models: PathOf, photo_path: PathOf, workers: int
) -> None:
    models("yolov3-tiny-features")
    with bench.server(workers, VISION_MODELS="yolov3-tiny-features") as running:
        bench.wait_until(lambda: running.log.read_text().count('"ready"') == workers)
        with httpx2.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=30, headers={"connection": "close"}) as client:
            files = {name: photo_path("coffee").read_bytes() for name in ("image", "style_image")}
            begun = client.post("/stylize/optimize", files=files, data={"iterations": "5000", "max_side": "96"})
            assert begun.status_code == 202
            told = [client.get(begun.headers["location"]) for _ in range(12)]
            assert {answer.json()["id"] for answer in told} == {begun.json()["id"]}
            with client.stream("GET", begun.json()["links"]["events"]) as stream:
                lines = stream.iter_lines()
                assert any(line.startswith('data: {"id"') and '"iteration":0,' not in line for line in lines)
                running.process.terminate()
                rest = list(lines)
            assert rest.count("event: end") == 1
            assert '"state":"cancelled"' in rest[rest.index("event: end") + 1]
        assert running.process.wait(20) == 0

"""Real processes: killed at any moment, or started at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.repository.build import damage, read_record

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("pull_tiny.py")
KILLER = SCRIPT.with_name("kill_everywhere.py")
WHEEL = "shelfware-1.0-py3-none-any.whl"


@pytest.fixture
def weights() -> bytes:
    return np.random.default_rng(7).bytes(2_000_000)


@pytest.fixture
def page(shelf: Any, make_wheel: Any, weights: bytes) -> Any:
    """The archive on the test index."""
    return shelf.release("shelfware", {WHEEL: make_wheel({"weights/data.bin": weights})})[WHEEL]


def start(spec: Any, script: Path = SCRIPT) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(spec.folder.parent), spec.name]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    return out, told


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL


def wait_for(path: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach {size} bytes")


def whole(spec: Any) -> bool:
    record = read_record(spec, spec.folder)
    return record is not None and damage(spec, spec.folder, record) is None


@pytest.mark.parametrize("ranges", [True, False])
def test_killed_in_the_middle_of_a_download(shelf: Any, page: Any, make_spec: Any, weights: bytes, ranges: bool) -> None:
    spec = make_spec()
    page.ranges, page.pause = ranges, 0.05
    process = start(spec)
    part = spec.folder.parent / ".downloads" / "shelfware-1.0" / f"{WHEEL}.part"
    wait_for(part, 500_000)
    kill(process)
    left = part.stat().st_size
    assert 0 < left < len(page.body)
    assert not whole(spec)
    assert not (spec.folder / "weights").exists()

    page.pause = 0.0
    out, told = finish(start(spec))
    assert out.strip() == str(spec.folder / "model.onnx")
    assert whole(spec)
    assert (spec.folder / "weights" / "data.bin").read_bytes() == weights
    assert shelf.asked(f"/files/{WHEEL}") == [None, f"bytes={left}-"]
    assert ("of it already here" in told) == ranges
    assert not (spec.folder.parent / ".downloads").exists()


def test_killed_before_any_name_changes_on_the_disk_a_later_start_ends_whole(shelf: Any, page: Any, make_spec: Any) -> None:
    spec = make_spec()
    lines = [line.split() for line in finish(start(spec, KILLER))[0].splitlines()]
    assert len(lines) > 10
    assert {call for call, *_ in lines} >= {"replace", "unlink", "mkdir"}
    assert {state for _, state, *_ in lines} <= {"none", "whole"}
    files = [".lock", "build.json", "model.onnx", "model.toml", "parity.npz", "weights/data.bin"]
    assert [left for _, _, *left in lines] == [[f"tiny/{name}" for name in files]] * len(lines)


def test_two_processes_at_once_download_once(shelf: Any, page: Any, make_spec: Any) -> None:
    spec = make_spec()
    page.pause = 0.02
    processes = [start(spec), start(spec)]
    results = [finish(process) for process in processes]
    assert len(shelf.asked(f"/files/{WHEEL}")) == 1
    assert {out.strip() for out, _ in results} == {str(spec.folder / "model.onnx")}
    told = sorted((told for _, told in results), key=len)
    assert told[0] == "tiny: another process is building it; waiting for it\n"
    assert "downloading" in told[1]
    assert whole(spec)


def test_two_models_at_once_share_the_archive(shelf: Any, page: Any, make_spec: Any) -> None:
    specs = [make_spec("first"), make_spec("second")]
    page.pause = 0.02
    results = [finish(process) for process in [start(spec) for spec in specs]]
    assert len(shelf.asked(f"/files/{WHEEL}")) == 1
    assert any("another process is downloading shelfware 1.0; waiting for it" in told for _, told in results)
    assert all(whole(spec) for spec in specs)
    assert not (specs[0].folder.parent / ".downloads").exists()

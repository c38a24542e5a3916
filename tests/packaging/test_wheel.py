"""The wheel carries the code, the manifests and py.typed; never weights, built models or tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

BUILT = ("model.onnx", "build.json", ".lock", "weights/yolo.weights", "weights/labels.txt")  # what pulling and building leaves


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the project with every model pulled; without git's help."""
    copy, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(root / name, copy)
    shutil.copytree(root / "service", copy / "service", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "models", copy / "models", ignore=shutil.ignore_patterns("*.onnx", ".*", "build.json", "weights"))
    (copy / "models" / ".downloads").mkdir()
    (copy / "tests").mkdir()
    (copy / "tests" / "test_me.py").touch()
    for folder in (copy / "models").iterdir():
        (folder / "weights").mkdir()
        for name in BUILT:
            (folder / name).write_bytes(b"not for the wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    (path,) = built.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_carries_the_whole_package(wheel: set[str], root: Path) -> None:
    files = [path for path in (root / "service").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(root).as_posix() for path in files} - wheel == set()
    assert "service/py.typed" in wheel


def test_the_wheel_carries_each_models_manifest_and_what_lies_beside_it(wheel: set[str], root: Path) -> None:
    committed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "models"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if committed.returncode:  # an unpacked sdist has no history, but nothing that was built either
        names = [path.relative_to(root).as_posix() for path in root.glob("models/*/*")]
    else:
        names = committed.stdout.splitlines()
    assert any(name.endswith("/model.toml") for name in names)
    assert {name.replace("models/", "service/manifests/", 1) for name in names} - wheel == set()


def test_the_wheel_carries_nothing_else(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"service"}
    assert [name for name in wheel if name.endswith((".onnx", *BUILT))] == []


def test_the_wheel_carries_the_command_and_the_licences(built: Path, wheel: set[str]) -> None:
    (path,) = built.glob("*.whl")
    info = next(name.split("/")[0] for name in wheel if name.endswith("/METADATA"))
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/THIRD_PARTY.md"} <= wheel
    with zipfile.ZipFile(path) as archive:
        assert b"vision-service = service.cli:main" in archive.read(f"{info}/entry_points.txt")
        metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_the_sdist_carries_no_weights(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert any(name.endswith("/model.toml") for name in names)
    assert [name for name in names if name.endswith((".onnx", *BUILT))] == []

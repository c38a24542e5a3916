"""make finds a Python itself, says what is wrong when there is none, and starts what its variables say."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

GOOD = 'case "$2" in *version_info*) echo 3.12 ;; esac'
NO_VENV = 'case "$2" in *version_info*) echo 3.12 ;; *) exit 1 ;; esac'


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A folder, with a space in its name, that holds the Makefile and nothing installed."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, folder)
    return folder


def make(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON", "PORT", "DEVICE")
    }
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean | environ, capture_output=True, text=True, timeout=60, check=False
    )


def fake(folder: Path, name: str, script: str) -> None:
    """An executable `name` in `folder` that stands for a Python."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 3.10", "is Python 3.10, too old"),
        ("echo 3.9", "is Python 3.9, too old"),
        ("echo 2.7", "is Python 2.7, too old"),
        ("exit 127", "does not run"),
        (NO_VENV, "is Python 3.12 without venv (on Debian and Ubuntu: apt install python3.12-venv)"),
    ],
)
def test_a_python_that_will_not_do_is_refused_by_name(clone: Path, script: str, says: str) -> None:
    fake(clone / "fakes", "my python", script)
    done = make(clone, "serve", "PYTHON=./fakes/my python")
    assert done.returncode == 2
    assert f"./fakes/my python {says}\n" in done.stderr
    assert "Python 3.11 or newer with venv is needed" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("fakes", "chosen"),
    [
        ({"python3": GOOD, "python3.13": GOOD}, "python3"),
        ({"python3": "echo 3.9", "python3.13": "exit 127", "python3.12": GOOD, "python3.11": GOOD}, "python3.12"),
        ({"python3": "echo 3.15", "python3.13": "exit 127", "python3.12": "exit 127", "python3.11": GOOD}, "python3.11"),
        ({"python3": "echo 3.15", "python3.13": "exit 127", "python3.12": NO_VENV, "python3.11": "exit 127"}, "python3"),
    ],
    ids=["the default", "a named one where the default is old", "a tested one before a newer one", "a newer one at last"],
)
def test_the_first_python_that_will_do_is_taken(clone: Path, fakes: dict[str, str], chosen: str) -> None:
    for name, script in fakes.items():
        fake(clone / "fakes", name, script)
    done = make(clone, "serve", PATH=f"{clone / 'fakes'}{os.pathsep}{os.environ['PATH']}")
    assert f"making .venv with {chosen} (" in done.stdout
    assert done.returncode == 2  # the fake makes no environment
    assert not (clone / ".venv" / ".installed").exists()


def test_an_environment_made_by_somebody_else_is_left_alone(clone: Path) -> None:
    fake(clone, "fake", GOOD)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    done = make(clone, "serve", "PYTHON=./fake")
    assert done.returncode == 2
    assert ".venv is there but was not made by this Makefile" in done.stderr
    assert (clone / ".venv" / "mine").exists()


def test_an_environment_from_another_folder_is_made_anew(clone: Path) -> None:
    fake(clone, "fake", GOOD)
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".made").write_text("/somewhere/else\n", encoding="utf-8")
    for name in (".installed", "stale"):
        (clone / ".venv" / name).touch()
    done = make(clone, "serve", "PYTHON=./fake")
    assert "making .venv with ./fake" in done.stdout
    assert not (clone / ".venv" / "stale").exists()
    assert not (clone / ".venv" / ".installed").exists()


def installed(clone: Path, venv: str) -> None:
    """As after a first `make serve`, with a command that prints how it was called."""
    (clone / venv).mkdir()
    fake(clone / venv / "bin", "vision-service", 'echo "$@" "device=$VISION_DEVICE"')
    (clone / venv / ".made").write_text(f"{clone.resolve()}\n", encoding="utf-8")
    (clone / venv / ".installed").touch()


@pytest.mark.parametrize(
    ("arguments", "environ", "started"),
    [
        ((), {}, "serve --host 127.0.0.1 --port 8000 --workers 1 device="),
        (("HOST=0.0.0.0", "PORT=9000", "WORKERS=2"), {}, "serve --host 0.0.0.0 --port 9000 --workers 2 device="),
        ((), {"PORT": "9000"}, "serve --host 127.0.0.1 --port 9000 --workers 1 device="),
        ((), {"HOST": "x86_64-conda-linux-gnu"}, "serve --host 127.0.0.1 --port 8000 --workers 1 device="),
        (("DEVICE=cuda",), {}, "serve --host 127.0.0.1 --port 8000 --workers 1 device=cuda"),
        (("DEVICE=cuda",), {"VISION_DEVICE": "auto"}, "serve --host 127.0.0.1 --port 8000 --workers 1 device=auto"),
    ],
)
def test_a_second_serve_starts_at_once_with_the_variables(
    clone: Path, arguments: tuple[str, ...], environ: dict[str, str], started: str
) -> None:
    installed(clone, ".venv-cuda" if arguments == ("DEVICE=cuda",) else ".venv")
    done = make(clone, "serve", *arguments, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{started}\n", "")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_what_is_needed_installs_again(clone: Path, changed: str) -> None:
    installed(clone, ".venv")
    later = (clone / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(clone / changed, (later, later))
    done = make(clone, "-n", "serve")
    assert "--editable '.[cpu]'" in done.stdout


def test_a_device_that_is_none_is_refused(clone: Path) -> None:
    done = make(clone, "serve", "DEVICE=tpu")
    assert done.returncode == 2
    assert "DEVICE=tpu: use DEVICE=cpu or DEVICE=cuda" in done.stderr


def test_help_is_the_default_and_tells_every_target(clone: Path) -> None:
    phony = re.search(r"^\.PHONY: (help .*)$", (clone / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    done = make(clone)
    assert re.findall(r"^  make (\S+) +\S", done.stdout, re.MULTILINE) == phony[1].split()

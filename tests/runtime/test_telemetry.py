"""onnxruntime reports nothing to anybody: with telemetry on it would leave a device id and a queue of events on the disk."""

import os
import subprocess
import sys
from pathlib import Path

RUN = "import service.runtime.providers as providers; providers.choose('cpu'); import onnxruntime"


def left_behind(code: str, folder: Path) -> list[str]:
    """Files that Python left in its home and temporary folders after running `code`, in an environment that is no CI's."""
    places = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], env=plain | places, cwd=folder, check=True, timeout=60)
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_the_service_leaves_telemetry_off(tmp_path: Path) -> None:
    assert left_behind(RUN, tmp_path) == []


def test_an_operator_may_turn_it_on() -> None:
    code = "import os, service.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "0\n"

"""Seconds from starting `vision-service serve` to 200 from /health/ready, with all models built, and of `import service`.

    python benchmarks/startup.py [--rounds 5]

Cold: the built models as they are fresh from `vision-service models pull`, so that this start optimises every graph and measures
how each runs best. Warm: the next start in the same place. Each round uses copies (hard links) of the built models, in a folder
of its own. What the disk's cache holds, it holds for both.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from servers import ROOT, running_server

from service.repository.store import build_folder, scan
from service.runtime.optimized import FOLDER
from service.runtime.remembered import FILE, LOCK
from service.settings import Settings

WARM_SECONDS = 3.0
IMPORT = "import sys, time; t = time.perf_counter(); import service; print(time.perf_counter() - t, 'onnxruntime' in sys.modules)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with running_server():  # builds what is missing, and fills the disk's cache
        pass
    cold, warm, imports = [], [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            copy_models(Path(folder))
            cold.append(seconds_to_ready(folder))
            warm.append(seconds_to_ready(folder))
        imports.append(seconds_to_import())
    said(f"cold start (bar: none), {arguments.rounds} rounds", cold)
    said(f"warm start (bar: at most {WARM_SECONDS:g} s)", warm)
    said("import service (without onnxruntime)", imports)


def copy_models(place: Path) -> None:
    """Every built model below `place`, without what earlier starts kept beside it."""
    settings = Settings.from_env()
    for name, spec in scan(settings).items():
        leave = shutil.ignore_patterns(FOLDER, FILE, LOCK, ".lock", "weights")
        for source in {spec.folder, build_folder(spec, settings)}:
            shutil.copytree(source, place / name, ignore=leave, copy_function=os.link, dirs_exist_ok=True)


def seconds_to_ready(repository: str) -> float:
    start = time.perf_counter()
    with running_server({"VISION_MODEL_REPOSITORY": repository}):
        return time.perf_counter() - start


def seconds_to_import() -> float:
    """Raises SystemExit when `import service` brings onnxruntime along."""
    seconds, heavy = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout.split()
    if heavy == "True":
        raise SystemExit("`import service` imported onnxruntime")
    return float(seconds)


def said(what: str, seconds: Sequence[float]) -> None:
    print(f"{what}: {statistics.median(seconds):.3f} s, median ({min(seconds):.3f} to {max(seconds):.3f})")


if __name__ == "__main__":
    main()

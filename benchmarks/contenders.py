"""The servers that serve.py compares, each in a virtual environment of its own with pinned versions."""

import hashlib
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client import Message, ask, infer, multipart
from servers import OURS, ROOT, free_port, started

PEERS: Final = Path(__file__).with_name("peers")
METADATA: Final = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)
# Nobody refuses anything here: every server may let all connections of the client wait.
PATIENT: Final = {"VISION_QUEUE_LENGTH": "1000", "VISION_QUEUE_TIMEOUT": "120", "VISION_REQUEST_TIMEOUT": "120"}
FLOAT: Final = {"VISION_PRECISION": "float", "VISION_REDUCED_DECODE": "false"}


@dataclass(frozen=True)
class Contender:
    """A server: `script` is a file of peers/, or empty for this checkout's own service; `environ` is what makes its layout."""

    name: str
    script: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    message: Callable[[str, bytes], Message] = lambda task, photo: multipart(f"/{task}", "image", photo=photo)

    @property
    def ours(self) -> bool:
        return not self.script

    def requirements(self) -> list[str]:
        """What pip installs: as pinned at the top of the peer's file, else of peers/work.py; ours as in constraints.txt."""
        if self.ours:
            return ["--constraint", str(ROOT / "constraints.txt"), "--editable", f"{ROOT}[cpu]"]
        pins = inline_dependencies(PEERS / "work.py") | inline_dependencies(PEERS / self.script)
        return [f"{name}=={version}" for name, version in pins.items()]


@dataclass(frozen=True)
class Graphs:
    """One task's model as files: `model` in float32, which every server runs; `int8` only where this checkout has built it."""

    model: Path
    labels: Path
    int8: Path | None = None


def contenders(cores: int) -> list[Contender]:
    count = str(cores)
    return [
        Contender("vision-service", environ=PATIENT),
        Contender("vision-service, float", environ=PATIENT | FLOAT),
        Contender("FastAPI, threads", "with_fastapi.py", {"BENCH_WORKERS": "1", "BENCH_THREADS": count}),
        Contender("FastAPI, processes", "with_fastapi.py", {"BENCH_WORKERS": count, "BENCH_THREADS": "1"}),
        Contender("mosec", "with_mosec.py"),
        Contender("BentoML", "with_bentoml.py"),
        Contender("LitServe", "with_litserve.py", message=lambda task, photo: multipart(f"/{task}", "request", photo=photo)),
        Contender("Ray Serve", "with_ray.py"),
        Contender("Triton", "with_triton.py", message=infer),
    ]


def inline_dependencies(script: Path) -> dict[str, str]:
    """Names and versions of the dependencies at the top of a script, which are written as PEP 723 says."""
    block = METADATA.search(script.read_text(encoding="utf-8"))
    lines = block[1].splitlines() if block else []
    pins = tomllib.loads("\n".join(line.removeprefix("#").strip() for line in lines)).get("dependencies", [])
    return dict(pin.split("==") for pin in pins)


def installed(contender: Contender, folder: Path, python: str) -> Path:
    """The Python of the contender's environment below `folder`, made or brought up to date where needed.

    Raises RuntimeError with pip's last line when something does not install.
    """
    place = folder / (contender.script.removesuffix(".py") or "vision-service")
    wanted = contender.requirements()
    if contender.ours:
        wanted.append(hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest())
    stamp, interpreter = place / "installed.txt", place / "bin" / "python"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join([python, *wanted]):
        _run(python, "-m", "venv", "--clear", str(place))
        _run(str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *contender.requirements())
        stamp.write_text("\n".join([python, *wanted]), encoding="utf-8")
    return interpreter


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise RuntimeError(f"{' '.join(command[1:4])}: {said[-1]}")


@contextmanager
def serving(contender: Contender, python: Path, task: str, graphs: Graphs, cores: int, logs: Path) -> Iterator[int]:
    """Run the contender for one task; gives its port as soon as something listens there. Its output goes to a file in `logs`."""
    port = free_port()
    environ = {
        "BENCH_TASK": task,
        "BENCH_GRAPH": str(graphs.model),
        "BENCH_LABELS": str(graphs.labels),
        "BENCH_PORT": str(port),
        "BENCH_CORES": str(cores),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        **contender.environ,
    }
    command = [str(python), *OURS, str(port)] if contender.ours else [str(python), str(PEERS / contender.script)]
    with started(command, environ, logs / f"{contender.name}.log".replace(" ", "-")):
        yield port


def first_answer(contender: Contender, port: int, task: str, photo: bytes, seconds: float = 120) -> list[str]:
    """The labels of the first answer, asked for until there is one. Raises RuntimeError when there is none in time."""
    limit, message = time.monotonic() + seconds, contender.message(task, photo)
    while True:
        try:
            return ask(port, message)
        except (OSError, ValueError) as error:
            if time.monotonic() > limit:
                raise RuntimeError(f"no answer within {seconds:.0f} s: {error}") from None
            time.sleep(0.1)

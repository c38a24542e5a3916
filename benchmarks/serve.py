"""This service and its peers on the same photos, graphs and cores: requests in a second, and how long each takes.

    python benchmarks/serve.py [--quick] [--only mosec,FastAPI] [--tasks classify] [--photo small] [--rounds 3] [--out DIR]

Each server gets a virtual environment of its own (--envs; the first run installs some 3 GB), and each round gives every server
its turn on each task and photo: the in-process limit is measured, the server is started, answers are checked against the limit's,
and wrk asks over 1, 8, 32 and 128 connections. Only one server runs at a time, so nothing that idles takes anything from it.
Needs Linux and wrk (apt-get install wrk). Prints tables and writes serve.json, serve.md and one plot a task and photo to --out.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from client import MISSING, wrk
from contenders import Contender, Graphs, contenders, first_answer, installed, serving
from photos import SIZES, photo
from report import Turn, as_markdown, as_plots
from servers import ROOT, processor

MODELS: Final = {"classify": "efficientnet-lite0", "detect": "yolov3-tiny"}
HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What is measured, and where things lie. `seconds` a measurement; `folder` holds photos and logs while it runs."""

    tasks: tuple[str, ...]
    photos: tuple[str, ...]
    connections: tuple[int, ...]
    rounds: int
    seconds: float
    minutes: float
    cores: int
    folder: Path
    models: dict[str, Graphs]


def main() -> None:
    arguments = parsed()
    if shutil.which("wrk") is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(arguments, Path(folder))
        wanted = [
            c for c in contenders(plan.cores) if not arguments.only or any(o.lower() in c.name.lower() for o in arguments.only)
        ]
        pythons, absent = prepared(plan, wanted, arguments.envs.expanduser(), arguments.python)
        turns = measured(plan, [c for c in wanted if c.name in pythons], pythons)
    machine = f"{plan.cores} cores of {processor()}, {platform.system()}, Python {platform.python_version()}"
    about = {"machine": machine, "rounds": max((t.round for t in turns), default=0), "seconds": plan.seconds, "absent": absent}
    written(arguments.out, turns, about)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round over 1 and 8 connections: does everything still run?")
    parser.add_argument("--only", type=names, default=(), help="servers whose names hold one of these, separated by commas")
    parser.add_argument("--tasks", type=names, default=tuple(MODELS), help="classify,detect")
    parser.add_argument("--photo", type=names, default=tuple(SIZES), help="small,large")
    parser.add_argument("--connections", type=lambda text: tuple(map(int, text.split(","))), default=(1, 8, 32, 128))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement; longer where requests are slow")
    parser.add_argument("--minutes", type=float, default=180, help="after which no further round is begun")
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/vision-service-bench"), help="where the environments are kept")
    parser.add_argument("--python", default=default_python(), help="makes the environments; Triton needs the distribution's own")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.connections = 1, 1.0, (1, 8)
    for given, known in ((arguments.tasks, MODELS), (arguments.photo, SIZES)):
        if not set(given) <= set(known):
            parser.error(f"{', '.join(given)}: choose from {', '.join(known)}")
    return arguments


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_python() -> str:
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def planned(arguments: argparse.Namespace, folder: Path) -> Plan:
    from service.repository.progress import terminal_progress
    from service.repository.store import ensure, scan
    from service.runtime.machine import usable_cores
    from service.runtime.session import run_once
    from service.settings import Settings

    settings = Settings.from_env()
    specs, models = scan(settings), {}
    for task in arguments.tasks:
        spec = specs[MODELS[task]]
        built = ensure(spec, settings, run_once, terminal_progress())
        int8 = built.variants.get("int8", {}).get("model")
        models[task] = Graphs(built.graphs["model"], spec.folder / "labels.txt", int8)
    for name in arguments.photo:
        (folder / f"{name}.jpg").write_bytes(photo(name))
    given = (arguments.connections, arguments.rounds, arguments.seconds, arguments.minutes)
    return Plan(arguments.tasks, arguments.photo, *given, usable_cores(), folder, models)


def prepared(plan: Plan, wanted: list[Contender], envs: Path, python: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The Python of each server that installs and answers, by its name, and the reason for each that does not."""
    pythons, absent = {}, {}
    task, name = plan.tasks[0], plan.photos[0]
    for contender in wanted:
        print(f"preparing {contender.name}", file=sys.stderr, flush=True)
        try:
            found = installed(contender, envs, python)
            with serving(contender, found, task, plan.models[task], plan.cores, plan.folder) as port:
                first_answer(contender, port, task, photo(name))
            pythons[contender.name] = found
        except RuntimeError as error:
            absent[contender.name] = str(error)
            print(f"{contender.name} is left out: {error}", file=sys.stderr)
    return pythons, absent


def measured(plan: Plan, wanted: list[Contender], pythons: dict[str, Path]) -> list[Turn]:
    turns: list[Turn] = []
    ours = next(iter(pythons.values()), Path(sys.executable))
    end = time.monotonic() + plan.minutes * 60
    for number in range(1, plan.rounds + 1):
        if time.monotonic() > end:
            break
        for task in plan.tasks:
            for name in plan.photos:
                for contender in wanted if number % 2 else reversed(wanted):  # nobody always comes after the same one
                    turns += one_turn(plan, number, contender, pythons[contender.name], task, name, ours)
    return turns


def one_turn(plan: Plan, number: int, contender: Contender, python: Path, task: str, name: str, limits: Path) -> list[Turn]:
    """The limit, then one server over each count of connections. Raises SystemExit when it answers anything but the limit."""
    whole = limit(plan, limits, task, name, plan.models[task].model)
    quantised = plan.models[task].int8 if contender.ours else None
    int8 = limit(plan, limits, task, name, quantised, "--reduced") if quantised else None
    content = (plan.folder / f"{name}.jpg").read_bytes()
    message = contender.message(task, content)
    turns = []
    with serving(contender, python, task, plan.models[task], plan.cores, plan.folder) as port:
        labels = first_answer(contender, port, task, content)
        if labels[:1] != whole["labels"][:1]:
            raise SystemExit(f"{contender.name} answers {labels} on /{task}, but the model says {whole['labels']}")
        wrk(port, message, 8, 1 if plan.seconds < 2 else 2)  # warms up
        for connections in plan.connections:
            slowest = connections / whole["per_second"]  # seconds that a request waits when all of them come at once
            time.sleep(min(20.0, slowest))  # a server may still be at work for clients that have gone
            found = wrk(port, message, connections, max(plan.seconds, 3 * slowest))
            rate = (found["answers"] - found["refused"]) / found["seconds"]
            times = (found["p50"], found["p90"], found["p99"])
            errors = found["refused"] + found["broken"]
            alone = whole["decode_ms"] + whole["model_ms"]
            limits_found = (whole["per_second"], int8["per_second"] if int8 else None)
            turns.append(Turn(number, contender.name, task, name, connections, rate, *times, errors, *limits_found, alone))
            print(f"round {number}  /{task} {name}  {contender.name}, {connections}: {rate:.1f}/s", file=sys.stderr, flush=True)
    return turns


def limit(plan: Plan, python: Path, task: str, name: str, graph: Path, *further: str) -> dict[str, Any]:
    """What limit.py says in a process of its own."""
    command = [str(python), str(HERE / "limit.py"), "--task", task, "--graph", str(graph), "--threads", str(plan.cores), *further]
    command += ["--labels", str(plan.models[task].labels), "--photo", str(plan.folder / f"{name}.jpg")]
    command += ["--seconds", str(plan.seconds / 2)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    found: dict[str, Any] = json.loads(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)
    return found


def written(out: Path, turns: list[Turn], about: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(turns, about)
    print(text)
    (out / "serve.md").write_text(text, encoding="utf-8")
    (out / "serve.json").write_text(
        json.dumps({"about": about, "turns": [asdict(t) for t in turns]}, indent=1) + "\n", encoding="utf-8"
    )
    for name, plot in as_plots(turns).items():
        (out / f"serve-{name}.svg").write_text(plot, encoding="utf-8")
    print(f"written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()

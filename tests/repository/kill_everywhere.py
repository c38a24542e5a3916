"""Kill the building of a model before each change that it makes to the names on the disk, one after the other, and build it again.

Those are renamings, deletions, and folders made or removed; a file is only ever named for good by a renaming. Kills between them,
while bytes are being written, are left to the download that test_crash.py cuts.

As a command: python kill_everywhere.py REPOSITORY NAME prints one line for each place, "<call> <state after the kill>", where the
state is "none" (a later start sees no model), "whole", or "half" (a later start would take a half model for whole).
"""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

from pull_tiny import run_graph

from service.export.recipes import RECIPES
from service.repository.build import damage, read_record
from service.repository.fetch import fetch_weights  # noqa: F401 - imported once, here, and not in every child
from service.repository.progress import Silent
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import ensure, find_built
from service.settings import Settings

CALLS = ("replace", "unlink", "mkdir", "rmdir")


def build(spec: ModelSpec, kill_before: int | None) -> tuple[bool, str]:
    """Build in a child process that kills itself before its n-th change. Was it killed, and before which of CALLS?"""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            called = pipe.read()
        status = os.waitpid(child, 0)[1]
        if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"the build failed with status {status}")
        return bool(status), called
    if kill_before is not None:
        changes = count(1)
        for name in CALLS:
            setattr(os, name, deadly(name, changes, kill_before, writer))
    settings = Settings(model_repository=(spec.folder.parent,), models=(spec.name,))
    ensure(spec, settings, run_graph, Silent())
    os._exit(0)


def deadly(name: str, changes: "count[int]", last: int, writer: int) -> object:
    call = getattr(os, name)

    def wrapped(*args: object, **kwargs: object) -> object:
        if next(changes) == last:
            os.write(writer, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


def state(spec: ModelSpec) -> str:
    record = read_record(spec, spec.folder)
    if record is None:
        return "none"
    return "half" if damage(spec, spec.folder, record) else "whole"


def main(repository: Path, name: str) -> None:
    RECIPES["tiny"] = "pull_tiny:export"
    sys.executable = os.environ["PATH"] = ""  # no pip: it would be asked dozens of times; the PIP_* variables count
    for kill_before in count(1):
        copy = repository.with_name(f"killed-{kill_before}")
        shutil.copytree(repository, copy)
        spec = load_spec(copy / name)
        killed, called = build(spec, kill_before)
        if not killed:
            return
        found = state(spec)
        build(spec, None)
        left = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
        if state(spec) != "whole" or not find_built(spec, Settings()):
            raise SystemExit(f"killed before change {kill_before} ({called}), it does not recover")
        sys.stdout.write(f"{called} {found} {' '.join(left)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""This machine as one process may use it: its share of the cores, which processor and GPU it has, and threads of low priority."""

import ctypes
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from service.runtime.crew import be_nice

T = TypeVar("T")
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
BACKGROUND_NICE = 10
"""Added niceness of threads whose work may wait: a tenth of a core against one busy thread of normal priority."""

_CPU_KEYS = frozenset(
    {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}
    | {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"}
)


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Whole cores this process may use, at least 1: the smaller of its affinity and its CPU quota (rounded up).

    Quotas are those of the process's own control group and of every group around it, version 1 or 2.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_quotas(proc, cgroups)]))


def _quotas(proc: Path, cgroups: Path) -> Iterator[int]:
    """Quotas in cores, rounded up. A container often sees its own group mounted as the root, so the root is always asked too."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = ["0::/"]
    for line in lines:
        controllers, _, own = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        read = _quota_v1 if controllers else _quota_v2
        path = Path(own.lstrip("/"))
        for root in [cgroups / controllers, cgroups / "cpu"] if controllers else [cgroups, cgroups / "unified"]:
            for group in (path, *path.parents) if ".." not in path.parts else (Path(),):
                try:
                    quota, period = read(root / group)
                    yield max(1, math.ceil(quota / period))
                except (OSError, ValueError, ZeroDivisionError):  # no such group, or no quota in it
                    continue


def _quota_v2(group: Path) -> tuple[int, int]:
    quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    return int(quota), int(period)  # "max" is no number: no quota


def _quota_v1(group: Path) -> tuple[int, int]:
    quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
    if quota <= 0:
        raise ValueError("no quota")
    return quota, int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))


@cache
def processor(proc: Path = PROC) -> tuple[str, str | None]:
    """The processor's name, and a digest of its model and features; None where this system does not tell them."""
    try:
        first = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").strip().split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine(), None
    pairs = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    known = sorted((key, value) for key, value in pairs.items() if key in _CPU_KEYS)
    digest = hashlib.sha256(repr((platform.machine(), known)).encode()).hexdigest() if known else None
    return pairs.get("model name") or platform.machine(), digest


@cache
def exact_int8(proc: Path = PROC) -> bool:
    """Whether this processor sums products of uint8 and int8 exactly.

    An x86 processor without the VNNI or AMX instructions sums pairs of them in 16 bits and cuts off what does not fit. Where the
    system does not tell its features (not Linux), the answer is no.
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "i686", "x86"}:
        return True
    try:
        words = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(words)


def gpu_names(proc: Path = PROC) -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver lists, sorted; without one, none."""
    names = []
    for path in (proc / "driver" / "nvidia" / "gpus").glob("*/information"):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(sorted(names))


def in_background(make: Callable[[], T]) -> T:
    """make(), run on a thread of lower priority: threads that it starts inherit that (on Linux; elsewhere nothing changes)."""
    with ThreadPoolExecutor(1, "in-background", initializer=be_nice, initargs=(BACKGROUND_NICE,)) as pool:
        return pool.submit(make).result()


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library can (glibc): loading frees much, and frees it in small pieces."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

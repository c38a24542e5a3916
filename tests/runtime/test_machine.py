import os
import sys
import threading
from pathlib import Path

import pytest

from service.runtime.machine import BACKGROUND_NICE, exact_int8, gpu_names, in_background, processor, usable_cores


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/x"
MACHINES: dict[str, tuple[str | None, dict[str, str], int]] = {
    "no control groups": (None, {}, 4),
    "no quota": ("0::/", {"cpu.max": "max 100000"}, 4),
    "one and a half cores": ("0::/", {"cpu.max": "150000 100000"}, 2),
    "half a core": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "more than there are": ("0::/", {"cpu.max": "900000 100000"}, 4),
    "nonsense": ("0::/", {"cpu.max": "nonsense"}, 4),
    "a period of zero": ("0::/", {"cpu.max": "100000 0"}, 4),
    "its own group": ("0::/system.slice/a.service", {"system.slice/a.service/cpu.max": "200000 100000"}, 2),
    "a group around it": ("0::/a/b/c", {"a/b/c/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, 1),
    "the tightest counts": ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
    "not its sibling": ("0::/a/b", {"a/c/cpu.max": "100000 100000"}, 4),
    "mounted as the root": ("0::/docker/abc", {"cpu.max": "200000 100000"}, 2),
    "outside of its namespace": ("0::/../other", {"cpu.max": "200000 100000", "../other/cpu.max": "100000 100000"}, 2),
    "hybrid": ("0::/a", {"unified/a/cpu.max": "200000 100000"}, 2),
    "version 1": (
        V1,
        {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
        3,
    ),
    "version 1, as the root": (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    "version 1, no quota": (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    "version 1, other controllers": ("3:memory:/x", {"memory/x/cpu.cfs_quota_us": "1", "memory/x/cpu.cfs_period_us": "1"}, 4),
}


@pytest.mark.parametrize("name", MACHINES)
def test_quota_and_affinity_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    group, files, expected = MACHINES[name]
    write(tmp_path / "sys", files)
    write(tmp_path / "proc", {} if group is None else {"self/cgroup": group + "\n"})
    assert usable_cores(tmp_path / "proc", tmp_path / "sys") == expected


CPUINFO = "processor\t: 0\nmodel name\t: Chip 9000\nflags\t\t: {flags}\ncpu MHz\t\t: {mhz}\n\nprocessor\t: 1\nmodel name\t: Other\n"


def test_a_processor_is_known_by_its_features_not_by_its_clock(tmp_path: Path) -> None:
    found = []
    for name, flags, mhz in (("a", "avx2", 800), ("b", "avx2", 4100), ("c", "avx2 avx512f", 800)):
        write(tmp_path / name, {"cpuinfo": CPUINFO.format(flags=flags, mhz=mhz)})
        found.append(processor(tmp_path / name))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0] == "Chip 9000"
    assert found[0][1] != found[2][1]


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "sse4_2 avx2 fma", False),
        ("x86_64", "avx2 avx512f avx512bw", False),
        ("x86_64", "avx2 avx512f avx512_vnni", True),
        ("x86_64", "avx2 avx_vnni", True),
        ("AMD64", None, False),
        ("aarch64", None, True),
    ],
)
def test_sums_of_8_bit_products_are_trusted_only_where_they_cannot_saturate(
    machine: str, flags: str | None, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags=flags, mhz=1))
    assert exact_int8(tmp_path) is exact


def test_a_processor_that_tells_nothing_has_no_digest(tmp_path: Path) -> None:
    assert processor(tmp_path)[1] is None


def test_gpus_are_those_the_driver_lists(tmp_path: Path) -> None:
    assert gpu_names(tmp_path) == ()
    for number, name in enumerate(("NVIDIA H100", "NVIDIA A2")):
        write(tmp_path, {f"driver/nvidia/gpus/{number}/information": f"Model: \t\t {name}\nIRQ: 1\n"})
    assert gpu_names(tmp_path) == ("NVIDIA A2", "NVIDIA H100")


def test_threads_started_in_the_background_are_nice() -> None:
    """On Linux; elsewhere a single thread has no niceness, and all stays as it was."""
    stop = threading.Event()

    def start() -> int:
        thread = threading.Thread(target=stop.wait)
        thread.start()
        return thread.native_id or 0

    def niceness(thread: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, thread if sys.platform == "linux" else 0)

    before = niceness(threading.get_native_id())
    child = in_background(start)
    try:
        assert niceness(child) == (min(19, before + BACKGROUND_NICE) if sys.platform == "linux" else before)
        assert niceness(threading.get_native_id()) == before
    finally:
        stop.set()


def test_what_fails_in_the_background_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0)

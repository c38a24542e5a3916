import os
from pathlib import Path

import pytest

from service.runtime.machine import usable_cores


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("nonsense", 4), (None, 4)],
)
def test_quota_and_affinity_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    path = tmp_path / "cpu.max"
    if cpu_max is not None:
        path.write_text(cpu_max)
    assert usable_cores(path) == expected

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from service.runtime import remembered
from service.runtime.providers import CPU, CUDA
from service.runtime.remembered import ENTRIES, FILE, Memory
from service.runtime.tuning import Plan, Tuning

PLANS = [Plan(threads=1, parallel=2), Plan(threads=2)]
FOUND = Tuning(plan=PLANS[1], source="measured")


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory((tmp_path,), "a" * 64, CPU, 2)


def test_what_was_measured_is_remembered(memory: Memory) -> None:
    assert memory.recall(PLANS) is None
    memory.keep(PLANS, FOUND)
    assert memory.recall(PLANS) == FOUND.model_copy(update={"source": "remembered"})


@pytest.mark.parametrize("change", [{"build": "b" * 64}, {"cores": 3}, {"provider": CUDA}])
def test_another_build_or_machine_has_entries_of_its_own(memory: Memory, change: dict[str, object]) -> None:
    memory.keep(PLANS, FOUND)
    other = replace(memory, **change)  # type: ignore[arg-type]
    assert other.recall(PLANS) is None
    other.keep(PLANS, FOUND.model_copy(update={"plan": PLANS[0]}))
    for one, plan in ((memory, PLANS[1]), (other, PLANS[0])):
        found = one.recall(PLANS)
        assert found is not None
        assert found.plan == plan


def test_other_plans_another_runtime_and_newer_code_measure_again(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.keep(PLANS, FOUND)
    assert memory.recall(PLANS[1:]) is None
    monkeypatch.setattr(remembered, "TUNING_VERSION", 999)
    assert memory.recall(PLANS) is None
    monkeypatch.undo()
    monkeypatch.setattr(remembered.import_onnxruntime(), "__version__", "99.0")
    assert memory.recall(PLANS) is None
    monkeypatch.undo()
    monkeypatch.setattr(remembered, "processor", lambda: ("another chip", "f" * 64))
    assert memory.recall(PLANS) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"entries": [{"key": 1}]}', b'{"entries": [], "more": 1}'])
def test_a_damaged_file_is_ignored_and_written_anew(memory: Memory, tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert memory.recall(PLANS) is None
    memory.keep(PLANS, FOUND)
    assert memory.recall(PLANS) is not None


def test_a_plan_that_is_no_choice_any_more_does_not_count(memory: Memory, tmp_path: Path) -> None:
    memory.keep(PLANS, FOUND)
    path = tmp_path / FILE
    kept = json.loads(path.read_text())
    kept["entries"][0]["tuning"]["plan"]["threads"] = 7
    path.write_text(json.dumps(kept))
    assert memory.recall(PLANS) is None


def test_the_newest_entries_are_kept(memory: Memory, tmp_path: Path) -> None:
    machines = [replace(memory, cores=cores) for cores in range(1, ENTRIES + 3)]
    for machine in machines:
        machine.keep(PLANS, FOUND)
    assert [machine.recall(PLANS) is not None for machine in machines] == [False, False] + [True] * ENTRIES
    assert len(json.loads((tmp_path / FILE).read_text())["entries"]) == ENTRIES


def test_the_next_folder_serves_where_the_first_cannot_be_written(tmp_path: Path) -> None:
    blocked, free = tmp_path / "file" / "folder", tmp_path / "free"
    blocked.parent.write_text("not a folder")
    memory = Memory((blocked, free), "a" * 64, CPU, 2)
    with memory.turn() as ours:
        assert ours
        memory.keep(PLANS, FOUND)
    assert (free / FILE).is_file()
    assert memory.recall(PLANS) is not None


@pytest.mark.parametrize("build", [None, "a" * 64])
def test_where_nothing_can_be_kept_it_is_measured_each_time(tmp_path: Path, build: str | None) -> None:
    (tmp_path / "file").write_text("not a folder")
    memory = Memory((tmp_path / "file" / "folder",) if build else (tmp_path,), build, CPU, 2)
    with memory.turn() as ours:
        assert ours
        memory.keep(PLANS, FOUND)
    assert memory.recall(PLANS) is None


def test_one_measures_and_the_others_wait_for_it(memory: Memory) -> None:
    measured: list[int] = []

    def start(number: int) -> None:
        with memory.turn():
            if memory.recall(PLANS) is None:
                measured.append(number)
                memory.keep(PLANS, FOUND)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(measured) == 1


def test_waiting_for_another_process_ends(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "WAIT_SECONDS", 0.05)
    turns: list[bool] = []

    def wait() -> None:
        with memory.turn() as ours:
            turns.append(ours)

    with memory.turn():
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(30)
    assert turns == [False]

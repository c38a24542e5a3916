"""How a built model is opened: measured once, remembered, from its optimised form, and painters at low priority."""

import datetime
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine import Engine
from service.errors import InferenceFailed
from service.loaded import DERIVED, LoadedModel, known_tuning, load, load_known, tune_ahead, usual_feeds
from service.repository.build import RECORD
from service.repository.parity import load_cases
from service.repository.spec import Threshold, load_spec
from service.repository.store import BuiltModel, find_built
from service.repository.thresholds import Calibrated, write_calibrated
from service.runtime.optimized import FOLDER
from service.runtime.providers import CPU, Choice
from service.runtime.remembered import FILE
from service.settings import Settings
from service.tasks.face_embedding import METHOD
from service.tasks.task import Timing

SETTINGS = Settings(device="cpu", cores=2)
UNTUNED = Settings(device="cpu", cores=2, tune=False)
ON_CPU = Choice(CPU)


@pytest.fixture
def copy(models: Callable[[str], Path], tmp_path: Path) -> Callable[[str], BuiltModel]:
    """A built model of its own, by name, with nothing remembered."""

    def make(name: str) -> BuiltModel:
        folder = tmp_path / name
        shutil.copytree(models(name), folder, ignore=shutil.ignore_patterns(FILE, FOLDER, "weights", ".*"))
        built = find_built(load_spec(folder), Settings(data_dir=tmp_path / "data"))
        assert built is not None
        return built

    return make


@contextmanager
def opened(built: BuiltModel, settings: Settings = SETTINGS) -> Iterator[LoadedModel]:
    model = load(built, ON_CPU, settings)
    yield model
    model.close()


def test_a_model_is_measured_once_and_remembered(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("yunet")
    assert known_tuning(built, ON_CPU, SETTINGS) is None
    with opened(built) as model:
        first = model.tuning
    assert first.source == "measured"
    assert {(one.threads, one.parallel) for one in first.measured} == {(1, 2), (2, 1)}
    assert all(one.throughput > 0 and one.latency_ms > 0 for one in first.measured)
    with opened(built) as model:
        assert model.tuning == first.model_copy(update={"source": "remembered"})
    assert known_tuning(built, ON_CPU, SETTINGS.model_copy(update={"cores": 1})) is None


def test_measuring_ahead_leaves_nothing_to_measure(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("yunet")
    assert tune_ahead(built, ON_CPU, SETTINGS).source == "measured"
    assert tune_ahead(built, ON_CPU, SETTINGS).source == "remembered"
    with opened(built) as model:
        assert model.tuning.source == "remembered"


@pytest.mark.parametrize(
    ("settings", "source", "plan"),
    [
        ({"tune": False}, "default", ("float32", 1, 2, 1)),
        ({"tune": False, "threads": 2}, "set", ("float32", 2, 1, 1)),
        ({"tune": False, "precision": "float"}, "set", ("float32", 1, 2, 1)),
        ({"threads": 1, "parallel": 3, "batch": 5, "precision": "float"}, "set", ("float32", 1, 3, 5)),
    ],
)
def test_settings_decide_without_measuring(
    copy: Callable[[str], BuiltModel], settings: dict[str, object], source: str, plan: tuple[object, ...]
) -> None:
    built = copy("yunet")
    with opened(built, SETTINGS.model_copy(update=settings)) as model:
        assert model.tuning.source == source
        assert tuple(model.tuning.plan.model_dump().values()) == plan
        assert model.tuning.measured == ()
        assert model.info.precision == "float32"
    assert not (built.folder / FILE).exists()


def test_a_precision_that_is_not_there_is_noted(copy: Callable[[str], BuiltModel]) -> None:
    with opened(copy("yunet"), UNTUNED.model_copy(update={"precision": "int8"})) as model:
        assert model.info.precision == "float32"
        assert model.tuning.note == "VISION_PRECISION=int8, but this model has no int8 graph"


def test_a_variant_that_does_not_run_is_left_aside(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("yunet")
    (built.folder / "model.int8.onnx").write_bytes(b"not a graph")
    built = replace(built, faster={"int8": {"model": built.folder / "model.int8.onnx"}})
    with opened(built) as model:
        assert model.info.precision == "float32"
        assert "another precision does not run here" in str(model.tuning.note)


def test_the_fastest_variant_is_chosen_and_named(copy: Callable[[str], BuiltModel]) -> None:
    """A small model passes for the int8 variant of a large one."""
    small, large = copy("yunet"), copy("yolov3-tiny")
    feeds = load_cases(small.spec)["model"].feeds
    assert set(feeds) == set(load_cases(large.spec)["model"].feeds)
    built = replace(large, spec=small.spec, faster={"int8": small.graphs["model"].rename(small.folder / "model.int8.onnx")})
    with opened(built, SETTINGS.model_copy(update={"batch": 1})) as model:
        assert model.info.precision == "int8"
        assert {one.precision for one in model.tuning.measured} == {"float32", "int8"}
        assert "boxes" in model.sessions["model"].run(feeds)


def test_a_known_model_is_opened_from_optimised_graphs_alone(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("yunet")
    feeds = load_cases(built.spec)["model"].feeds
    assert load_known(built, ON_CPU, UNTUNED) is None
    with opened(built, UNTUNED) as model:
        plain = model.sessions["model"].run(feeds)
    built.graphs["model"].unlink()
    known = load_known(built, ON_CPU, UNTUNED)
    assert known is not None
    for name, tensor in known.sessions["model"].run(feeds).items():
        np.testing.assert_array_equal(tensor, plain[name])
    known.close()
    assert load_known(built, ON_CPU, SETTINGS) is None  # not measured yet


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.parametrize("name", ["efficientnet-lite0", "magenta-arbitrary", "multistyle26", "sface", "yolov3-tiny", "yunet"])
def test_optimised_graphs_answer_bit_for_bit_the_same(copy: Callable[[str], BuiltModel], name: str, precision: str) -> None:
    built, settings = copy(name), UNTUNED.model_copy(update={"precision": precision})
    cases = load_cases(built.spec)
    with opened(replace(built, folder=built.folder / "nowhere"), settings) as model:  # no record there: nothing is kept
        plain = {graph: session.run(cases[graph].feeds) for graph, session in model.sessions.items()}
    with opened(built, settings):
        pass
    known = load_known(built, ON_CPU, settings)
    assert known is not None
    for graph, session in known.sessions.items():
        for output, tensor in session.run(cases[graph].feeds).items():
            np.testing.assert_array_equal(tensor, plain[graph][output], err_msg=f"{graph} {output}")
    known.close()


def test_a_folder_that_cannot_be_written_is_no_obstacle(copy: Callable[[str], BuiltModel], tmp_path: Path) -> None:
    built = copy("yunet")
    for name in (FILE, FOLDER):  # in the way of the folder and of the file that would be written
        (built.folder / name).mkdir() if name == FILE else (built.folder / name).touch()
    with opened(built) as model:
        assert model.tuning.source == "measured"
        model.warm_up()


def test_the_usual_feeds_have_the_size_and_the_batch_of_requests(models: Callable[[str], Path]) -> None:
    for name, size in (("efficientnet-lite0", (224, 224)), ("yunet", (480, 640))):
        spec = load_spec(models(name))
        (feed,) = usual_feeds(spec, load_cases(spec)["model"].feeds, 3).values()
        assert feed.shape == (3, *size, 3)
        assert feed.dtype == np.uint8
        assert feed.flags.c_contiguous


def _stat(thread: Path) -> str:
    """Empty where the thread, another test's, has ended."""
    try:
        return (thread / "stat").read_text()
    except OSError:
        return ""


def test_threads_of_painters_give_way_and_those_of_others_do_not(copy: Callable[[str], BuiltModel]) -> None:
    """Three threads a session, two of them its own; niceness is field 19 of a thread's stat, counted from 1."""
    if sys.platform != "linux":
        return
    threads = Path("/proc/self/task")
    for name, nice in (("multistyle26", 10), ("yolov3-tiny-features", 10), ("yunet", 0)):
        before = set(threads.iterdir())
        with opened(copy(name), UNTUNED.model_copy(update={"threads": 3})) as model:
            new = set(threads.iterdir()) - before
            stats = [text.rpartition(")")[2].split() for thread in new if (text := _stat(thread))]
            assert len(stats) >= 2 * len(model.sessions)
            assert {int(fields[16]) for fields in stats} == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)}


def test_graphs_that_are_kept_are_opened_only_as_what_is_made_of_them(copy: Callable[[str], BuiltModel]) -> None:
    x = {"picture": np.full((1, 3, 64, 48), 99, np.float32)}
    with opened(copy("yolov3-tiny-features"), UNTUNED) as model:
        assert set(model.sessions) == {"model", "targets"}
        made: list[str] = []

        def use(name: str) -> AbstractContextManager[None]:
            return model.derived(name, "features", lambda path: made.append(name) or path.read_bytes())  # type: ignore[func-returns-value]

        for name in ("first", *map(str, range(DERIVED - 1)), "first", "one more"):
            with use(name):
                pass
        assert made == ["first", *map(str, range(DERIVED - 1)), "one more"]
        assert set(model.sessions) == {"model", "targets", "first", "one more", *map(str, range(1, DERIVED - 1))}
        with use("1"):  # a long painting, and others beside it
            for name in map(str, range(2, DERIVED + 5)):
                with use(name):
                    pass
            assert model.run(x, Timing(), "1")["features/conv6"].shape == (1, 512, 2, 1)
        assert len(model.sessions) == 2 + DERIVED
        with use("first"):
            outputs = model.run(x, Timing(), "first")
        assert outputs["features/conv6"].shape == (1, 512, 2, 1)
        assert np.array_equal(outputs["features/conv4"], model.run(x, Timing(), "targets")["features/conv4"])


def test_cards_say_how_a_model_runs(loaded: Callable[[str], LoadedModel], engine: Engine) -> None:
    loaded("yunet")
    card = next(card for card in engine.describe() if card.name == "yunet")
    assert card.precision == card.tuning.plan.precision == "float32"
    assert card.tuning.source == "set"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import service", {"onnxruntime", "onnx", "numpy", "cv2", "pydantic"}),
        ("import service.cli", {"onnxruntime", "onnx"}),
        ("from service import Engine", {"onnxruntime", "onnx"}),
        ("from service import Engine; Engine()", {"onnxruntime", "onnx"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(code: str, absent: set[str]) -> None:
    check = f"{code}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", check], env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_record_of_a_build_is_what_is_remembered_by(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("yunet")
    with opened(built):
        pass
    record = built.folder / RECORD
    record.write_bytes(record.read_bytes() + b"\n")
    assert known_tuning(built, ON_CPU, SETTINGS) is None
    assert load_known(built, ON_CPU, UNTUNED) is None


@pytest.mark.parametrize(
    ("digest", "method", "wanted", "warning"),
    [
        (None, METHOD, 0.25, None),
        ("cd" * 32, METHOD, 0.363, "other weights"),
        (None, "aligned-0", 0.363, f"aligned-0, now {METHOD}"),
    ],
)
def test_a_calibrated_threshold_holds_for_what_it_was_measured_with(
    copy: Callable[[str], BuiltModel],
    caplog: pytest.LogCaptureFixture,
    digest: str | None,
    method: str,
    wanted: float,
    warning: str | None,
) -> None:
    built = copy("sface")
    found = Threshold(
        value=0.25, false_match_rate=0.01, false_non_match_rate=0.0, calibrated=datetime.date(2026, 1, 2), source="made up"
    )
    write_calibrated(built.folder, Calibrated(digest=digest or built.digest, method=method, threshold=found))
    with caplog.at_level(logging.WARNING), opened(built, UNTUNED) as model:
        assert model.spec.threshold is not None
        assert model.spec.threshold.value == wanted
    assert [warning in record.getMessage() for record in caplog.records] == ([] if warning is None else [True])


def test_a_graph_that_is_opened_later_runs_in_float32_and_at_once_next_time(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("efficientnet-lite0")
    case = load_cases(built.spec)["maps"]
    for _ in range(2):
        with opened(built, UNTUNED.model_copy(update={"precision": "int8"})) as model:
            assert model.info.precision == "int8"
            assert set(model.sessions) == {"model"}
            outputs = model.run(case.feeds, Timing(), "maps")
            assert set(model.sessions) == {"model", "maps"}
        np.testing.assert_allclose(outputs["logits"], case.outputs["logits"], atol=1e-4)
    assert len(list((built.folder / FOLDER).glob("maps-*.onnx"))) == 1


def test_a_damaged_graph_is_not_opened_later(copy: Callable[[str], BuiltModel]) -> None:
    built = copy("efficientnet-lite0")
    feeds = load_cases(built.spec)["maps"].feeds
    graph = built.graphs["maps"]
    whole = graph.read_bytes()
    with opened(built, UNTUNED) as model:
        graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InferenceFailed, match=r"maps\.onnx has changed since it was built"):
            model.run(feeds, Timing(), "maps")
        assert set(model.sessions) == {"model"}
        graph.write_bytes(whole)
        assert "maps" in model.run(feeds, Timing(), "maps")

"""Models come, change and go while requests run, and what is wrong never takes the place of what is right."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from service.errors import ModelFixed, ModelUnknown, NotReady, SetupError
from service.fleet import Fleet
from service.fleet.folders import Watcher, look, signature
from service.loaded import LoadedModel
from service.repository.progress import Silent
from service.repository.spec import ModelSpec
from service.repository.store import own_manifests
from service.settings import Settings
from service.tasks.detect import DetectOptions, detect
from service.tasks.task import Timing

MakeModel = Callable[..., Path]
FleetOf = Callable[..., Fleet]
MOMENTS = count(1)
GREY = np.full((64, 64, 3), 128, np.uint8)


def where(fleet: Fleet, name: str) -> float:
    """The middle of the one box that the model called `name` finds."""
    (found,) = detect(GREY, DetectOptions(), fleet.get(name), Timing())
    return (found.box.x_min + found.box.x_max) / 2


def test_a_users_model_answers_and_its_file_stays_as_it_was(fleet_of: FleetOf, make_model: MakeModel) -> None:
    folder = make_model("mine", 20)
    before = signature(folder)
    with closing(fleet_of("mine")) as fleet:
        assert where(fleet, "mine") == 20
        assert fleet.state("mine") == "ready"
        assert [card.name for card in fleet.describe()] == ["mine"]
    assert signature(folder) == before
    assert (folder / ".built" / "model.onnx").is_file()


def test_a_model_is_replaced_under_fire_and_the_old_one_ends_with_its_last_request(
    fleet_of: FleetOf, make_model: MakeModel
) -> None:
    make_model("mine", 20)
    with closing(fleet_of("mine")) as fleet:
        lane, seen, failed = fleet.get("mine").lane, set[float](), list[Exception]()
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    seen.add(where(fleet, "mine"))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what must not happen
                    failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for x in (30, 40):
            make_model("mine", x)
            fleet.refresh()
        end = time.monotonic() + 30
        while 40 not in seen and time.monotonic() < end:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert failed == []
        assert {20.0, 40.0} <= seen <= {20.0, 30.0, 40.0}
        with pytest.raises(NotReady):
            lane.submit("model", {"pixels": GREY[None]})


def test_a_request_that_holds_a_dropped_model_still_gets_its_answer(fleet_of: FleetOf, make_model: MakeModel) -> None:
    make_model("mine", 20)
    with closing(fleet_of("mine")) as fleet:
        held = fleet.get("mine")
        fleet.unload("mine")
        assert fleet.state("mine") == "unloaded"
        with pytest.raises(NotReady, match="unloaded"):
            fleet.get("mine")
        with pytest.raises(NotReady, match="for detect"):
            fleet.spec("detect", None)
        assert len(detect(GREY, DetectOptions(), held, Timing())) == 1
        fleet.load("mine")
        assert where(fleet, "mine") == 20
        assert fleet.get("mine") is not held


def test_folders_that_come_change_and_go_are_followed(
    fleet_of: FleetOf, make_model: MakeModel, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model("first", 20)
    with closing(fleet_of("first")) as fleet:
        make_model("second", 40, default=True)
        fleet.refresh()
        assert where(fleet, "second") == 40
        assert fleet.spec("detect", None).name == "second"
        (repository / "second").rename(repository / "away")
        (repository / "away" / "model.toml").unlink()
        (repository / "away" / "box.onnx").unlink()
        fleet.refresh()
        assert "second" not in fleet.names()
        assert fleet.spec("detect", None).name == "first"


@pytest.mark.parametrize("wrong", ["manifest", "labels", "digest"])
def test_a_bad_new_version_never_replaces_a_good_one(fleet_of: FleetOf, make_model: MakeModel, wrong: str) -> None:
    folder = make_model("mine", 20)
    with closing(fleet_of("mine")) as fleet:
        if wrong == "manifest":
            (folder / "model.toml").write_text("name = ")
        elif wrong == "labels":
            (folder / "labels.txt").write_text("box\n")
            (folder / "model.toml").write_text((folder / "model.toml").read_text().replace("A box", "Another box"))
        else:
            text = make_model("mine", 40).joinpath("model.toml").read_text()
            (folder / "model.toml").write_text(text.replace('sha256 = "', f'sha256 = "{"0" * 64}"\n# ')[: len(text) + 80])
        fleet.refresh()
        assert where(fleet, "mine") == 20
        assert fleet.reason("mine")
        make_model("mine", 50)
        fleet.refresh()
        assert where(fleet, "mine") == 50
        assert fleet.reason("mine") is None


def test_what_is_wrong_with_a_users_model_does_not_keep_the_service_from_starting(
    settings: Settings, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model("broken")
    (folder / "box.onnx").write_bytes(b"no")
    (folder / "model.toml").write_text((folder / "model.toml").read_text())
    fleet = Fleet(settings, Silent())
    assert "broken" in fleet.names()
    with pytest.raises(SetupError):
        fleet.get("broken")
    named = Fleet(settings.model_copy(update={"models": ("broken",)}), Silent())
    with closing(named), pytest.raises(SetupError):
        named.start()


def test_models_of_the_service_are_not_removed(fleet_of: FleetOf, make_model: MakeModel) -> None:
    make_model("mine")
    with closing(fleet_of("mine", "yunet")) as fleet:
        with pytest.raises(ModelFixed, match="comes with the service"):
            fleet.remove("yunet")
        with pytest.raises(ModelUnknown):
            fleet.remove("nothing")
        fleet.remove("mine")
        assert fleet.names() == ["yunet"]


def test_a_backbone_is_built_at_the_start_and_opened_when_somebody_paints(fleet_of: FleetOf, models: Callable[[str], Path]) -> None:
    models("yolov3-tiny-features")
    with closing(fleet_of("yolov3-tiny-features", model_repository=())) as fleet:
        assert fleet.loaded == []
        assert fleet.pending == []
        assert fleet.state("yolov3-tiny-features") == "ready"
        assert fleet.spec("paint", None).name == "yolov3-tiny-features"
        fleet.get("yolov3-tiny-features")
        assert [model.spec.name for model in fleet.loaded] == ["yolov3-tiny-features"]


def test_one_that_cannot_be_built_stops_the_start(fleet_of: FleetOf, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "broken"
    shutil.copytree(
        own_manifests() / "yolov3-tiny-features", folder, ignore=shutil.ignore_patterns("*.onnx", "build.json", "weights", ".*")
    )
    text = (folder / "model.toml").read_text().replace('name = "yolov3-tiny-features"', 'name = "broken"')
    (folder / "model.toml").write_text(text)
    with pytest.raises(SetupError, match="broken"):
        fleet_of("broken", offline=True)


def test_a_watcher_waits_until_nothing_moves_any_more(settings: Settings, make_model: MakeModel, repository: Path) -> None:
    changed = threading.Event()
    watcher = Watcher(settings.model_copy(update={"reload_seconds": 0.02}), changed.set)
    watcher.start()
    try:
        assert not changed.wait(0.2)
        make_model("mine")
        assert changed.wait(30)
        assert repository / "mine" in look(settings)
    finally:
        watcher.stop()


def drop(folder: Path, data: bytes) -> None:
    """Put a file where a user would, with a time of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "best.onnx").write_bytes(data)
    later = time.time_ns() + next(MOMENTS) * 10**9
    os.utime(folder / "best.onnx", ns=(later, later))


def test_a_dropped_folder_is_taken_in_followed_and_outlives_a_bad_file(
    fleet_of: FleetOf, make_model: MakeModel, repository: Path, box_file: Callable[[float], bytes]
) -> None:
    make_model("first", 20)
    with closing(fleet_of("first")) as fleet:
        drop(repository / "dropped", box_file(24))
        fleet.refresh()
        assert where(fleet, "dropped") == 24
        drop(repository / "dropped", box_file(28))
        fleet.refresh()
        assert where(fleet, "dropped") == 28
        drop(repository / "dropped", b"not a model at all")
        fleet.refresh()
        assert where(fleet, "dropped") == 28
        assert "ONNX" in str(fleet.reason("dropped"))
    with closing(fleet_of("dropped")) as fleet:
        assert where(fleet, "dropped") == 28, "after a restart too, as long as what was built of it is there"


def test_a_model_that_does_not_answer_its_warm_up_is_left_out_and_the_rest_is_ready(
    settings: Settings, fleet_of: FleetOf, make_model: MakeModel
) -> None:
    make_model("good", 20)
    folder = make_model("bad", 30)
    fleet_of("good", "bad").close()
    (folder / "labels.txt").write_text("box\n")
    fleet = Fleet(settings, Silent())
    for name in [name for name in fleet.names() if name not in {"good", "bad"}]:
        fleet.drop(name)
    with closing(fleet):
        fleet.start()
        assert fleet.pending == []
        assert fleet.state("bad") == "failed"
        assert "labels" in str(fleet.reason("bad"))
        assert where(fleet, "good") == 20
        fleet.remove("bad")
        assert not folder.exists()


def test_a_file_put_in_place_with_an_old_time_is_noticed(
    fleet_of: FleetOf, make_model: MakeModel, repository: Path, box_file: Callable[[float], bytes]
) -> None:
    make_model("first", 20)
    drop(repository / "dropped", box_file(24))
    with closing(fleet_of("first", "dropped")) as fleet:
        assert where(fleet, "dropped") == 24
        path = repository / "dropped" / "best.onnx"
        path.write_bytes(box_file(28))
        os.utime(path, (1, 1))
        fleet.refresh()
        assert where(fleet, "dropped") == 28


def test_what_vision_models_leaves_out_stays_out_until_it_changes(fleet_of: FleetOf, make_model: MakeModel) -> None:
    make_model("wanted", 20)
    make_model("unwanted", 30)
    with closing(fleet_of("wanted")) as fleet:
        make_model("new", 40)
        fleet.refresh()
        assert sorted(fleet.names()) == ["new", "wanted"]
        make_model("unwanted", 35)
        fleet.refresh()
        assert where(fleet, "unwanted") == 35


def test_a_bad_new_version_of_an_unloaded_model_is_told_and_the_old_one_can_be_loaded(
    fleet_of: FleetOf, make_model: MakeModel, repository: Path, box_file: Callable[[float], bytes]
) -> None:
    make_model("first", 20)
    drop(repository / "dropped", box_file(24))
    with closing(fleet_of("first", "dropped")) as fleet:
        fleet.unload("dropped")
        drop(repository / "dropped", b"not a model at all")
        fleet.refresh()
        assert fleet.state("dropped") == "unloaded"
        with pytest.raises(NotReady, match="'dropped' was unloaded"):
            fleet.spec("detect", "dropped")
        fleet.unload("dropped")
        fleet.load("dropped")
        assert where(fleet, "dropped") == 24
        assert "ONNX" in str(fleet.reason("dropped"))
        drop(repository / "dropped", box_file(28))
        fleet.refresh()
        assert where(fleet, "dropped") == 28
        assert fleet.reason("dropped") is None


def test_a_folder_that_was_refused_is_forgotten_when_it_goes(fleet_of: FleetOf, make_model: MakeModel, repository: Path) -> None:
    make_model("first", 20)
    with closing(fleet_of("first")) as fleet:
        drop(repository / "junk", b"not a model at all")
        fleet.refresh()
        assert fleet.state("junk") == "failed"
        (repository / "junk" / "best.onnx").unlink()
        (repository / "junk").rmdir()
        fleet.refresh()
        assert "junk" not in fleet.names()
        assert fleet.reason("junk") is None


class Interrupted(Fleet):
    """Does `meanwhile`, once, while it loads a model."""

    meanwhile: Callable[[], object] | None = None

    def _open(self, spec: ModelSpec) -> LoadedModel:
        model, meanwhile, self.meanwhile = super()._open(spec), self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return model


def test_what_is_removed_or_replaced_while_it_is_loaded_again_does_not_come_back(settings: Settings, make_model: MakeModel) -> None:
    make_model("first", 20)
    make_model("mine", 24)
    with closing(Interrupted(settings.model_copy(update={"models": ("first", "mine")}), Silent())) as fleet:
        fleet.start()

        def replace() -> None:
            make_model("mine", 28)
            fleet.refresh()

        fleet.unload("mine")
        fleet.meanwhile = replace
        fleet.load("mine")
        assert where(fleet, "mine") == 28
        fleet.unload("mine")
        fleet.meanwhile = lambda: fleet.remove("mine")
        with pytest.raises(ModelUnknown):
            fleet.load("mine")
        assert "mine" not in fleet.names()

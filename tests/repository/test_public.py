from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.catalogue import check
from service.errors import LicenceNotAccepted, ModelUnknown, SettingInvalid
from service.export.recipes import RECIPES
from service.repository import public, store
from service.repository.public import by_digest, find_public, public_models, remove_pulled, wanted
from service.repository.spec import PackageSource
from service.repository.store import ensure, manifests, own_manifests, scan
from service.runtime.session import run_once
from service.settings import Settings

BY_NAME = {
    "classify": "resnet50 resnet18 resnet34 resnet101 resnet152 alexnet vgg16 vgg19 googlenet inception-v1 squeezenet mobilenetv2 "
    "efficientnet-lite4 lenet-mnist",
    "detect": "yolov3 yolov4 tiny-yolov3 yolox-nano yolox-tiny yolox-s yolox-m yolox-l yolox-x d-fine rt-detr rf-detr-nano nanodet",
    "embed-face": "sface-fp32",
    "stylize": "mosaic candy rain-princess udnie pointilism",
    "face-liveness": "minifasnet",
}
NAMES = [(name, task) for task, names in BY_NAME.items() for name in names.split()]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.mark.parametrize(("name", "task"), NAMES)
def test_what_people_ask_for_is_there(name: str, task: str) -> None:
    found = find_public(name)
    assert found.task == task
    assert found.precision == "float32"
    assert found.licence.commercial_use


def test_names_and_aliases_mean_one_model_each() -> None:
    own = [path.parent.name for path in own_manifests().glob("*/model.toml")]
    names = Counter([*own, *(name for spec in public_models().values() for name in (spec.name, *spec.aliases))])
    assert [name for name, count in names.items() if count > 1] == []


def test_every_manifest_is_whole() -> None:
    """What the code reads of it, where it comes from, and that labels, classes and [input] fit together."""
    assert len(public_models()) > 100
    for spec in public_models().values():
        check(spec)
        assert spec.export.recipe in {*RECIPES, "adopt"}, spec.name
        assert len(spec.files) == 1, spec.name
        urls = ["" if isinstance(source, PackageSource) else source.url for source in spec.files[0].sources]
        assert urls, spec.name
        assert all(url.startswith("https://") for url in urls), spec.name
        assert len(set(urls)) == len(urls), spec.name
        assert not spec.default, spec.name
        if spec.adapter is not None:
            assert spec.adapter.size == spec.input.size, spec.name
            assert len(spec.read_labels()) == spec.adapter.classes, spec.name
            assert spec.task != "detect" or spec.nms == spec.adapter.needs_nms, spec.name
            assert spec.adapter.free_batch or spec.batching.max_batch == 1, spec.name


def test_the_same_bytes_have_the_same_contract() -> None:
    """Some files were published twice, under two names."""
    kinds: dict[str, set[str]] = {}
    for spec in public_models().values():
        kinds.setdefault(spec.files[0].sha256, set()).add(f"{spec.task} {spec.adapter!r} {spec.input!r}")
    assert [found for found in kinds.values() if len(found) > 1] == []


def test_labels_follow_the_order_of_the_classes() -> None:
    names = find_public("rf-detr-nano").read_labels()
    assert (names[0], names[11], names[12], names[89]) == ("person", "unused 12", "stop sign", "toothbrush")
    assert [name for name in names if not name.startswith("unused ")] == list(find_public("yolox-s").read_labels())
    assert find_public("minifasnet").read_labels()[1] == "live"


def test_by_digest() -> None:
    spec = find_public("yolox-s")
    assert by_digest(spec.files[0].sha256) == spec  # and not the other folder with the same bytes
    assert by_digest("0" * 64) is None


def test_an_unknown_name_is_answered_with_names_like_it() -> None:
    with pytest.raises(ModelUnknown, match=r"'resnet51' .*\bresnet50\b"):
        find_public("resnet51")
    with pytest.raises(ModelUnknown) as caught:
        find_public("zzzzzz")
    assert set(caught.value.known) == set(public_models())


def test_a_start_reads_no_manifest_of_the_catalogue(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(folder: Path) -> None:
        raise AssertionError(f"{folder} was read")

    monkeypatch.setattr(public, "load_spec", never)
    monkeypatch.setattr(public, "_read", never)
    own = [path.parent.name for path in own_manifests().glob("*/model.toml")]
    assert set(own) <= set(manifests(settings))
    named = settings.model_copy(update={"models": tuple(own), "detector": "yolov3-tiny"})
    assert list(scan(named)) == own


def test_only_pulled_and_named_ones_count(shop_of: Any, settings: Settings, shelf: Any, heard: Any) -> None:
    shop_of.own("yolov3-tiny")
    one = shop_of.public("one", f"{shelf.url}/one.onnx", aliases=["first"])
    shop_of.public("two", f"{shelf.url}/two.onnx")
    shelf.put("/one.onnx", shop_of.body)
    assert list(scan(settings)) == ["yolov3-tiny"]
    assert list(scan(settings.model_copy(update={"models": ("two", "first")}))) == ["two", "one"]
    assert list(scan(settings.model_copy(update={"detector": "first"}))) == ["yolov3-tiny", "one"]
    ensure(one, settings, run_once, heard)
    assert list(scan(settings)) == ["yolov3-tiny", "one"]
    assert wanted(settings) == {"one": one.folder}
    with pytest.raises(SettingInvalid, match=r"no model 'three'.*models list --available"):
        scan(settings.model_copy(update={"models": ("three",)}))


def test_a_users_own_model_of_that_name_comes_first(shop_of: Any, settings: Settings, tmp_path: Path) -> None:
    shop_of.public("one", "https://example.org/one.onnx")
    mine = shop_of.write(tmp_path / "mine" / "one", ["https://example.org/other.onnx"])
    both = settings.model_copy(update={"model_repository": (tmp_path / "mine",), "models": ("one",)})
    assert scan(both) == {"one": mine}


def test_what_was_pulled_can_be_removed(shop_of: Any, settings: Settings, shelf: Any, heard: Any, monkeypatch: Any) -> None:
    """Wherever it was built; the manifest stays."""
    spec = shop_of.public("one", f"{shelf.url}/one.onnx", aliases=["first"])
    shelf.put("/one.onnx", shop_of.body)
    assert ensure(spec, settings, run_once, heard).folder == spec.folder
    remove_pulled("first", settings)
    assert [path.name for path in spec.folder.iterdir()] == ["model.toml"]
    assert wanted(settings) == {}
    with pytest.raises(ModelUnknown):
        remove_pulled("one", settings)
    monkeypatch.setattr(store, "_writable", lambda folder: False)
    assert ensure(spec, settings, run_once, heard).folder == settings.data_folder / "models" / "one"
    remove_pulled("one", settings)
    assert not (settings.data_folder / "models" / "one").exists()


def test_terms_that_forbid_commercial_use_have_to_be_accepted(shop_of: Any, settings: Settings, shelf: Any, heard: Any) -> None:
    spec = shop_of.public("one", f"{shelf.url}/one.onnx", spdx="CC-BY-NC-4.0", commercial_use=False)
    shelf.put("/one.onnx", shop_of.body)
    with pytest.raises(LicenceNotAccepted, match=r"CC-BY-NC-4\.0.*pull one --accept-licence one"):
        ensure(spec, settings, run_once, heard)
    assert shelf.log == []
    with pytest.raises(LicenceNotAccepted):
        ensure(spec, settings, run_once, heard, accepted=["MIT", "two"])
    built = ensure(spec, settings, run_once, heard, accepted=["CC-BY-NC-4.0"])
    assert ensure(spec, settings, run_once, heard).folder == built.folder  # it is here now

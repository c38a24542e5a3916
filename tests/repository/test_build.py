import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from service.errors import ExportFailed, InferenceFailed, ParityFailed, SpecInvalid
from service.export.recipes import RECIPES
from service.repository import build as module
from service.repository.build import build, damage, describe, fingerprint, read_record


@pytest.fixture
def spec(make_spec: Any) -> Any:
    return make_spec()


@pytest.fixture
def make(tiny: ModuleType, weights: bytes, tmp_path: Path) -> Any:
    """make(spec, run_graph=...): build `spec` in its own folder from the right weights."""
    path = tmp_path / "data.bin"
    path.write_bytes(weights)

    def run(spec: Any, run_graph: Any = tiny.run_graph) -> Any:
        return build(spec, spec.folder, {"data.bin": path}, run_graph)

    return run


def made(spec: Any) -> list[str]:
    return sorted(path.name for path in spec.folder.iterdir() if path.name not in ("model.toml", "parity.npz"))


def test_a_build_and_its_record(spec: Any, make: Any, weights: bytes) -> None:
    record = make(spec)
    assert made(spec) == ["build.json", "model.onnx"]
    onnx.checker.check_model(onnx.load(spec.folder / "model.onnx"))
    assert read_record(spec, spec.folder) == record
    assert record.files == {"data.bin": spec.files[0].sha256}
    assert record.graphs["model"].size == (spec.folder / "model.onnx").stat().st_size
    assert record.parity == {"model": "'y' differs by at most 0 from numpy"}
    assert damage(spec, spec.folder, record) is None
    built = describe(spec, spec.folder)
    assert built.graphs == {"model": spec.folder / "model.onnx"}
    assert built.digest == spec.files[0].sha256


def test_what_a_killed_build_left_is_swept_away(spec: Any, make: Any) -> None:
    (spec.folder / ".build-new").mkdir()
    (spec.folder / ".build-new" / "model.onnx").write_bytes(b"half")
    (spec.folder / "model.onnx").write_bytes(b"half")
    make(spec)
    assert made(spec) == ["build.json", "model.onnx"]


@pytest.mark.parametrize(
    "text", [None, "", "{", "{}", '{"recipe": "x", "files": {}, "graphs": {}, "parity": {}}', '{"recipe": "x", "more": 1}']
)
def test_a_record_that_says_nothing_counts_as_not_built(spec: Any, make: Any, text: str | None) -> None:
    make(spec)
    path = spec.folder / "build.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert read_record(spec, spec.folder) is None


def test_a_missing_graph_counts_as_not_built(spec: Any, make: Any) -> None:
    make(spec)
    (spec.folder / "model.onnx").unlink()
    assert read_record(spec, spec.folder) is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: data[:-1], "bytes long, not"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "has changed since it was built"),
        (lambda data: b"", "is 0 bytes long"),
    ],
)
def test_damage_is_found_and_named(spec: Any, make: Any, harm: Any, said: str) -> None:
    record = make(spec)
    path = spec.folder / "model.onnx"
    path.write_bytes(harm(path.read_bytes()))
    found = damage(spec, spec.folder, record)
    assert found is not None
    assert said in found
    assert str(path) in found


def test_a_graph_that_vanished_meanwhile_is_damage(spec: Any, make: Any) -> None:
    record = make(spec)
    (spec.folder / "model.onnx").unlink()
    assert "cannot be read" in str(damage(spec, spec.folder, record))


def test_another_manifest_or_recipe_means_another_build(make_spec: Any, spec: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first = fingerprint(spec)
    assert fingerprint(spec) == first
    assert fingerprint(spec.model_copy(update={"summary": "other words", "version": "2"})) == first
    assert fingerprint(spec.model_copy(update={"export": spec.export.model_copy(update={"graphs": ("model", "b")})})) != first
    other = spec.files[0].model_copy(update={"sha256": "0" * 64})
    assert fingerprint(spec.model_copy(update={"files": (other,)})) != first
    moved = spec.files[0].model_copy(update={"sources": (*spec.files[0].sources, spec.files[0].sources[0])})
    assert fingerprint(spec.model_copy(update={"files": (moved,)})) == first

    recipes = tmp_path / "export"
    shutil.copytree(module._RECIPES, recipes)
    monkeypatch.setattr(module, "_RECIPES", recipes)
    assert fingerprint(spec) == first
    with (recipes / "recipes.py").open("a") as file:
        file.write("# changed\n")
    assert fingerprint(spec) != first


def wrong(path: Path, feeds: Any) -> dict[str, Any]:
    return {"y": feeds["x"] * np.nan}


def breaks(path: Path, feeds: Any) -> dict[str, Any]:
    raise InferenceFailed("no such operator")


def crashes(path: Path, feeds: Any) -> dict[str, Any]:
    raise RuntimeError("the graph cannot be loaded")


@pytest.mark.parametrize(
    ("run_graph", "said"),
    [
        (wrong, "tiny: model.onnx: 'y' differs by at most inf from numpy (at value 0), more than 1e-06; it was not kept"),
        (lambda path, feeds: {}, "tiny: model.onnx: there is no output 'y'"),
        (crashes, "tiny: model.onnx does not run on the stored input: the graph cannot be loaded"),
        (breaks, "tiny: model.onnx does not run on the stored input: no such operator"),
    ],
)
def test_parity_guards_the_export_and_keeps_nothing(spec: Any, make: Any, run_graph: Any, said: str) -> None:
    with pytest.raises(ParityFailed) as error:
        make(spec, run_graph)
    assert said in str(error.value)
    assert made(spec) == []


def test_a_difference_within_the_tolerance_passes(make_spec: Any, make: Any, tiny: ModuleType) -> None:
    def near(path: Path, feeds: Any) -> dict[str, Any]:
        return {"y": tiny.run_graph(path, feeds)["y"] + 0.125}

    assert make(make_spec(atol=0.2), near).parity["model"] == "'y' differs by at most 0.125 from numpy"
    with pytest.raises(ParityFailed, match=r"more than 0\.1"):
        make(make_spec(atol=0.1), near)


def test_a_failed_rebuild_does_not_harm_what_is_there(spec: Any, make: Any) -> None:
    record = make(spec)
    with pytest.raises(ParityFailed):
        make(spec, wrong)
    assert read_record(spec, spec.folder) == record
    assert damage(spec, spec.folder, record) is None


def test_a_recipe_that_fails_is_named(spec: Any, make: Any, tiny: ModuleType, monkeypatch: Any) -> None:
    def export(files: Any) -> Any:
        raise ValueError("3 floats are left over")

    monkeypatch.setattr(tiny, "export", export)
    with pytest.raises(ExportFailed, match="tiny: the recipe 'tiny' failed: ValueError: 3 floats are left over"):
        make(spec)
    assert made(spec) == []


def test_what_a_recipe_says_itself_is_kept(spec: Any, make: Any, tiny: ModuleType, monkeypatch: Any) -> None:
    def export(files: Any) -> Any:
        raise ExportFailed("data.bin is not a darknet file")

    monkeypatch.setattr(tiny, "export", export)
    with pytest.raises(ExportFailed, match=r"^data\.bin is not a darknet file$"):
        make(spec)


def test_a_recipe_must_make_the_graphs_that_the_manifest_names(spec: Any, make: Any, tiny: ModuleType, monkeypatch: Any) -> None:
    graph = tiny.export({"data.bin": spec.folder / "model.toml"})["model"]
    monkeypatch.setattr(tiny, "export", lambda files: {"model": graph, "more": graph})
    with pytest.raises(ExportFailed, match=r"made the graphs model, more; model\.toml names model"):
        make(spec)


def test_an_unknown_recipe_names_those_that_exist(spec: Any, make: Any, monkeypatch: Any) -> None:
    monkeypatch.delitem(RECIPES, "tiny")
    with pytest.raises(SpecInvalid, match="no export recipe 'tiny'; the recipes are: darknet"):
        make(spec)


def test_the_record_is_written_last(spec: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make(spec)
    seen: list[tuple[str, bool]] = []
    replace = Path.replace

    def watched(self: Path, target: Any) -> Path:
        seen.append((Path(target).name, (spec.folder / "build.json").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    make(spec)
    assert seen == [("model.onnx", False), ("build.json", False)]
    record = json.loads((spec.folder / "build.json").read_text())
    assert record["graphs"]["model"]["size"] == (spec.folder / "model.onnx").stat().st_size

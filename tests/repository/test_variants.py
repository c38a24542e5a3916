"""int8 and float16 beside model.onnx: built, checked against float32, found when damaged, made again."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed, SetupError, SpecInvalid
from service.export.graph import Graph
from service.export.recipes import RECIPES
from service.repository.build import build, describe, fingerprint, read_record
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import ensure, find_built, verify_built
from service.runtime.session import run_once
from service.settings import Settings

FILES = ["build.json", "model.float16.onnx", "model.int8.onnx", "model.onnx"]
GOOD = {"conv2": (-3.5, 3.5)}


def graph() -> ModelProto:
    """Pixels through one convolution, bent and averaged."""
    made = Graph("g")
    weight = np.linspace(-1, 1, 12).reshape(4, 3, 1, 1)
    x = made.conv(made.pixels(4, 4), weight / 255, np.linspace(-0.5, 0.5, 4))
    made.output(made.node("MaxPool", x, kernel_shape=[2, 2]), "y", ["n", 4, 3, 3])
    return made.build()


def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (1, 4, 4, 3), np.uint8)


def write_ranges(folder: Path, ranges: Mapping[str, tuple[float, float]]) -> None:
    lines = [f'"{name}" = [{low}, {high}]' for name, (low, high) in ranges.items()]
    text = "\n".join(['photos = "noise"', 'method = "minmax"', "[ranges]", *lines, ""])
    (folder / "ranges.toml").write_text(text, encoding="utf-8")


@pytest.fixture
def spec(make_spec: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model of one convolution with [quantize], its recipe registered as "tiny"."""
    recipe = ModuleType("variant_recipe")
    recipe.export = lambda files: {"model": graph()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "variant_recipe", recipe)
    monkeypatch.setitem(RECIPES, "tiny", "variant_recipe:export")
    folder = make_spec(atol=1e-3).folder
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text() + "[quantize]\ntolerance = { int8 = 0.03, float16 = 0.002 }\n")
    write_ranges(folder, GOOD)
    weight, bias = np.linspace(-1, 1, 12).reshape(4, 3) / 255, np.linspace(-0.5, 0.5, 4)
    values = np.einsum("oc,hwc->ohw", weight, pixels()[0].astype(np.float64)) + bias[:, None, None]
    pooled = np.lib.stride_tricks.sliding_window_view(values, (2, 2), (1, 2)).max(axis=(-1, -2))
    np.savez(folder / "parity.npz", **{"model/in/pixels": pixels(), "model/out/y": pooled[None].astype(np.float32)})
    return load_spec(folder)


def made(spec: ModelSpec) -> list[str]:
    return sorted(path.name for path in spec.folder.iterdir() if path.name not in ("model.toml", "parity.npz", "ranges.toml"))


def make(spec: ModelSpec, run: Any = run_once) -> Any:
    return build(spec, spec.folder, {}, run)


def test_a_build_writes_and_checks_all_three(spec: ModelSpec) -> None:
    record = make(spec)
    assert made(spec) == FILES
    assert set(record.graphs) == set(record.parity) == {"model", "model.int8", "model.float16"}
    assert record.refused == {}
    assert record.parity["model.int8"].startswith("'y' differs by 0.0")
    assert read_record(spec, spec.folder) == record
    built = describe(spec, spec.folder)
    assert list(built.variants) == ["float32", "int8", "float16"]
    assert built.variants["float32"] == built.graphs == {"model": spec.folder / "model.onnx"}
    assert built.variants["int8"] == {"model": spec.folder / "model.int8.onnx"}
    exact, whole, half = (run_once(built.variants[p]["model"], {"pixels": pixels()})["y"] for p in built.variants)
    assert 0 < np.abs(whole - exact).max() < 0.05
    assert 0 < np.abs(half - exact).max() < 0.005


def test_without_a_section_there_is_float32_only(make_spec: Any, tiny: ModuleType, weights: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(weights)
    spec = make_spec()
    build(spec, spec.folder, {"data.bin": path}, tiny.run_graph)
    assert describe(spec, spec.folder).variants == {"float32": {"model": spec.folder / "model.onnx"}}


@pytest.mark.parametrize(
    "ranges", [{"conv2": (-0.4, 0.4)}, {"conv2": (-40.0, 40.0)}, {"conv2": (0.0, 3.5)}], ids=["narrow", "wide", "one-sided"]
)
def test_a_quantisation_gone_wrong_is_left_out_and_said(spec: ModelSpec, ranges: Any) -> None:
    make(spec)
    write_ranges(spec.folder, ranges)
    record = make(spec)
    assert made(spec) == [name for name in FILES if "int8" not in name]
    assert record.refused["model.int8"].endswith("of its spread from float32, more than 0.03")
    assert read_record(spec, spec.folder) == record
    assert list(describe(spec, spec.folder).variants) == ["float32", "float16"]


def test_a_variant_that_does_not_run_is_left_out(spec: ModelSpec) -> None:
    def run(path: Path, feeds: Any) -> Any:
        if "float16" in path.name:
            raise RuntimeError("no such kernel\nmore lines")
        return run_once(path, feeds)

    assert make(spec, run).refused == {"model.float16": "it does not run: no such kernel"}


def test_a_variant_that_gives_other_outputs_is_left_out(spec: ModelSpec) -> None:
    def run(path: Path, feeds: Any) -> Any:
        found = run_once(path, feeds)
        return (
            {"y": found["y"][:, :2]} if "int8" in path.name else found | ({"y": found["y"] * np.nan} if "16" in path.name else {})
        )

    assert set(make(spec, run).refused) == {"model.int8", "model.float16"}


def test_ranges_that_do_not_fit_are_named(spec: ModelSpec) -> None:
    write_ranges(spec.folder, {"conv9": (0, 1)})
    with pytest.raises(ExportFailed, match="tiny: the ranges lack the tensor 'conv2'"):
        make(spec)
    assert made(spec) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("photos = 1", r"ranges\.toml: photos: Input should be a valid string"),
        ('photos = "a"\nmethod = "b"\n[ranges]\nx = [1]', r"ranges\.x"),
        ("=", "Invalid"),
    ],
)
def test_a_broken_file_of_ranges_is_named(spec: ModelSpec, text: str | None, said: str) -> None:
    path = spec.folder / "ranges.toml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SpecInvalid, match=said):
        make(spec)


def test_other_ranges_mean_another_build(spec: ModelSpec) -> None:
    make(spec)
    first = fingerprint(spec)
    write_ranges(spec.folder, {"conv2": (-4.0, 4.0)})
    assert fingerprint(spec) != first
    assert read_record(spec, spec.folder) is None
    (spec.folder / "ranges.toml").unlink()
    assert fingerprint(spec) != first
    write_ranges(spec.folder, GOOD)
    assert fingerprint(spec) == first
    quantize = spec.quantize
    assert quantize is not None
    assert fingerprint(spec.model_copy(update={"quantize": quantize.model_copy(update={"keep_float": ("conv2",)})})) != first
    assert fingerprint(spec.model_copy(update={"quantize": None})) != first


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.float16.onnx"])
def test_a_damaged_or_missing_variant_is_made_again(
    spec: ModelSpec, name: str, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model_repository=(spec.folder.parent,), data_dir=spec.folder.parent / "data")
    monkeypatch.setattr("service.repository.fetch.fetch_weights", lambda *_, **__: {})
    built = ensure(spec, settings, run_once, heard)
    path = spec.folder / name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert find_built(spec, settings) == built
    with pytest.raises(SetupError, match=name):
        verify_built(spec, settings)
    ensure(spec, settings, run_once, heard)
    assert path.read_bytes() == good
    path.unlink()
    assert find_built(spec, settings) is None
    assert ensure(spec, settings, run_once, heard) == built
    assert path.read_bytes() == good


def test_a_refused_variant_is_told_once(spec: ModelSpec, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(model_repository=(spec.folder.parent,), data_dir=spec.folder.parent / "data")
    monkeypatch.setattr("service.repository.fetch.fetch_weights", lambda *_, **__: {})
    write_ranges(spec.folder, {"conv2": (0.0, 0.1)})
    ensure(spec, settings, run_once, heard)
    assert heard.notes[-1].startswith("tiny: model.int8.onnx is left out: 'y' differs by")
    count = len(heard.notes)
    assert list(ensure(spec, settings, run_once, heard).variants) == ["float32", "float16"]
    assert len(heard.notes) == count


def test_an_old_record_without_the_variants_counts_as_not_built(spec: ModelSpec) -> None:
    make(spec)
    path = spec.folder / "build.json"
    record = json.loads(path.read_text())
    del record["graphs"]["model.int8"]
    path.write_text(json.dumps(record))
    assert read_record(spec, spec.folder) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[quantize]\n", r"quantize\.tolerance: Field required"),
        ("[quantize]\ntolerance = { int8 = 0.1 }\n", r"quantize\.tolerance\.float16: Field required"),
        ("[quantize]\nbits = 4\ntolerance = { int8 = 0.1, float16 = 0.1 }\n", r"quantize\.bits: Extra inputs"),
        ("[quantize]\ntolerance = { int8 = 1.5, float16 = 0.1 }\n", r"quantize\.tolerance\.int8: Input should be less than 1"),
    ],
)
def test_the_section_is_checked(make_spec: Any, more: str, said: str) -> None:
    folder = make_spec().folder
    with (folder / "model.toml").open("a") as manifest:
        manifest.write(more)
    with pytest.raises(SpecInvalid, match=said):
        load_spec(folder)


def test_of_several_graphs_the_first_has_variants(spec: ModelSpec) -> None:
    sys.modules["variant_recipe"].export = lambda files: {"model": graph(), "tile": graph()}  # type: ignore[attr-defined]
    manifest, parity = spec.folder / "model.toml", spec.folder / "parity.npz"
    manifest.write_text(manifest.read_text().replace('recipe = "tiny"', 'recipe = "tiny"\ngraphs = ["model", "tile"]'))
    with np.load(parity) as stored:
        arrays = dict(stored)
    np.savez(parity, **arrays, **{name.replace("model/", "tile/"): array for name, array in arrays.items()})
    several = load_spec(spec.folder)
    make(several)
    assert made(several) == [*FILES, "tile.onnx"]
    built = describe(several, several.folder)
    assert built.variants["int8"] == built.graphs | {"model": several.folder / "model.int8.onnx"}
    assert built.variants["int8"]["tile"] == several.folder / "tile.onnx"

"""One pass over a photo gives its windows' own numbers, where these see what the pass sees."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from service.export.class_maps import class_maps
from service.runtime.providers import CPU, Choice
from service.runtime.session import OrtSession


@pytest.fixture(autouse=True)
def _on_the_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


def opened(path: Path) -> OrtSession:
    return OrtSession(path, Choice(CPU), sizes="some")


@pytest.fixture
def strip(photo: Callable[[str], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """224 x 1440 pixels of photos side by side: wider than what one window's receptive field reaches."""
    parts = [photo(name)[:224, :480] for name in ("coffee", "rocket", "china")]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def test_windows_cropped_with_all_that_they_see_give_the_same_numbers(
    strip: NDArray[np.uint8], models: Callable[[str], Path]
) -> None:
    from sliding import CELLS, SIZE, STRIDE, at, cropped, places_of, receptive_field, sliding, surrounded

    folder = models("efficientnet-lite0")
    session = opened(folder / "maps.onnx")
    field = receptive_field(onnx.load(folder / "maps.onnx"))
    assert (field.stride, field.size) == (STRIDE, 851)
    places = places_of(strip, SIZE, STRIDE)[::6]
    whole = at(sliding(session, strip, CELLS), places)
    np.testing.assert_allclose(surrounded(session, strip, places, field, CELLS), whole, atol=1e-4)
    alone = cropped(opened(folder / "model.onnx"), strip, places, SIZE, STRIDE)
    assert np.abs(alone - whole).max() > 0.5  # zeros stand where the photo was


def test_without_padding_windows_need_nothing_around_them(strip: NDArray[np.uint8], tmp_path: Path) -> None:
    from sliding import at, cropped, places_of, receptive_field, sliding, valid_network

    model = valid_network(seed=1, classes=20)
    maps, cells = class_maps(model), 4
    onnx.save(model, tmp_path / "model.onnx")
    onnx.save(maps, tmp_path / "maps.onnx")
    field = receptive_field(maps)
    size = field.size + (cells - 1) * field.stride
    places = places_of(strip, size, field.stride)[::7]
    whole = at(sliding(opened(tmp_path / "maps.onnx"), strip, cells), places)
    np.testing.assert_allclose(cropped(opened(tmp_path / "model.onnx"), strip, places, size, field.stride), whole, atol=1e-4)
    assert whole.std() > 1


def test_a_receptive_field_is_what_changes_an_answer(tmp_path: Path) -> None:
    from sliding import receptive_field, valid_network

    maps = class_maps(valid_network(classes=8))
    onnx.save(maps, tmp_path / "maps.onnx")
    session, field = opened(tmp_path / "maps.onnx"), receptive_field(maps)
    side = field.size + 2 * field.stride
    picture = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    before = session.run({"pixels": picture})["maps"][0, :, 1, 1]
    edges = field.stride + field.first, field.stride + field.last
    for row, inside in ((edges[0] - 1, False), (edges[0], True), (edges[1], True), (edges[1] + 1, False)):
        changed = picture.copy()
        changed[:, row] = 255 - changed[:, row]
        assert np.array_equal(session.run({"pixels": changed})["maps"][0, :, 1, 1], before) is not inside

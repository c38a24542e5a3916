"""Painting photos of any size: exactly their size, in tiles that meet exactly, with runs of bounded size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.loaded import LoadedModel
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import own_manifests
from service.tasks.painting import HALO, MIN_SIDE, TILE, fade, keep_color, measure, paint, paint_tiles, paint_whole, shrink, spans
from service.tasks.task import Tensors, Timing

Pixels = NDArray[np.uint8]
Photo = Callable[[str], Pixels]
Loaded = Callable[[str], LoadedModel]
STYLE = np.ones((1, 2), np.float32)


@dataclass
class Negative:
    """A model that inverts colours and writes down what it was fed; its statistics are the picture's mean and variance."""

    runs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    statistics: list[NDArray[np.generic]] = field(default_factory=list)
    spec: ModelSpec = field(default_factory=lambda: load_spec(own_manifests() / "multistyle26"))
    labels: tuple[str, ...] = ()

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        pixels = feeds["pixels"]
        self.runs.append((graph, pixels.shape))
        if graph == "tile":
            self.statistics.append(feeds["statistics"])
            return {"painted": 255 - pixels}
        moments = np.array([[pixels.mean((1, 2, 3))], [pixels.var((1, 2, 3))]], np.float32).transpose(2, 0, 1)
        return {"painted": 255 - pixels, "statistics": moments}


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(16, 16), (17, 19), (64, 101), (1023, 1025), (1100, 1500), (30, 40_001), (3000, 2001)]
)
def test_the_answer_has_the_pictures_size_and_every_run_is_bounded(height: int, width: int) -> None:
    model, pixels = Negative(), noise(height, width)
    painted = paint(pixels, STYLE, model, Timing())
    np.testing.assert_array_equal(painted, 255 - pixels)
    assert ("tile" in {graph for graph, _ in model.runs}) == (height * width > TILE * TILE)
    for graph, (items, rows, columns, _) in model.runs:
        assert items == 1
        assert rows % 4 == columns % 4 == 0
        assert rows * columns <= ((TILE + 2 * HALO) ** 2 if graph == "tile" else 1.05 * TILE * TILE)


def test_all_tiles_get_the_same_statistics() -> None:
    model = Negative()
    paint(noise(1500, 2200), STYLE, model, Timing())
    assert len(model.statistics) == 6
    assert all(np.array_equal(model.statistics[0], other) for other in model.statistics)


@pytest.mark.parametrize(("factor", "doublings"), [(1.2, log2(1.2)), (3.0, log2(3)), (9.0, 2.0)], ids=["1.2 MP", "3 MP", "9 MP"])
def test_statistics_follow_the_trend_of_two_copies(factor: float, doublings: float) -> None:
    answers = iter([np.array([[[5.0], [8.0]]], np.float32), np.array([[[3.0], [2.0]]], np.float32)])

    class Measured(Negative):
        def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
            super().run(feeds, timing, graph)
            return {"statistics": next(answers)}

    model = Measured()
    found = measure(noise(1024, round(1024 * factor)), STYLE, model, Timing())
    areas = [shape[1] * shape[2] for _, shape in model.runs]
    assert areas == pytest.approx([TILE**2, TILE**2 / 2], rel=0.01)
    np.testing.assert_allclose(found.ravel(), [5 + 2 * doublings / 2, 8 * 4 ** (doublings / 2)], rtol=1e-2)
    assert found.shape == (1, 2, 1)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["multistyle26", "magenta-arbitrary"])
def test_tiles_meet_exactly(name: str, loaded: Loaded, photo: Photo) -> None:
    model, timing = loaded(name), Timing()
    pixels = np.ascontiguousarray(photo("china")[40:300, 60:400])
    length = 26 if name == "multistyle26" else 100
    style = np.random.default_rng(2).dirichlet(np.ones(length), 1).astype(np.float32)
    whole = model.run({"pixels": pixels[None], "style": style}, timing)
    feeds = {"pixels": pixels[None], "style": style, "statistics": whole["statistics"]}
    frozen = model.run(feeds, timing, "tile")["painted"][0]
    tiled = paint_tiles(pixels, style, whole["statistics"], model, timing, tile=92)
    assert np.abs(frozen.astype(int) - whole["painted"][0]).max() <= 1
    differing = np.abs(tiled.astype(int) - frozen)
    assert differing.max() <= 1  # a float32 sum in another order may tip a rounding
    assert (differing > 0).mean() < 1e-3


def test_a_smaller_halo_would_show(loaded: Loaded, photo: Photo) -> None:
    model, timing = loaded("multistyle26"), Timing()
    pixels = np.ascontiguousarray(photo("china")[40:168, 60:380])
    style = np.eye(26, dtype=np.float32)[19:20]
    statistics = model.run({"pixels": pixels[None], "style": style}, timing)["statistics"]
    whole = model.run({"pixels": pixels[None], "style": style, "statistics": statistics}, timing, "tile")["painted"][0]
    cut = np.ascontiguousarray(pixels[:, : 160 + HALO // 2])
    part = model.run({"pixels": cut[None], "style": style, "statistics": statistics}, timing, "tile")["painted"][0]
    assert np.abs(part[:, :160].astype(int) - whole[:, :160]).max() > 8


@pytest.mark.parametrize("name", ["multistyle26", "magenta-arbitrary"])
def test_the_smallest_and_odd_pictures_can_be_painted(name: str, loaded: Loaded, photo: Photo) -> None:
    model = loaded(name)
    style = np.full((1, 26 if name == "multistyle26" else 100), 1 / 26, np.float32)
    for height, width in ((MIN_SIDE, MIN_SIDE), (MIN_SIDE + 1, 45)):
        painted = paint(photo("coffee")[:height, :width], style, model, Timing())
        assert painted.shape == (height, width, 3)
        assert painted.std() > 1


@given(length=st.integers(1, 5000).map(lambda n: 4 * n), most=st.integers(4, 300).map(lambda n: 4 * n))
def test_spans_cover_the_length_without_gaps(length: int, most: int) -> None:
    cuts = list(spans(length, most))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == length
    assert all(start % 4 == end % 4 == 0 and 0 < end - start <= most + 3 for start, end in cuts)


@pytest.mark.parametrize(
    ("shape", "max_side", "wanted"),
    [((300, 451), 2048, (300, 451)), ((300, 451), 451, (300, 451)), ((300, 450), 150, (100, 150)), ((3000, 10), 64, (64, 1))],
)
def test_shrink_keeps_proportions_and_never_enlarges(shape: tuple[int, int], max_side: int, wanted: tuple[int, int]) -> None:
    assert shrink(noise(*shape), max_side).shape[:2] == wanted


def test_keep_color_takes_lightness_from_one_and_colour_from_the_other(photo: Photo) -> None:
    picture, painted = photo("astronaut")[::4, ::4], photo("astronaut")[::-4, ::4]
    luma, chroma = np.array([0.299, 0.587, 0.114]), np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
    mixed = keep_color(painted, picture).astype(float)
    inside = ((mixed > 0) & (mixed < 255)).all(axis=-1)  # what does not clip
    assert inside.mean() > 0.4
    assert np.abs(mixed @ luma - painted @ luma)[inside].max() < 2
    assert np.abs(mixed @ chroma.T - picture @ chroma.T)[inside].max() < 2


def test_keep_color_of_a_picture_with_itself_changes_nothing(photo: Photo) -> None:
    picture = photo("coffee")[::3, ::3]
    assert np.abs(keep_color(picture, picture).astype(int) - picture).max() <= 2


@pytest.mark.parametrize(("opacity", "wanted"), [(0.0, 100), (0.25, 125), (1.0, 200)])
def test_fade(opacity: float, wanted: int) -> None:
    photo, painted = (np.full((2, 2, 3), level, np.uint8) for level in (100, 200))
    assert fade(photo, painted, opacity).tolist() == np.full((2, 2, 3), wanted).tolist()


# other people's networks


def with_input(**given: object) -> Negative:
    spec = load_spec(own_manifests() / "multistyle26")
    return Negative(spec=spec.model_copy(update={"input": spec.input.model_copy(update={"size": None, "multiple_of": 1, **given})}))


@pytest.mark.parametrize(("multiple", "fed"), [(1, (41, 63)), (4, (44, 64)), (32, (64, 64))])
def test_a_network_of_any_size_paints_the_photo_as_it_is(multiple: int, fed: tuple[int, int]) -> None:
    model, pixels = with_input(multiple_of=multiple), noise(41, 63)
    np.testing.assert_array_equal(paint_whole(pixels, {}, model, Timing()), 255 - pixels)
    assert model.runs == [("model", (1, *fed, 3))]


def test_a_large_photo_is_painted_smaller_and_scaled_up() -> None:
    model, pixels = with_input(multiple_of=8), np.full((1500, 2500, 3), 60, np.uint8)
    pixels[:, 1250:] = 200
    painted = paint_whole(pixels, {}, model, Timing())
    ((_, (_, rows, columns, _)),) = model.runs
    assert rows % 8 == columns % 8 == 0
    assert TILE * TILE * 0.99 < rows * columns < TILE * TILE * 1.02
    assert painted.shape == pixels.shape
    assert (painted[:, :1200] == 195).all()
    assert (painted[:, 1300:] == 55).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (600, 300), (1, 700), (16, 2000)])
def test_a_network_of_one_size_paints_all_of_the_photo(height: int, width: int) -> None:
    model, pixels = with_input(size=(48, 56)), np.full((height, width, 3), 60, np.uint8)
    painted = paint_whole(pixels, {"more": STYLE}, model, Timing())
    assert model.runs == [("model", (1, 48, 56, 3))]
    assert painted.tolist() == np.full_like(pixels, 195).tolist()


def test_what_a_photo_leaves_free_is_its_own_reflection() -> None:
    seen: list[Pixels] = []

    def run(feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        seen.append(feeds["pixels"][0])
        return {"painted": feeds["pixels"]}

    model, pixels = with_input(size=(24, 16)), noise(16, 16)
    model.run = run  # type: ignore[method-assign]
    assert np.array_equal(paint_whole(pixels, {}, model, Timing()), pixels)
    assert np.array_equal(seen[0][16:24], pixels[14:6:-1])


def test_a_network_that_rounds_sides_is_brought_back() -> None:
    model = with_input()
    model.run = lambda feeds, timing, graph="model": {"painted": np.full((1, 24, 44, 3), 9, np.uint8)}  # type: ignore[method-assign]
    assert paint_whole(noise(21, 42), {}, model, Timing()).tolist() == np.full((21, 42, 3), 9).tolist()

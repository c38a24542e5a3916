"""Painting by optimisation on a tiny random backbone: losses that fall, scales, seeds, colours, cancelling, and bad options."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.engine import Engine
from service.errors import ImageTooSmall, InferenceFailed, ModelUnknown, OptionInvalid
from service.export import gatys
from service.export.backbones import Layer, build
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import own_manifests
from service.runtime.providers import CPU, Choice
from service.runtime.session import OrtSession
from service.tasks.optimize import FRAME, OptimizeOptions, Step, check, optimize, pick_layers, scales, share, style_at
from service.tasks.task import Pixels, Tensors, Timing

Photo = Callable[[str], NDArray[np.uint8]]
TINY = load_spec(own_manifests() / "yolov3-tiny-features")
SPEC = TINY.model_copy(
    update={"layers": TINY.layers.model_copy(update={"known": ("a", "b", "c"), "content": ("b",), "style": ("a", "c")})}
)


@dataclass
class Painter:
    """A backbone of three small layers, as service.loaded.LoadedModel would run it. runs: the names of the graphs, in turn."""

    folder: Path
    spec: ModelSpec = SPEC
    labels: tuple[str, ...] = ()
    sessions: dict[str, OrtSession] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(7)

        def layer(name: str, out: int, into: int, *, pooled: bool = False) -> Layer:
            return Layer(name, draw.normal(0, 0.5 / into**0.5, (out, into, 3, 3)), draw.normal(0, 0.2, out), pooled)

        layers = [layer("a", 6, 3), layer("b", 8, 6, pooled=True), layer("c", 8, 8, pooled=True)]
        features = build(layers, "tiny", mean=(128, 128, 128), std=64, slope=0.1)
        for name, graph in gatys.export(features, SPEC.layers.content, SPEC.layers.style).items():
            onnx.save(graph, self.folder / f"{name}.onnx")
            if name != "features":
                self.sessions[name] = OrtSession(self.folder / f"{name}.onnx", Choice(CPU))

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        self.runs.append(graph)
        return self.sessions[graph].run(feeds)

    @contextmanager
    def derived(self, name: str, source: str, make: Callable[[Path], bytes]) -> Iterator[None]:
        if name not in self.sessions:
            self.sessions[name] = OrtSession(make(self.folder / f"{source}.onnx"), Choice(CPU))
        yield


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    return Painter(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def content(photo: Photo) -> Pixels:
    return np.ascontiguousarray(photo("astronaut")[:192, 160:300])


@pytest.fixture
def style(photo: Photo) -> Pixels:
    return photo("china")


def paint(content: Pixels, style: Pixels, painter: Painter, **given: object) -> list[Step]:
    return list(optimize(content, style, OptimizeOptions(**{"iterations": 12, "max_side": 96, **given}), painter))


def test_the_loss_falls_with_every_step_and_the_last_picture_is_the_painting(
    content: Pixels, style: Pixels, painter: Painter
) -> None:
    steps = paint(content, style, painter, iterations=40)
    assert [step.iteration for step in steps] == list(range(1, 41))
    assert all(later.total < earlier.total for earlier, later in pairwise(steps))
    assert steps[-1].style < steps[0].style / 2
    assert {(step.height, step.width, step.iterations) for step in steps} == {(96, 70, 40)}
    picture = steps[-1].picture()
    assert picture.shape == (96, 70, 3)
    assert picture.dtype == np.uint8


def test_total_is_the_weighted_sum(content: Pixels, style: Pixels, painter: Painter) -> None:
    for step in paint(content, style, painter, content_weight=3, style_weight=7, tv_weight=2):
        assert step.total == pytest.approx(3 * step.content + 7 * step.style + 2 * step.variation)


def test_weights_pull_to_their_side(content: Pixels, style: Pixels, painter: Painter) -> None:
    of_style, of_content, smooth = (
        paint(content, style, painter, content_weight=a, style_weight=b, tv_weight=c, iterations=40)[-1]
        for a, b, c in ((0.01, 10, 0), (10, 0.01, 0), (1, 1, 1e4))
    )
    assert of_style.style < of_content.style
    assert of_content.content < of_style.content
    assert smooth.variation < min(of_style.variation, of_content.variation) / 2


def test_coarse_to_fine_each_scale_falls_and_all_iterations_are_used(content: Pixels, style: Pixels, painter: Painter) -> None:
    big = np.tile(content, (2, 3, 1))
    steps = paint(big, style, painter, max_side=420, iterations=20)
    assert list(dict.fromkeys((step.height, step.width) for step in steps)) == [(192, 210), (384, 420)]
    assert all(
        later.total < earlier.total
        for earlier, later in pairwise(steps)
        if (earlier.height, earlier.width) == (later.height, later.width)
    )
    assert [step.iteration for step in steps] == list(range(1, 21))
    shares = [step.done for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert steps[9].done == pytest.approx(0.2, abs=0.01)  # half the iterations, at a quarter of the pixels each
    assert {(s.height, s.width) for s in paint(big, style, painter, max_side=420, iterations=2, multi_scale=False)} == {(384, 420)}


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((512, 512), [(128, 128), (256, 256), (512, 512)]),
        ((300, 451), [(150, 226), (300, 451)]),
        ((96, 1024), [(48, 512), (96, 1024)]),
        ((200, 200), [(200, 200)]),
        ((33, 1000), [(33, 1000)]),
    ],
)
def test_scales_halve_until_a_side_would_be_too_short(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    assert scales(*size) == sizes


def test_iterations_are_shared_evenly() -> None:
    assert share(10, [(1, 1)] * 3) == [4, 3, 3]
    assert share(1, [(1, 1)] * 3) == [1, 0, 0]


@pytest.mark.parametrize("given", [{"init": "noise"}, {"optimizer": "adam"}, {}])
def test_one_seed_always_gives_the_same_picture(content: Pixels, style: Pixels, painter: Painter, given: dict[str, object]) -> None:
    first, again = (paint(content, style, painter, seed=4, **given) for _ in range(2))
    assert [step.total for step in first] == [step.total for step in again]
    assert np.array_equal(first[-1].picture(), again[-1].picture())


def test_noise_is_drawn_by_the_seed(content: Pixels, style: Pixels, painter: Painter) -> None:
    one, other = (paint(content, style, painter, init="noise", seed=seed, iterations=2)[-1].picture() for seed in (1, 2))
    assert np.abs(one.astype(int) - other).mean() > 10
    assert np.abs(one.astype(int) - paint(content, style, painter, iterations=2)[-1].picture()).mean() > 30


def test_noise_becomes_the_photo_where_only_content_counts(content: Pixels, style: Pixels, painter: Painter) -> None:
    steps = paint(content, style, painter, init="noise", style_weight=0, tv_weight=0, content_layers="a", iterations=150)
    wanted = cv2.resize(content, (70, 96), interpolation=cv2.INTER_AREA)
    assert steps[-1].content < steps[0].content / 100
    assert np.abs(steps[-1].picture().astype(int) - wanted).mean() < 12


def test_adam_comes_near_what_lbfgs_finds(content: Pixels, style: Pixels, painter: Painter) -> None:
    steps = paint(content, style, painter, optimizer="adam", iterations=60)
    assert len(steps) == 60
    assert steps[-1].total < steps[0].total / 1.5


def test_colours_are_kept_when_asked(content: Pixels, style: Pixels, painter: Painter) -> None:
    green = np.zeros_like(style) + np.uint8([0, 200, 0])
    green[::7] = (0, 90, 0)
    kept, free = (paint(content, green, painter, preserve_color=keep, style_weight=50)[-1].picture() for keep in (True, False))
    small = cv2.resize(content, (70, 96), interpolation=cv2.INTER_AREA)

    def colour(pixels: Pixels) -> NDArray[np.float64]:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(float)

    assert np.abs(colour(kept) - colour(small)).mean() < 4
    assert np.abs(colour(free) - colour(small)).mean() > 8
    assert np.abs(kept.astype(int) - small).mean() > 2, "light and dark are painted"


def test_closing_ends_it_at_once(content: Pixels, style: Pixels, painter: Painter) -> None:
    steps = optimize(content, style, OptimizeOptions(iterations=1000, max_side=96), painter)
    next(steps)
    next(steps)
    before, threads = len(painter.runs), threading.active_count()
    steps.close()
    assert len(painter.runs) == before
    assert threading.active_count() == threads
    assert list(steps) == []


def test_nothing_runs_before_the_first_step_is_asked_for(content: Pixels, style: Pixels, painter: Painter) -> None:
    before = len(painter.runs)
    optimize(content, style, OptimizeOptions(max_side=96), painter)
    assert len(painter.runs) == before


def test_where_only_the_content_counts_the_photo_is_done_at_the_start(content: Pixels, style: Pixels, painter: Painter) -> None:
    small = cv2.resize(content, (70, 96), interpolation=cv2.INTER_AREA)
    (step,) = paint(small, style, painter, style_weight=0, tv_weight=0)
    assert step.total == 0
    assert np.array_equal(step.picture(), small)


def test_a_frame_of_reflection_is_painted_too_and_cut_off(content: Pixels, style: Pixels, painter: Painter) -> None:
    seen: list[Tensors] = []

    @dataclass
    class Watched(Painter):
        def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
            seen.append(feeds)
            return super().run(feeds, timing, graph)

    (step,) = paint(content, style, Watched(painter.folder), iterations=1)
    photo = seen[0]["picture"][0]
    assert photo.shape == (3, 96 + 2 * FRAME, 70 + 2 * FRAME)
    assert np.array_equal(photo[:, FRAME - 1, FRAME:-FRAME], photo[:, FRAME + 1, FRAME:-FRAME])
    assert np.array_equal(photo[:, :, -FRAME], photo[:, :, -FRAME - 2])
    assert step.picture().shape == (96, 70, 3)


def test_other_layers_get_graphs_of_their_own_once(content: Pixels, style: Pixels, painter: Painter) -> None:
    steps = paint(content, style, painter, content_layers="c, b", style_layers="b")
    assert steps[-1].total < steps[0].total
    assert "model b,c b" in painter.runs
    opened = len(painter.sessions)
    paint(content, style, painter, content_layers="b,c,b", style_layers="b")
    assert len(painter.sessions) == opened


@pytest.mark.parametrize(
    ("given", "option", "words"),
    [
        ({"style_layers": "a,conv9"}, "style_layers", "no layer 'conv9'; the layers of yolov3-tiny-features are: a, b, c"),
        ({"content_layers": " , "}, "content_layers", "give at least one layer; the layers of .* are: a, b, c"),
        ({"content_weight": 0, "style_weight": 0, "tv_weight": 0}, "style_weight", "are all 0"),
    ],
)
def test_bad_options_are_named_with_what_would_be_right(
    content: Pixels, style: Pixels, given: dict[str, object], option: str, words: str
) -> None:
    with pytest.raises(OptionInvalid, match=words) as found:
        check(content, style, OptimizeOptions(**given), SPEC)
    assert found.value.option == option


@pytest.mark.parametrize(
    "given", [{"iterations": 0}, {"max_side": 10_000}, {"init": "white"}, {"optimizer": "sgd"}, {"style_weight": -1}, {"sede": 1}]
)
def test_options_have_ranges(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimizeOptions(**given)


def test_layers_come_in_the_backbones_order_and_default_to_its_own() -> None:
    assert pick_layers(SPEC, OptimizeOptions()).style == ("a", "c")
    assert pick_layers(SPEC, OptimizeOptions(style_layers="c,a,c")).style == ("a", "c")


def test_pictures_too_small_to_paint_are_refused(content: Pixels, style: Pixels) -> None:
    with pytest.raises(ImageTooSmall, match="the photo is 70 x 24 pixels as it would be painted; each side needs at least 32"):
        check(content[:24, :70], style, OptimizeOptions(), SPEC)
    with pytest.raises(ImageTooSmall, match="the style picture is 20 x 427"):
        check(content, style[:, :20], OptimizeOptions(), SPEC)


def test_a_style_picture_is_scaled_to_the_area_of_the_painting_and_never_enlarged(style: Pixels) -> None:
    assert style_at(style, (100, 200)).shape == (116, 173, 3)
    assert style_at(style, (2000, 2000)).shape == style.shape
    assert style_at(np.zeros((40, 2000, 3), np.uint8), (64, 64)).shape == (32, 453, 3)


def test_an_error_of_the_model_is_the_step_s(content: Pixels, style: Pixels, painter: Painter) -> None:
    @dataclass
    class Broken(Painter):
        def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
            if graph == "model":
                raise InferenceFailed("no memory")
            return super().run(feeds, timing, graph)

    broken = Broken(painter.folder)
    with pytest.raises(InferenceFailed, match="no memory"):
        next(optimize(content, style, OptimizeOptions(max_side=96), broken))


def test_the_engine_paints_and_names_the_model_once_it_is_loaded(engine: Engine, content: Pixels, style: Pixels) -> None:
    painting = engine.optimize(content, style, iterations=3, max_side=64, model="yolov3-tiny-features")
    assert painting.model is None
    steps = list(painting)
    assert painting.model is not None
    assert painting.model.name == "yolov3-tiny-features"
    assert [step.iteration for step in steps] == [1, 2, 3]
    assert steps[2].total < steps[0].total
    cancelled = engine.optimize(content, style, max_side=64, model="yolov3-tiny-features")
    next(cancelled)
    cancelled.close()
    assert list(cancelled) == []


def test_a_painting_holds_and_works_on_no_more_of_large_pictures_than_it_needs(engine: Engine, photo: Photo) -> None:
    large = cv2.imencode(".jpg", cv2.resize(photo("china"), (2400, 1600)))[1].tobytes()
    options = OptimizeOptions(iterations=1, max_side=64, preserve_color=True, model="yolov3-tiny-features")
    list(engine.optimize(large, large, options))  # the model is loaded
    tracemalloc.start()
    try:
        painting = engine.optimize(large, large, options)
        assert tracemalloc.get_traced_memory()[0] < 2**20, "of 11 MiB each"
        tracemalloc.reset_peak()
        next(painting)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    painting.close()


def test_the_engine_refuses_before_it_paints(engine: Engine, content: Pixels, style: Pixels) -> None:
    with pytest.raises(ModelUnknown, match="use one of: vgg16-hed, yolov3-tiny-features"):
        engine.optimize(content, style, model="yolov3-tiny")
    with pytest.raises(OptionInvalid, match="the layers of vgg16-hed are: conv1_1, conv1_2"):
        engine.optimize(content, style, style_layers="conv9_9")
    with pytest.raises(OptionInvalid, match="iterations=0: give a whole number from 1 to"):
        engine.optimize(content, style, iterations=0)


def test_vgg16_paints_by_default_at_its_own_layers_and_at_others(engine: Engine, content: Pixels, style: Pixels) -> None:
    for given in ({}, {"content_layers": "conv2_1", "style_layers": "conv1_2,conv2_2"}):
        painting = engine.optimize(content, style, iterations=4, max_side=64, **given)
        steps = list(painting)
        assert painting.spec.name == "vgg16-hed"
        assert [step.iteration for step in steps] == [1, 2, 3, 4]
        assert steps[3].total < 0.9 * steps[0].total

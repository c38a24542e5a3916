"""Where the real classifier looks, on real photos: heat lies on the object; grids, boxes and windows agree with the answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.annotate import draw_heat
from service.engine import Engine
from service.errors import OptionInvalid
from service.imaging.codec import encode
from service.imaging.heat import strongest, within
from service.photo import Photo
from service.tasks.activation import Heat
from service.tasks.classify import ClassifyAnswer
from service.tasks.task import Box

Pixels = NDArray[np.uint8]
PhotoOf = Callable[[str], Pixels]
BOXES = {"chelsea": (30, 0, 385, 300), "coffee": (172, 18, 415, 310), "rocket": (305, 125, 340, 405)}
"""The cat, the cup and the rocket, measured by eye on the photos with a grid of 50 pixels over them."""
LEAST = {"chelsea": 0.5, "coffee": 0.5, "rocket": 0.085}
"""IoU of the localisation with them. The rocket is narrower than one cell of the grid; all of the view would have 0.07."""


def edges(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def explained(engine: Engine, image: Any, **options: Any) -> tuple[ClassifyAnswer, Heat]:
    answer = engine.classify(image, explain=True, model="efficientnet-lite0", **options)
    assert answer.heat is not None
    return answer, answer.heat


@pytest.mark.parametrize("name", BOXES)
def test_heat_lies_on_the_object(name: str, engine: Engine, photo: PhotoOf) -> None:
    answer, heat = explained(engine, photo(name))
    assert answer.localization is not None
    x, y = strongest(heat.grid)
    left, top, *_ = within(heat.view, (x, y, x, y))
    cell = (heat.view[2] - heat.view[0]) / heat.grid.shape[1]
    slack = cell if name == "rocket" else 0  # its warmest cells lie on both sides of it
    x_min, y_min, x_max, y_max = BOXES[name]
    assert x_min - slack <= left <= x_max + slack
    assert y_min <= top <= y_max
    assert iou(edges(answer.localization.box), BOXES[name]) >= LEAST[name]


def test_heat_moves_with_the_object(engine: Engine, photo: PhotoOf) -> None:
    """The cup on the left of a table, and the same mirrored."""
    cup = photo("coffee")
    for pixels, mirrored in ((cup, False), (np.ascontiguousarray(cup[:, ::-1]), True)):
        _, heat = explained(engine, pixels[:, :440] if not mirrored else pixels[:, 160:])
        x, _ = strongest(heat.grid)
        assert (x < 0.5) is mirrored


def test_the_mean_of_a_grid_is_the_logit(engine: Engine, photo: PhotoOf) -> None:
    answer, _ = explained(engine, photo("coffee"), top_k=1000)
    means = np.array([np.mean(p.activation.grid) for p in answer.predictions if p.activation])
    confidences = np.array([p.confidence for p in answer.predictions])
    np.testing.assert_allclose(np.exp(means) / np.exp(means).sum(), confidences, atol=1e-5)
    assert all(np.shape(p.activation.grid) == (7, 7) for p in answer.predictions if p.activation)


def test_explained_answers_are_the_plain_ones_and_more(engine: Engine, photo: PhotoOf) -> None:
    plain = engine.classify(photo("chelsea"), model="efficientnet-lite0")
    answer, _ = explained(engine, photo("chelsea"))
    for one, other in zip(plain.predictions, answer.predictions, strict=True):
        assert one.class_id == other.class_id
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    dumped = plain.model_dump()
    assert list(dumped) == ["model", "image", "timing_ms", "predictions"]
    assert list(dumped["predictions"][0]) == ["class_id", "label", "confidence"]
    assert plain.heat is None
    assert list(answer.model_dump()) == ["model", "image", "timing_ms", "predictions", "view", "localization"]
    assert answer.model.precision == "float32"


def test_the_view_is_what_the_network_saw(engine: Engine, photo: PhotoOf) -> None:
    """The answer does not change where nothing but what lies outside the view does."""
    pixels = photo("rocket").copy()
    answer, _ = explained(engine, pixels)
    assert answer.view is not None
    x_min, y_min, x_max, y_max = (round(edge) for edge in edges(answer.view))
    assert (x_max - x_min, y_max - y_min) == (373, 373)
    outside = np.ones(pixels.shape[:2], bool)
    outside[y_min:y_max, x_min:x_max] = False
    pixels[outside] = 0
    assert explained(engine, pixels)[0].predictions == answer.predictions
    pixels[y_min, x_min:x_max] = 255
    assert explained(engine, pixels)[0].predictions != answer.predictions


def test_a_photo_decoded_at_part_of_its_size_has_the_same_view_and_box(engine: Engine, photo: PhotoOf) -> None:
    large = np.repeat(np.repeat(photo("coffee"), 4, axis=0), 4, axis=1)
    jpeg = encode(large, "jpeg", 95)
    reduced, _ = explained(engine, jpeg)
    whole, _ = explained(engine, large)
    for one, other in ((reduced.view, whole.view), (reduced.localization.box, whole.localization.box)):  # type: ignore[union-attr]
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(edges(one), edges(other), atol=60)  # of 2,400: a share of a cell of 200
    assert reduced.predictions[0].class_id == whole.predictions[0].class_id


def test_windows_cover_the_photo_and_find_what_is_at_its_edge(engine: Engine, photo: PhotoOf) -> None:
    """The cup in the right corner of a wide table: the middle of the photo does not show it."""
    wide = np.concatenate([np.full((400, 800, 3), 140, np.uint8), photo("coffee")], axis=1)
    answer = engine.classify(wide, sliding_window=True, model="efficientnet-lite0")
    found = answer.windows
    assert found is not None
    assert (found.size, found.stride, found.scale) == (224, 32, 1)
    assert edges(found.view) == (0, 0, 1408, 416)
    assert (found.rows, found.columns) == (7, 38) == np.shape(found.class_ids) == np.shape(found.confidences)
    espresso = np.array(found.class_ids) == 967
    assert espresso[:, 26:34].any()
    assert not espresso[:, :15].any()
    assert set(found.labels) == {str(i) for row in found.class_ids for i in row}
    row, column = np.unravel_index(np.argmax(found.confidences), (7, 38))
    assert next(iter(found.labels)) == str(found.class_ids[int(row)][int(column)])
    assert answer.localization is None
    assert answer.heat is not None
    assert answer.heat.grid.shape == (13, 44)


def test_a_photo_as_large_as_a_window_has_one_and_it_is_the_answer(engine: Engine, photo: PhotoOf) -> None:
    """Nothing is around it: what is cropped whole is what the pass sees."""
    cut = np.ascontiguousarray(photo("coffee")[20:244, 180:404])
    answer = engine.classify(cut, sliding_window=True, model="efficientnet-lite0")
    assert answer.windows is not None
    assert (answer.windows.rows, answer.windows.columns) == (1, 1)
    logits = engine.load("efficientnet-lite0").sessions["model"].run({"pixels": cut[None]})["logits"][0].astype(np.float64)
    assert answer.windows.class_ids == [[int(logits.argmax())]]
    assert answer.windows.confidences[0][0] == pytest.approx(float(1 / np.exp(logits - logits.max()).sum()), abs=1e-5)


def test_small_photos_are_scaled_up_and_large_ones_down(engine: Engine, photo: PhotoOf) -> None:
    small = engine.classify(photo("coffee")[::4, ::4].copy(), sliding_window=True, model="efficientnet-lite0").windows
    large = np.repeat(np.repeat(photo("coffee"), 4, axis=0), 4, axis=1)
    shrunk = engine.classify(large, sliding_window=True, model="efficientnet-lite0").windows
    assert small is not None
    assert shrunk is not None
    assert small.scale == pytest.approx(2.24, abs=0.01)
    assert small.rows == 1
    assert shrunk.scale == pytest.approx((2**20 / (1600 * 2400)) ** 0.5, abs=0.001)
    assert shrunk.view.x_max == pytest.approx(2400, abs=32 / shrunk.scale)


@pytest.mark.parametrize("options", [{"explain": True}, {"sliding_window": True}, {"explain": True, "sliding_window": True}])
def test_heat_maps_are_drawn_at_the_photos_size(options: dict[str, bool], engine: Engine, photo: PhotoOf) -> None:
    pixels = photo("coffee")
    answer = engine.classify(pixels, model="efficientnet-lite0", **options)
    assert answer.heat is not None
    drawn = draw_heat(pixels, answer.heat)
    assert drawn.shape == pixels.shape
    changed = np.any(drawn != pixels, axis=-1)
    assert changed[150, 290]
    assert bool(changed[:, 520:].any()) is (answer.windows is not None)  # the view ends at 475


def test_a_photo_decoded_for_less_is_not_taken_for_windows(engine: Engine, photo: PhotoOf) -> None:
    from service.tasks.classify import ClassifyOptions

    file = encode(np.repeat(np.repeat(photo("coffee"), 3, axis=0), 3, axis=1), "jpeg", 95)
    less: Photo = engine.decode(file, ClassifyOptions())
    assert less.grid.step == 2
    with pytest.raises(ValueError, match="decoded for a task that needs fewer"):
        engine.classify(less, sliding_window=True)
    assert engine.decode(file, ClassifyOptions(sliding_window=True)).grid.step == 1


def test_the_graph_is_opened_at_its_first_use(engine: Engine, photo: PhotoOf, models: Callable[[str], Path]) -> None:
    fresh = Engine(engine.settings)
    try:
        fresh.classify(photo("coffee"), model="efficientnet-lite0")
        model = fresh.load("efficientnet-lite0")
        assert set(model.sessions) == {"model"}
        assert model.explains
        assert model.slides
        fresh.classify(photo("coffee"), model="efficientnet-lite0", explain=True)
        assert set(model.sessions) == {"model", "maps"}
    finally:
        fresh.close()


def test_what_cannot_be_explained_says_why_and_names_what_can(engine: Engine, photo: PhotoOf) -> None:
    from dataclasses import replace

    model = engine.load("efficientnet-lite0")
    other = replace(model, spec=model.spec.model_copy(update={"name": "vgg"}), sessions={"model": model.sessions["model"]})
    other.later, other.lacks = frozenset(), {"maps": "its end does not come from an average over positions"}
    with_both = Engine(engine.settings, models={"vgg": other, "efficientnet-lite0": model})
    with pytest.raises(OptionInvalid, match=r"explain: vgg cannot do that: its end does not.*: efficientnet-lite0") as caught:
        with_both.classify(photo("coffee"), model="vgg", explain=True)
    assert caught.value.option == "explain"
    other.later, other.lacks = frozenset({"maps"}), {"windows": "its network takes pictures of 224 x 224 only"}
    with pytest.raises(OptionInvalid, match=r"sliding_window: vgg cannot do that: its network takes.*: efficientnet-lite0"):
        with_both.classify(photo("coffee"), model="vgg", sliding_window=True)

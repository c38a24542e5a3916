"""Liveness: what is cut out around a face, and what the classes become; and embedders that want their faces otherwise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine import Engine
from service.errors import OptionInvalid, SpecInvalid
from service.export.contract import Contract
from service.repository.spec import ModelSpec, load_spec
from service.tasks.face_embedding import METHOD, TEMPLATE, align, align_for, embed, method_of
from service.tasks.faces import DetectFacesOptions, VerifyFaceOptions, detect_faces, verify
from service.tasks.liveness import cut_out, judge
from service.tasks.task import Timing

ROOT = Path(__file__).parents[2]
YUNET, SFACE = (load_spec(ROOT / "models" / name) for name in ("yunet", "sface"))

Pixels = NDArray[np.uint8]
Array = NDArray[Any]


def adopted(free_batch: bool = True, **given: Any) -> ModelSpec:
    """SFace's manifest with another [input], alignment or face_scale."""
    wanted = {key: given.pop(key) for key in ("size", "resize") if key in given}
    adapter = Contract(decoder="logits", free_batch=free_batch)
    return SFACE.model_copy(update={"adapter": adapter, "input": SFACE.input.model_copy(update=wanted), **given})


LIVENESS = adopted(resize="face-crop", size=(80, 80), face_scale=2.0)


@dataclass
class Judge:
    """Takes a face for living by so many nats as its brightest red has hundreds of levels, less one."""

    spec: ModelSpec = LIVENESS
    labels: tuple[str, ...] = ()
    fed: list[Array] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        pictures = feeds["pixels"]
        self.fed.append(pictures)
        bright = pictures[..., 0].max(axis=(1, 2)).astype(np.float32) / 100 - 1
        zeros = np.zeros_like(bright)
        return {"logits": np.stack([zeros, bright, zeros], axis=1), "embedding": np.stack([bright, zeros + 2], axis=1)}


@dataclass
class Detector:
    """Finds the same faces, corners and score, in its first look at each photo of no more than 320 pixels; then none."""

    rows: Sequence[tuple[float, ...]]
    spec: ModelSpec = YUNET
    labels: tuple[str, ...] = ()

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        table = np.array(self.rows, np.float32).reshape(1, -1, 5)
        low, size = table[..., None, :2], table[..., None, 2:4] - table[..., None, :2]
        points = low + size * np.float32([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)])
        return {"boxes": table[..., :4], "scores": table[..., 4], "landmarks": points.reshape(1, -1, 10)}


def ramp(height: int, width: int) -> Pixels:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("box", "scale", "columns", "rows"),
    [
        pytest.param((90, 80, 110, 120), 2.0, (80, 120), (60, 140), id="in the middle"),
        pytest.param((0, 5, 20, 45), 2.0, (0, 40), (0, 80), id="moved in from the left and the top"),
        pytest.param((185, 160, 199, 199), 2.0, (171, 199), (121, 199), id="moved in from the right and the bottom"),
        pytest.param((50, 40, 150, 140), 2.7, (0, 199), (0, 199), id="no larger than the photo"),
        pytest.param((90, 20, 110, 170), 4.0, (86.7, 113.3), (0, 199), id="smaller on both sides where one has no room"),
    ],
)
def test_a_face_is_cut_out_with_its_surroundings(
    box: tuple[float, ...], scale: float, columns: tuple[float, float], rows: tuple[float, float]
) -> None:
    found = cut_out(ramp(200, 200), np.float32(box), scale, 80, 80).astype(float)
    assert found.shape == (80, 80, 3)
    for channel, (first, last) in ((0, columns), (1, rows)):
        assert found[..., channel].min() == pytest.approx(first, abs=2)
        assert found[..., channel].max() == pytest.approx(last, abs=2)


def test_traces_of_a_screen_are_not_smoothed_away() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, 2::5] = 255
    assert cut_out(stripes, np.float32((100, 100, 300, 300)), 2.0, 80, 80).min() == 255  # the mean of five is 51


@pytest.mark.parametrize("free_batch", [True, False])
def test_the_second_class_is_the_living_one(free_batch: bool) -> None:
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[:, 100:, 0] = 250
    model = Judge(adopted(free_batch, resize="face-crop", size=(80, 80), face_scale=2.0))
    dark, bright = judge(photo, np.float32([(20, 20, 60, 60), (140, 20, 180, 60)]), model, Timing())
    e = np.exp([-1.0, 1.5])
    assert (dark.live, bright.live) == (False, True)
    assert (dark.score, bright.score) == pytest.approx(tuple(e / (e + 2)))
    assert [len(pictures) for pictures in model.fed] == ([2] if free_batch else [1, 1])
    assert judge(photo, np.empty((0, 4), np.float32), model, Timing()) == []


def test_a_crowd_is_judged_in_runs_of_bounded_size() -> None:
    model, boxes = Judge(), np.tile(np.float32([20, 20, 60, 60]), (37, 1))
    boxes[36] = (120, 20, 160, 60)
    found = judge(ramp(100, 250), boxes, model, Timing())
    assert [len(pictures) for pictures in model.fed] == [16, 16, 5]
    assert [one.live for one in found] == [False] * 36 + [True]


def test_a_liveness_model_needs_its_rule() -> None:
    with pytest.raises(SpecInvalid, match="face-crop"):
        judge(ramp(9, 9), np.empty((0, 4), np.float32), Judge(SFACE), Timing())


def test_faces_carry_what_was_judged_and_else_nothing() -> None:
    photo = np.zeros((320, 320, 3), np.uint8)
    photo[:, 160:, 0] = 250
    detector = Detector([(20, 40, 90, 130, 0.9), (230, 40, 340, 140, 0.8), (30, 200, 90, 280, 0.7)])
    faces = detect_faces(photo, DetectFacesOptions(liveness=True), detector, Timing(), 2, Judge())
    assert [face.liveness.live if face.liveness else None for face in faces] == [False, True]
    assert faces[1].box.x_max == 320  # cut out by what of the box lies in the photo
    plain = detect_faces(photo, DetectFacesOptions(), detector, Timing(), 10)
    assert [face.liveness for face in plain] == [None] * 3


def test_without_a_liveness_model_it_is_said_how_to_get_one(engine: Engine, photo: Callable[[str], Pixels]) -> None:
    with pytest.raises(OptionInvalid, match="vision-service models pull minifasnet") as caught:
        engine.detect_faces(photo("astronaut"), liveness=True)
    assert caught.value.option == "liveness"


# embedders of other sizes and templates

LANDMARKS = (TEMPLATE * 1.5 + (20, 30)).ravel()


def spots(template: Array, side: int) -> Pixels:
    """A picture with a white spot at each of the five points."""
    rows, columns = np.mgrid[0:side, 0:side]
    heat = sum(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18) for x, y in template)
    return np.repeat((255 * np.asarray(heat)).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"size": (224, 224)}, TEMPLATE * 2),
        ({"size": (56, 56)}, TEMPLATE / 2),
        ({"size": (112, 96)}, TEMPLATE * 96 / 112 + (0, 8)),
        ({"alignment": tuple(map(tuple, TEMPLATE - np.array([0, 9]))), "size": (112, 112)}, TEMPLATE - np.array([0, 9])),
        ({"alignment": tuple(map(tuple, TEMPLATE * 0.6 + 20)), "size": (128, 128)}, TEMPLATE * 0.6 + 20),
    ],
)
def test_the_landmarks_go_where_the_manifest_says(given: dict[str, Any], wanted: Array) -> None:
    spec, photo = adopted(**given), spots(LANDMARKS.reshape(5, 2), 260)
    usual = align(photo, LANDMARKS)
    crop = align_for(spec, photo, LANDMARKS, usual)
    assert crop.shape == (*given["size"], 3)
    for x, y in wanted:
        near = crop[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5, 0]
        row, column = np.unravel_index(int(near.argmax()), near.shape)
        assert (column + round(x) - 4, row + round(y) - 4) == pytest.approx((x, y), abs=1.5)
    assert method_of(spec).startswith(f"{METHOD}-")


def test_embedders_like_sface_get_the_usual_crop_under_the_usual_name() -> None:
    usual = align(ramp(200, 200), LANDMARKS)
    for spec in (SFACE, adopted()):
        assert align_for(spec, ramp(200, 200), LANDMARKS, usual) is usual
        assert method_of(spec) == METHOD


def test_other_ways_of_aligning_have_names_of_their_own() -> None:
    template = tuple(map(tuple, TEMPLATE + 1))
    ways = [adopted(), adopted(size=(96, 96)), adopted(size=(96, 112)), adopted(alignment=template)]
    assert len({method_of(spec) for spec in ways}) == 4


@pytest.mark.parametrize("given", [{"size": None}, {"resize": "stretch"}, {"alignment": ((1.0, 2.0),)}])
def test_an_embedder_needs_its_rule(given: dict[str, Any]) -> None:
    with pytest.raises(SpecInvalid, match="align"):
        method_of(adopted(**given))


def test_embeddings_of_any_length_are_of_length_one_also_one_by_one() -> None:
    crops = np.stack([np.full((96, 96, 3), level, np.uint8) for level in (100, 250)])
    model = Judge(adopted(free_batch=False, size=(96, 96)))
    found = embed(crops, model, Timing())
    np.testing.assert_allclose(found, [(0, 1), (0.6, 0.8)], atol=1e-6)
    assert [pictures.shape for pictures in model.fed] == [(1, 96, 96, 3)] * 2


def test_quality_is_told_from_the_usual_crop_whatever_the_embedder_sees() -> None:
    photo, detector = spots(LANDMARKS.reshape(5, 2), 260), Detector([(60, 90, 160, 200, 0.9)])
    usual, other = (
        verify(photo, photo, VerifyFaceOptions(), detector, Judge(adopted(size=(side, side))), Timing()) for side in (112, 56)
    )
    assert usual["image1"].quality == other["image1"].quality

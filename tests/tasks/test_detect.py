"""Detection: options, candidates and boxes on a fake model; the real model against OpenCV 4 from the photo on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import OptionInvalid, SpecInvalid
from service.imaging import Grid
from service.repository.spec import ModelSpec, load_spec
from service.tasks.detect import (
    MAX_CANDIDATES,
    Detection,
    DetectOptions,
    candidates,
    class_ids,
    detect,
    letterbox_scale,
    prepare,
)
from service.tasks.task import Timing

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "yolov3-tiny.npz"
SPEC = load_spec(ROOT / "models" / "yolov3-tiny")
WIDE = np.zeros((104, 208, 3), np.uint8)  # scale 2 into 416 x 416, with 104 rows of grey above and below

Array = NDArray[Any]


@dataclass
class FakeModel:
    """Answers rows of (x_min, y_min, x_max, y_max, score per class...) in the pixels of the 416 x 416 canvas."""

    rows: list[tuple[float, ...]]
    labels: tuple[str, ...] = ("cat", "dog", "hot dog")
    spec: ModelSpec = SPEC
    fed: list[Mapping[str, Array]] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        self.fed.append(feeds)
        table = np.array(self.rows, np.float32).reshape(1, -1, 4 + len(self.labels))
        return {"boxes": table[..., :4], "scores": table[..., 4:]}


def corners(found: Detection) -> tuple[float, float, float, float]:
    box = found.box
    return box.x_min, box.y_min, box.x_max, box.y_max


def test_boxes_come_back_in_the_photos_pixels() -> None:
    model, timing = FakeModel([(20, 124, 60, 164, 0, 0.9, 0)]), Timing()
    (found,) = detect(WIDE, DetectOptions(), model, timing)
    assert corners(found) == pytest.approx((10, 10, 30, 30))
    assert (found.class_id, found.label) == (1, "dog")
    assert found.confidence == pytest.approx(0.9)
    canvas = model.fed[0]["pixels"]
    assert (canvas.shape, canvas.dtype) == ((1, 416, 416, 3), np.uint8)
    assert (canvas[0, :104] == 128).all()
    assert (canvas[0, 104:312] == 0).all()
    assert timing.stages["preprocess"] > 0 < timing.stages["postprocess"]


def test_boxes_are_clipped_and_those_in_the_grey_border_dropped() -> None:
    rows = [(-50, 0, 900, 416, 0.9, 0, 0), (20, 10, 60, 100, 0.8, 0, 0), (100, 320, 200, 400, 0.8, 0, 0)]
    (found,) = detect(WIDE, DetectOptions(), FakeModel(rows), Timing())
    assert corners(found) == pytest.approx((0, 0, 208, 104))


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (Grid(208, 416, 2), (20, 20, 60, 60)),
        (Grid(208, 416, 2, left=-1, top=-1), (19, 19, 59, 59)),
        (Grid(64, 128, 1), (10, 10, 30, 30)),
        (Grid(208, 416, 2, left=375, top=187), (395, 207, 416, 208)),
    ],
)
def test_boxes_on_reduced_pixels_come_back_in_the_whole_photo_and_clipped_to_it(grid: Grid, wanted: tuple[float, ...]) -> None:
    (found,) = detect(WIDE, DetectOptions(), FakeModel([(20, 124, 60, 164, 0, 0.9, 0)]), Timing(), grid)
    assert corners(found) == pytest.approx(wanted, abs=0.01)


def test_the_longer_side_sets_how_much_is_seen() -> None:
    scale = letterbox_scale(SPEC)
    assert scale(832, 416) == scale(416, 832) == 0.5
    oblong = SPEC.model_copy(update={"input": SPEC.input.model_copy(update={"size": (208, 416)})})
    assert (letterbox_scale(oblong)(832, 832), letterbox_scale(oblong)(208, 832)) == (0.25, 0.5)


def spec_with(nms: bool = True, **given: Any) -> ModelSpec:
    return SPEC.model_copy(update={"nms": nms, "input": SPEC.input.model_copy(update=given)})


def test_a_stretched_photo_gets_its_boxes_back_on_both_axes() -> None:
    model = FakeModel([(104, 104, 208, 416, 0, 0.9, 0)], spec=spec_with(resize="stretch"))
    (found,) = detect(WIDE, DetectOptions(), model, Timing())
    assert corners(found) == pytest.approx((52, 26, 104, 104))
    assert (model.fed[0]["pixels"] == 0).all()  # no border
    (found,) = detect(WIDE, DetectOptions(), model, Timing(), Grid(208, 416, 2))
    assert corners(found) == pytest.approx((104, 52, 208, 208))


def test_the_border_lies_where_the_manifest_says() -> None:
    model = FakeModel([(20, 20, 60, 60, 0, 0.9, 0)], spec=spec_with(fill=114, padding="bottom-right"))
    (found,) = detect(WIDE, DetectOptions(), model, Timing())
    assert corners(found) == pytest.approx((10, 10, 30, 30))
    canvas = model.fed[0]["pixels"][0]
    assert (canvas[:208] == 0).all()
    assert (canvas[208:] == 114).all()


def test_of_a_stretched_photo_the_side_that_is_seen_better_counts() -> None:
    scale = letterbox_scale(spec_with(resize="stretch", size=(208, 416)))
    assert (scale(832, 832), scale(208, 8320), scale(8320, 832)) == (0.5, 1, 0.5)


def test_models_that_choose_for_themselves_get_no_nms_unless_it_is_asked_for() -> None:
    rows = [(100, 150, 200, 250, 0.5, 0.3, 0), (102, 150, 202, 250, 0.9, 0, 0), (0, 150, 9, 250, 0.1, 0, 0.2)]
    model = FakeModel(rows, spec=spec_with(nms=False))

    def confidences(**given: Any) -> list[float]:
        return [round(found.confidence, 2) for found in detect(WIDE, DetectOptions(**given), model, Timing())]

    assert confidences() == [0.9, 0.5, 0.3]
    assert confidences(confidence=0.2) == [0.9, 0.5, 0.3, 0.2]
    assert confidences(max_detections=2) == [0.9, 0.5]
    assert confidences(class_agnostic=True) == [0.9]
    broken = FakeModel([*rows, (np.nan, 150, 200, 250, 0.8, 0, 0), (10, 150, 20, 250, np.nan, 0, 0)], spec=model.spec)
    assert len(detect(WIDE, DetectOptions(), broken, Timing())) == 3


@pytest.mark.parametrize("nms", [False, True])
def test_a_model_may_answer_no_boxes_at_all(nms: bool) -> None:
    assert detect(WIDE, DetectOptions(confidence=0), FakeModel([], spec=spec_with(nms)), Timing()) == []


SAME = (100.0, 150.0, 200.0, 250.0)
LIKE = (105.0, 150.0, 205.0, 250.0)
APART = (250.0, 150.0, 350.0, 250.0)


@pytest.mark.parametrize(
    ("rows", "options", "wanted"),
    [
        ([(*SAME, 0.3, 0, 0), (*APART, 0.9, 0, 0)], {}, [("cat", 0.9), ("cat", 0.3)]),
        ([(*SAME, 0.3, 0, 0), (*LIKE, 0.9, 0, 0)], {}, [("cat", 0.9)]),
        ([(*SAME, 0.3, 0, 0), (*LIKE, 0.9, 0, 0)], {"iou": 0.95}, [("cat", 0.9), ("cat", 0.3)]),
        ([(*SAME, 0.3, 0, 0), (*LIKE, 0, 0.9, 0)], {}, [("dog", 0.9), ("cat", 0.3)]),
        ([(*SAME, 0.3, 0, 0), (*LIKE, 0, 0.9, 0)], {"class_agnostic": True}, [("dog", 0.9)]),
        ([(*SAME, 0.3, 0.6, 0.1)], {}, [("dog", 0.6), ("cat", 0.3)]),
        ([(*SAME, 0.3, 0.6, 0.1)], {"class_agnostic": True}, [("dog", 0.6)]),
        ([(*SAME, 0.3, 0.6, 0.1)], {"classes": "cat"}, [("cat", 0.3)]),
        ([(*SAME, 0.3, 0.6, 0.1)], {"classes": [2, "CAT"], "confidence": 0.1}, [("cat", 0.3), ("hot dog", 0.1)]),
        ([(*SAME, 0.25, 0.24, 0)], {}, [("cat", 0.25)]),
        ([(*SAME, 0.3, 0, 0), (*APART, 0.9, 0.8, 0)], {"max_detections": 2}, [("cat", 0.9), ("dog", 0.8)]),
        ([(*SAME, 0.2, 0.2, 0.2)], {}, []),
        ([], {}, []),
    ],
)
def test_what_is_answered(rows: list[tuple[float, ...]], options: dict[str, Any], wanted: list[tuple[str, float]]) -> None:
    found = detect(WIDE, DetectOptions(**options), FakeModel(rows), Timing())
    assert [(d.label, round(d.confidence, 6)) for d in found] == wanted


def test_candidates_are_bounded_to_the_most_confident() -> None:
    scores = np.random.default_rng(0).permutation(MAX_CANDIDATES * 3).astype(np.float32).reshape(-1, 3)
    rows, kinds, found = candidates(scores, 0.0)
    assert len(found) == MAX_CANDIDATES
    assert found.min() == scores.size - MAX_CANDIDATES
    np.testing.assert_array_equal(scores[rows, kinds], found)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("person,hot dog", ("person", "hot dog")),
        (" person , 2 ,", ("person", "2")),
        (["person", 2], ("person", 2)),
        (2, (2,)),
        (None, None),
    ],
)
def test_classes_arrive_as_text_or_list(given: object, wanted: tuple[int | str, ...] | None) -> None:
    assert DetectOptions.model_validate({"classes": given}).classes == wanted


@pytest.mark.parametrize(("given", "wanted"), [((2, "cat"), [0, 2]), (("DOG", "1", 1), [1]), (("Hot Dog",), [2])])
def test_classes_are_found_by_name_or_id(given: tuple[int | str, ...], wanted: list[int]) -> None:
    assert class_ids(given, ("cat", "dog", "hot dog")).tolist() == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("persn", r"there is no class 'persn'; did you mean person\? the classes are ids 0 to 79 or: person, bicycle"),
        ("Motor Cycle", r"did you mean motorcycle"),
        ("80", r"there is no class '80'; the classes are ids 0 to 79"),
        (-1, r"there is no class '-1';"),
    ],
)
def test_an_unknown_class_is_named_with_what_there_is(given: object, message: str) -> None:
    model = FakeModel([], SPEC.read_labels())
    with pytest.raises(OptionInvalid, match=message) as caught:
        detect(WIDE, DetectOptions.model_validate({"classes": given}), model, Timing())
    assert caught.value.option == "classes"
    assert model.fed == []


@pytest.mark.parametrize(
    "given",
    [
        {"confidence": 1.1},
        {"confidence": -0.1},
        {"confidence": "nan"},
        {"iou": 2},
        {"max_detections": 0},
        {"max_detections": 1001},
        {"classes": ","},
        {"classes": []},
        {"class_agnostic": "perhaps"},
        {"threshold": 0.5},
    ],
)
def test_options_out_of_range_or_unknown_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        DetectOptions.model_validate(given)


@pytest.mark.parametrize(("resize", "size"), [("fit", (416, 416)), ("letterbox", None)])
def test_another_resize_rule_is_a_fault_of_the_manifest(resize: str, size: tuple[int, int] | None) -> None:
    spec = SPEC.model_copy(update={"input": SPEC.input.model_copy(update={"resize": resize, "size": size})})
    with pytest.raises(SpecInvalid, match="yolov3-tiny: a detector needs"):
        prepare(WIDE, spec)
    with pytest.raises(SpecInvalid, match="yolov3-tiny: a detector needs"):
        letterbox_scale(spec)


def test_labels_are_cocos() -> None:
    labels = SPEC.read_labels()
    assert len(labels) == len(set(labels)) == 80
    known = {0: "person", 3: "motorcycle", 11: "stop sign", 15: "cat", 41: "cup", 57: "couch", 62: "tv", 79: "toothbrush"}
    assert {index: labels[index] for index in known} == known


# The real model from the photo on, against OpenCV 4's own letterbox, network and NMS; tests/golden/make_yolov3_tiny.py.

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
FOUND_IN = ("astronaut", "coffee", "china", "flower")
BOX_TOLERANCE, CONFIDENCE_TOLERANCE = 0.1, 1e-3  # pixels of the photo


def stored(name: str) -> Array:
    """[m, 6]: x_min, y_min, x_max, y_max, score, class."""
    with np.load(GOLDEN) as golden:
        table: Array = golden[f"{name}/detections"]
        return table


def table(found: list[Detection]) -> Array:
    return np.array([(*corners(d), d.confidence, d.class_id) for d in found], np.float32).reshape(-1, 6)


def agrees(found: list[Detection], wanted: Array) -> bool:
    """The same classes at the same places, whatever the order of equal confidences."""
    got = table(found)
    if len(got) != len(wanted):
        return False
    for row in wanted:
        close = (got[:, 5] == row[5]) & (np.abs(got[:, 4] - row[4]) < CONFIDENCE_TOLERANCE)
        if not (close & (np.abs(got[:, :4] - row[:4]).max(axis=1) < BOX_TOLERANCE)).any():
            return False
    return True


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_answer_as_opencv_answers(name: str, loaded: Callable[[str], Any], photo: Callable[[str], Array]) -> None:
    found = detect(photo(name), DetectOptions(confidence=0.05), loaded("yolov3-tiny"), Timing())
    assert agrees(found, stored(name)), f"{table(found).round(3).tolist()} instead of {stored(name).round(3).tolist()}"
    assert (len(found) > 0) == (name in FOUND_IN)


FAULTS: dict[str, Callable[[Array], Array]] = {
    "swapped channels": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "half a pixel to the right": lambda pixels: ((pixels.astype(int) + np.roll(pixels, 1, axis=1)) // 2).astype(np.uint8),
    "half a pixel down": lambda pixels: ((pixels.astype(int) + np.roll(pixels, 1, axis=0)) // 2).astype(np.uint8),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FOUND_IN)
def test_the_tolerance_catches_faults(name: str, fault: str, loaded: Callable[[str], Any], photo: Callable[[str], Array]) -> None:
    found = detect(FAULTS[fault](photo(name)), DetectOptions(confidence=0.05), loaded("yolov3-tiny"), Timing())
    assert not agrees(found, stored(name))


def test_the_tolerance_catches_boxes_off_by_half_a_pixel(loaded: Callable[[str], Any], photo: Callable[[str], Array]) -> None:
    found = detect(photo("coffee"), DetectOptions(confidence=0.05), loaded("yolov3-tiny"), Timing())
    wanted = stored("coffee")
    assert agrees(found, wanted)
    assert not agrees(found, wanted + np.array([0.5, 0.5, 0.5, 0.5, 0, 0], np.float32))

"""Classification: options, ranking and softmax on a fake model; the real model against torch from the photo on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import OptionInvalid, SpecInvalid
from service.imaging.transforms import resize as scaled
from service.repository.spec import ModelSpec, load_spec
from service.tasks.classify import ClassifyOptions, classify, crop_scale, prepare, softmax
from service.tasks.task import Timing

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "efficientnet-lite0.npz"
SPEC = load_spec(ROOT / "models" / "efficientnet-lite0")
PICTURE = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)

Array = NDArray[Any]


@dataclass
class FakeModel:
    """Answers `logits` to whatever it is fed, and remembers it."""

    logits: list[float]
    labels: tuple[str, ...] = ("cat", "dog", "bird")
    spec: ModelSpec = SPEC
    fed: list[Mapping[str, Array]] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        self.fed.append(feeds)
        timing.add("inference", 1.0)
        return {"logits": np.array([self.logits], np.float32)}


def test_the_best_classes_come_first_with_their_labels() -> None:
    model, timing = FakeModel([1.0, 3.0, 2.0]), Timing()
    found = classify(PICTURE, ClassifyOptions(top_k=2), model, timing)
    assert [(p.class_id, p.label) for p in found] == [(1, "dog"), (2, "bird")]
    e = np.exp([3.0, 2.0, 1.0])
    assert [p.confidence for p in found] == pytest.approx(e[:2] / e.sum())
    (feeds,) = model.fed
    assert feeds["pixels"].shape == (1, 224, 224, 3)
    assert feeds["pixels"].dtype == np.uint8
    assert timing.stages["inference"] == 1.0
    assert timing.stages["preprocess"] > 0


def test_equal_classes_come_in_class_order() -> None:
    assert [p.class_id for p in classify(PICTURE, ClassifyOptions(top_k=3), FakeModel([5.0, 5.0, 5.0]), Timing())] == [0, 1, 2]


def test_more_classes_than_the_model_has_are_refused_before_it_runs() -> None:
    model = FakeModel([1.0, 3.0, 2.0])
    with pytest.raises(OptionInvalid, match=r"top_k=4: efficientnet-lite0 has 3 classes; give 1 to 3") as caught:
        classify(PICTURE, ClassifyOptions(top_k=4), model, Timing())
    assert caught.value.option == "top_k"
    assert model.fed == []


def test_the_default_is_cut_to_the_classes_there_are() -> None:
    assert len(classify(PICTURE, ClassifyOptions(), FakeModel([1.0, 3.0, 2.0]), Timing())) == 3


@pytest.mark.parametrize("given", [{"top_k": 0}, {"top_k": 1001}, {"top_k": "many"}, {"topk": 3}])
def test_options_out_of_range_or_unknown_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        ClassifyOptions.model_validate(given)


def test_options_arrive_as_text_too() -> None:
    assert ClassifyOptions.model_validate({"top_k": "7"}).top_k == 7


@pytest.mark.parametrize("logits", [[1000.0, 999.0], [-1000.0, -1001.0], [0.0] * 1000, list(np.linspace(-30, 30, 1000))])
def test_softmax_sums_to_one_and_never_overflows(logits: list[float]) -> None:
    found = softmax(np.array(logits, np.float32))
    assert abs(found.sum() - 1) < 1e-12
    assert (found >= 0).all()
    assert np.argsort(found, kind="stable").tolist() == np.argsort(logits, kind="stable").tolist()


@pytest.mark.parametrize(("resize", "size"), [("letterbox", (224, 224)), ("center-crop", None), ("stretch", None)])
def test_another_resize_rule_is_a_fault_of_the_manifest(resize: str, size: tuple[int, int] | None) -> None:
    spec = SPEC.model_copy(update={"input": SPEC.input.model_copy(update={"resize": resize, "size": size})})
    with pytest.raises(SpecInvalid, match="efficientnet-lite0: a classifier needs"):
        prepare(PICTURE, spec)
    with pytest.raises(SpecInvalid, match="efficientnet-lite0: a classifier needs"):
        crop_scale(spec)


def test_the_shorter_side_sets_how_much_is_seen() -> None:
    scale = crop_scale(SPEC)
    assert scale(256, 9000) == scale(9000, 256) == 1
    assert scale(1024, 2048) == 0.25


@pytest.mark.parametrize(("resize", "size"), [("stretch", (224, 224)), ("stretch", (32, 100)), ("center-crop", (60, 24))])
def test_a_photo_comes_at_the_size_that_the_manifest_says(resize: str, size: tuple[int, int]) -> None:
    wanted = SPEC.input.model_copy(update={"resize": resize, "size": size, "crop": 1.0, "interpolation": "area"})
    spec = SPEC.model_copy(update={"input": wanted})
    rows, columns = (slice(0, 40), slice(0, 30)) if resize == "stretch" else (slice(0, 40), slice(7, 23))
    assert np.array_equal(prepare(PICTURE, spec), scaled(PICTURE[rows, columns], *size, "area"))
    assert crop_scale(spec)(2 * size[0], 4 * size[1]) == 0.5


def test_labels_are_plain_distinct_and_in_the_standard_order() -> None:
    labels = SPEC.read_labels()
    assert len(labels) == len({label.casefold() for label in labels}) == 1000
    assert all(label == label.strip() and not label.startswith("n0") and "_" not in label for label in labels)
    known = {0: "tench", 207: "golden retriever", 281: "tabby cat", 340: "zebra", 517: "construction crane", 620: "laptop"}
    known |= {657: "missile", 779: "school bus", 817: "sports car", 920: "traffic light", 954: "banana", 999: "toilet paper"}
    assert {index: labels[index] for index in known} == known


# The real model from the photo on, against torch resizing and running it; tests/golden/make_efficientnet_lite0.py.

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
TOLERANCE = 0.02  # of a logit: resizing rounds to whole pixel values, which two libraries do a little differently


def whole(name: str) -> Array:
    with np.load(GOLDEN) as stored:
        logits: Array = stored[f"{name}/whole"]
        return logits


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_answer_as_torch_answers(name: str, loaded: Callable[[str], Any], photo: Callable[[str], Array]) -> None:
    found = classify(photo(name), ClassifyOptions(top_k=1000), loaded("efficientnet-lite0"), Timing())
    confidences = np.zeros(1000)
    confidences[[p.class_id for p in found]] = [p.confidence for p in found]
    wanted = softmax(whole(name))
    np.testing.assert_allclose(confidences, wanted, atol=TOLERANCE / 4)  # a logit off by d moves a probability by d/4 at most
    assert found[0].class_id == wanted.argmax()
    assert abs(sum(p.confidence for p in found) - 1) < 1e-9


@pytest.mark.parametrize(("name", "labels"), [("chelsea", {"tiger cat", "tabby cat", "Egyptian cat"}), ("coffee", {"espresso"})])
def test_photos_show_what_people_see(
    name: str, labels: set[str], loaded: Callable[[str], Any], photo: Callable[[str], Array]
) -> None:
    assert classify(photo(name), ClassifyOptions(top_k=1), loaded("efficientnet-lite0"), Timing())[0].label in labels


FAULTS: dict[str, Callable[[Array], Array]] = {
    "none": lambda pixels: pixels,
    "swapped channels": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "crop off by a pixel": lambda pixels: pixels[1:, 1:],
    "half a pixel to the right": lambda pixels: ((pixels.astype(int) + np.roll(pixels, 1, axis=1)) // 2).astype(np.uint8),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PHOTOS)
def test_the_tolerance_catches_faults(name: str, fault: str, loaded: Callable[[str], Any], photo: Callable[[str], Array]) -> None:
    model = loaded("efficientnet-lite0")
    logits = model.run({"pixels": prepare(FAULTS[fault](photo(name)), model.spec)[None]}, Timing())["logits"][0]
    difference = np.abs(logits - whole(name)).max()
    assert difference < TOLERANCE if fault == "none" else difference > 5 * TOLERANCE

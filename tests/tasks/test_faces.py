"""Faces on fake models: two looks merged, the face that counts, thresholds and what they stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import ImageTooSmall, InputError, NoFace, OptionInvalid, SeveralFaces, SpecInvalid
from service.repository.spec import ModelSpec, Threshold, load_spec
from service.tasks.face_detector import Found, find_faces, merge
from service.tasks.face_embedding import cosine, false_match_rate, prominence
from service.tasks.faces import DetectFacesOptions, Verification, VerifyFaceAnswer, VerifyFaceOptions, detect_faces, verify
from service.tasks.task import Box, Timing

ROOT = Path(__file__).parents[2]
YUNET, SFACE = (load_spec(ROOT / "models" / name) for name in ("yunet", "sface"))

Pixels = NDArray[np.uint8]
Array = NDArray[Any]
Row = tuple[float, float, float, float, float]

POINTS = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)])
"""Landmarks of a fake face, as fractions of its box."""


def blank(height: int, width: int) -> Pixels:
    return np.zeros((height, width, 3), np.uint8)


def found(*rows: Row) -> Found:
    table = np.array(rows, np.float32).reshape(-1, 5)
    corners, sizes = table[:, :2], table[:, 2:4] - table[:, :2]
    points = corners[:, None] + POINTS.astype(np.float32) * sizes[:, None]
    return Found(table[:, :4], table[:, 4], points.reshape(-1, 10))


@dataclass
class FakeDetector:
    """Gives each look its own rows of (x_min, y_min, x_max, y_max, score), in pixels of what it is fed; then nothing."""

    looks: Sequence[Sequence[Row]]
    spec: ModelSpec = YUNET
    labels: tuple[str, ...] = ()
    fed: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        faces = found(*(self.looks[len(self.fed)] if len(self.fed) < len(self.looks) else ()))
        self.fed.append(feeds["pixels"].shape)
        return {"boxes": faces.boxes[None], "scores": faces.scores[None], "landmarks": faces.landmarks[None]}


@dataclass
class FakeEmbedder:
    embeddings: Sequence[Sequence[float]] = ((1, 0), (1, 0))
    spec: ModelSpec = SFACE
    labels: tuple[str, ...] = ()
    fed: list[Array] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], timing: Timing, graph: str = "model") -> dict[str, Array]:
        self.fed.append(feeds["pixels"])
        return {"embedding": np.array(self.embeddings, np.float32)}


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


# two looks


@pytest.mark.parametrize(
    ("height", "width", "shapes"),
    [
        pytest.param(50, 100, [(160, 320), (320, 320)], id="tiny: grown"),
        pytest.param(240, 320, [(256, 320), (256, 320)], id="as large as the first look"),
        pytest.param(500, 1000, [(160, 320), (512, 1024), (256, 320)], id="second look as it is"),
        pytest.param(4000, 2000, [(320, 160), (1280, 640), (320, 256)], id="huge: shrunk to max_side"),
        pytest.param(8, 3000, [(32, 320), (32, 1280), (192, 320)], id="a ribbon"),
    ],
)
def test_looks_are_at_the_photos_own_proportions(height: int, width: int, shapes: list[tuple[int, int]]) -> None:
    """The last look of each is the one with a border around the photo, since none of them found anything."""
    detector = FakeDetector([])
    assert len(find_faces(blank(height, width), 0.6, detector, Timing())) == 0
    assert detector.fed[:-1] == [(1, *shape, 3) for shape in shapes[:-1]]
    assert max(detector.fed[-1]) == 320


@pytest.mark.parametrize(
    ("shape", "looks", "wanted"),
    [
        pytest.param((50, 100), [[(32, 16, 64, 48, 0.9)]], (10, 5, 20, 15), id="grown"),
        pytest.param((2000, 4000), [[(32, 16, 128, 112, 0.9)]], (400, 200, 1600, 1400), id="large, from the first look"),
        pytest.param((2000, 4000), [[], [(32, 16, 64, 48, 0.9)]], (100, 50, 200, 150), id="small, from the second look"),
        pytest.param((400, 400), [[], [], [(80, 80, 240, 240, 0.9)]], (0, 0, 400, 400), id="with a border"),
    ],
)
def test_faces_come_back_in_the_photos_pixels(shape: tuple[int, int], looks: list[list[Row]], wanted: tuple[float, ...]) -> None:
    timing = Timing()
    (face,) = detect_faces(blank(*shape), DetectFacesOptions(), FakeDetector(looks), timing, 10)
    assert corners(face.box) == pytest.approx(wanted, abs=1e-3)
    width, height = wanted[2] - wanted[0], wanted[3] - wanted[1]
    marks = [(point.x, point.y) for point in (face.landmarks.right_eye, face.landmarks.nose, face.landmarks.mouth_left)]
    for mark, (x, y) in zip(marks, POINTS[[0, 2, 4]], strict=True):
        assert mark == pytest.approx((wanted[0] + x * width, wanted[1] + y * height), rel=1e-5)
    assert face.confidence == pytest.approx(0.9)
    assert timing.stages["preprocess"] > 0 < timing.stages["postprocess"]


LONGEST = 1000
BIG = (300.0, 100.0, 700.0, 600.0, 0.9)


@pytest.mark.parametrize(
    ("coarse", "fine", "wanted"),
    [
        pytest.param([BIG], [], [BIG], id="large, seen by the first look only"),
        pytest.param([], [BIG], [], id="too large for the second look"),
        pytest.param([(10, 10, 60, 60, 0.9)], [], [], id="too small for the first look"),
        pytest.param([], [(10, 10, 60, 60, 0.9)], [(10, 10, 60, 60, 0.9)], id="small"),
        pytest.param([(0, 0, 240, 250, 0.7)], [(2, 2, 240, 252, 0.8)], [(2, 2, 240, 252, 0.8)], id="seen by both: the surer"),
        pytest.param([BIG], [(400, 300, 460, 340, 0.7)], [BIG], id="an eye of the large face"),
        pytest.param(
            [BIG], [(400, 300, 460, 340, 0.95)], [(400, 300, 460, 340, 0.95), BIG], id="inside, but surer than the large one"
        ),
        pytest.param([BIG], [(680, 300, 760, 380, 0.7)], [BIG, (680, 300, 760, 380, 0.7)], id="behind the large face's edge"),
    ],
)
def test_two_looks_become_one_answer(coarse: list[Row], fine: list[Row], wanted: list[Row]) -> None:
    merged = merge(found(*coarse), found(*fine), LONGEST)
    rows = np.column_stack([merged.boxes, merged.scores])
    np.testing.assert_allclose(rows, np.array(wanted, np.float32).reshape(-1, 5))
    np.testing.assert_allclose(merged.landmarks, found(*wanted).landmarks)


def test_faces_are_sorted_limited_clipped_and_sure_enough() -> None:
    rows = [
        (10, 10, 40, 40, 0.7),
        (-10, 100, 30, 150, 0.95),
        (200, 10, 240, 40, 0.59),
        (100, 10, 140, 40, 0.8),
        (102, 11, 141, 42, 0.75),
    ]
    faces = detect_faces(blank(320, 320), DetectFacesOptions(), FakeDetector([rows]), Timing(), 2)
    assert [round(face.confidence, 2) for face in faces] == [0.95, 0.8]
    assert corners(faces[0].box) == (0, 100, 30, 150)
    assert faces[0].landmarks.right_eye.x == pytest.approx(2)
    every = detect_faces(blank(320, 320), DetectFacesOptions(confidence=0.59), FakeDetector([rows]), Timing(), 10)
    assert [round(face.confidence, 2) for face in every] == [0.95, 0.8, 0.7, 0.59]


def test_a_face_in_the_border_alone_is_none() -> None:
    detector = FakeDetector([[], [], [(0, 0, 40, 40, 0.9)]])
    assert len(find_faces(blank(400, 400), 0.6, detector, Timing())) == 0


def test_a_detector_needs_the_rule_fit() -> None:
    wrong = YUNET.model_copy(update={"input": YUNET.input.model_copy(update={"resize": "letterbox"})})
    with pytest.raises(SpecInvalid, match="fit"):
        find_faces(blank(64, 64), 0.6, FakeDetector([], wrong), Timing())


# which face counts, and what is said


def compare(
    first: Sequence[Row] = ((100, 100, 220, 240, 0.9),), second: Sequence[Row] = ((90, 90, 210, 230, 0.8),), **given: Any
) -> Verification:
    """Two photos of 320 x 320 with these faces; the keyword `embeddings` sets what the embedder answers."""
    embedder = FakeEmbedder(given.pop("embeddings", ((1, 0), (1, 0))), given.pop("spec", SFACE))
    looks = [part for rows in (first, second) for part in ([rows] if rows else [(), ()])]
    return verify(blank(320, 320), blank(320, 320), VerifyFaceOptions(**given), FakeDetector(looks), embedder, Timing())


def test_both_photos_are_described() -> None:
    answer = compare()
    assert answer["verified"]
    assert answer["similarity"] == pytest.approx(1)
    assert [answer[name].faces for name in ("image1", "image2")] == [1, 1]
    assert (answer["image1"].image.width, answer["image1"].image.height) == (320, 320)
    assert corners(answer["image2"].face.box) == (90, 90, 210, 230)
    assert answer["image1"].quality.size == 120
    assert set(Verification.__annotations__) < set(VerifyFaceAnswer.model_fields)


def test_both_faces_are_embedded_in_one_run() -> None:
    embedder, looks = FakeEmbedder(), [[(100, 100, 220, 240, 0.9)], [(90, 90, 210, 230, 0.8)]]
    white = np.full((320, 320, 3), 255, np.uint8)
    verify(blank(320, 320), white, VerifyFaceOptions(), FakeDetector(looks), embedder, Timing())
    (crops,) = embedder.fed
    assert (crops.shape, crops.dtype) == ((2, 112, 112, 3), np.uint8)
    assert (crops[0].max(), crops[1].min()) == (0, 255)


@pytest.mark.parametrize(
    ("face", "wanted"), [("prominent", (120, 110, 200, 190)), ("largest", (0, 0, 120, 120))], ids=["prominent", "largest"]
)
def test_the_face_that_counts(face: str, wanted: tuple[int, ...]) -> None:
    several = [(0, 0, 120, 120, 0.95), (120, 110, 200, 190, 0.7), (150, 250, 190, 290, 0.9)]
    answer = compare(second=several, face=face)
    assert corners(answer["image2"].face.box) == wanted
    assert answer["image2"].faces == 3


def test_prominence_is_area_less_twice_the_squared_distance() -> None:
    boxes = np.float32([(40, 40, 60, 60), (0, 0, 20, 20), (40, 30, 60, 80)])
    assert prominence(boxes, 100, 100).tolist() == [400, 400 - 2 * (40**2 + 40**2), 1000 - 2 * 5**2]


@pytest.mark.parametrize("photo", ["image1", "image2"])
@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([], NoFace, r"no face was found in {} \(320 x 320 pixels\)"),
        ([(10, 10, 80, 80, 0.9), (100, 10, 180, 80, 0.9)], SeveralFaces, "{} shows 2 faces"),
        ([(10, 10, 21, 30, 0.9)], ImageTooSmall, "the face in {} is 11.0 pixels wide"),
    ],
)
def test_errors_name_the_photo(photo: str, rows: list[Row], error: type[InputError], says: str) -> None:
    kwargs: dict[str, Any] = {"first" if photo == "image1" else "second": rows}
    with pytest.raises(error, match=says.format(photo)) as caught:
        compare(face="only", **kwargs)
    assert caught.value.photo == photo


def test_a_face_that_is_only_small_is_compared_with_a_warning() -> None:
    quality = compare(first=[(10, 10, 24, 40, 0.9)])["image1"].quality
    assert quality.warnings[0].startswith("the face is small: 14 pixels")


TILTED = ((1, 0), (0.363, np.sqrt(1 - 0.363**2)))  # a cosine of 0.363, a hair above or below in float32


@pytest.mark.parametrize(
    ("threshold", "verified", "used"), [(0.36, True, 0.36), (0.37, False, 0.37), (-1, True, -1), (1, False, 1), (None, None, 0.363)]
)
def test_the_threshold_is_the_callers_or_the_models(threshold: float | None, verified: bool | None, used: float) -> None:
    answer = compare(embeddings=TILTED, threshold=threshold)
    assert answer["threshold"] == used
    assert answer["similarity"] == pytest.approx(0.363, abs=1e-6)
    assert answer["verified"] == (answer["similarity"] >= used if verified is None else verified)


def test_equal_to_the_threshold_is_verified() -> None:
    assert compare(embeddings=((1, 0), (0, 1)), threshold=0)["verified"]


RATES = Threshold.model_validate(
    {
        "value": 0.4,
        "false_match_rate": 0.002,
        "false_non_match_rate": 0.03,
        "impostor_pairs": 1000,
        "rates": [{"threshold": t, "false_match_rate": r} for t, r in ((0.5, 0.0), (0.2, 0.1), (0.3, 0.02))],
        "source": "made up",
    }
)


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.4, 0.002), (0.2, 0.1), (0.25, 0.06), (0.45, 0.005), (0.5, 0.0), (0.1, None), (0.6, None)]
)
def test_false_match_rate_is_measured_interpolated_or_unknown(threshold: float, wanted: float | None) -> None:
    assert false_match_rate(RATES, threshold) == (None if wanted is None else pytest.approx(wanted))
    bare = RATES.model_copy(update={"rates": ()})
    assert false_match_rate(bare, threshold) == (0.002 if threshold == 0.4 else None)


def test_the_answer_says_which_false_match_rate_its_threshold_stands_for() -> None:
    default, strict = compare(), compare(threshold=0.45)
    assert default["false_match_rate"] == SFACE.threshold.false_match_rate  # type: ignore[union-attr]
    assert default["false_match_pairs"] == strict["false_match_pairs"] == 4555
    assert strict["false_match_rate"] == 0.0002
    assert default["threshold_source"] == strict["threshold_source"] == "model"
    bare = SFACE.model_copy(update={"threshold": RATES.model_copy(update={"rates": ()})})
    unknown = compare(threshold=0.3, spec=bare)
    assert (unknown["false_match_rate"], unknown["false_match_pairs"]) == (None, None)


def test_an_embedder_without_a_threshold_asks_for_one() -> None:
    unmeasured = SFACE.model_copy(update={"threshold": None})
    with pytest.raises(OptionInvalid, match="sface has no measured threshold: give one") as caught:
        compare(spec=unmeasured)
    assert caught.value.option == "threshold"
    answer = compare(spec=unmeasured, threshold=0.5)
    assert (answer["verified"], answer["threshold"], answer["threshold_source"]) == (True, 0.5, "none")
    assert answer["false_match_rate"] is answer["false_match_pairs"] is None


def test_stored_rates_fall_and_hold_the_default() -> None:
    measured = SFACE.threshold
    assert measured is not None
    points = [(rate.threshold, rate.false_match_rate) for rate in measured.rates]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert [rate for _, rate in points] == sorted((rate for _, rate in points), reverse=True)
    assert (measured.value, measured.false_match_rate) in points
    assert (points[0][0], points[-1][0]) == (-1, 1)


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [((3, 4), (30, 40), 1), ((1, 0), (0, 2), 0), ((1, 1), (-2, -2), -1), ((0, 0), (1, 0), 0)]
)
def test_cosine(a: tuple[int, int], b: tuple[int, int], wanted: float) -> None:
    assert cosine(np.array(a, np.float32), np.array(b, np.float32)) == pytest.approx(wanted)


@pytest.mark.parametrize("given", [{"threshold": 1.1}, {"threshold": -1.1}, {"face": "best"}, {"confidence": 2}, {"faces": "only"}])
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VerifyFaceOptions(**given)

"""Enrolling and identifying on fake models and a fake gallery: what is refused, what is kept, what is said of it."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import (
    EnrollmentRefused,
    FaceBlurred,
    FaceTooSmall,
    ImageDamaged,
    NoFace,
    OptionInvalid,
    SeveralFaces,
    VisionError,
)
from service.gallery.gallery import Match, NewFace, Search, StoredFace
from service.repository.spec import ModelSpec, load_spec
from service.tasks.people import MAX_BATCH, EnrollOptions, IdentifyOptions, Limits, enroll, identify
from service.tasks.task import Timing

ROOT = Path(__file__).parents[2]
YUNET, SFACE = (load_spec(ROOT / "models" / name) for name in ("yunet", "sface"))
LIMITS = Limits(32, 0.005)
POINTS = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)], np.float32)
Row = tuple[float, float, float, float, float]
FACES: list[list[Row]] = [
    [],
    [(100, 80, 200, 200, 0.9)],
    [(100, 80, 200, 200, 0.9), (10, 10, 60, 70, 0.8)],
    [(100, 80, 120, 110, 0.9)],
    [(100, 80, 108, 90, 0.9)],
]
"""What the detector sees on a photo, by the brightness of its first pixel."""
NOBODY, ONE, TWO, SMALL, TINY = range(5)
Pixels = NDArray[np.uint8]


@dataclass
class Detector:
    spec: ModelSpec = YUNET
    labels: tuple[str, ...] = ()

    def run(self, feeds: Mapping[str, Any], timing: Timing, graph: str = "model") -> dict[str, Any]:
        canvas = feeds["pixels"][0]
        rows = FACES[int(canvas[0, 0, 0])] if canvas[0, 0, 0] < len(FACES) else []
        table = np.array(rows, np.float32).reshape(-1, 5)
        points = table[:, None, :2] + POINTS * (table[:, 2:4] - table[:, :2])[:, None]
        return {"boxes": table[None, :, :4], "scores": table[None, :, 4], "landmarks": points.reshape(1, -1, 10)}


@dataclass
class Embedder:
    """Gives each face it is fed the next number; an embedding points along the axis of its number."""

    spec: ModelSpec = SFACE
    labels: tuple[str, ...] = ()
    batches: list[int] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Any], timing: Timing, graph: str = "model") -> dict[str, Any]:
        first, count = sum(self.batches), len(feeds["pixels"])
        self.batches.append(count)
        return {"embedding": 3 * np.eye(64, dtype=np.float32)[first : first + count]}


@dataclass
class Shelf:
    """Remembers what it is told, and answers every search with `matches`."""

    matches: Sequence[Match] = ()
    enrolled: list[tuple[str, str, Sequence[NewFace]]] = field(default_factory=list)
    searched: list[tuple[str, Any, int, float]] = field(default_factory=list)

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        self.enrolled.append((collection, subject, faces))
        return [StoredFace(f"{row:032x}", face.box, face.quality, datetime.now(UTC)) for row, face in enumerate(faces)]

    def search(self, collection: str, embeddings: Any, top_k: int, threshold: float) -> Search:
        self.searched.append((collection, embeddings, top_k, threshold))
        return Search([[match for match in self.matches if match.similarity >= threshold]] * len(embeddings), 100, 7)


def photo(kind: int, blur: float = 0) -> Pixels:
    noise = np.random.default_rng(kind).integers(0, 255, (320, 320, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), blur) if blur else noise
    pixels = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    pixels[0, 0] = kind
    return np.asarray(pixels, np.uint8)


def add(photos: Mapping[str, Any], shelf: Any, subject: str = "Ada", **options: Any) -> dict[str, Any]:
    return enroll(photos, subject, EnrollOptions(**options), LIMITS, (Detector(), Embedder()), shelf, Timing())


def test_faces_are_stored_with_their_box_and_quality_and_unit_embeddings() -> None:
    shelf = Shelf()
    answer = add({"image[1]": photo(ONE), "image[2]": photo(ONE)}, shelf, gallery="cellar")
    ((collection, subject, faces),) = shelf.enrolled
    assert (collection, subject) == ("cellar", "Ada") == (answer["gallery"], answer["subject"])
    assert [face.box for face in faces] == [(100, 80, 200, 200)] * 2
    assert [float(np.linalg.norm(face.embedding)) for face in faces] == [1, 1]
    assert faces[0].quality["size"] == 100
    assert [(face.photo, face.face_id[-1]) for face in answer["faces"]] == [("image[1]", "0"), ("image[2]", "1")]
    assert answer["refused"] == answer["warnings"] == []


@pytest.mark.parametrize(
    ("kind", "blur", "error", "measured"),
    [
        pytest.param(NOBODY, 0, NoFace, None, id="no face"),
        pytest.param(TWO, 0, SeveralFaces, None, id="several, and nobody said which"),
        pytest.param(SMALL, 0, FaceTooSmall, 20, id="small"),
        pytest.param(TINY, 0, FaceTooSmall, 8, id="too small even to compare"),
        pytest.param(ONE, 9, FaceBlurred, ..., id="blurred"),
    ],
)
def test_one_photo_that_will_not_do_is_refused_with_what_was_measured(
    kind: int, blur: float, error: type[VisionError], measured: Any
) -> None:
    shelf = Shelf()
    with pytest.raises(error) as caught:
        add({"image": photo(kind, blur)}, shelf)
    assert shelf.enrolled == []
    assert caught.value.photo == "image"  # type: ignore[attr-defined]
    if measured is not None:
        found, limit = caught.value.measured, caught.value.limit  # type: ignore[attr-defined]
        assert found < limit
        assert measured in (..., found)
        assert f"{limit:g}" in str(caught.value)


@pytest.mark.parametrize("face", ["prominent", "largest"])
def test_several_faces_will_do_once_it_is_said_which(face: str) -> None:
    answer = add({"image": photo(TWO)}, Shelf(), face=face)
    assert answer["faces"][0].box.x_min == 100


def test_one_bad_photo_of_several_enrolls_none_and_each_bad_one_is_named() -> None:
    shelf, broken = Shelf(), ImageDamaged("cut short")
    photos = {"image[1]": photo(ONE), "image[2]": photo(NOBODY), "image[3]": broken, "image[4]": photo(SMALL)}
    with pytest.raises(EnrollmentRefused, match=r"3 of 4 .* image\[2\], image\[3\], image\[4\]") as caught:
        add(photos, shelf)
    assert shelf.enrolled == []
    codes = [(refused["photo"], refused["code"]) for refused in caught.value.refused]
    assert codes == [("image[2]", "no_face"), ("image[3]", "image_damaged"), ("image[4]", "face_too_small")]
    assert caught.value.refused[2]["measured"] == 20
    assert "measured" not in caught.value.refused[0]


def test_photos_that_were_refused_are_not_kept_while_others_are_looked_at() -> None:
    seen, alive = list[weakref.ref[Pixels]](), list[int]()

    class Decoding(Mapping[str, Pixels]):
        def __getitem__(self, name: str) -> Pixels:
            alive.append(sum(one() is not None for one in seen))
            pixels = photo(NOBODY)
            seen.append(weakref.ref(pixels))
            return pixels

        def __iter__(self) -> Iterator[str]:
            return iter(["image[1]", "image[2]", "image[3]", "image[4]"])

        def __len__(self) -> int:
            return 4

    with pytest.raises(EnrollmentRefused):
        add(Decoding(), Shelf())
    assert max(alive) == 1, "the one before, of four"


def test_partial_enrolls_the_rest_and_still_names_the_bad_ones() -> None:
    shelf = Shelf()
    answer = add({"image[1]": photo(NOBODY), "image[2]": photo(ONE)}, shelf, partial=True)
    assert [face.photo for face in answer["faces"]] == ["image[2]"]
    assert [(refused.photo, refused.code) for refused in answer["refused"]] == [("image[1]", "no_face")]
    with pytest.raises(EnrollmentRefused):
        add({"image[1]": photo(NOBODY), "image[2]": photo(SMALL)}, shelf, partial=True)
    assert len(shelf.enrolled) == 1


def test_the_same_face_under_another_name_is_warned_of() -> None:
    shelf = Shelf([Match("Ada", "a", 0.9), Match("Countess", "b", 0.8), Match("Stranger", "c", 0.2)])
    answer = add({"image": photo(ONE)}, shelf)
    assert [(other.subject, other.similarity) for other in answer["faces"][0].also] == [("Countess", 0.8)]
    (warning,) = answer["warnings"]
    assert "'Countess'" in warning
    assert "0.800" in warning
    assert shelf.enrolled  # a warning refuses nothing


def test_names_are_checked_before_anything_is_stored() -> None:
    shelf = Shelf()
    with pytest.raises(OptionInvalid, match="201 characters"):
        add({"image": photo(ONE)}, shelf, subject="a" * 201)
    with pytest.raises(ValidationError, match="gallery is empty"):
        EnrollOptions(gallery="  ")
    assert shelf.enrolled == []


def who(kind: int, shelf: Any, **options: Any) -> dict[str, Any]:
    return identify(photo(kind), IdentifyOptions(**options), 256, (Detector(), Embedder()), shelf, Timing())


def test_every_face_gets_its_candidates_and_what_the_threshold_stands_for() -> None:
    shelf = Shelf([Match("Ada", "a", 0.7), Match("Bob", "b", 0.4)])
    answer = who(TWO, shelf, top_k=3, gallery="hall")
    assert [(face.box.x_min, face.unknown) for face in answer["faces"]] == [(100, False), (10, False)]
    assert [candidate.subject for candidate in answer["faces"][0].candidates] == ["Ada", "Bob"]
    ((collection, embeddings, top_k, threshold),) = shelf.searched
    assert (collection, len(embeddings), top_k, threshold) == ("hall", 2, 3, SFACE.threshold.value)  # type: ignore[union-attr]
    rate = answer["false_match_rate"]
    assert rate == SFACE.threshold.false_match_rate  # type: ignore[union-attr]
    assert answer["false_identification_rate"] == pytest.approx(1 - (1 - rate) ** 100)
    assert (answer["subjects"], answer["enrolled_faces"]) == (7, 100)
    assert answer["threshold_source"] == "model"


def test_below_the_threshold_a_face_is_unknown() -> None:
    answer = who(ONE, Shelf([Match("Ada", "a", 0.7)]), threshold=0.8)
    assert [(face.unknown, face.candidates) for face in answer["faces"]] == [(True, [])]
    assert answer["threshold"] == 0.8


def test_with_an_embedder_that_was_not_measured_a_threshold_is_asked_for() -> None:
    models, shelf = (Detector(), Embedder(SFACE.model_copy(update={"threshold": None}))), Shelf([Match("Ada", "a", 0.7)])
    with pytest.raises(OptionInvalid, match="no measured threshold"):
        identify(photo(ONE), IdentifyOptions(), 256, models, shelf, Timing())
    answer = identify(photo(ONE), IdentifyOptions(threshold=0.6), 256, models, shelf, Timing())
    assert (answer["threshold"], answer["threshold_source"], answer["false_match_rate"]) == (0.6, "none", None)
    enroll({"image": photo(ONE)}, "Ada", EnrollOptions(), LIMITS, models, shelf, Timing())
    assert len(shelf.enrolled) == 1
    assert shelf.searched[-1][3] == 1  # as nothing says what is alike, nobody but the same photo is


def test_a_face_too_small_to_compare_is_unknown_and_not_searched() -> None:
    shelf = Shelf([Match("Ada", "a", 0.7)])
    (face,) = who(TINY, shelf)["faces"]
    assert face.unknown
    assert any("small" in warning for warning in face.quality.warnings)
    assert len(shelf.searched[0][1]) == 0


def test_nobody_on_the_photo_is_an_empty_answer() -> None:
    answer = who(NOBODY, Shelf([Match("Ada", "a", 0.7)]))
    assert answer["faces"] == []
    assert answer["enrolled_faces"] == 100


def test_a_crowd_is_embedded_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [
        (10.0 + 20 * (row % 15), 10.0 + 30 * (row // 15), 28.0 + 20 * (row % 15), 30.0 + 30 * (row // 15), 0.9) for row in range(40)
    ]
    monkeypatch.setitem(globals(), "FACES", [*FACES, crowd])
    embedder = Embedder()
    answer = identify(photo(5), IdentifyOptions(), 35, (Detector(), embedder), Shelf(), Timing())
    assert len(answer["faces"]) == 35
    assert embedder.batches == [MAX_BATCH, MAX_BATCH, 3]

"""IoU and NMS against brute force, on degenerate, identical and empty input too."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.imaging.boxes import Boxes, clip, iou, nms

Corners = tuple[float, float, float, float]
WHOLE = st.integers(0, 12).map(float)
BOX = st.tuples(WHOLE, WHOLE, WHOLE, WHOLE)  # with many of no area, inside out, identical and touching ones
SCORES = st.sampled_from([0.1, 0.2, 0.2, 0.3, 0.5, 0.9, math.nan])


def array(rows: list[Corners]) -> Boxes:
    return np.array(rows, np.float32).reshape(-1, 4)


def brute_iou(a: Corners, b: Corners) -> float:
    def area(box: Corners) -> float:
        return (box[2] - box[0]) * (box[3] - box[1]) if box[2] > box[0] and box[3] > box[1] else 0.0

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    if not shared or not area(a) or not area(b):
        return 0.0
    return shared / (area(a) + area(b) - shared)


def brute_nms(
    rows: list[Corners], scores: list[float], threshold: float, classes: list[int] | None, limit: int | None
) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i] if not math.isnan(scores[i]) else math.inf, i)):
        if math.isnan(scores[i]) or not all(map(math.isfinite, rows[i])):
            continue
        rivals = [k for k in kept if classes is None or classes[k] == classes[i]]
        if all(np.float32(brute_iou(rows[k], rows[i])) <= threshold for k in rivals):
            kept.append(i)
    return kept[:limit]


@settings(max_examples=150, deadline=None)
@given(st.lists(BOX, max_size=8), st.lists(BOX, max_size=8))
def test_iou_is_brute_force(a: list[Corners], b: list[Corners]) -> None:
    found = iou(array(a), array(b))
    assert found.shape == (len(a), len(b))
    expected = np.array([[brute_iou(one, other) for other in b] for one in a]).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(BOX, SCORES, st.integers(0, 2)), max_size=40),
    st.sampled_from([0.0, 0.3, 0.45, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([None, 0, 1, 5]),
)
def test_nms_is_brute_force(items: list[tuple[Corners, float, int]], threshold: float, by_class: bool, limit: int | None) -> None:
    rows, scores, classes = [item[0] for item in items], [item[1] for item in items], [item[2] for item in items]
    found = nms(
        array(rows), np.array(scores, np.float32), np.float32(threshold), np.array(classes, int) if by_class else None, limit
    )
    assert found.tolist() == brute_nms(rows, scores, np.float32(threshold), classes if by_class else None, limit)


def crowd(count: int, size: float, seed: int = 0) -> tuple[Boxes, NDArray[np.float32], NDArray[np.int_]]:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 416, (count, 2))
    boxes = np.hstack([corner, corner + rng.integers(1, 2 * size, (count, 2))]).astype(np.float32)
    return boxes, rng.integers(0, 50, count).astype(np.float32) / 50, rng.integers(0, 4, count)


@pytest.mark.parametrize("limit", [None, 10, 200])
@pytest.mark.parametrize("by_class", [False, True])
def test_nms_of_several_blocks_is_brute_force(by_class: bool, limit: int | None) -> None:
    boxes, scores, classes = crowd(600, 40)
    found = nms(boxes, scores, 0.45, classes if by_class else None, limit)
    rows = [tuple(map(float, box)) for box in boxes]
    expected = brute_nms(rows, scores.tolist(), np.float32(0.45), classes.tolist() if by_class else None, limit)  # type: ignore[arg-type]
    assert found.tolist() == expected
    assert 0 < len(expected) < 600


def test_iou_by_hand() -> None:
    a = array([(0, 0, 10, 10), (5, 5, 5, 9), (9, 9, 1, 1), (math.nan, 0, 4, 4)])
    b = array([(0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (2, 2, 4, 4), (5, 5, 5, 9)])
    expected = np.zeros((4, 5))
    expected[0] = 1, 1 / 3, 0, 0.04, 0
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-7)


def test_iou_of_monstrous_boxes_is_still_a_number() -> None:
    far = array([(-3e38, -3e38, 3e38, 3e38), (-math.inf, 0, math.inf, 1), (0, 0, 1, 1)])
    found = iou(far, far)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_box_exactly_at_the_threshold_stays() -> None:
    pair = array([(0, 0, 2, 1), (1, 0, 3, 1), (0, 0, 2, 2)])  # IoU 1/3 and 1/2 with the first
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert nms(pair, scores, 0.5).tolist() == [0, 1, 2]
    assert nms(pair, scores, 0.49).tolist() == [0, 1]
    assert nms(pair, scores, 0.33).tolist() == [0]


def test_equal_scores_keep_their_order() -> None:
    same = array([(0, 0, 9, 9)] * 5 + [(20, 0, 29, 9)] * 5)
    scores = np.array([0.5] * 10, np.float32)
    assert nms(same, scores, 0.5).tolist() == [0, 5]
    assert nms(same, scores, 0.5, np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])).tolist() == [0, 1, 5, 6]


def test_a_suppressed_box_suppresses_nothing() -> None:
    row = array([(0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)])
    assert nms(row, np.array([0.9, 0.8, 0.7], np.float32), 0.3).tolist() == [0, 2]


def test_broken_candidates_neither_stay_nor_hide_others() -> None:
    rows = array([(0, 0, 10, 10), (0, 0, 10, 10), (math.nan, 0, 10, 10), (-math.inf, 0, 10, 10)])
    assert nms(rows, np.array([math.nan, 0.2, 0.9, 0.8], np.float32), 0.5).tolist() == [1]
    assert nms(rows, np.array([math.nan, 0.2, 0.9, 0.8], np.float32), 0.5, np.zeros(4, int)).tolist() == [1]


@pytest.mark.parametrize("classes", [None, np.empty(0, int)])
def test_nothing_in_nothing_out(classes: NDArray[np.int_] | None) -> None:
    kept = nms(array([]), np.empty(0, np.float32), 0.5, classes)
    assert kept.shape == (0,)
    assert array([])[kept].shape == (0, 4)


def test_thousands_of_survivors_stay_affordable() -> None:
    """2,535 candidates of yolov3-tiny that do not overlap: one vector operation per survivor would still pass, one per pair not."""
    boxes, scores, classes = crowd(2535, 2)
    start = time.process_time()
    kept = nms(boxes, scores, 0.45)
    nms(boxes, scores, 0.45, classes, 300)
    assert time.process_time() - start < 2
    assert len(kept) > 2000


def test_clip_cuts_at_the_edges() -> None:
    rows = array([(-5, -6, 700, 500), (10, 20, 30, 40), (650, 490, 700, 500)])
    clipped = clip(rows, 480, 640)
    assert clipped.tolist() == [[0, 0, 640, 480], [10, 20, 30, 40], [640, 480, 640, 480]]
    assert clipped.dtype == np.float32
    assert rows[0, 0] == -5
    assert clip(array([]), 480, 640).shape == (0, 4)

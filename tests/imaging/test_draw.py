"""What must be seen is seen: contrast on every ground, captions inside and apart, no input that breaks the painting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photos
from skimage.color import deltaE_ciede2000, rgb2lab

from service.imaging import Pixels
from service.imaging.draw import Mark, color, draw

GROUNDS = {
    "white": lambda h, w: np.full((h, w, 3), 255, np.uint8),
    "black": lambda h, w: np.zeros((h, w, 3), np.uint8),
    "grey": lambda h, w: np.full((h, w, 3), 128, np.uint8),
    "noise": lambda h, w: np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8),
}


def luminance(rgb: Pixels | tuple[int, int, int]) -> np.ndarray:
    """Relative luminance, 0..1 (WCAG 2)."""
    value = np.asarray(rgb, float) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def changed(before: Pixels, after: Pixels) -> np.ndarray:
    return (before != after).any(axis=2)


def test_the_photo_is_copied_not_painted_on() -> None:
    photo = photos.chelsea()
    before = photo.copy()
    out = draw(photo, [Mark((20, 30, 120, 140), "cat 93%", 1)])
    assert np.array_equal(photo, before)
    assert out.shape == photo.shape
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert np.array_equal(draw(photo, []), photo)
    assert draw(photo, []) is not photo


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (480, 640), (1500, 2000)])
@pytest.mark.parametrize("index", [0, 1, 2, 7, 79])
def test_an_outline_shows_on_every_ground(ground: str, height: int, width: int, index: int) -> None:
    before = GROUNDS[ground](height, width)
    box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    after = draw(before, [Mark(box, "", index)])
    row = after[height // 2, : width // 2]
    inked = changed(before[None, height // 2, : width // 2], row[None])[0]
    assert inked[box[0]]
    assert not inked[: box[0] - 12].any()
    assert not inked[box[0] + 20 :].any()
    tones = luminance(row[inked])
    assert contrast(float(tones.max()), float(tones.min())) > 4.5  # the line against its rims
    nearest = float(luminance(before[height // 2, box[0] // 2])) if ground != "noise" else None
    if nearest is not None:
        assert max(contrast(float(tone), nearest) for tone in tones) > 3


def test_the_line_lies_on_the_boxs_edge() -> None:
    out = draw(np.zeros((480, 640, 3), np.uint8), [Mark((100.0, 50.0, 300.0, 200.0), "", 3)])
    tinted = (out == color(3)).all(axis=2)
    rows, columns = np.flatnonzero(tinted.any(axis=1)), np.flatnonzero(tinted.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (100, 50, 300, 200)
    assert not tinted[60:190, 110:290].any()


def test_lines_and_letters_grow_with_the_photo() -> None:
    widths, heights = [], []
    for scale in (1, 2, 6):
        out = draw(
            np.zeros((480 * scale, 640 * scale, 3), np.uint8), [Mark((200 * scale, 200 * scale, 400 * scale, 400 * scale), "x", 0)]
        )
        tinted = (out == color(0)).all(axis=2)
        widths.append(int(tinted[300 * scale, : 300 * scale].sum()))
        heights.append(int(tinted[: 200 * scale - 8 * scale].any(axis=1).sum()))
    assert widths == [2, 4, 12]
    assert 8 < heights[0] < heights[1] / 1.5 < heights[2] / 4


@pytest.mark.parametrize(
    "box", [(0, 0, 640, 480), (-50, -50, 30, 30), (600, 440, 900, 900), (300, 0, 340, 5), (0, 475, 640, 480), (639, 200, 640, 201)]
)
def test_a_caption_is_whole_and_inside_wherever_the_box_lies(box: tuple[float, float, float, float]) -> None:
    """As many pixels of letters and plate show as for a box in the middle."""
    ground = np.full((480, 640, 3), 255, np.uint8)

    def plate(place: tuple[float, float, float, float]) -> tuple[int, int]:
        captioned, bare = draw(ground, [Mark(place, "wide caption 88%", 4)]), draw(ground, [Mark(place, "", 4)])
        rows, columns = np.nonzero(changed(bare, captioned))
        return int(np.ptp(rows)), int(np.ptp(columns))

    middle = plate((300, 200, 500, 400))
    found = plate(box)
    assert abs(found[0] - middle[0]) <= 4
    assert abs(found[1] - middle[1]) <= 4


def test_a_plate_has_a_dark_border_and_dark_letters_on_its_colour() -> None:
    ground = np.full((480, 640, 3), 255, np.uint8)
    box = (100, 200, 400, 400)
    out = draw(ground, [Mark(box, "person 90%", 1)])
    rows, columns = np.nonzero(changed(draw(ground, [Mark(box, "", 1)]), out))
    plate = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    for border in (plate[0], plate[:, 0], plate[:, -1]):  # the lower one lies on the rim of the box
        assert (border == 16).all(axis=1).mean() > 0.9
    shares = [(plate == tone).all(axis=2).mean() for tone in (color(1), (16, 16, 16))]
    assert shares[0] > 0.5
    assert shares[1] > 0.1


def plates_seen(marks: list[Mark], height: int = 480, width: int = 640) -> list[int]:
    """For each mark the number of pixels of its own colour that its caption adds."""
    ground = np.zeros((height, width, 3), np.uint8)
    out = draw(ground, marks)
    bare = draw(ground, [Mark(mark.box, "", mark.color_index, mark.points) for mark in marks])
    added, counts = np.unique(out[changed(bare, out)], axis=0, return_counts=True)
    count_of = {tuple(rgb): int(count) for rgb, count in zip(added.tolist(), counts, strict=True)}
    return [count_of.get(color(mark.color_index), 0) for mark in marks]


def test_plates_give_way_to_one_another() -> None:
    """Six nested boxes whose captions would all lie on one spot."""
    marks = [Mark((200, 200, 420, 420), "person 90%", index) for index in range(6)]
    seen = plates_seen(marks)
    alone = plates_seen(marks[:1])[0]
    assert all(abs(area - alone) < 0.1 * alone for area in seen)


def test_a_crowd_keeps_the_captions_that_can_be_read() -> None:
    rng = np.random.default_rng(2)
    marks = []
    for index in range(200):
        x, y = rng.uniform(0, 500), rng.uniform(0, 380)
        marks.append(Mark((x, y, x + rng.uniform(20, 140), y + rng.uniform(20, 100)), "potted plant 71%", index))
    out = draw(np.zeros((480, 640, 3), np.uint8), marks)
    seen = np.array(plates_seen(marks))
    whole = np.median(seen[seen > 500])
    assert 20 < (seen > 0.7 * whole).sum() < 120
    assert not ((seen > 0) & (seen < 0.6 * whole)).any()
    assert seen[0] > 0.9 * whole
    assert changed(out, np.zeros_like(out)).mean() < 0.95


def test_a_tiny_photo_is_not_buried_under_its_captions() -> None:
    ground = np.full((48, 64, 3), 255, np.uint8)
    out = draw(
        ground, [Mark((4, 10, 30, 40), "person 90%", 0), Mark((30, 20, 60, 44), "dog 80%", 1), Mark((5, 5, 50, 30), "cat 70%", 2)]
    )
    assert changed(ground, out).mean() < 0.6


def test_the_first_mark_lies_on_top() -> None:
    out = draw(np.zeros((480, 640, 3), np.uint8), [Mark((100, 100, 300, 300), "", 1), Mark((100, 50, 300, 350), "", 2)])
    assert tuple(out[200, 100]) == color(1)


def test_landmarks_are_dots_where_they_are() -> None:
    points = ((150.0, 160.0), (210.5, 160.25), (-40.0, 100.0), (1e30, 5.0))
    out = draw(np.full((480, 640, 3), 255, np.uint8), [Mark((100, 100, 260, 300), "", 5, points)])
    for x, y in points[:2]:
        patch = (out[int(y) - 12 : int(y) + 12, int(x) - 12 : int(x) + 12] == color(5)).all(axis=2)
        rows, columns = np.nonzero(patch)
        assert abs(columns.mean() + 0.5 + int(x) - 12 - x) < 0.6
        assert abs(rows.mean() + 0.5 + int(y) - 12 - y) < 0.6


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "\n",
        "a\nb\tc",
        "\0",
        "\ud800",
        "été à la plage",
        "собака 87%",
        "犬 🐕",
        "e\u0301\u0301",
        "x" * 5000,
        "\u202eabc",
        "fi ﬁ ½",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("shape", [(480, 640), (48, 64), (8, 8), (8, 2000), (1, 1)])
def test_any_text_can_be_a_caption(caption: str, shape: tuple[int, int]) -> None:
    assert draw(np.zeros((*shape, 3), np.uint8), [Mark((1, 1, 5, 5), caption[:200], 0)] * 2).shape == (*shape, 3)


def test_accents_are_dropped_rather_than_the_letters() -> None:
    ground = np.zeros((200, 300, 3), np.uint8)
    assert np.array_equal(draw(ground, [Mark((20, 60, 200, 180), "été", 0)]), draw(ground, [Mark((20, 60, 200, 180), "ete", 0)]))
    assert not np.array_equal(draw(ground, [Mark((20, 60, 200, 180), "犬", 0)]), draw(ground, [Mark((20, 60, 200, 180), "", 0)]))


ANYWHERE = st.floats(-1e4, 1e4, width=32) | st.floats(-5, 70, width=32)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.tuples(ANYWHERE, ANYWHERE, ANYWHERE, ANYWHERE), st.text(max_size=20), st.integers(0, 2000)), max_size=6),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_no_finite_box_breaks_it(items: list[tuple[tuple[float, float, float, float], str, int]], height: int, width: int) -> None:
    marks = [Mark(box, text, index, ((box[0], box[1]),)) for box, text, index in items]
    assert draw(np.zeros((height, width, 3), np.uint8), marks).shape == (height, width, 3)


def test_colours_are_far_apart_and_carry_dark_letters() -> None:
    colors = np.array([color(index) for index in range(80)], np.uint8)
    assert len({tuple(c) for c in colors.tolist()}) == 80
    assert all(contrast(float(luminance(c)), float(luminance((16, 16, 16)))) > 4.5 for c in colors)
    lab = rgb2lab(colors[None, :12] / 255)[0]
    apart = deltaE_ciede2000(lab[:, None], lab[None])
    assert apart[~np.eye(12, dtype=bool)].min() > 10

"""Geometry to a fraction of a pixel: half-pixel conventions, real scale factors, no aliasing where photos shrink."""

from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photos
from skimage.transform import SimilarityTransform

from service.imaging import Grid
from service.imaging.codec import decode_enough
from service.imaging.transforms import (
    Interpolation,
    Placement,
    center_crop,
    fit,
    letterbox,
    resize,
    similarity,
    stretch,
    use_one_thread,
    warp,
)

Array = NDArray[Any]
SMOOTH = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}


def plane(height: int, width: int, across: float, down: float, base: float = 20.0) -> Array:
    """The values of base + across * x + down * y at the pixel centres (i + 0.5), as uint8 in three channels."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.repeat(np.round(base + across * x + down * y).astype(np.uint8)[:, :, None], 3, axis=2)


def rms(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(300, 400), (200, 267), (150, 200), (149, 201), (61, 83), (30, 40), (7, 9), (300, 40), (75, 800), (640, 900)],
)
def test_resize_maps_edge_to_edge(interpolation: Interpolation, height: int, width: int) -> None:
    """A slope stays the same slope on the plane where edges meet edges: a shift of half an output pixel would be seen."""
    resized = resize(plane(300, 400, 0.3, 0.25), height, width, interpolation)
    expected = plane(height, width, 0.3 * 400 / width, 0.25 * 300 / height)
    inner = (slice(height // 8, height - height // 8), slice(width // 8, width - width // 8))
    difference = resized[inner].astype(float) - expected[inner]
    assert resized.shape == (height, width, 3)
    assert abs(difference.mean()) < 0.25
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize(("height", "width"), [(200, 220), (170, 171), (100, 128), (60, 64), (33, 40)])
def test_shrinking_to_half_or_less_is_as_smooth_as_pillow(interpolation: Interpolation, height: int, width: int) -> None:
    photo = photos.astronaut()
    reference = np.asarray(Image.fromarray(photo).resize((width, height), SMOOTH[interpolation]))
    aliased = cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR)
    assert rms(resize(photo, height, width, interpolation), reference) < 0.7 * rms(aliased, reference)


@pytest.mark.parametrize("shape", [(50, 50), (50, 400), (400, 50), (30, 700), (101, 97)])
def test_noise_averages_out_along_every_axis_that_shrinks_a_lot(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (404, 404, 3), dtype=np.uint8)
    spread = resize(noise, *shape).astype(float).std()
    means = np.prod([max(1.0, 404 / side) for side in shape])
    assert spread < 1.3 * noise.std() / np.sqrt(means)


@pytest.mark.parametrize(("name", "flag"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
@pytest.mark.parametrize("side", [200, 300, 512, 700])
def test_short_of_half_size_it_is_plain_interpolation(name: Interpolation, flag: int, side: int) -> None:
    photo = photos.astronaut()[:, :390]
    assert np.array_equal(resize(photo, side + 60, side, name), cv2.resize(photo, (side, side + 60), interpolation=flag))


def test_the_same_size_is_the_same_picture() -> None:
    photo = photos.chelsea()
    assert np.array_equal(resize(photo, *photo.shape[:2], "bicubic"), photo)
    view = photo[::2, 10:-10]
    assert resize(view, *view.shape[:2]).flags.c_contiguous


@pytest.mark.parametrize(
    ("height", "width", "crop", "rows", "columns"),
    [
        (100, 100, 1.0, (0, 100), (0, 100)),
        (100, 160, 1.0, (0, 100), (30, 130)),
        (160, 101, 1.0, (30, 131), (0, 101)),
        (256, 256, 0.875, (16, 240), (16, 240)),
        (301, 400, 0.875, (19, 282), (69, 332)),
        (5, 9, 0.1, (2, 3), (4, 5)),
    ],
)
def test_center_crop_takes_the_middle(
    height: int, width: int, crop: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = rows[1] - rows[0]
    assert columns[1] - columns[0] == side
    assert np.array_equal(center_crop(photo, side, crop, "bicubic"), photo[rows[0] : rows[1], columns[0] : columns[1]])
    assert center_crop(photo, 24, crop, "area").shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("shape", "size", "crop", "rows", "columns"),
    [
        ((100, 100), (50, 100), 1.0, (25, 75), (0, 100)),
        ((100, 100), (30, 10), 1.0, (0, 100), (34, 67)),
        ((60, 200), (30, 60), 0.5, (15, 45), (70, 130)),
        ((200, 60), (1, 3), 1.0, (90, 110), (0, 60)),
    ],
)
def test_center_crop_takes_the_largest_part_of_other_proportions(
    shape: tuple[int, int], size: tuple[int, int], crop: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    middle = photo[rows[0] : rows[1], columns[0] : columns[1]]
    assert np.array_equal(center_crop(photo, size, crop), resize(middle, *size))


@pytest.mark.parametrize(
    ("shape", "inside", "corner"),
    [
        ((300, 400), (312, 416), (52, 0)),
        ((400, 300), (416, 312), (0, 52)),
        ((100, 100), (416, 416), (0, 0)),
        ((333, 1000), (139, 416), (138, 0)),
        ((3, 900), (1, 416), (207, 0)),
    ],
)
def test_letterbox_keeps_proportions_and_centres(shape: tuple[int, int], inside: tuple[int, int], corner: tuple[int, int]) -> None:
    boxed, placement = letterbox(np.full((*shape, 3), 200, np.uint8), 416, 416)
    top, left = corner
    assert placement == Placement(inside[1] / shape[1], inside[0] / shape[0], left, top)
    expected = np.full((416, 416, 3), 128, np.uint8)
    expected[top : top + inside[0], left : left + inside[1]] = 200
    assert np.array_equal(boxed, expected)


def test_letterbox_may_leave_room_at_the_bottom_and_the_right_only() -> None:
    photo = np.full((100, 50, 3), 9, np.uint8)
    boxed, placement = letterbox(photo, 60, 160, fill=114, padding="bottom-right")
    assert placement == Placement(0.6, 0.6, 0, 0)
    assert (boxed[:60, :30] == 9).all()
    assert (boxed[:, 30:] == 114).all()
    below, placement = letterbox(photo.transpose(1, 0, 2), 100, 100, padding="bottom-right")
    assert placement.top == 0
    assert below[[49, 50], 0, 0].tolist() == [9, 128]


@pytest.mark.parametrize("grid", [None, Grid(200, 400, 2), Grid(201, 399, 2, left=-1, top=1)])
def test_stretch_ignores_proportions_and_says_so(grid: Grid | None) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    stretched, placement = stretch(photo, 50, 60, "area", grid)
    assert np.array_equal(stretched, resize(photo, 50, 60, "area"))
    step, left, top = (1, 0, 0) if grid is None else (grid.step, grid.left, grid.top)
    corner = placement.to_photo(np.float32([(0, 0, 60, 50)]))[0]
    assert corner.tolist() == pytest.approx([left, top, left + 200 * step, top + 100 * step])


def test_letterbox_to_a_rectangle_with_another_fill() -> None:
    boxed, placement = letterbox(np.full((100, 100, 3), 9, np.uint8), 60, 160, fill=77)
    assert placement == Placement(0.6, 0.6, 50, 0)
    assert boxed.shape == (60, 160, 3)
    assert boxed[30, 49].tolist() == [77] * 3
    assert boxed[30, 50].tolist() == [9] * 3


@pytest.mark.parametrize(
    ("shape", "max_side", "multiple_of", "padded", "inside"),
    [
        ((480, 640), 640, 32, (480, 640), (480, 640)),
        ((481, 640), 640, 32, (512, 640), (481, 640)),
        ((100, 50), 640, 32, (128, 64), (100, 50)),
        ((3000, 4000), 640, 32, (480, 640), (480, 640)),
        ((3000, 4001), 641, 1, (481, 641), (481, 641)),
        ((3000, 2000), 100, 32, (128, 96), (100, 67)),
        ((8, 5000), 100, 1, (1, 100), (1, 100)),
    ],
)
def test_fit_shrinks_and_pads_right_and_bottom(
    shape: tuple[int, int], max_side: int, multiple_of: int, padded: tuple[int, int], inside: tuple[int, int]
) -> None:
    fitted, placement = fit(np.full((*shape, 3), 200, np.uint8), max_side, multiple_of, fill=3)
    expected = np.full((*padded, 3), 3, np.uint8)
    expected[: inside[0], : inside[1]] = 200
    assert np.array_equal(fitted, expected)
    assert placement == Placement(inside[1] / shape[1], inside[0] / shape[0], 0, 0)


def measured_box(pixels: Array) -> Array:
    """The corners of the one bright rectangle on black, to a fraction of a pixel: by area and centroid."""
    light = pixels[:, :, 0].astype(float) / 255
    spans = []
    for profile in (light.max(axis=0), light.max(axis=1)):
        center = float((profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum())
        spans.append((center - profile.sum() / 2, center + profile.sum() / 2))
    (left, right), (top, bottom) = spans
    return np.array([left, top, right, bottom], np.float32)


@pytest.mark.parametrize("shape", [(1000, 750), (333, 1001), (417, 415), (200, 150), (2667, 3999)])
@pytest.mark.parametrize(
    "prepare", [lambda photo: letterbox(photo, 416, 416, fill=0), lambda photo: fit(photo, 320, 32)], ids=["letterbox", "fit"]
)
def test_boxes_come_back_to_where_they_were(shape: tuple[int, int], prepare: Any) -> None:
    height, width = shape
    truth = np.array([width // 5, height // 4, width // 5 + width // 3, height // 4 + height // 2])
    photo = np.zeros((*shape, 3), np.uint8)
    photo[truth[1] : truth[3], truth[0] : truth[2]] = 255
    pixels, placement = prepare(photo)
    back = placement.to_photo(measured_box(pixels)[None])[0]
    assert np.abs(back - truth).max() * min(placement.scale_x, placement.scale_y) < 0.12  # of an input pixel
    assert np.abs(back - truth).max() < 0.5


def jpeg(upright: Array, orientation: int, **options: Any) -> bytes:
    """A JPEG whose EXIF orientation says how to turn what is stored back upright."""
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 0: upright[::-1]}[orientation % 4]
    stored = stored.transpose(1, 0, 2) if orientation > 4 else stored
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(839, 1001), (1001, 757)])
@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_a_reduced_picture_come_back_to_where_they_were_on_the_photo(
    orientation: int, step: int, shape: tuple[int, int]
) -> None:
    height, width = shape
    truth = np.array([width // 5, height // 4, width // 5 + width // 3, height // 4 + height // 2])
    photo = np.zeros((*shape, 3), np.uint8)
    photo[truth[1] : truth[3], truth[0] : truth[2]] = 255
    pixels, grid = decode_enough(jpeg(photo, orientation, quality=95), lambda *_: 1 / (2 * step))
    assert grid.step == step
    canvas, placement = letterbox(pixels, 416, 416, fill=0, grid=grid)
    back = placement.to_photo(measured_box(canvas)[None])[0]
    assert np.abs(back - truth).max() * placement.scale_x < 0.12  # of an input pixel
    assert np.abs(back - truth).max() < 0.5


@pytest.mark.parametrize("shape", [(839, 1001), (1001, 757), (640, 960)])
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_crop_of_a_reduced_picture_shows_the_same_square(orientation: int, step: int, shape: tuple[int, int]) -> None:
    """On a slope of 1.3 to 1.5 levels an output pixel: to half an output pixel."""
    across, down = 200 / shape[1], 30 / shape[0]
    pixels, grid = decode_enough(jpeg(plane(*shape, across, down), orientation, quality=98), lambda *_: 1 / (2 * step))
    assert grid.step == step
    crop = center_crop(pixels, 100, 0.875, "bicubic", grid).astype(float)
    assert np.abs(crop - center_crop(plane(*shape, across, down), 100, 0.875, "bicubic")).mean() < 0.7


def test_a_grid_of_every_pixel_changes_nothing() -> None:
    photo = photos.astronaut()[:501, :333]
    whole = Grid.of(photo)
    assert whole == Grid(501, 333)
    assert np.array_equal(center_crop(photo, 224, 0.875, "bicubic", whole), center_crop(photo, 224, 0.875, "bicubic"))
    canvas, placement = letterbox(photo, 416, 416, grid=whole)
    assert placement == letterbox(photo, 416, 416)[1]
    assert np.array_equal(canvas, letterbox(photo, 416, 416)[0])


def test_to_photo_takes_boxes_and_landmarks_of_any_shape() -> None:
    placement = Placement(0.5, 0.25, 10, 20)
    boxes = placement.to_photo(np.array([[10, 20, 60, 45]], np.float32))
    assert boxes.tolist() == [[0, 0, 100, 100]]
    assert boxes.dtype == np.float32
    landmarks = np.tile(np.array([60, 45], np.float32), (3, 4, 5))
    assert placement.to_photo(landmarks).shape == (3, 4, 10)
    assert np.all(placement.to_photo(landmarks) == 100)
    assert placement.to_photo(np.empty((0, 4), np.float32)).shape == (0, 4)


def test_one_thread_is_what_opencv_then_uses() -> None:
    before = cv2.getNumThreads()
    try:
        use_one_thread()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


POINTS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(POINTS, st.floats(0.05, 20), st.floats(-np.pi, np.pi), st.floats(-500, 500), st.floats(-500, 500))
def test_similarity_finds_the_transform_that_made_the_points(
    points: list[tuple[float, float]], scale: float, angle: float, shift_x: float, shift_y: float
) -> None:
    source = np.array(points)
    if np.ptp(source, axis=0).max() < 1:
        source[0] += 10
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = source @ linear.T + (shift_x, shift_y)
    found = similarity(source, target)
    np.testing.assert_allclose(source @ found[:, :2].T + found[:, 2], target, atol=1e-6)


def test_similarity_is_umeyamas() -> None:
    """Noisy and even mirrored targets: the same matrix as scikit-image's SVD solution of Umeyama's equations."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        source, target = rng.normal(0, 50, (5, 2)), rng.normal(0, 50, (5, 2))
        reference = SimilarityTransform.from_estimate(source, target).params[:2]
        np.testing.assert_allclose(similarity(source, target), reference, atol=1e-9)
    assert np.linalg.det(similarity(source, source * (-1, 1))[:, :2]) > 0


def test_similarity_of_coinciding_points_is_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        similarity([(3, 4), (3, 4)], [(1, 2), (3, 4)])


def about(angle: float, scale: float, center: tuple[float, float], to: tuple[float, float]) -> Array:
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, np.array(to) - linear @ center])


@pytest.mark.parametrize("scale", [0.51, 0.8, 1.0, 3.0])
def test_warp_is_opencvs_where_it_does_not_shrink_a_lot(scale: float) -> None:
    photo, matrix = photos.astronaut(), about(0.4, scale, (230.3, 110.8), (56, 71))
    assert np.array_equal(warp(photo, matrix, 112, 100), cv2.warpAffine(photo, matrix, (100, 112), flags=cv2.INTER_LINEAR))


@pytest.mark.parametrize("scale", [0.49, 0.33, 0.21, 0.07])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_warp_that_shrinks_hits_the_same_place(scale: float, angle: float) -> None:
    """On a slope each output pixel must show the value at the photo's point that the matrix puts there."""
    height, width = 1500, 2001
    photo, matrix = plane(height, width, 0.05, 0.07), about(angle, scale, (1012.3, 742.6), (30, 28))
    out = warp(photo, matrix, 57, 61)[:, :, 0]
    y, x = np.mgrid[:57, :61]
    inverse = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))
    from_x, from_y, _ = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))
    expected = 20 + 0.05 * (from_x + 0.5) + 0.07 * (from_y + 0.5)
    inside = (from_x > 30) & (from_x < width - 30) & (from_y > 30) & (from_y < height - 30)
    difference = (out - expected)[inside]
    step = 0.086 / scale  # one output pixel, in grey levels
    assert abs(difference.mean()) < max(0.15, 0.1 * step)
    assert np.abs(difference).max() < 1.1 + 0.1 * step


@pytest.mark.parametrize(("across", "down"), [(1 / 4, 1 / 4), (1 / 8, 1 / 5), (1 / 5, 1 / 8), (1 / 6.4, 1 / 6.6)])
@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_warp_that_shrinks_a_large_photo_is_not_half_a_photo_pixel_off(across: float, down: float, angle: float) -> None:
    """The centre of a blob in a large photo ends where the matrix puts it, on each axis."""
    spot = np.array([1003.31, 741.77])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * (across, down)
    matrix = np.column_stack([turn, np.array([40.3, 39.6]) - turn @ (1000, 750)])
    y, x = np.mgrid[:1500, :2001]
    blob = 250 * np.exp(-(((x - spot[0]) * across) ** 2 + ((y - spot[1]) * down) ** 2) / (2 * 2.5**2))
    out = warp(np.repeat(np.round(blob).astype(np.uint8)[:, :, None], 3, axis=2), matrix, 80, 81)[:, :, 0].astype(float)
    rows, columns = np.mgrid[:80, :81]
    center = np.array([(out * columns).sum(), (out * rows).sum()]) / out.sum()
    off = np.linalg.inv(turn) @ (center - turn @ spot - matrix[:, 2])
    assert np.abs(off).max() < 0.2  # of a photo pixel, between a quarter and an eighth of an output pixel each


def test_warp_that_shrinks_averages_noise_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    for scale in (0.4, 0.25, 0.1):
        out = warp(noise, about(0.5, scale, (600, 600), (30, 30)), 60, 60)
        assert out.astype(float).std() < 1.7 * noise.std() * scale


def test_warp_shrinks_each_axis_by_its_own_factor() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    out = warp(stripes, [[0.1, 0, 0], [0, 1, 0]], 400, 40)
    assert np.abs(out[5:-5, 2:-2].astype(int) - 100).max() <= 1
    across = warp(stripes.transpose(1, 0, 2).copy(), [[1, 0, 0], [0, 0.1, 0]], 40, 400)
    assert np.abs(across[2:-2, 5:-5].astype(int) - 100).max() <= 1


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_warp_is_black_outside_the_photo(scale: float) -> None:
    white = np.full((300, 300, 3), 255, np.uint8)
    assert not warp(white, about(0, scale, (-5000, -5000), (20, 20)), 40, 40).any()
    out = warp(white, about(0, scale, (0, 0), (20, 20)), 40, 40)
    assert not out[:19, :].any()
    assert not out[:, :19].any()
    assert np.all(out[22:, 22:] == 255)


def test_warp_does_not_touch_the_photo_and_refuses_flat_matrices() -> None:
    photo = photos.chelsea()
    before = photo.copy()
    warp(photo, about(0.1, 0.2, (100, 100), (20, 20)), 40, 40)
    assert np.array_equal(photo, before)
    with pytest.raises(np.linalg.LinAlgError):
        warp(photo, [[0, 0, 5], [0, 0, 5]], 40, 40)

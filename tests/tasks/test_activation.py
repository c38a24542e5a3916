"""Windows over a whole photo: their sums, their places, and how a photo is brought there."""

import numpy as np
import pytest

from service.imaging import Grid
from service.repository.spec import InputContract
from service.tasks.activation import WINDOWS_PIXELS, canvas, heat, view_of, window_logits, window_scale, windows

WANTED = InputContract(size=(224, 224), resize="center-crop", mean=(124, 116, 104))


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 9, 12), (1, 7, 20)])
def test_windows_are_means_over_their_places(shape: tuple[int, int, int]) -> None:
    maps = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)
    found = window_logits(maps, 7)
    wanted = np.lib.stride_tricks.sliding_window_view(maps.astype(np.float64), (7, 7), (1, 2)).mean(axis=(-1, -2))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_best_class_of_each_window_comes_with_its_probability() -> None:
    maps = np.zeros((3, 2, 3), np.float32)
    maps[1, :, 0], maps[2, :, 2] = 4, 2
    seen = windows(maps, 2, canvas(np.zeros((224, 224, 3), np.uint8), Grid(224, 224), WANTED, 224, 32)[1], (0, 0, 3, 2))
    assert seen.classes.tolist() == [[1, 2]]
    e = np.exp([2.0, 1.0])
    np.testing.assert_allclose(seen.confidences, [[e[0] / (e[0] + 2), e[1] / (e[1] + 2)]])


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(300, 451, 1), (224, 100, 224 / 100), (112, 200, 2), (4096, 4096, 1 / 4), (1024, 1024, 1), (224, 4000, 1)],
)
def test_photos_keep_their_size_where_they_can(height: int, width: int, scale: float) -> None:
    assert window_scale(height, width, 224) == pytest.approx(scale)


@pytest.mark.parametrize(("height", "width"), [(20, 16_000), (16_384, 8), (400, 16_000), (4000, 4000)])
def test_the_limit_comes_before_the_window_and_counts_the_padding(height: int, width: int) -> None:
    photo = np.zeros((height, width, 3), np.uint8)
    large, _ = canvas(photo, Grid.of(photo), WANTED, 224, 32)
    assert 0.9 * WINDOWS_PIXELS < large.shape[0] * large.shape[1] < 1.1 * WINDOWS_PIXELS


def test_a_photo_lies_in_the_corner_and_the_rest_has_the_mean_colour() -> None:
    photo = np.full((250, 300, 3), 9, np.uint8)
    large, placement = canvas(photo, Grid.of(photo), WANTED, 224, 32)
    assert large.shape == (256, 320, 3)
    assert (large[:250, :300] == 9).all()
    assert (large[250:] == (124, 116, 104)).all()
    assert (large[:, 300:] == (124, 116, 104)).all()
    assert view_of(placement, 256, 320) == (0, 0, 320, 256)


@pytest.mark.parametrize(("height", "width"), [(8, 16_384), (16_384, 8), (333, 501), (40, 900)])
def test_the_last_window_ends_where_the_view_does(height: int, width: int) -> None:
    photo = np.zeros((height, width, 3), np.uint8)
    large, placement = canvas(photo, Grid.of(photo), WANTED, 224, 32)
    view = view_of(placement, *large.shape[:2])
    maps = np.zeros((1, large.shape[0] // 32, large.shape[1] // 32), np.float32)
    seen = windows(maps, 7, placement, view)
    ends = [((count - 1) * 32 + 224) / seen.scale for count in seen.classes.shape]
    assert max(ends) == pytest.approx(max(view[2:]), abs=0.5 / seen.scale)


def test_a_mean_that_is_no_colour_is_the_nearest() -> None:
    photo = np.zeros((250, 300, 3), np.uint8)
    large, _ = canvas(photo, Grid.of(photo), WANTED.model_copy(update={"mean": (-1.0, 128.0, 300.0)}), 224, 32)
    assert large[-1, -1].tolist() == [0, 128, 255]


def test_a_strip_is_padded_to_a_whole_window() -> None:
    photo = np.zeros((20, 16_000, 3), np.uint8)
    large, _ = canvas(photo, Grid.of(photo), WANTED, 224, 32)
    assert large.shape[0] == 224
    assert large.shape[1] % 32 == 0


def test_of_a_photo_decoded_at_half_its_size_the_view_is_in_its_own_pixels() -> None:
    pixels = np.zeros((1000, 1500, 3), np.uint8)
    large, placement = canvas(pixels, Grid(2000, 3000, 2), WANTED, 224, 32)
    x_min, y_min, x_max, y_max = view_of(placement, *large.shape[:2])
    assert (x_min, y_min) == (0, 0)
    assert x_max == pytest.approx(large.shape[1] * 3000 / round(3000 * window_scale(2000, 3000, 224)), abs=0.1)
    assert 2000 <= y_max < 2000 + 32 / window_scale(2000, 3000, 224) + 1


def test_a_box_is_clipped_to_the_photo() -> None:
    found = heat(1, "cat", 0.5, np.ones((2, 2), np.float32), (-10, -10, 110, 110), Grid(90, 80))
    assert found.box == (0, 0, 80, 90)

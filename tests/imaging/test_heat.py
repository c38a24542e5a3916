"""Grids over photos: strengths, regions, and how heat maps are painted."""

from itertools import pairwise

import numpy as np
import pytest

from service.imaging.heat import paint_heat, palette, region, strengths, strongest, within

GREY = np.full((60, 90, 3), 128, np.uint8)


def spots(*places: tuple[int, int, float], side: int = 7) -> np.ndarray:
    grid = np.full((side, side), -1.0, np.float32)
    for row, column, value in places:
        grid[row, column] = value
    return grid


def test_strength_begins_at_zero_where_anything_is_above_it() -> None:
    assert strengths(np.array([[-4.0, 0.0, 2.0, 4.0]])).tolist() == [[0, 0, 0.5, 1]]
    assert strengths(np.array([[-4.0, -2.0]])).tolist() == [[0, 1]]
    assert strengths(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_the_strongest_place_is_the_middle_of_its_cell() -> None:
    assert strongest(spots((2, 5, 3.0))) == (5.5 / 7, 2.5 / 7)


def test_a_region_is_the_part_around_the_strongest_place_alone() -> None:
    both = spots((1, 1, 4.0), (1, 2, 4.0), (5, 5, 3.9))
    x_min, y_min, x_max, y_max = region(both, 0.5)
    assert x_min < 1.5 / 7 < 2.5 / 7 < x_max < 4 / 7
    assert y_min < 1.5 / 7 < y_max < 3 / 7


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (6, 6), (0, 6)])
def test_a_region_lies_around_its_peak_on_every_side(row: int, column: int) -> None:
    x_min, y_min, x_max, y_max = region(spots((row, column, 1.0)), 0.4)
    assert x_min <= (column + 0.5) / 7 <= x_max
    assert y_min <= (row + 0.5) / 7 <= y_max
    assert 0 <= x_min < x_max <= 1
    assert x_max - x_min < 2 / 7


def test_a_smaller_share_never_gives_a_smaller_region() -> None:
    grid = np.random.default_rng(0).normal(0, 1, (7, 9)).astype(np.float32)
    boxes = [region(grid, share) for share in (0.8, 0.6, 0.4, 0.2)]
    for inner, outer in pairwise(boxes):
        assert outer[0] <= inner[0]
        assert outer[1] <= inner[1]
        assert outer[2] >= inner[2]
        assert outer[3] >= inner[3]


def test_an_even_grid_is_all_one_region() -> None:
    assert region(np.ones((3, 4), np.float32), 0.5) == (0, 0, 1, 1)


def test_a_part_of_a_view_is_in_photo_pixels() -> None:
    assert within((10, 20, 30, 60), (0, 0.25, 0.5, 1)) == (10, 30, 20, 60)


def test_heat_is_painted_on_its_view_alone_and_most_where_it_is_strongest() -> None:
    grid = spots((1, 2, 5.0), side=3)
    painted = paint_heat(GREY, grid, (30, 0, 90, 60))
    assert np.array_equal(painted[:, :30], GREY[:, :30])
    assert (GREY == 128).all()
    change = np.abs(painted.astype(int) - 128).sum(axis=-1)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - 30) <= 10
    assert abs(column - 80) <= 10
    assert change[5, 40] == 0


def test_a_view_beyond_the_photo_is_cut_and_stays_in_place() -> None:
    grid = np.linspace(0, 1, 6, dtype=np.float32)[None]
    whole = paint_heat(np.full((8, 120, 3), 128, np.uint8), grid, (0, 0, 120, 8))
    assert np.array_equal(paint_heat(GREY[:8], grid, (0, 0, 120, 8)), whole[:, :90])


def test_large_photos_are_painted_in_strips_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(1).normal(0, 1, (7, 7)).astype(np.float32)
    whole = paint_heat(GREY, grid, (0, 0, 90, 60))
    monkeypatch.setattr("service.imaging.heat._STRIP", 200)
    assert np.array_equal(paint_heat(GREY, grid, (0, 0, 90, 60)), whole)


def test_warmer_is_lighter_and_covers_more_everywhere() -> None:
    colors, alpha = palette()
    lightness = colors @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    assert (np.diff(lightness) > -1).all()
    assert lightness[-1] - lightness[0] > 150
    assert alpha[0] == 0
    assert (np.diff(alpha) > 0).all()

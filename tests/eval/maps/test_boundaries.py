"""Boundaries: counts equal naive loops, small shifts are tolerated, and the unlabelled band is not counted."""

from math import hypot

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from c2fmae.eval.maps import boundaries
from c2fmae.eval.maps.boundaries import Boundary, boundary_radius, count_boundaries, totals_to_boundary_scores
from tests.eval.maps.small_maps import draw_id_maps, make_objects


def _list_boundary(ids: Tensor, background: set[int]) -> list[tuple[int, int]]:
    rows, columns = ids.shape
    pixels = []
    for y in range(rows):
        for x in range(columns):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [(v, u) for v, u in around if 0 <= v < rows and 0 <= u < columns]
            if int(ids[y, x]) not in background | {255} and any(ids[place] != ids[y, x] for place in inside):
                pixels.append((y, x))
    return pixels


@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("background", [(), (0,)])
def test_counts_equal_naive_loops(radius: int, background: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundaries, "boundary_radius", lambda rows, columns: radius)

    @settings(max_examples=15)
    @given(draw_id_maps(2))
    def check(maps: list[Tensor]) -> None:
        predicted, truth = maps
        true, found = _list_boundary(truth, set(background)), _list_boundary(predicted, set(background))
        counted = [pixel for pixel in found if truth[pixel] != 255]

        def count_near(pixels: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
            return sum(any(hypot(y - v, x - u) <= radius for v, u in others) for y, x in pixels)

        expected = [len(true), count_near(true, found), len(counted), count_near(counted, true)]
        totals = count_boundaries(Boundary(predicted, background), Boundary(truth, background))
        assert totals.tolist() == expected

    check()


def _score(predicted: Tensor, truth: Tensor) -> list[float]:
    totals = count_boundaries(Boundary(predicted, [0]), Boundary(truth, [0]))
    return [value.item() for value in totals_to_boundary_scores(totals).values()]


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1)])
def test_boundaries_that_are_shifted_by_one_pixel_match(shift: tuple[int, int]) -> None:
    truth = make_objects()
    assert boundary_radius(*truth.shape) == 1
    assert _score(torch.roll(truth, shift, dims=(0, 1)), truth) == [1, 1, 1]


def test_boundaries_that_are_shifted_by_three_pixels_do_not() -> None:
    truth = make_objects()
    assert max(_score(torch.roll(truth, (3, 0), dims=(0, 1)), truth)) < 0.8


def test_merged_objects_lower_recall_and_split_ones_precision() -> None:
    truth = make_objects()
    recall, precision, _ = _score(truth.where(truth != 2, 1), truth)
    assert recall < 1
    assert precision == 1
    split = truth.clone()
    split[18:22, 22:34] = 4
    recall, precision, _ = _score(split, truth)
    assert recall == 1
    assert precision < 1


def test_boundaries_in_the_unlabelled_band_are_not_counted() -> None:
    truth = make_objects()
    grown = truth.clone()
    grown[17:27, 21:35] = 3  # to the middle of the band
    assert _score(grown, truth) == [1, 1, 1]
    grown[15:29, 19:37] = 3  # beyond the band
    assert _score(grown, truth)[1] < 1


def test_missing_boundaries_have_no_precision_and_an_f_of_0() -> None:
    truth, empty = make_objects(), torch.zeros(30, 40, dtype=torch.int64)
    assert _score(empty, truth) == pytest.approx([0, torch.nan, 0], nan_ok=True)
    assert _score(truth, empty) == pytest.approx([torch.nan, 0, 0], nan_ok=True)
    assert _score(empty, empty) == pytest.approx([torch.nan] * 3, nan_ok=True)

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.patches import compute_grid, gather_patches, label_stride, patchify, unpatchify
from tests.models.tiny_models import seeds

pytestmark = pytest.mark.numeric

DTYPES = (torch.uint8, torch.int16, torch.int64, torch.bool, torch.bfloat16, torch.float32, torch.float64)


class Case(NamedTuple):
    maps: Tensor
    patch: int
    grid: tuple[int, int]
    channels: int | None
    """None for id maps."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    patch, rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    channels = draw(st.none() | st.integers(1, 4))
    shape = (draw(st.integers(1, 3)), *([] if channels is None else [channels]), rows * patch, columns * patch)
    generator = torch.Generator().manual_seed(draw(seeds))
    maps = torch.randint(256, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    return Case(maps, patch, (rows, columns), channels)


def patch_by_patch(case: Case) -> list[list[list[float]]]:
    """The values of all patches, cut out one at a time: rows p, columns q, channels c."""
    maps, patch, (rows, columns), channels = case
    images = maps.unsqueeze(1) if channels is None else maps
    return [
        [
            [
                image[c, row * patch + p, column * patch + q].item()
                for p in range(patch)
                for q in range(patch)
                for c in range(channels or 1)
            ]
            for row in range(rows)
            for column in range(columns)
        ]
        for image in images
    ]


@given(cases())
def test_values_of_a_patch_are_ordered_by_row_column_channel_as_in_mae(case: Case) -> None:
    patches = patchify(case.maps, case.patch)
    assert patches.dtype == case.maps.dtype
    assert patches.tolist() == patch_by_patch(case)


@given(cases())
def test_unpatchify_inverts_patchify(case: Case) -> None:
    maps = unpatchify(patchify(case.maps, case.patch), case.grid, case.channels)
    assert maps.dtype == case.maps.dtype
    assert torch.equal(maps, case.maps)


@given(cases())
def test_patches_do_not_depend_on_the_memory_layout_of_maps(case: Case) -> None:
    assert torch.equal(patchify(case.maps.mT.contiguous().mT, case.patch), patchify(case.maps, case.patch))


@given(cases(), st.data())
def test_gather_patches_returns_the_selected_patches_in_order(case: Case, data: st.DataObject) -> None:
    total = len(case.maps) * case.grid[0] * case.grid[1]
    places = torch.tensor(data.draw(st.lists(st.integers(0, total - 1), max_size=9)), dtype=torch.int64)
    found = gather_patches(case.maps, case.patch, places)
    expected = patchify(case.maps, case.patch).flatten(0, 1)[places]
    assert found.dtype == case.maps.dtype
    assert torch.equal(found, expected.unflatten(1, (case.patch, case.patch, -1)).permute(0, 3, 1, 2))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_the_grid_is_the_size_over_the_patch_size(height: int, width: int, patch: int, is_image: bool) -> None:
    maps = torch.zeros(1, *([3] if is_image else []), height, width)
    if height % patch == width % patch == 0:
        assert compute_grid("rgb", maps, patch) == (height // patch, width // patch)
        return
    with pytest.raises(UserError) as caught:
        compute_grid("rgb", maps, patch)
    assert str(caught.value) == (
        f"rgb: {height}×{width} is not divisible into patches of {patch}×{patch}. Resize it to multiples of {patch}"
    )


@pytest.mark.parametrize(("height", "width"), [(0, 16), (16, 0)])
def test_an_empty_map_is_rejected(height: int, width: int) -> None:
    with pytest.raises(UserError) as caught:
        compute_grid("semantic", torch.zeros(1, height, width), 4)
    assert str(caught.value) == (
        f"semantic: {height}×{width} is not divisible into patches of 4×4. Resize it to multiples of 4"
    )


@pytest.mark.parametrize("patch", range(1, 33))
def test_label_stride_is_the_largest_of_four_two_and_one_that_divides_the_patch(patch: int) -> None:
    stride = label_stride(patch)
    assert stride in (4, 2, 1)
    assert patch % stride == 0
    assert all(patch % larger for larger in (4, 2) if larger > stride)

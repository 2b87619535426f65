"""Policies that depend on places: squares, windows and blocks, against loops over patches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking import BlockPolicy, MaskNoise, PatchMaps, UniformPolicy, UnitPolicy
from c2fmae.masking.blocks import block_mask

pytestmark = pytest.mark.numeric

grids = st.sampled_from([(4, 4), (14, 14), (6, 4), (5, 7), (1, 9), (3, 3)])
seeds = st.integers(0, 2**32)


def draw(batch: int, grid: tuple[int, int], seed: int) -> tuple[PatchMaps, MaskNoise]:
    """Return patches of one region, and noise."""
    num_patches = grid[0] * grid[1]
    uniform = torch.rand(5, batch, num_patches, generator=torch.Generator().manual_seed(seed))
    region = torch.zeros(batch, num_patches, dtype=torch.uint8)
    return PatchMaps(region, region, grid=grid), MaskNoise(
        uniform[0], uniform[1], uniform[2], uniform[3], uniform[4, :, 0]
    )


def list_squares(is_masked: Tensor, grid: tuple[int, int], side: int) -> list[list[bool]]:
    """Return the patches of each square of an image, also of incomplete ones at the border."""
    rows, columns = grid
    return [
        [
            bool(is_masked[y * columns + x])
            for y in range(top, min(top + side, rows))
            for x in range(left, min(left + side, columns))
        ]
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]


@given(grids, st.integers(1, 4), seeds, st.data())
def test_squares_are_hidden_whole_except_one(grid: tuple[int, int], side: int, seed: int, data: st.DataObject) -> None:
    patches, noise = draw(2, grid, seed)
    budgets = [data.draw(st.integers(0, grid[0] * grid[1])) for _ in range(2)]
    is_masked = UnitPolicy(side=side).hide(patches, torch.tensor(budgets), noise)
    assert is_masked.sum(dim=1).tolist() == budgets
    for image in is_masked:
        squares = list_squares(image, grid, side)
        assert sum(0 < sum(square) < len(square) for square in squares) <= 1


@given(grids, st.integers(1, 4), seeds, st.data())
def test_windows_hide_as_many_patches_up_to_one(
    grid: tuple[int, int], window: int, seed: int, data: st.DataObject
) -> None:
    patches, noise = draw(2, grid, seed)
    budgets = [data.draw(st.integers(0, grid[0] * grid[1])) for _ in range(2)]
    is_masked = UniformPolicy(window=window).hide(patches, torch.tensor(budgets), noise)
    assert is_masked.sum(dim=1).tolist() == budgets
    for image in is_masked:
        num_visible = [len(square) - sum(square) for square in list_squares(image, grid, window)]
        lengths = [len(square) for square in list_squares(image, grid, window)]
        # Every window shows as many, except those that have no more to show.
        most = max(num_visible)
        assert all(most - 1 <= shown or shown == length for shown, length in zip(num_visible, lengths, strict=True))


def test_three_quarters_leave_one_visible_patch_in_each_window_at_any_place() -> None:
    patches, noise = draw(500, (14, 14), 0)
    is_masked = UniformPolicy().hide(patches, torch.full((500,), 147), noise)
    windows = (~is_masked).view(500, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert (windows.sum(dim=3) == 1).all()
    assert windows.double().mean(dim=(0, 1, 2)).tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_a_budget_below_the_number_of_windows_hides_any_of_them() -> None:
    patches, noise = draw(2000, (4, 4), 0)
    is_masked = UniformPolicy().hide(patches, torch.ones(2000, dtype=torch.long), noise)
    assert is_masked.double().mean(dim=0).tolist() == pytest.approx([1 / 16] * 16, abs=0.02)


def test_blocks_take_their_proposals_from_the_noise() -> None:
    patches, noise = draw(3, (14, 14), 0)
    budgets = torch.tensor([75, 75, 40])
    is_masked = BlockPolicy(min_area=9).hide(patches, budgets, noise)
    proposals = torch.cat([noise.semantic, noise.instance], dim=1)[:, :80].unflatten(1, (20, 4))
    assert torch.equal(is_masked, block_mask(proposals, noise.random, budgets, (14, 14), min_area=9))
    assert not torch.equal(is_masked, BlockPolicy(min_area=16).hide(patches, budgets, noise))
    square = replace_grid(patches)
    assert torch.equal(BlockPolicy(min_area=9).hide(square, budgets, noise), is_masked)


def replace_grid(patches: PatchMaps) -> PatchMaps:
    """Return the patches without their grid, which is a square then."""
    return patches._replace(grid=None)


def test_patches_that_are_no_square_need_a_grid() -> None:
    patches, noise = draw(1, (5, 7), 0)
    with pytest.raises(ValueError, match=r"grid: 35 patches are no square\. Pass \(rows, columns\)"):
        UnitPolicy().hide(replace_grid(patches), torch.tensor([3]), noise)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnitPolicy(side=0), "side: expected at least 1, got 0"),
        (lambda: UniformPolicy(window=0), "window: expected at least 1, got 0"),
        (lambda: BlockPolicy(min_area=0), "min_area: expected at least 1, got 0"),
        (lambda: BlockPolicy(max_aspect=0.5), "max_aspect: expected at least 1, got 0.5"),
    ],
)
def test_wrong_options_are_rejected(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()

import math
import random
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking.blocks import block_mask, sample_budgets

GRIDS = [(14, 14), (6, 6), (4, 9), (2, 2), (1, 5), (3, 1)]


def draw(batch: int, grid: tuple[int, int], *, num_blocks: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fill = torch.stack([torch.randperm(grid[0] * grid[1], generator=generator) for _ in range(batch)])
    return torch.rand(batch, num_blocks, 4, generator=generator), fill / (grid[0] * grid[1])


def hide_blocks(
    noise: Sequence[Sequence[float]], budget: int, grid: tuple[int, int], min_area: int
) -> tuple[set[int], list[int]]:
    """The loop of the official code over the proposals of one image: hidden patches, and the areas of blocks."""
    (rows, columns), hidden, areas = grid, set[int](), list[int]()
    for area, aspect, row, column in noise:
        left = budget - len(hidden)
        size = min_area + area * (left - min_area)
        ratio = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
        height, width = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if width < columns and height < rows:
            top, first = math.floor(row * (rows - height + 1)), math.floor(column * (columns - width + 1))
            block = {y * columns + x for y in range(top, top + height) for x in range(first, first + width)}
            if 0 < len(block - hidden) <= left:
                hidden |= block
                areas.append(len(block))
    return hidden, areas


def find_neighbours(hidden: set[int], grid: tuple[int, int]) -> set[int]:
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    cells = {(patch // grid[1] + y, patch % grid[1] + x) for patch in hidden for y, x in steps}
    return {y * grid[1] + x for y, x in cells if 0 <= y < grid[0] and 0 <= x < grid[1]} - hidden


@settings(max_examples=40)
@given(st.sampled_from(GRIDS), st.integers(1, 16), st.integers(0, 2**32), st.data())
def test_blocks_equal_a_loop_over_proposals(
    grid: tuple[int, int], min_area: int, seed: int, data: st.DataObject
) -> None:
    noise, fill = draw(3, grid, seed=seed)
    budgets = [data.draw(st.integers(0, grid[0] * grid[1])) for _ in range(3)]
    found = block_mask(noise, fill, torch.tensor(budgets), grid, min_area=min_area)
    assert found.sum(dim=1).tolist() == budgets
    for image in range(3):
        hidden = set(found[image].nonzero().flatten().tolist())
        blocks, _ = hide_blocks(noise[image].double().tolist(), budgets[image], grid, min_area)
        assert blocks <= hidden
        near = find_neighbours(blocks, grid)
        far = set(range(grid[0] * grid[1])) - blocks - near
        by_noise = [*sorted(near, key=lambda p: -fill[image, p]), *sorted(far, key=lambda p: -fill[image, p])]
        assert hidden - blocks == set(by_noise[: budgets[image] - len(blocks)])


def test_images_do_not_influence_each_other() -> None:
    (noise, fill), budgets = draw(5, (14, 14)), torch.tensor([0, 30, 75, 120, 196])
    whole = block_mask(noise, fill, budgets, (14, 14), min_area=16)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(block_mask(noise[order], fill[order], budgets[order], (14, 14), min_area=16), whole[order])
    for row in range(5):
        alone = slice(row, row + 1)
        assert torch.equal(block_mask(noise[alone], fill[alone], budgets[alone], (14, 14), min_area=16), whole[alone])


def test_most_hidden_patches_are_in_blocks_of_the_least_area() -> None:
    """With 20 proposals, blocks alone reach the 75 hidden patches of BEiT but for a few."""
    noise, _ = draw(64, (14, 14), num_blocks=20)
    found = [hide_blocks(image, 75, (14, 14), 16) for image in noise.double().tolist()]
    assert sum(len(hidden) for hidden, _ in found) / (64 * 75) > 0.95
    assert min(area for _, areas in found for area in areas[:1]) >= 12  # sides are rounded


def test_half_of_the_images_are_masked_by_a_ratio_in_the_range() -> None:
    rng = random.Random(0)
    noise = torch.tensor([[rng.random(), rng.random()] for _ in range(2000)])
    budgets = sample_budgets(noise, 196, mask_ratios=(0.1, 0.5), chance=0.5)
    masked = budgets[budgets > 0]
    assert abs(len(masked) / 2000 - 0.5) < 0.05
    assert int(masked.min()) == 19
    assert int(masked.max()) == 97
    assert abs(float(masked.double().mean()) - 0.3 * 196) < 2
    assert sample_budgets(torch.zeros(1, 2), 196, mask_ratios=(0.1, 0.5), chance=0.0).tolist() == [0]
    assert sample_budgets(torch.tensor([[0.99, 0.5]]), 10, mask_ratios=(0.2, 0.6), chance=1.0).tolist() == [4]

"""Policies that hide patches by their place alone: squares, rectangular blocks, and as many in each window."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from c2fmae.masking.blocks import block_mask
from c2fmae.masking.policies import POLICIES, MaskNoise, PatchMaps, RandomPolicy
from c2fmae.masking.selection import random_mask, sort_by_group

NUM_BLOCKS = 20
"""Proposals of blocks of an image; what they do not hide is hidden next to them."""


@POLICIES.register("units")
@dataclass(frozen=True, kw_only=True)
class UnitPolicy(RandomPolicy):
    """Hide squares of patches uniformly (SimMIM); of one, only a part if the budget is no multiple of squares."""

    side: int = 2
    """Side of a square, in patches."""

    def __post_init__(self) -> None:
        _check_positive("side", self.side)

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Return `random_mask` of noise that all patches of a square share."""
        shared = noise.random.gather(1, _number_squares(patches, self.side).expand_as(noise.random))
        return random_mask(shared, num_masked)


@POLICIES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformPolicy(RandomPolicy):
    """Hide as many patches of each window, or one more in some (UM-MAE)."""

    window: int = 2
    """Side of a window, in patches."""

    def __post_init__(self) -> None:
        _check_positive("window", self.window)

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Order the patches of each window at random, and hide the last ones of all windows first."""
        windows = sort_by_group(_number_squares(patches, self.window).expand_as(noise.random), noise.random)
        position = torch.arange(windows.run.shape[1], device=windows.run.device)
        rank = windows.to_patches(position - windows.start.gather(1, windows.run))
        return random_mask(rank + noise.tie.double(), num_masked)


@POLICIES.register("blocks")
@dataclass(frozen=True, kw_only=True)
class BlockPolicy:
    """Hide rectangular blocks of patches (BEiT)."""

    required_maps: ClassVar = ()
    min_area: int = 16
    """Patches of the smallest block."""
    max_aspect: float = 1 / 0.3
    """Longest side of a block, as a multiple of the other."""

    def __post_init__(self) -> None:
        _check_positive("min_area", self.min_area)
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect: expected at least 1, got {self.max_aspect}")

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Return `block_mask`; each proposal takes four numbers of the noise."""
        numbers = torch.cat([noise.semantic, noise.instance], dim=1)
        num_blocks = min(NUM_BLOCKS, numbers.shape[1] // 4)
        return block_mask(
            numbers[:, : 4 * num_blocks].unflatten(1, (num_blocks, 4)),
            noise.random,
            num_masked,
            _get_grid(patches),
            min_area=self.min_area,
            max_aspect=self.max_aspect,
        )


def _check_positive(option: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{option}: expected at least 1, got {number}")


def _get_grid(patches: PatchMaps) -> tuple[int, int]:
    if patches.grid is not None:
        return patches.grid
    side = math.isqrt(num_patches := patches.regions.shape[1])
    if side**2 != num_patches:
        raise ValueError(f"grid: {num_patches} patches are no square. Pass (rows, columns)")
    return side, side


def _number_squares(patches: PatchMaps, side: int) -> Int[Tensor, "1 patch"]:
    """Return a number below that of patches for the square of each patch. Squares at the border may be incomplete."""
    rows, columns = _get_grid(patches)
    row, column = (torch.arange(length, device=patches.regions.device) // side for length in (rows, columns))
    return (row.unsqueeze(1) * columns + column).view(1, -1)

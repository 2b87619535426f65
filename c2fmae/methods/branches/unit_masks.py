"""Random masks of units of patches, which CMAE and ConMIM hide from the student."""

import torch
from jaxtyping import Bool
from torch import Tensor

from c2fmae.config.masked_branches import UnitMaskingConfig
from c2fmae.core.errors import UserError
from c2fmae.masking.noise import RowGenerator
from c2fmae.masking.selection import random_mask
from c2fmae.masking.units import count_masked_units, repeat_units


def check_units(config: UnitMaskingConfig, patch_size: int) -> None:
    """Raise a `UserError` if units do not fill the image."""
    rows, columns = (side // patch_size for side in config.image_size)
    if rows % config.mask_unit or columns % config.mask_unit:
        raise UserError(
            f"method.mask_unit: expected a divisor of {rows}×{columns} patches, got {config.mask_unit}. Change it, or "
            "method.image_size"
        )
    check_mask_ratio(config.mask_ratio, rows * columns // config.mask_unit**2)


def check_mask_ratio(mask_ratio: float, num_units: int) -> None:
    """Raise a `UserError` if all units of an image are hidden, or none."""
    num_masked = count_masked_units(num_units, mask_ratio)
    if not 0 < num_masked < num_units:
        raise UserError(
            f"method.mask_ratio: expected some hidden and some visible units, got {num_masked} hidden ones of "
            f"{num_units} ({mask_ratio:g}). Set it {'lower' if num_masked else 'higher'}"
        )


def hide_units(
    config: UnitMaskingConfig, grid: tuple[int, int], rows: range, generator: RowGenerator
) -> Bool[Tensor, "row patch"]:
    """Return masks in which units are hidden at random, as many in every image."""
    size = config.mask_unit
    num_units = grid[0] // size * (grid[1] // size)
    num_masked = torch.full((len(rows),), count_masked_units(num_units, config.mask_ratio))
    return repeat_units(random_mask(generator.draw_uniform(1, rows, num_units), num_masked), grid, size)

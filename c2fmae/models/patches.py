"""Conversion between maps and patches: of all patches, or of selected ones."""

import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

from c2fmae.core.errors import UserError


def label_stride(patch: int) -> int:
    """Return the side of an id map's cells in pixels: the largest of 4, 2 and 1 that divides the patch size.

    >>> [label_stride(patch) for patch in (16, 14, 8, 7)]
    [4, 2, 4, 1]
    """
    return next(stride for stride in (4, 2, 1) if patch % stride == 0)


def compute_grid(name: str, maps: Shaped[Tensor, "batch *channels height width"], patch: int) -> tuple[int, int]:
    """Return the rows and columns of patches. Raise a `UserError` if the size is not a multiple of the patch size."""
    height, width = maps.shape[-2:]
    if height % patch or width % patch or not height * width:
        raise UserError(
            f"{name}: {height}×{width} is not divisible into patches of {patch}×{patch}. Resize it to multiples of "
            f"{patch}"
        )
    return height // patch, width // patch


def pad_to_patches(
    maps: Shaped[Tensor, "batch *channels height width"], patch: int, value: float
) -> Shaped[Tensor, "batch *channels padded_height padded_width"]:
    """Return maps that are padded on the right and bottom to multiples of the patch size.

    >>> import torch
    >>> pad_to_patches(torch.ones(1, 3, 2), 2, value=0)[0].tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, -width % patch, 0, -height % patch), value=value)


def patchify(maps: Shaped[Tensor, "batch *channels height width"], patch: int) -> Shaped[Tensor, "batch patch values"]:
    """Cut images [B, C, H, W] or id maps [B, H, W] into patches; values are ordered by row, column, channel.

    >>> import torch
    >>> patchify(torch.arange(16).view(1, 4, 4), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    return _tiles(maps, patch).permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)


def unpatchify(
    patches: Shaped[Tensor, "batch patch values"], grid: tuple[int, int], channels: int | None = None
) -> Shaped[Tensor, "batch *channels height width"]:
    """Invert `patchify`: return images with this number of channels, or id maps if it is None."""
    rows, columns = grid
    side = round((patches.shape[2] / (channels or 1)) ** 0.5)
    tiles = patches.unflatten(2, (side, side, channels or 1)).unflatten(1, (rows, columns))
    maps = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return maps if channels else maps.squeeze(1)  # type: ignore[no-any-return]


def gather_patches(
    maps: Shaped[Tensor, "batch *channels height width"], patch: int, patch_idx: Int[Tensor, " selected"]
) -> Shaped[Tensor, "selected channels {patch} {patch}"]:
    """Return the selected patches, which are indexed through the whole batch; id maps have one channel.

    An index past the last patch gives zeros.
    """
    tiles = _tiles(maps, patch)
    rows, columns = tiles.shape[1:3]
    is_beyond = (patch_idx >= len(tiles) * rows * columns).view(-1, 1, 1, 1)
    image, index = patch_idx // (rows * columns) % len(tiles), patch_idx % (rows * columns)
    return tiles[image, index // columns, index % columns].masked_fill(is_beyond, 0)


def spread_patches(
    values: Shaped[Tensor, "batch selected value"], patch_idx: Int[Tensor, "batch selected"] | None, num_patches: int
) -> Shaped[Tensor, "batch patch value"]:
    """Return the values of all patches, given those of selected ones: zeros for the others. None selects all patches.

    >>> import torch
    >>> spread_patches(torch.tensor([[[5], [7]]]), torch.tensor([[0, 2]]), 4).flatten().tolist()
    [5, 0, 7, 0]
    """
    if patch_idx is None:
        return values
    zeros = values.new_zeros(len(values), num_patches, values.shape[2])
    return zeros.scatter(1, patch_idx.unsqueeze(2).expand_as(values), values)


def _tiles(maps: Tensor, patch: int) -> Tensor:
    """View maps as [batch, row, column, channel, y, x]."""
    batch, *channels, height, width = maps.shape
    tiles = maps.reshape(batch, *(channels or [1]), height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5)

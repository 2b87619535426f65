"""The region of each patch: the majority id of its cells in a map of ids."""

import torch
from jaxtyping import Integer
from torch import Tensor

from c2fmae.masking._checks import can_read_values, check_ids

# Comparing all pairs of pixels of a patch is quadratic, but one elementwise operation on all patches: it is the
# fastest way up to about this number of pixels per patch.
_MAX_PIXELS_COMPARED = 64
# Pixels per chunk: bounds the memory, about 20 bytes a pixel. Small chunks fit a CPU's caches, large ones fill a GPU.
_PIXELS_PER_CHUNK_CPU, _PIXELS_PER_CHUNK = 1 << 20, 1 << 22


def patch_regions(
    labels: Integer[Tensor, "batch height width"], patch: int | tuple[int, int], *, ignore: int = 255
) -> Integer[Tensor, "batch patch"]:
    """Return the majority id of every patch, in the dtype of the map; ties go to the lower id.

    `patch` is the side, or (height, width), in map pixels: 16 on a full-size map, 4 at label stride 4. A patch is
    `ignore` only if all its pixels are.

    >>> labels = torch.tensor([[[3, 3, 255, 255], [7, 7, 255, 9]]])
    >>> patch_regions(labels, 2)
    tensor([[3, 9]])
    """
    check_ids("labels", labels)
    if labels.ndim != 3:
        raise ValueError(f"labels: expected [batch, height, width], got shape {list(labels.shape)}")
    rows, columns = patch if isinstance(patch, tuple) else (patch, patch)
    batch, height, width = labels.shape
    if rows < 1 or columns < 1 or not height * width or height % rows or width % columns:
        raise ValueError(f"patch: expected a divisor of the map's size, {height}×{width}, got {rows}×{columns}")
    cells = _narrow_ids(labels).reshape(batch, height // rows, rows, width // columns, columns)
    if rows * columns <= _MAX_PIXELS_COMPARED:
        find_majority = _majority_by_comparing
    else:
        find_majority = _majority_by_counting if cells.dtype == torch.uint8 else _majority_by_sorting
    pixels_at_once = _PIXELS_PER_CHUNK_CPU if labels.device.type == "cpu" else _PIXELS_PER_CHUNK
    images_at_once = max(1, pixels_at_once // (height * width))
    regions = torch.cat([find_majority(chunk, ignore) for chunk in cells.split(images_at_once)])
    return regions.flatten(1).to(labels.dtype)


def _narrow_ids(labels: Tensor) -> Tensor:
    """Return the ids as uint8 if their values can be read and fit."""
    if labels.dtype == torch.uint16:  # torch implements hardly any operation on it
        labels = labels.int()
    if labels.dtype != torch.uint8 and labels.numel() and can_read_values(labels):
        low, high = labels.aminmax()
        if low >= 0 and high < 256:
            return labels.byte()
    return labels


def _lowest_majority_id(ids: Tensor, votes: Tensor, dim: int) -> Tensor:
    """Return the lowest id among those with the most votes."""
    is_most = votes == votes.amax(dim, keepdim=True)
    if ids.dtype == torch.uint8:  # the same as `where` below, in arithmetic that a CPU does on vectors of bytes
        return (ids | (~is_most).view(torch.uint8) * 255).amin(dim)
    return torch.where(is_most, ids, torch.iinfo(ids.dtype).max).amin(dim)


def _majority_by_comparing(cells: Tensor, ignore: int) -> Tensor:
    """Count for each pixel the pixels of its patch with the same id; fastest for small patches."""
    batch, grid_rows, rows, grid_columns, columns = cells.shape
    pixels = rows * columns
    ids = cells.permute(2, 4, 0, 1, 3).reshape(pixels, -1)
    ring = torch.cat([ids, ids])  # makes the pixels `step` further on a plain slice
    votes = torch.ones_like(ids, dtype=torch.uint8)
    for step in range(1, pixels // 2 + 1):
        same = (ids == ring[step : step + pixels]).view(torch.uint8)
        votes += same
        if 2 * step < pixels:  # the other pixel of each pair
            votes[step:] += same[:-step]
            votes[:step] += same[-step:]
    if torch.iinfo(ids.dtype).min <= ignore <= torch.iinfo(ids.dtype).max:
        # On bytes, a CPU compares with a row 10 times as fast as with a number, and multiplies faster than it fills.
        votes *= (ids != torch.full_like(ids[:1], ignore)).view(torch.uint8)
    return _lowest_majority_id(ids, votes, 0).view(batch, grid_rows, grid_columns)


def _majority_by_counting(cells: Tensor, ignore: int) -> Tensor:
    """Count ids in a histogram of 256 bins per patch."""
    batch, grid_rows, rows, grid_columns, columns = cells.shape
    # Two votes per pixel, so that `ignore`, clamped to one vote in all, beats only absent ids.
    # 16-bit integers are faster to reduce on a CPU, and far slower to scatter to on other devices.
    is_short = cells.device.type == "cpu" and 2 * rows * columns < torch.iinfo(torch.int16).max
    dtype = torch.int16 if is_short else torch.int32
    votes = torch.zeros(batch, grid_rows, grid_columns, 256, dtype=dtype, device=cells.device)
    two = votes.new_full((), 2).expand(batch, grid_rows, grid_columns, columns)
    # One row of each patch at a time: the int64 index of all rows would take 8 × the memory of the map.
    for row in range(rows):
        votes.scatter_add_(3, cells[:, :, row].long(), two)
    if 0 <= ignore < 256:
        votes[..., ignore].clamp_(max=1)
    ids = torch.arange(256, dtype=torch.uint8, device=cells.device)
    return _lowest_majority_id(ids, votes, 3)


def _majority_by_sorting(cells: Tensor, ignore: int) -> Tensor:
    """Sort ids of any size: a pixel's votes are its position in the run of its id, so the last of a run has all."""
    batch, grid_rows, rows, grid_columns, columns = cells.shape
    pixels = rows * columns
    ids = cells.permute(0, 1, 3, 2, 4).reshape(-1, pixels).sort(dim=1).values
    position = torch.arange(1, pixels + 1, dtype=torch.int32, device=cells.device)
    is_first = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
    before = (position - 1).where(is_first, 0).cummax(dim=1).values
    votes = (position - before).masked_fill(ids == ignore, 0)
    return _lowest_majority_id(ids, votes, 1).view(batch, grid_rows, grid_columns)

"""RoIAlign: torchvision's kernel, or two matrix products in training on a CPU, and pooling from a pyramid."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import roi_align as roi_align_kernel

_CELLS_PER_SAMPLE = 140
"""Cells of a map for each sample of a row of bins, up to which the products are faster than the kernel (measured)."""


def roi_align(
    features: Float[Tensor, "image channels rows columns"],
    boxes: Float[Tensor, "roi 4"],
    images: Int64[Tensor, " roi"],
    *,
    stride: float,
    size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Float[Tensor, "roi channels {size} {size}"]:
    """Return `size` × `size` bins of each box, the means of bilinear samples, as torchvision's `roi_align` does.

    `images` are the rows of `features` that boxes belong to, in ascending order; boxes are in pixels and `stride` is
    that of the map. A bin has `sampling_ratio` samples on each side, or with 0 one for each cell that it covers.

    The backward pass of torchvision's kernel is slow on a CPU. There, if a gradient is needed and the map is small for
    the boxes, the sums are two matrix products for each image, which have fast gradients.
    """
    cells = boxes * (1 / stride)
    if not _is_product_faster(features, cells, size=size, sampling_ratio=sampling_ratio):
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
        pooled: Tensor = roi_align_kernel(features, rois, size, 1 / stride, sampling_ratio, aligned)
        return pooled
    y, x = (
        bin_weights(
            cells[:, axis],
            cells[:, axis + 2],
            features.shape[3 - axis],
            size=size,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        for axis in (1, 0)
    )
    counts = torch.bincount(images, minlength=len(features)).tolist()
    parts = zip(features, y.split(counts), x.split(counts), strict=True)
    return torch.cat([_multiply(*part) for part in parts])


def _is_product_faster(
    features: Float[Tensor, "image channels rows columns"],
    cells: Float[Tensor, "roi 4"],
    *,
    size: int,
    sampling_ratio: int,
) -> bool:
    """Return whether products are faster: they read a whole map for each row of bins, the kernel only its samples."""
    needs_gradient = torch.is_grad_enabled() and features.requires_grad
    if features.device.type != "cpu" or not needs_gradient or not len(cells):
        return False
    adaptive = ((cells[:, 2:] - cells[:, :2]) / size).ceil().clamp(min=1).prod(dim=1).mean().item()
    return features.shape[2] * features.shape[3] <= _CELLS_PER_SAMPLE * size * (sampling_ratio**2 or adaptive)


def _multiply(
    features: Float[Tensor, "channels rows columns"],
    y: Float[Tensor, "roi bin rows"],
    x: Float[Tensor, "roi bin columns"],
) -> Float[Tensor, "roi channels bin bin"]:
    """Return the weighted sums over rows, in one product for all RoIs of an image, and then over columns."""
    (num_rois, size, _), (channels, _, columns) = y.shape, features.shape
    by_row = features.transpose(0, 1).flatten(1)
    rows_summed = (y.flatten(0, 1) @ by_row).view(num_rois, size * channels, columns)
    pooled: Tensor = (rows_summed @ x.transpose(1, 2)).view(num_rois, size, channels, size)
    return pooled.transpose(1, 2)


def bin_weights(
    start: Float[Tensor, " roi"],
    end: Float[Tensor, " roi"],
    length: int,
    *,
    size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Float[Tensor, "roi {size} {length}"]:
    """Return the weights of an axis's cells in each bin of RoIAlign, which is separable.

    `start` and `end` are the edges of boxes in cells.
    """
    positions, weights = bin_samples(start, end, size=size, sampling_ratio=sampling_ratio, aligned=aligned)
    is_inside = (positions >= -1) & (positions <= length)
    return interpolation_weights(positions, weights * is_inside, length)


def bin_samples(
    start: Float[Tensor, " roi"],
    end: Float[Tensor, " roi"],
    *,
    size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> tuple[Float[Tensor, "roi {size} sample"], Float[Tensor, "roi 1 sample"]]:
    """Return the positions of samples along an axis, where cell i is at i, and their weights in the mean of a bin.

    The order of the operations is that of torchvision's kernel, so that the number of samples is the same.
    """
    offset = 0.5 if aligned else 0.0
    start = start - offset
    extent = end - offset - start
    if not aligned:
        extent = extent.clamp(min=1)
    start, bin_size = start[:, None, None], (extent / size)[:, None, None]
    num_samples = bin_size.ceil() if not sampling_ratio else torch.full_like(bin_size, sampling_ratio)
    most = int(num_samples.max()) if len(start) else 0
    sample = torch.arange(most, dtype=start.dtype, device=start.device)
    bins = torch.arange(size, dtype=start.dtype, device=start.device)[:, None]
    positions = start + bins * bin_size + (sample + 0.5) * bin_size / num_samples.clamp(min=1)
    return positions, (sample < num_samples) / num_samples.clamp(min=1)


def interpolation_weights(
    positions: Float[Tensor, "roi bin sample"], weights: Float[Tensor, "roi #bin sample"], length: int
) -> Float[Tensor, "roi bin {length}"]:
    """Return the weights of an axis's cells in weighted sums of linear samples; positions outside are moved inside."""
    positions = positions.clamp(0, length - 1)
    low = positions.floor().long()
    upper = (positions - low) * weights
    matrix = positions.new_zeros(*positions.shape[:2], length)
    matrix.scatter_add_(2, low, weights - upper)
    return matrix.scatter_add_(2, (low + 1).clamp(max=length - 1), upper)


def pool_rois(
    maps: Sequence[Float[Tensor, "image channels _ _"]],
    strides: Sequence[int],
    boxes: Float[Tensor, "roi 4"],
    images: Int64[Tensor, " roi"],
    *,
    size: int,
    canonical_size: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "roi channels {size} {size}"]:
    """Return the pooled map of each box, from the map whose stride suits the box's size.

    A box of `canonical_size`² pixels is pooled from the map of stride 16; one of twice its side from that of stride
    32. `images`, in ascending order, are the rows of the maps. Strides are given, never inferred from sizes of maps,
    so padding does not matter. An empty list of boxes gives an empty result with a gradient.
    """
    order = choose_levels(boxes, strides, canonical_size=canonical_size).sort(stable=True)
    counts = torch.bincount(order.values, minlength=len(maps)).tolist()
    sorted_rows = order.indices.split(counts)
    pooled = [
        roi_align(
            features,
            boxes[rows],
            images[rows],
            stride=stride,
            size=size,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        for features, stride, rows in zip(maps, strides, sorted_rows, strict=True)
    ]
    sorted_pooled = torch.cat(pooled)
    return torch.empty_like(sorted_pooled).index_copy_(0, order.indices, sorted_pooled)  # has a fast gradient


def choose_levels(
    boxes: Float[Tensor, "roi 4"], strides: Sequence[int], *, canonical_size: float
) -> Int64[Tensor, " roi"]:
    """Return the map that each box is pooled from: floor(4 + log2(side / canonical_size)), as in FPN."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    finest = round(math.log2(strides[0]))  # 3 for the stride 7 of patches of 14 pixels
    level = torch.floor(4 + torch.log2(side / canonical_size) + 1e-6)
    return level.clamp(finest, finest + len(strides) - 1).long() - finest

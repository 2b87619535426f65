"""Targets of the mask head: the part of an object's mask that is inside a box."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks
from c2fmae.models.detectors.roi_align import bin_samples, interpolation_weights

_MAX_PIXELS = 2**24  # of masks that are unpacked at once
_BORDER = 1  # pixels around a window that interpolation reads


def compute_mask_targets(
    masks: BoxMasks,
    rows: Int64[Tensor, " roi"],
    boxes: Float[Tensor, "roi 4"],
    sizes: Int64[Tensor, "roi 2"],
    *,
    size: int,
    aligned: bool = True,
) -> Float[Tensor, "roi {size} {size}"]:
    """Return RoIAlign of one mask for each box, from the bits of the mask's window.

    The result is that of masks of the image's full size; `sizes` are the heights and widths of the images. Masks are
    unpacked in chunks of similar windows, so the memory does not depend on their number.
    """
    targets = boxes.new_zeros(len(boxes), size, size)
    windows = masks.windows[rows].long()
    order = (windows[:, 2:] - windows[:, :2]).amax(dim=1).sort(descending=True)
    sides, first = order.values.tolist(), 0
    while first < len(sides):
        chunk = order.indices[first : first + max(_MAX_PIXELS // (sides[first] + 2 * _BORDER) ** 2, 1)]
        objects, inverse = rows[chunk].unique(return_inverse=True)  # many boxes have the same object
        pixels = masks.unpack(objects, _BORDER).to(boxes.dtype)[inverse]
        y, x = (
            _window_weights(
                boxes[chunk, axis],
                boxes[chunk, axis + 2],
                sizes[chunk, 1 - axis],
                windows[chunk, axis] - _BORDER,
                pixels.shape[2 - axis],
                size=size,
                aligned=aligned,
            )
            for axis in (1, 0)
        )
        targets[chunk] = y @ pixels @ x.transpose(1, 2)
        first += len(chunk)
    return targets


def _window_weights(
    start: Float[Tensor, " roi"],
    end: Float[Tensor, " roi"],
    image_length: Int64[Tensor, " roi"],
    window_start: Int64[Tensor, " roi"],
    window_length: int,
    *,
    size: int,
    aligned: bool,
) -> Float[Tensor, "roi {size} {window_length}"]:
    """Return the weights of the pixels of windows in each bin, along an axis."""
    positions, weights = bin_samples(start, end, size=size, aligned=aligned)
    length, window_start = image_length[:, None, None], window_start[:, None, None]
    is_inside = (positions >= -1) & (positions <= length)
    inside = torch.minimum(positions.clamp(min=0), (length - 1).to(positions.dtype))  # as at the edges of an image
    return interpolation_weights(inside - window_start, weights * is_inside, window_length)

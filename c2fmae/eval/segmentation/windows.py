"""Logits of an image from overlapping windows, averaged where they overlap: pure functions."""

from collections.abc import Callable, Iterator
from itertools import product
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.models.segmenters.upsampling import upsample_logits

ComputeLogits = Callable[[Tensor], Tensor]
"""Maps standardised images [B, channels, height, width] to logits [B, class, rows, columns] of any resolution."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along a side; the last window ends at the border.

    >>> window_starts(1025, 512, 341), window_starts(300, 512, 341)
    ([0, 341, 513], [0])
    """
    last = max(length - window, 0)
    return [min(number * stride, last) for number in range(ceil(last / stride) + 1)]


def slide(
    compute_logits: ComputeLogits,
    image: Float[Tensor, "channels height width"],
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    patch: int,
    batch_size: int,
) -> Iterator[Float[Tensor, "class rows width"]]:
    """Yield the logits of a standardised image in bands of whole rows, from top to bottom.

    Each window's logits are resized to its pixels, and averaged where windows overlap. Along a side that is shorter
    than the window, the window is the image. Only the logits of one row of windows are in memory at full size.
    """
    height, width = image.shape[1:]
    size = (min(window[0], height), min(window[1], width))
    tops, lefts = (window_starts(image.shape[1 + axis], size[axis], stride[axis]) for axis in (0, 1))
    cover = [_count_windows(starts, size[axis], image.shape[1 + axis]) for axis, starts in ((0, tops), (1, lefts))]
    logits = _iterate_window_logits(compute_logits, image, list(product(tops, lefts)), size, patch, batch_size)
    sums: Tensor | None = None  # of the rows of the current windows
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            window_logits = next(logits)
            if sums is None:
                sums = window_logits.new_zeros(len(window_logits), size[0], width)
            sums[:, :, left : left + size[1]] += window_logits
        assert sums is not None
        counts = cover[0][top:next_top, None] * cover[1]
        yield sums[:, : next_top - top] / counts.to(sums)
        finished = torch.zeros_like(sums[:, : next_top - top])
        sums = torch.cat([sums[:, next_top - top :], finished], dim=1)


def padded_logits(
    compute_logits: ComputeLogits, images: Float[Tensor, "batch channels height width"], patch: int
) -> tuple[Float[Tensor, "batch class rows columns"], tuple[int, int]]:
    """Return logits of images padded to multiples of the patch, right and bottom, and the padded size.

    The padding is 0, the mean colour of standardised images.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % patch, 0, -height % patch))
    return compute_logits(padded), (padded.shape[-2], padded.shape[-1])


def _iterate_window_logits(
    compute_logits: ComputeLogits,
    image: Tensor,
    corners: list[tuple[int, int]],
    size: tuple[int, int],
    patch: int,
    batch_size: int,
) -> Iterator[Float[Tensor, "class height width"]]:
    """Yield the logits of the window at each corner (top, left), resized to its pixels."""
    for first in range(0, len(corners), batch_size):
        batch = [
            image[:, top : top + size[0], left : left + size[1]] for top, left in corners[first : first + batch_size]
        ]
        logits, padded_size = padded_logits(compute_logits, torch.stack(batch), patch)
        for window_logits in logits:
            yield upsample_logits(window_logits[None], padded_size)[0, :, : size[0], : size[1]]


def _count_windows(starts: list[int], window: int, length: int) -> Int64[Tensor, " pixel"]:
    """Return the number of windows over each pixel of a side."""
    pixels = torch.arange(length)
    return torch.stack([(pixels >= start) & (pixels < start + window) for start in starts]).sum(dim=0)

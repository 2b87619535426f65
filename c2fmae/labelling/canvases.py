"""From images to the canvases of models, and from the logits on a canvas to the cells of an image.

What a model computes from an image depends on the canvas on which it is padded. A canvas is therefore a function of the
size of the image alone, and its sides are multiples of 128, so that few sizes occur.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

CANVAS_MULTIPLE = 128

_MAX_BYTES = 1 << 26  # of logits at the cells of an image in float32


def round_up_canvas(height: int, width: int) -> tuple[int, int]:
    """Return the size of the canvas for an image of a size, which is that at which the model reads the image.

    >>> round_up_canvas(800, 1066)
    (896, 1152)
    """
    return -(-height // CANVAS_MULTIPLE) * CANVAS_MULTIPLE, -(-width // CANVAS_MULTIPLE) * CANVAS_MULTIPLE


def get_max_aspect(size: Any) -> float:
    """Return the largest ratio of sides for the `size` of an image processor: above, a side has less than a pixel."""
    return float(size.longest_edge) if size.longest_edge else math.inf


def pad_to_canvas(
    images: Sequence[Float[Tensor, "channel _ _"]], canvas: tuple[int, int]
) -> tuple[Float[Tensor, "image channel height width"], Int64[Tensor, "image height width"]]:
    """Return images with zeros to their right and below, and a mask that is 1 at their pixels."""
    height, width = canvas
    values = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    mask = torch.zeros((len(images), height, width), dtype=torch.int64, device=values.device)
    for index, image in enumerate(images):
        rows, columns = image.shape[1:]
        values[index, :, :rows, :columns] = image
        mask[index, :rows, :columns] = 1
    return values, mask


def compute_cell_weights(
    num_logits: int, steps: Sequence[tuple[int, int]], stride: int, *, device: torch.device | None = None
) -> Float[Tensor, "cell logit"]:
    """Return the weights of the logits along one axis for each stored cell of an image.

    Each step resizes bilinearly to a length, then cuts to another, such as `[(1024, 683), (500, 500)]` for a canvas of
    1024 of which 683 are the image, and an image of 500 pixels. All of this is linear and separable, so it is composed
    once for each axis, and only the stored cells are computed.
    """
    weights = torch.eye(num_logits, dtype=torch.float64)[:, None]
    for length, valid in steps:
        weights = F.interpolate(weights, size=length, mode="linear", align_corners=False)[..., :valid]
    length = weights.shape[-1]
    cells = (torch.arange(-(-length // stride)) * stride + stride // 2).clamp(max=length - 1)
    return weights[:, 0, cells].T.float().to(device)


def sample_cells(
    logits: Float[Tensor, "mask logit_row logit_column"],
    row_weights: Float[Tensor, "row logit_row"],
    column_weights: Float[Tensor, "column logit_column"],
) -> Float[Tensor, "mask row column"]:
    """Return the logits at the stored cells of an image, in float32."""
    with torch.autocast(logits.device.type, enabled=False):
        return row_weights @ logits.float() @ column_weights.T


def fill_masks(
    masks: Bool[Tensor, "mask row column"],
    logits: Float[Tensor, "mask logit_row logit_column"],
    row_weights: Float[Tensor, "row logit_row"],
    column_weights: Float[Tensor, "column logit_column"],
) -> None:
    """Set the stored cells of `masks` whose logits are positive, a few masks at a time."""
    at_once = max(_MAX_BYTES // (4 * len(row_weights) * len(column_weights)), 1)
    for part, source in zip(masks.split(at_once), logits.split(at_once), strict=True):
        part.copy_(sample_cells(source, row_weights, column_weights) > 0)

"""From the detections of a canvas to those of an image: boxes are scaled, and masks pasted inside of their boxes.

Masks of the image's full size are never made: the run lengths of a mask come from its window.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from c2fmae.core.objects import Detections
from c2fmae.core.rle import encode_window
from c2fmae.models.detectors.boxes import clip_boxes
from c2fmae.models.detectors.detector import CanvasDetections

_THRESHOLD = 0.5


def finish_detections(
    detections: CanvasDetections, canvas_scale: tuple[float, float], image_size: tuple[int, int]
) -> Detections:
    """Return detections in pixels of the image, clipped to it, with masks as COCO's run lengths.

    `canvas_scale` is the height and the width of an image pixel on the canvas; `image_size` is height and width.
    """
    factors = detections.boxes.new_tensor([canvas_scale[1], canvas_scale[0]]).repeat(2)
    size = detections.labels.new_tensor([image_size])
    boxes = clip_boxes((detections.boxes / factors)[None], size)[0].cpu()
    masks = None
    if detections.mask_probabilities is not None:
        probabilities = detections.mask_probabilities.cpu().numpy()
        masks = tuple(
            encode_pasted(mask, box, image_size) for mask, box in zip(probabilities, boxes.tolist(), strict=True)
        )
    return Detections(boxes.float(), detections.scores.float().cpu(), detections.labels.cpu(), masks)


def encode_pasted(
    probabilities: Float[np.ndarray, "cells cells"], box: list[float], image_size: tuple[int, int]
) -> bytes:
    """Return the run lengths of a mask that is pasted into a box of an image."""
    left, top, mask = paste_mask(probabilities, box, image_size)
    return encode_window(mask.view(np.uint8), left, top, *image_size)


def paste_mask(
    probabilities: Float[np.ndarray, "cells cells"], box: list[float], image_size: tuple[int, int]
) -> tuple[int, int, Bool[np.ndarray, "rows columns"]]:
    """Return the column and row of the first pixel in a box, and which pixels in it belong to the object.

    The probability at a pixel is that at its centre, interpolated between the centres of cells; pixels whose centres
    are outside of the box or the image do not belong to it. Where no centre is inside, the mask is empty.
    """
    (left, x), (top, y) = (
        _pixel_weights(box[axis], box[axis + 2], image_size[1 - axis], probabilities.shape[1 - axis]) for axis in (0, 1)
    )
    return left, top, (x @ probabilities.T @ y.T >= _THRESHOLD).T


def _pixel_weights(
    start: float, end: float, image_length: int, num_cells: int
) -> tuple[int, Float[np.ndarray, "pixel cell"]]:
    """Return the first pixel of an axis whose centre is in a box, and the weights of the cells at each pixel."""
    first, last = max(math.ceil(start - 0.5), 0), min(math.ceil(end - 0.5), image_length)
    if first >= last:
        return min(first, image_length - 1), np.zeros((0, num_cells), np.float32)
    centres = np.arange(first, last) + 0.5
    positions = ((centres - start) * (num_cells / (end - start)) - 0.5).clip(0, num_cells - 1)
    return first, np.maximum(1 - np.abs(positions[:, None] - np.arange(num_cells)), 0).astype(np.float32)

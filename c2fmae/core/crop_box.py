"""A rectangle of an image, and the stored cells that a resized crop shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class CropBox:
    """A rectangle in pixels of an image."""

    top: int
    left: int
    height: int
    width: int


def nearest_cells(start: int, length: int, cells: int, stored: int, stride: int = 1) -> Int[np.ndarray, " cells"]:
    """Return the stored cells nearest to the centres of `cells` equal parts of start … start + length.

    A centre is at start + (i + ½) · length / cells; stored cell c holds the pixel whose centre is at s·c + s//2 + ½. So
    c = ⌊(centre - s//2 - ½ + s/2) / s⌋, here with everything times 2 · cells.
    """
    centres = np.arange(1, 2 * cells, 2) * length + (2 * start + stride - 2 * (stride // 2) - 1) * cells
    nearest = centres // (2 * cells * stride)
    return np.minimum(np.maximum(nearest, 0), stored - 1)  # much faster than `clip` for few numbers

"""The interface of open-vocabulary detectors, and what they share."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The boxes of an image, on the CPU, of all scores."""

    boxes: Float[Tensor, "box 4"]
    """x0, y0, x1 and y1 in pixels of the image, float64; they may reach beyond it."""
    scores: Float[Tensor, " box"]
    """Of the best name."""
    name_indices: Int64[Tensor, " box"]
    """The best name of each box, by its position among the names of the image; of equals the first."""


@runtime_checkable
class Detector(Protocol):
    """Finds the boxes of named objects."""

    max_aspect: float
    """Ratio of sides above which the shorter one has less than a pixel at the size of the model."""

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return a value for images of a size: images with the same value can be read in one batch."""

    def count_prompts(self, names: Sequence[str]) -> int:
        """Return the number of forward passes for an image with these names."""

    def detect(self, images: Sequence[UInt8[Tensor, "3 _ _"]], names: Sequence[tuple[str, ...]]) -> list[Detections]:
        """Return the boxes of the names of each image."""

    def describe(self) -> dict[str, Any]:
        """Return everything that the boxes depend on besides image and names."""


def join_detections(detections: Sequence[Detections]) -> Detections:
    """Return the boxes that several prompts give for one image."""
    if not detections:
        return Detections(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Detections(
        torch.cat([each.boxes for each in detections]),
        torch.cat([each.scores for each in detections]),
        torch.cat([each.name_indices for each in detections]),
    )


def centre_to_corners(boxes: Float[Tensor, "box 4"], height: float, width: float) -> Float[Tensor, "box 4"]:
    """Return boxes (centre and size, relative to the image) as x0, y0, x1 and y1 in pixels, in float64 on the CPU."""
    x, y, box_width, box_height = boxes.double().cpu().unbind(dim=1)
    corners = torch.stack([x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2], dim=1)
    return corners * corners.new_tensor([width, height, width, height])

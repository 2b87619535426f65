"""Scores of a detector: COCO's metrics, those of each class, and what they are computed from."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float64, Int64
from torch import Tensor

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics, in the order of its tools."""


@dataclass(frozen=True)
class KindScores:
    """The scores of boxes, or of masks."""

    metrics: Mapping[str, float | None]
    """COCO's metrics by the names in `COCO_KEYS`, in [0, 1]; None where no object has the size."""
    class_ap: tuple[float | None, ...]
    """AP of each class; None for a class without objects."""
    class_ap50: tuple[float | None, ...]
    """AP at an IoU of 0.5 of each class."""
    class_ar: tuple[float | None, ...]
    """AR with 100 detections of each class."""
    curves: Float64[Tensor, "iou recall class"]
    """Precision at the IoUs 0.5, 0.75 and 0.95 and the recalls 0, 0.01 … 1; NaN for a class without objects."""


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a detector on a test set."""

    box: KindScores
    mask: KindScores | None
    """None for a detector without masks, or a test set without them."""
    num_images: int
    num_objects: int
    """The number of objects, without crowds."""
    confusion: Int64[Tensor, "truth predicted"]
    """Pairs of objects and detections by class; the last row counts false alarms, the last column misses."""

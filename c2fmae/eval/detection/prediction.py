"""The objects that a detector finds in an image, in its own pixels."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from c2fmae.core.objects import Detections
from c2fmae.data.crops.resize import resize_to_sides
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.training_inputs import standardise_batch
from c2fmae.models.detectors import CanvasDetections, Detector
from c2fmae.models.detectors.paste import finish_detections


@torch.inference_mode()
def detect_objects(
    detector: Detector,
    image: UInt8[Tensor, "channels height width"],
    testing: DetectionTestingConfig,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Detections:
    """Return the detections in an image, with boxes and masks inside of it.

    The detector must be in evaluation mode; `weights` replace its own. The image is the only one of its batch, so
    nothing depends on other images.
    """
    resized, scale = resize_to_sides(image.cpu(), *testing.limits)  # bytes are antialiased only on CPUs
    size = (resized.shape[1], resized.shape[2])
    device = next(detector.parameters()).device
    sizes = torch.tensor([size], device=device)
    canvas = _pad(resized, testing.canvas, divisor=compute_divisor(detector)).to(device)
    images = standardise_batch(detector.backbone, canvas[None], sizes)
    options = {name: getattr(testing, name) for name in ("score_threshold", "nms_threshold", "max_detections")}
    with torch.autocast(device.type, torch.bfloat16, enabled=testing.precision == "bf16"):
        if weights is None:
            (detections,) = detector.detect(images, sizes, **options)
        else:
            named = {f"detector.{name}": tensor for name, tensor in weights.items()}
            (detections,) = functional_call(_Detection(detector), named, (images, sizes), options)
    return finish_detections(detections, scale, (image.shape[1], image.shape[2]))


def compute_divisor(detector: Detector) -> int:
    """Return the number of pixels of which the sides of a padded image are multiples.

    They are filled by patches, and by cells of the coarsest map that regions are pooled from.
    """
    return math.lcm(detector.backbone.patch, detector.spec.pyramid.roi_strides[-1])


def _pad(
    image: UInt8[Tensor, "channels height width"], side: int | None, *, divisor: int
) -> UInt8[Tensor, "channels rows columns"]:
    """Return an image padded at the right and the bottom to a square, or by default to multiples of `divisor`."""
    height, width = image.shape[1:]
    rows, columns = (side - height, side - width) if side is not None else (-height % divisor, -width % divisor)
    return F.pad(image, (0, columns, 0, rows))


class _Detection(nn.Module):
    """A detector as a module whose call detects, since other weights can only be used in a call."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Float[Tensor, "image channels height width"], sizes: Int64[Tensor, "image 2"], **options: Any
    ) -> list[CanvasDetections]:
        return self.detector.detect(images, sizes, **options)

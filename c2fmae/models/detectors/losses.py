"""Losses of boxes, and their means over the samples of each image."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou_loss

from c2fmae.core.detector_spec import BoxLossSpec


def box_losses(
    deltas: Float[Tensor, "box 4"],
    anchors: Float[Tensor, "box 4"],
    targets: Float[Tensor, "box 4"],
    *,
    loss: BoxLossSpec,
    coder: BoxCoder,
) -> Float[Tensor, " box"]:
    """Return the loss of each predicted box: of the deltas from its anchor, or for `giou` of the decoded box."""
    if loss.name == "giou":
        losses: Tensor = loss.weight * generalized_box_iou_loss(coder.decode_single(deltas, anchors), targets)
        return losses
    expected = coder.encode_single(targets, anchors)
    beta = loss.beta if loss.name == "smooth_l1" else 0.0
    return loss.weight * F.smooth_l1_loss(deltas, expected, beta=beta, reduction="none").sum(dim=1)


def sum_by_image(values: Float[Tensor, " sample"], is_sample: Bool[Tensor, "image slot"]) -> Float[Tensor, " image"]:
    """Return the sum of each image's values, which are in the order of its true slots.

    The order of the sum depends on nothing but the slots, on all devices.
    """
    return values.new_zeros(is_sample.shape).masked_scatter(is_sample, values).sum(dim=1)

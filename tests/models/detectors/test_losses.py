"""Losses of boxes, computed by hand."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from c2fmae.core.detector_spec import BoxLossSpec
from c2fmae.models.detectors.losses import box_losses

ANCHOR, TARGET = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[7.0, 0, 12, 20]])
DELTAS = torch.tensor([[2.0, 0, 0, 0]])  # with the weight 10 of centres: a fifth of the width, 2 pixels to the right


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # The boxes from 2 to 12 and from 7 to 12 share half of their union, which is all of their hull.
        (BoxLossSpec(name="giou", weight=10), 5.0),
        # The centre is 4.5 of 10 pixels to the right, and the width is halved.
        (BoxLossSpec(name="l1", weight=3), 3 * (abs(2 - 10 * 0.45) + 5 * torch.log(torch.tensor(2.0)).item())),
        (BoxLossSpec(name="smooth_l1", beta=9), (2.5**2 + (5 * torch.log(torch.tensor(2.0)).item()) ** 2) / 18),
    ],
)
def test_losses_of_boxes_have_their_weights(loss: BoxLossSpec, expected: float) -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    assert box_losses(DELTAS, ANCHOR, TARGET, loss=loss, coder=coder).tolist() == pytest.approx([expected], rel=1e-5)


def test_a_box_beside_its_target_is_penalised_by_their_hull() -> None:
    target, deltas = torch.tensor([[30.0, 0, 40, 20]]), torch.zeros(1, 4)
    losses = box_losses(deltas, ANCHOR, target, loss=BoxLossSpec(name="giou"), coder=BoxCoder((1.0, 1.0, 1.0, 1.0)))
    assert losses.tolist() == pytest.approx([1.5])  # no overlap, and half of the hull is in neither box

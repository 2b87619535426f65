"""The region proposal network (RPN)."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from c2fmae.core.detector_spec import DetectorSpec, RpnSpec
from c2fmae.models.detectors.anchors import create_anchors
from c2fmae.models.detectors.boxes import clip_boxes, decode_boxes
from c2fmae.models.detectors.losses import box_losses, sum_by_image
from c2fmae.models.detectors.sampling import match_boxes, random_keys, sample_boxes

_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
_MIN_SIDE = 1e-3
_STREAM = 0  # of random keys


class AnchorScores(NamedTuple):
    """What the RPN predicts for each anchor of all maps, from fine to coarse."""

    anchors: Float[Tensor, "anchor 4"]
    logits: Float[Tensor, "image anchor"]
    """Logits of the probability that there is an object."""
    deltas: Float[Tensor, "image anchor 4"]
    """The offset of its box from the anchor."""
    level_sizes: tuple[int, ...]
    """Number of anchors of each map."""


class Proposals(NamedTuple):
    """Boxes in which objects are expected, with empty slots at the end."""

    boxes: Float[Tensor, "image slot 4"]
    is_used: Bool[Tensor, "image slot"]


class Rpn(RPNHead):  # type: ignore[misc]
    """torchvision's head of an RPN, with anchors whose strides are given and losses for each image."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__(spec.pyramid.channels, len(spec.anchors.ratios), conv_depth=spec.rpn.num_convs)
        self.spec = spec.rpn
        self.anchor_spec = spec.anchors
        self.strides = spec.pyramid.strides

    def forward(self, maps: Sequence[Float[Tensor, "image channels _ _"]]) -> AnchorScores:
        """Return the predictions for all anchors of the maps."""
        logits, deltas = super().forward(list(maps))
        anchors = create_anchors(
            [(x.shape[2], x.shape[3]) for x in maps],
            strides=self.strides,
            sizes=self.anchor_spec.sizes,
            ratios=self.anchor_spec.ratios,
            dtype=maps[0].dtype,
            device=maps[0].device,
        )
        return AnchorScores(
            anchors=torch.cat(anchors),
            logits=torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in logits], dim=1),
            deltas=torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas], dim=1),
            level_sizes=tuple(len(level) for level in anchors),
        )


def propose(scores: AnchorScores, sizes: Int64[Tensor, "image 2"], spec: RpnSpec, *, is_training: bool) -> Proposals:
    """Return the best boxes of each image after non-maximum suppression on each map; gradients stop here.

    `sizes` are the heights and widths of the images, to which boxes are clipped.
    """
    num_before, num_after = (
        (spec.pre_nms_top_n, spec.post_nms_top_n)
        if is_training
        else (spec.test_pre_nms_top_n, spec.test_post_nms_top_n)
    )
    best = [
        level.topk(min(num_before, level.shape[1]), dim=1)
        for level in scores.logits.detach().split(scores.level_sizes, dim=1)
    ]
    starts = [0, *accumulate(scores.level_sizes)]
    rows = torch.cat([indices + start for (_, indices), start in zip(best, starts, strict=False)], dim=1)
    logits = torch.cat([values for values, _ in best], dim=1)
    levels = torch.cat([torch.full_like(indices[0], level) for level, (_, indices) in enumerate(best)])
    deltas = scores.deltas.detach().gather(1, rows[:, :, None].expand(-1, -1, 4))
    boxes = clip_boxes(decode_boxes(deltas, scores.anchors[rows], _CODER), sizes)
    is_large = (boxes[:, :, 2:] - boxes[:, :, :2] >= _MIN_SIDE).all(dim=2)
    # Boxes that are too small, or not finite, come last and overlap with none. To filter them would wait for the device
    # three times for each image; now only non-maximum suppression does, once.
    boxes, logits = boxes.where(is_large[:, :, None], 0), logits.masked_fill(~is_large, -torch.inf)
    proposals = Proposals(boxes.new_zeros(len(boxes), num_after, 4), is_large.new_zeros(len(boxes), num_after))
    for image in range(len(boxes)):
        selected = batched_nms(boxes[image], logits[image], levels, spec.nms_threshold)[:num_after]
        proposals.boxes[image, : len(selected)] = boxes[image, selected]
        proposals.is_used[image, : len(selected)] = is_large[image, selected]
    return proposals


def rpn_losses(
    scores: AnchorScores, objects: Sequence[Float[Tensor, "_ 4"]], seeds: Int64[Tensor, " image"], spec: RpnSpec
) -> dict[str, Float[Tensor, " image"]]:
    """Return the losses of each image: the mean of the cross-entropy of sampled anchors, and that of boxes."""
    num_images = len(objects)
    matches = match_boxes(
        scores.anchors.expand(num_images, -1, -1),
        objects,
        fg_iou=spec.fg_iou,
        bg_iou=spec.bg_iou,
        allow_low_quality=True,
    )
    samples = sample_boxes(
        matches.is_positive,
        matches.is_negative,
        random_keys(seeds, len(scores.anchors), _STREAM),
        samples_per_image=spec.samples_per_image,
        positive_fraction=spec.positive_fraction,
    )
    logits = scores.logits.gather(1, samples.rows)
    entropy = F.binary_cross_entropy_with_logits(logits, samples.is_positive.to(logits.dtype), reduction="none")
    num_used = samples.is_used.sum(dim=1).clamp(min=1)
    image, slot = samples.is_positive.nonzero(as_tuple=True)
    positive = samples.rows[image, slot]
    losses = box_losses(
        scores.deltas[image, positive],
        scores.anchors[positive],
        torch.cat([*objects])[matches.objects[image, positive]],
        loss=spec.box_loss,
        coder=_CODER,
    )
    return {
        "objectness": (entropy * samples.is_used).sum(dim=1) / num_used,
        "rpn_box": sum_by_image(losses, samples.is_positive) / num_used,
    }

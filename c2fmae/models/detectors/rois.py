"""Regions of interest (RoIs): sampling of proposals in training, and the selection of detections."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from c2fmae.core.detector_spec import BoxHeadSpec
from c2fmae.models.detectors.boxes import clip_boxes, decode_boxes
from c2fmae.models.detectors.losses import box_losses, sum_by_image
from c2fmae.models.detectors.rpn import Proposals
from c2fmae.models.detectors.sampling import match_boxes, random_keys, sample_boxes

_MIN_SIDE = 1e-2
_STREAM = 1  # of random keys


class SampledRois(NamedTuple):
    """Sampled proposals of all images, in the order of the images; positive ones come first in each."""

    boxes: Float[Tensor, "roi 4"]
    images: Int64[Tensor, " roi"]
    objects: Int64[Tensor, " roi"]
    """Rows of the objects that they are matched with; without a meaning for negative ones."""
    is_positive: Bool[Tensor, " roi"]
    is_used: Bool[Tensor, "image slot"]
    """Slots of each image, whose true ones are the RoIs in their order."""
    is_positive_slot: Bool[Tensor, "image slot"]


def sample_rois(
    proposals: Proposals, objects: Sequence[Float[Tensor, "_ 4"]], seeds: Int64[Tensor, " image"], spec: BoxHeadSpec
) -> SampledRois:
    """Sample RoIs of each image from its proposals and the boxes of its objects.

    An object's own box is positive, so an image with objects has positive RoIs. The position of a candidate, to which
    random numbers belong, does not depend on other images.
    """
    padded = torch.nn.utils.rnn.pad_sequence([*objects], batch_first=True)
    counts = torch.tensor([len(boxes) for boxes in objects])
    is_object = (torch.arange(padded.shape[1]) < counts[:, None]).to(padded.device, non_blocking=True)
    candidates = torch.cat([proposals.boxes, padded], dim=1)
    is_candidate = torch.cat([proposals.is_used, is_object], dim=1)
    matches = match_boxes(candidates, objects, fg_iou=spec.fg_iou, bg_iou=spec.fg_iou)
    samples = sample_boxes(
        matches.is_positive & is_candidate,
        matches.is_negative & is_candidate,
        random_keys(seeds, candidates.shape[1], _STREAM),
        samples_per_image=spec.samples_per_image,
        positive_fraction=spec.positive_fraction,
    )
    images, slots = samples.is_used.nonzero(as_tuple=True)
    rows = samples.rows[images, slots]
    return SampledRois(
        boxes=candidates[images, rows],
        images=images,
        objects=matches.objects[images, rows],
        is_positive=samples.is_positive[images, slots],
        is_used=samples.is_used,
        is_positive_slot=samples.is_positive,
    )


def box_head_losses(
    logits: Float[Tensor, "roi logit"],
    deltas: Float[Tensor, "roi class 4"],
    rois: SampledRois,
    boxes: Float[Tensor, "object 4"],
    labels: Int64[Tensor, " object"],
    spec: BoxHeadSpec,
) -> dict[str, Float[Tensor, " image"]]:
    """Return the losses of each image: the mean of the cross-entropy of its RoIs, and that of positive ones' boxes."""
    background = logits.shape[1] - 1
    positive = rois.is_positive.nonzero().squeeze(1)
    matched = rois.objects[positive]
    targets = torch.full_like(rois.images, background).index_copy(0, positive, labels[matched])
    entropy = F.cross_entropy(logits, targets, reduction="none")
    losses = box_losses(
        deltas[positive, labels[matched]],
        rois.boxes[positive],
        boxes[matched],
        loss=spec.box_loss,
        coder=BoxCoder(spec.delta_weights),
    )
    num_rois = rois.is_used.sum(dim=1).clamp(min=1)
    return {
        "class": sum_by_image(entropy, rois.is_used) / num_rois,
        "box": sum_by_image(losses, rois.is_positive_slot) / num_rois,
    }


def mask_losses(
    logits: Float[Tensor, "positive cells cells"],
    targets: Float[Tensor, "positive cells cells"],
    is_positive: Bool[Tensor, "image slot"],
) -> Float[Tensor, " image"]:
    """Return the mean cross-entropy of each image's positive RoIs, or 0 for an image that has none."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2))
    return sum_by_image(entropy, is_positive) / is_positive.sum(dim=1).clamp(min=1)


class ImageDetections(NamedTuple):
    """Boxes of an image with their scores, from high to low, and labels."""

    boxes: Float[Tensor, "detection 4"]
    scores: Float[Tensor, " detection"]
    labels: Int64[Tensor, " detection"]


def select_detections(
    logits: Float[Tensor, "roi logit"],
    deltas: Float[Tensor, "roi class 4"],
    proposals: Proposals,
    sizes: Int64[Tensor, "image 2"],
    spec: BoxHeadSpec,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> list[ImageDetections]:
    """Return each image's best boxes after non-maximum suppression of each class.

    Logits and deltas are those of the used proposals, in the order of the images.
    """
    counts = proposals.is_used.sum(dim=1).tolist()
    probabilities = logits.softmax(dim=1)[:, :-1]
    regions = proposals.boxes[proposals.is_used][:, None].expand_as(deltas)
    boxes = decode_boxes(deltas, regions, BoxCoder(spec.delta_weights))
    detections = []
    for image_boxes, scores, size in zip(boxes.split(counts), probabilities.split(counts), sizes, strict=True):
        clipped = clip_boxes(image_boxes.flatten(0, 1)[None], size[None])[0].view_as(image_boxes)
        is_large = (clipped[:, :, 2:] - clipped[:, :, :2] >= _MIN_SIDE).all(dim=2)
        rows, labels = ((scores > score_threshold) & is_large).nonzero(as_tuple=True)
        candidates = clipped[rows, labels], scores[rows, labels], labels
        selected = batched_nms(*candidates, nms_threshold)[:max_detections]
        detections.append(ImageDetections(*(values[selected] for values in candidates)))
    return detections

"""Matching of boxes with objects, and sampling of positive and negative boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

_MAX_PAIRS = 2**24  # pairs of a box and an object whose IoU is computed at once
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class Matches(NamedTuple):
    """For each box, the object with which its IoU is largest, and whether that makes it positive or negative."""

    objects: Int64[Tensor, "image box"]
    """Rows of the objects of all images; without a meaning where an image has no objects."""
    is_positive: Bool[Tensor, "image box"]
    is_negative: Bool[Tensor, "image box"]


def match_boxes(
    boxes: Float[Tensor, "image box 4"],
    objects: Sequence[Float[Tensor, "_ 4"]],
    *,
    fg_iou: float,
    bg_iou: float,
    allow_low_quality: bool = False,
) -> Matches:
    """Match the boxes of each image with its objects as torchvision's `Matcher` does, without waiting for the device.

    With `allow_low_quality`, the best boxes of each object, including ties, are positive at any IoU above 0.
    """
    first, rows, is_positive, is_negative = 0, [], [], []
    for image_boxes, image_objects in zip(boxes, objects, strict=True):
        best_iou, best_object, is_best = _match_image(image_boxes, image_objects)
        is_match = best_iou >= fg_iou
        if allow_low_quality:
            is_match |= is_best
        rows.append(best_object + first)
        is_positive.append(is_match)
        is_negative.append((best_iou < bg_iou) & ~is_match)
        first += len(image_objects)
    return Matches(torch.stack(rows), torch.stack(is_positive), torch.stack(is_negative))


def _match_image(
    boxes: Float[Tensor, "box 4"], objects: Float[Tensor, "object 4"]
) -> tuple[Float[Tensor, " box"], Int64[Tensor, " box"], Bool[Tensor, " box"]]:
    """Return the largest IoU of each box, its object, and whether the box is a best one of any object.

    Objects are processed in chunks, so that the memory does not depend on their number.
    """
    best_iou = boxes.new_full((len(boxes),), -1)
    best_object = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    is_best = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    chunk = max(_MAX_PAIRS // max(len(boxes), 1), 1)
    for first in range(0, len(objects), chunk):
        iou = box_iou(objects[first : first + chunk], boxes)
        values, rows = iou.max(dim=0)
        is_better = values > best_iou
        best_iou = torch.where(is_better, values, best_iou)
        best_object = torch.where(is_better, rows + first, best_object)
        is_best |= ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)).any(dim=0)
    return best_iou, best_object, is_best


def random_keys(seeds: Int64[Tensor, " image"], count: int, stream: int) -> Int64[Tensor, "image {count}"]:
    """Return random numbers from 0 to 2⁶³ - 1 that depend only on an image's seed, the stream and the position.

    They are SplitMix64's, the same on all devices, and computed without a generator.
    """
    offsets = torch.arange(1, count + 1, device=seeds.device) * _GAMMA
    start = _mix(_mix(seeds) + stream)
    keys = _mix(start[:, None] + offsets)
    return keys.bitwise_and(2**63 - 1)


def _mix(z: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    """Shift as unsigned integers, which torch does not have on all devices."""
    return (z >> bits).bitwise_and(2 ** (64 - bits) - 1)


class Samples(NamedTuple):
    """Samples of each image in a fixed number of slots, the first of which are for positive samples."""

    rows: Int64[Tensor, "image slot"]
    """Positions of the sampled boxes; arbitrary where a slot is empty."""
    is_used: Bool[Tensor, "image slot"]
    is_positive: Bool[Tensor, "image slot"]


def sample_boxes(
    is_positive: Bool[Tensor, "image box"],
    is_negative: Bool[Tensor, "image box"],
    keys: Int64[Tensor, "image box"],
    *,
    samples_per_image: int,
    positive_fraction: float,
) -> Samples:
    """Sample the boxes with the largest keys: up to a fraction of positive ones, and negative ones for the rest."""
    num_boxes = keys.shape[1]
    slots = [min(int(samples_per_image * positive_fraction), num_boxes), min(samples_per_image, num_boxes)]
    (positive_keys, positive), (negative_keys, negative) = (
        keys.masked_fill(~is_candidate, -1).topk(count, dim=1)
        for is_candidate, count in zip((is_positive, is_negative), slots, strict=True)
    )
    has_positive = positive_keys >= 0
    num_negative = samples_per_image - has_positive.sum(dim=1, keepdim=True)
    has_negative = (negative_keys >= 0) & (torch.arange(slots[1], device=keys.device) < num_negative)
    return Samples(
        rows=torch.cat([positive, negative], dim=1),
        is_used=torch.cat([has_positive, has_negative], dim=1),
        is_positive=torch.cat([has_positive, torch.zeros_like(has_negative)], dim=1),
    )

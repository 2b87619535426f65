"""Tiny detectors with random weights, and random objects."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.detectors import Detector

CHANNELS = 8


class PooledPyramid(nn.Module):
    """Maps of strides 4, 8 and 16 from a map of stride 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(dim, CHANNELS, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = self.project(maps[-1])
        return [F.interpolate(x, scale_factor=2.0), x, F.max_pool2d(x, 1, 2)]


def make_spec(size: tuple[int, int] = (64, 64), num_classes: int = 3, **changes: Any) -> DetectorSpec:
    head = {"num_convs": 1, "norm": None}
    values: dict[str, Any] = {
        "backbone": BackboneSpec(
            encoder=EncoderConfig(name="test_vit", patch_size=8, dim=16, depth=1, num_heads=2), image_size=size
        ),
        "classes": [ClassInfo(name=str(index)) for index in range(num_classes)],
        "pyramid": {"name": "simple", "channels": CHANNELS, "depths": [1], "strides": [4, 8, 16]},
        "anchors": {"sizes": [8, 16, 32]},
        "rpn": {"samples_per_image": 32, "post_nms_top_n": 40, "test_post_nms_top_n": 20},
        "rois": {"canonical_size": 64},
        "box_head": {**head, "conv_channels": CHANNELS, "fc_dim": 16, "samples_per_image": 16, "roi_size": 3},
        "mask_head": {**head, "channels": CHANNELS, "roi_size": 4},
    }
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) and values.get(name) else change
    return DetectorSpec.from_dict(values)


def make_detector(seed: int = 0, **changes: Any) -> Detector:
    spec = make_spec(**changes)
    backbone = create_untrained_backbone(spec.backbone)
    backbone.encoder.norm = nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(spec, backbone, PooledPyramid(backbone.dim), None)
        generator = torch.Generator().manual_seed(seed)
        for module in (detector.backbone, detector.pyramid):
            for parameter in module.parameters():
                parameter.data.normal_(0, 0.2, generator=generator)
    detector.initialise_heads(generator)
    return detector


def draw_boxes(count: int, size: tuple[int, int] = (64, 64), *, seed: int = 0) -> Tensor:
    """Random boxes of at least 2 pixels on each side."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]])
    sides = 2 + torch.rand(count, 2, generator=generator) * (limits - 2) * torch.rand(count, 1, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (limits - sides)
    return torch.cat([corners, corners + sides], dim=1)


def draw_masks(boxes: Tensor, *, seed: int = 0) -> BoxMasks:
    """Random masks in the windows that boxes cover."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).int()
    sides = (windows[:, 2:] - windows[:, :2]).tolist()
    masks = [torch.rand(height, width, generator=generator) > 0.4 for width, height in sides]
    return BoxMasks.from_masks(masks, windows)


def draw_inputs(
    counts: list[int], size: tuple[int, int] = (64, 64), *, num_classes: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Arguments of a detector's `forward` for images with these numbers of objects."""
    generator = torch.Generator().manual_seed(seed)
    boxes = draw_boxes(sum(counts), size, seed=seed)
    return {
        "images": torch.randn(len(counts), 3, *size, generator=generator),
        "sizes": torch.tensor([size] * len(counts)),
        "boxes": boxes,
        "labels": torch.randint(num_classes, (sum(counts),), generator=generator),
        "counts": torch.tensor(counts),
        "masks": draw_masks(boxes, seed=seed),
        "seeds": torch.randint(2**62, (len(counts),), generator=generator),
    }


def slice_inputs(inputs: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """The inputs of some of the images."""
    start, end = (int(inputs["counts"][:image].sum()) for image in (first, last))
    per_image = {name: inputs[name][first:last] for name in ("images", "sizes", "counts", "seeds")}
    per_object = {name: inputs[name][start:end] for name in ("boxes", "labels")}
    return per_image | per_object | {"masks": inputs["masks"].select(slice(start, end))}

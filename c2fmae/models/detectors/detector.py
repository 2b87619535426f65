"""A backbone with a pyramid, an RPN, a box head and a mask head: Mask R-CNN."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.detectors.box_head import BoxHead
from c2fmae.models.detectors.boxes import promote
from c2fmae.models.detectors.initialise import initialise_heads
from c2fmae.models.detectors.mask_head import MaskHead
from c2fmae.models.detectors.mask_targets import compute_mask_targets
from c2fmae.models.detectors.roi_align import pool_rois
from c2fmae.models.detectors.rois import SampledRois, box_head_losses, mask_losses, sample_rois, select_detections
from c2fmae.models.detectors.rpn import Rpn, propose, rpn_losses
from c2fmae.models.relative_positions import RelativePositionModule, add_relative_positions, list_called_blocks


@dataclass(frozen=True, eq=False)
class CanvasDetections:
    """Detections of one image, in pixels of the canvas that the detector saw."""

    boxes: Float[Tensor, "detection 4"]
    scores: Float[Tensor, " detection"]
    """From high to low."""
    labels: Int64[Tensor, " detection"]
    mask_probabilities: Float[Tensor, "detection cells cells"] | None
    """Probabilities of the cells of each box; None without a mask head."""


class Detector(nn.Module):
    """Mask R-CNN on the feature maps of a backbone.

    The backbone and the pyramid run in the precision of the surrounding autocast; the RPN and the heads always in
    float32 (or float64, with weights of float64), because bfloat16 positions are off by pixels.
    """

    def __init__(
        self, spec: DetectorSpec, backbone: Backbone, pyramid: nn.Module, relative: RelativePositionModule | None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.relative = relative
        self.pyramid = pyramid
        self.rpn = Rpn(spec)
        self.box_head = BoxHead(spec)
        self.mask_head = MaskHead(spec, spec.mask_head) if spec.mask_head is not None else None
        self.load_report = LoadReport(source="new detector", loaded=())
        """The source of the weights."""

    @property
    def num_classes(self) -> int:
        """The number of classes, without the background."""
        return len(self.spec.classes)

    def initialise_heads(self, generator: torch.Generator) -> None:
        """Initialise the RPN, the box head and the mask head."""
        initialise_heads(self.rpn, self.box_head, self.mask_head, generator)

    def forward(
        self,
        images: Float[Tensor, "image channels height width"],
        sizes: Int64[Tensor, "image 2"],
        boxes: Float[Tensor, "object 4"],
        labels: Int64[Tensor, " object"],
        counts: Int64[Tensor, " image"],
        masks: BoxMasks | None,
        seeds: Int64[Tensor, " image"],
    ) -> dict[str, Float[Tensor, " image"]]:
        """Return the losses of each image: `objectness`, `rpn_box`, `class`, `box` and, with a mask head, `mask`.

        Standardised images are zero beyond their `sizes` (height and width). `counts`, on the CPU, are the objects of
        each image, of which `boxes`, `labels` and `masks` are the concatenation. The anchors and RoIs of an image are
        sampled from its seed, so they do not depend on the batch it is in. The loss of a mask is 0 for an image without
        objects.
        """
        maps = self.feature_maps(images)
        with torch.autocast(images.device.type, enabled=False):
            maps = [promote(x) for x in maps]
            boxes = boxes.to(maps[0].dtype)
            objects = boxes.split(counts.tolist())
            seeds = seeds.to(images.device, non_blocking=True)
            scores = self.rpn(maps)
            losses = rpn_losses(scores, objects, seeds, self.spec.rpn)
            proposals = propose(scores, sizes, self.spec.rpn, is_training=True)
            rois = sample_rois(proposals, objects, seeds, self.spec.box_head)
            logits, deltas = self.box_head(self._pool(maps, rois.boxes, rois.images, self.spec.box_head.roi_size))
            losses |= box_head_losses(logits, deltas, rois, boxes, labels, self.spec.box_head)
            if self.mask_head is not None:
                if masks is None:
                    raise ValueError("masks: a detector with a mask head needs the masks of all objects (got None)")
                losses["mask"] = self._mask_losses(maps, rois, labels, masks, sizes)
        return losses

    @torch.no_grad()
    def detect(
        self,
        images: Float[Tensor, "image channels height width"],
        sizes: Int64[Tensor, "image 2"],
        *,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> list[CanvasDetections]:
        """Return the detections of standardised images, which are zero beyond their `sizes`."""
        maps = self.feature_maps(images)
        with torch.autocast(images.device.type, enabled=False):
            maps = [promote(x) for x in maps]
            proposals = propose(self.rpn(maps), sizes, self.spec.rpn, is_training=False)
            rows = proposals.is_used.nonzero()[:, 0]
            rois = self._pool(maps, proposals.boxes[proposals.is_used], rows, self.spec.box_head.roi_size)
            logits, deltas = self.box_head(rois)
            detections = select_detections(
                logits,
                deltas,
                proposals,
                sizes,
                self.spec.box_head,
                score_threshold=score_threshold,
                nms_threshold=nms_threshold,
                max_detections=max_detections,
            )
            if self.mask_head is None:
                return [CanvasDetections(*image, mask_probabilities=None) for image in detections]
            counts = [len(image.boxes) for image in detections]
            rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(images.device)
            boxes, labels = torch.cat([image.boxes for image in detections]), torch.cat([i.labels for i in detections])
            probabilities = self._mask_logits(maps, boxes, rows, labels).sigmoid()
            return [
                CanvasDetections(*image, mask_probabilities=part)
                for image, part in zip(detections, probabilities.split(counts), strict=True)
            ]

    def feature_maps(self, images: Float[Tensor, "image channels height width"]) -> Sequence[Tensor]:
        """Return the maps of the pyramid, from fine to coarse."""
        maps = self.backbone.feature_maps(
            images,
            self.spec.pyramid.depths,
            normed=False,
            relative=self.relative,
            windows=self.spec.windows,
        )
        return self.pyramid(maps)  # type: ignore[no-any-return]

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the layers of the backbone, with the relative positions of each block."""
        return add_relative_positions(self.backbone.trunk_layers(), self.relative)

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks of the backbone, if they are called as modules."""
        return list_called_blocks(self.backbone.sharding_units(), self.relative, self.spec.windows)

    def _mask_losses(
        self,
        maps: Sequence[Tensor],
        rois: SampledRois,
        labels: Int64[Tensor, " object"],
        masks: BoxMasks,
        sizes: Int64[Tensor, "image 2"],
    ) -> Float[Tensor, " image"]:
        head = self.spec.mask_head
        assert head is not None
        boxes, images, objects = (values[rois.is_positive] for values in (rois.boxes, rois.images, rois.objects))
        targets = compute_mask_targets(
            masks, objects, boxes, sizes[images], size=2 * head.roi_size, aligned=self.spec.rois.aligned
        )
        if head.binary_targets:
            targets = (targets >= 0.5).to(targets.dtype)
        return mask_losses(self._mask_logits(maps, boxes, images, labels[objects]), targets, rois.is_positive_slot)

    def _mask_logits(
        self, maps: Sequence[Tensor], boxes: Float[Tensor, "roi 4"], images: Tensor, labels: Int64[Tensor, " roi"]
    ) -> Float[Tensor, "roi cells cells"]:
        """Return the logits of the mask of each box's class."""
        assert self.spec.mask_head is not None
        assert self.mask_head is not None
        logits: Tensor = self.mask_head(self._pool(maps, boxes, images, self.spec.mask_head.roi_size))
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def _pool(
        self, maps: Sequence[Tensor], boxes: Float[Tensor, "roi 4"], images: Int64[Tensor, " roi"], size: int
    ) -> Float[Tensor, "roi channels {size} {size}"]:
        strides, rois = self.spec.pyramid.roi_strides, self.spec.rois
        return pool_rois(
            maps[: len(strides)],
            strides,
            boxes,
            images,
            size=size,
            canonical_size=rois.canonical_size,
            sampling_ratio=rois.sampling_ratio,
            aligned=rois.aligned,
        )

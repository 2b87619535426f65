"""Comparison with torchvision's Mask R-CNN, with the settings in which both are defined alike."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from c2fmae.models.detectors import Detector
from c2fmae.models.detectors.sampling import random_keys, sample_boxes
from tests.models.detectors.noise_detectors import CHANNELS, draw_inputs, make_detector

NUM_CLASSES = 3
NUM_OBJECTS = 5
RATIOS = (0.25, 1.0, 4.0)  # torchvision rounds the sides of anchors; these are integers
SMOOTH = {"name": "smooth_l1", "beta": 1 / 9, "weight": 1.0}
SCORE, NMS, NUM_DETECTIONS = 0.05, 0.5, 20


class PyramidOf(nn.Module):
    """The maps of a detector, as a backbone of torchvision."""

    out_channels = CHANNELS

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.pyramid = detector.backbone, detector.pyramid
        self.maps = [detector.feature_maps]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return OrderedDict((str(level), x) for level, x in enumerate(self.maps[0](images)))


class SeededSampler:
    """The sampling of this package, for an image whose candidates end with `num_last` ones after a gap."""

    def __init__(self, seeds: Tensor, stream: int, num: int, fraction: float, width: int, num_last: int) -> None:
        self.keys = random_keys(seeds, width + num_last, stream)
        self.num, self.fraction, self.num_last = num, fraction, num_last

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        (image_labels,) = labels
        num_first = len(image_labels) - self.num_last
        first, last = self.keys[:, :num_first], self.keys[:, self.keys.shape[1] - self.num_last :]
        samples = sample_boxes(
            image_labels[None] >= 1,
            image_labels[None] == 0,
            torch.cat([first, last], dim=1),
            samples_per_image=self.num,
            positive_fraction=self.fraction,
        )
        masks = []
        for is_sample in (samples.is_positive, samples.is_used & ~samples.is_positive):
            mask = torch.zeros_like(image_labels, dtype=torch.uint8)
            mask[samples.rows[is_sample]] = 1
            masks.append([mask])
        return masks[0], masks[1]


def make_compatible_detector() -> Detector:
    detector = make_detector(
        num_classes=NUM_CLASSES,
        anchors={"ratios": RATIOS},
        rpn={"box_loss": SMOOTH},
        rois={"aligned": False, "sampling_ratio": 2},
        box_head={"box_loss": SMOOTH},
        mask_head={"binary_targets": False},
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for head in (detector.rpn, detector.box_head, detector.mask_head):
            assert head is not None
            for parameter in head.parameters():
                parameter.normal_(0, 0.1, generator=generator)
    return detector


def make_torchvision_detector(detector: Detector, seeds: Tensor) -> MaskRCNN:
    spec = detector.spec
    names = [str(level) for level in range(len(spec.pyramid.roi_strides))]
    assert spec.mask_head is not None
    pools = (
        MultiScaleRoIAlign(names, size, 2, canonical_scale=int(spec.rois.canonical_size))
        for size in (spec.box_head.roi_size, spec.mask_head.roi_size)
    )
    size = spec.box_head.roi_size
    model = MaskRCNN(
        PyramidOf(detector),
        num_classes=None,
        min_size=64,
        max_size=64,
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        rpn_anchor_generator=AnchorGenerator([(int(side),) for side in spec.anchors.sizes], [RATIOS] * 3),
        rpn_head=RPNHead(CHANNELS, len(RATIOS)),
        rpn_pre_nms_top_n_train=spec.rpn.pre_nms_top_n,
        rpn_pre_nms_top_n_test=spec.rpn.test_pre_nms_top_n,
        rpn_post_nms_top_n_train=spec.rpn.post_nms_top_n,
        rpn_post_nms_top_n_test=spec.rpn.test_post_nms_top_n,
        box_roi_pool=next(pools),
        box_head=FastRCNNConvFCHead((CHANNELS, size, size), [CHANNELS], [16]),
        box_predictor=FastRCNNPredictor(16, NUM_CLASSES + 1),
        mask_roi_pool=next(pools),
        mask_head=MaskRCNNHeads(CHANNELS, [CHANNELS], 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, NUM_CLASSES + 1),
        box_score_thresh=SCORE,
        box_nms_thresh=NMS,
        box_detections_per_img=NUM_DETECTIONS,
    ).double()
    for target, source in pair_parameters(model, detector):
        target.data.zero_()
        target.data[: len(source)] = source.data
    roll_classes(model, 1)
    compute_loss = model.rpn.compute_loss  # which computes in the precision of its labels, float32
    model.rpn.compute_loss = lambda logits, deltas, labels, targets: compute_loss(
        logits, deltas, [image_labels.double() for image_labels in labels], targets
    )
    rpn, head = spec.rpn, spec.box_head
    num_anchors = len(RATIOS) * (16**2 + 8**2 + 4**2)
    model.rpn.fg_bg_sampler = SeededSampler(seeds, 0, rpn.samples_per_image, rpn.positive_fraction, num_anchors, 0)
    model.roi_heads.fg_bg_sampler = SeededSampler(
        seeds, 1, head.samples_per_image, head.positive_fraction, rpn.post_nms_top_n, NUM_OBJECTS
    )
    return model


def pair_parameters(model: MaskRCNN, detector: Detector) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of the heads, in the same order in both."""
    heads = model.roi_heads
    theirs = [model.rpn.head, heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor]
    ours: list[nn.Module | None] = [detector.rpn, detector.box_head, detector.mask_head]
    return list(
        zip(
            (p for module in theirs for p in module.parameters()),
            (p for module in ours if module is not None for p in module.parameters()),
            strict=True,
        )
    )


def roll_classes(model: Any, shift: int) -> None:
    """Move the background from the last class, where it is here, to the first, or with -1 back."""
    heads = model.roi_heads
    layers = [heads.box_predictor.cls_score, heads.box_predictor.bbox_pred, heads.mask_predictor.mask_fcn_logits]
    for layer, width in zip(layers, (1, 4, 1), strict=True):
        for parameter in layer.parameters():
            parameter.data = parameter.data.roll(shift * width, 0)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.roll(shift * width, 0)


@pytest.mark.numeric
def test_losses_gradients_and_detections_equal_those_of_torchvision() -> None:
    detector = make_compatible_detector().train()
    inputs = draw_inputs([NUM_OBJECTS], num_classes=NUM_CLASSES)
    inputs |= {name: inputs[name].double() for name in ("images", "boxes")}
    theirs = make_torchvision_detector(detector, inputs["seeds"]).train()
    masks = torch.zeros(NUM_OBJECTS, 64, 64, dtype=torch.uint8)
    for row, (x0, y0, x1, y1) in enumerate(inputs["masks"].windows.tolist()):
        masks[row, y0:y1, x0:x1] = inputs["masks"].unpack(torch.tensor([row]))[0]
    target = {"boxes": inputs["boxes"], "labels": inputs["labels"] + 1, "masks": masks}

    losses = detector(**inputs)
    names = ["class", "box", "mask", "objectness", "rpn_box"]
    expected = dict(zip(names, theirs([*inputs["images"]], [target]).values(), strict=True))
    for name, loss in losses.items():
        torch.testing.assert_close(loss[0], expected[name], rtol=0, atol=1e-12)

    trunk = [*detector.backbone.parameters(), *detector.pyramid.parameters()]
    gradients = []
    for total in (sum(loss[0] for loss in losses.values()), sum(expected.values())):
        assert isinstance(total, Tensor)
        total.backward()
        gradients.append([p.grad for p in trunk])
        for p in trunk:
            p.grad = None
    roll_classes(theirs, -1)
    heads = pair_parameters(theirs, detector)
    gradients[0] += [q.grad for _, q in heads]
    gradients[1] += [p.grad[: len(q)] for p, q in heads if p.grad is not None]
    assert all(gradient is not None and gradient.abs().max() > 1e-4 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)

    roll_classes(theirs, 1)
    (detections,) = detector.eval().detect(
        inputs["images"],
        inputs["sizes"],
        score_threshold=SCORE,
        nms_threshold=NMS,
        max_detections=NUM_DETECTIONS,
    )
    images, _ = theirs.eval().transform(inputs["images"])
    with torch.no_grad():
        maps = theirs.backbone(images.tensors)
        (found,), _ = theirs.roi_heads(maps, theirs.rpn(images, maps)[0], images.image_sizes)
    assert len(found["scores"]) > 5
    assert (detections.labels + 1).tolist() == found["labels"].tolist()
    for ours, peer in [
        (detections.boxes, found["boxes"]),
        (detections.scores, found["scores"]),
        (detections.mask_probabilities, found["masks"][:, 0]),
    ]:
        torch.testing.assert_close(ours, peer, rtol=0, atol=1e-12)

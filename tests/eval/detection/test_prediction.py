"""Detections in an image: its resize and padding, and boxes and masks in its own pixels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.objects import Detections
from c2fmae.core.rle import decode_mask
from c2fmae.data.geometry import resized_crop_image
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.models.detectors import CanvasDetections, Detector
from c2fmae.models.detectors.paste import finish_detections
from tests.eval.segmentation.tiny_segmenters import draw_image
from tests.models.detectors.noise_detectors import make_detector

TESTING = DetectionTestingConfig(short_side=64, max_side=90, score_threshold=0.2, nms_threshold=0.6, max_detections=15)
OPTIONS: dict[str, Any] = {"score_threshold": 0.2, "nms_threshold": 0.6, "max_detections": 15}


def are_equal(one: Detections, other: Detections) -> bool:
    columns = ("boxes", "scores", "labels")
    return one.masks == other.masks and all(torch.equal(getattr(one, c), getattr(other, c)) for c in columns)


@pytest.mark.parametrize(
    ("canvas", "resized", "padded"), [(None, (64, 85), (64, 88)), (80, (60, 80), (80, 80))], ids=["sides", "square"]
)
def test_an_image_is_resized_and_padded_with_zeros(
    canvas: int | None, resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    detector, image = make_detector().eval(), draw_image(48, 64)
    shown = resized_crop_image(image, CropBox(0, 0, 48, 64), resized)
    images = detector.backbone.standardise(shown[None])
    images = F.pad(images, (0, padded[1] - resized[1], 0, padded[0] - resized[0]))
    (canvas_detections,) = detector.detect(images, torch.tensor([resized]), **OPTIONS)
    expected = finish_detections(canvas_detections, (resized[0] / 48, resized[1] / 64), (48, 64))
    actual = detect_objects(detector, image, TESTING.model_copy(update={"canvas": canvas}))
    assert len(actual) > 5
    assert are_equal(actual, expected)
    assert are_equal(actual, detect_objects(detector, image, TESTING.model_copy(update={"canvas": canvas})))


class CentreDetector(Detector):
    """Finds one object that reaches from the centre of the canvas's image beyond its end."""

    def detect(self, images: Tensor, sizes: Tensor, **options: Any) -> list[CanvasDetections]:
        assert options == OPTIONS
        assert images.dtype == torch.float32
        height, width = sizes[0].tolist()
        boxes = torch.tensor([[width / 2, height / 2, width + 8.0, height + 8.0]])
        return [CanvasDetections(boxes, torch.tensor([0.9]), torch.tensor([1]), torch.ones(1, 4, 4))]


@pytest.mark.parametrize("size", [(40, 60), (128, 100), (31, 200), (1, 1)])
def test_boxes_and_masks_are_inside_of_the_image(size: tuple[int, int]) -> None:
    detector = make_detector().eval()
    detector.__class__ = CentreDetector
    found = detect_objects(detector, draw_image(*size), TESTING)
    height, width = size
    torch.testing.assert_close(found.boxes, torch.tensor([[width / 2, height / 2, width, height]]))
    assert found.masks is not None
    mask = decode_mask(found.masks[0], *size)
    assert mask.shape == size
    assert mask[(height + 1) // 2 :, (width + 1) // 2 :].all()
    assert mask[: height // 2].sum() == mask[:, : width // 2].sum() == 0


def test_other_weights_replace_those_of_the_detector() -> None:
    detector, other, image = make_detector().eval(), make_detector(seed=1).eval(), draw_image(48, 64)
    expected = detect_objects(other, image, TESTING)
    assert are_equal(detect_objects(detector, image, TESTING, weights=dict(other.named_parameters())), expected)
    assert not are_equal(detect_objects(detector, image, TESTING), expected)


def test_detections_of_bfloat16_have_float32_boxes() -> None:
    detector, image = make_detector().eval(), draw_image(48, 64)
    found = detect_objects(detector, image, TESTING.model_copy(update={"precision": "bf16"}))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert not are_equal(found, detect_objects(detector, image, TESTING))


def test_a_detector_without_masks_finds_boxes() -> None:
    found = detect_objects(make_detector(mask_head=None).eval(), draw_image(48, 64), TESTING)
    assert len(found) > 5
    assert found.masks is None
    assert (found.scores[1:] <= found.scores[:-1]).all()


def test_a_protocol_describes_the_resize() -> None:
    assert "shorter sides of images resized to 800, longer ones at most 1,333;" in DetectionTestingConfig().describe()
    description = DetectionTestingConfig(canvas=1024, precision="bf16", engine="pycocotools").describe()
    assert "images resized to fit a square of 1,024 pixels; at most 100 detections" in description
    assert "; bf16; COCO's metrics by pycocotools 2." in description

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.data.geometry import resized_crop_image
from c2fmae.eval.segmentation import prediction
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.segmenters import Segmenter
from tests.eval.segmentation.tiny_segmenters import CROP, draw_image, tiny_segmenter

pytestmark = pytest.mark.numeric


def interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def compute_logits(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Return the logits of every pixel of an image that is predicted at once."""
    pixels = segmenter.backbone.standardise(image[None])
    padded = F.pad(pixels, (0, -image.shape[2] % 8, 0, -image.shape[1] % 8))
    logits = interpolate(segmenter.logits(padded)[0], (padded.shape[2], padded.shape[3]))
    return logits[:, : image.shape[1], : image.shape[2]]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return resized_crop_image(image, CropBox(0, 0, image.shape[1], image.shape[2]), size)


@pytest.mark.parametrize("size", [CROP, (20, 31), (64, 40), (7, 9)])
@torch.no_grad()
def test_whole_images_are_predicted_at_once_at_their_own_size(size: tuple[int, int]) -> None:
    segmenter, image = tiny_segmenter(), draw_image(*size)
    ids = predict_ids(segmenter, image, TestingConfig(mode="whole"))
    assert ids.dtype == torch.uint8
    assert torch.equal(ids, compute_logits(segmenter, image).argmax(dim=0).byte())
    if max(size) <= CROP[0]:
        assert torch.equal(predict_ids(segmenter, image, TestingConfig()), ids)


@torch.no_grad()
def test_logits_of_windows_are_averaged_before_the_argmax() -> None:
    segmenter, image = tiny_segmenter(), draw_image(32, 45)
    left, right = (compute_logits(segmenter, part) for part in (image[:, :, :32], image[:, :, 13:]))
    logits = torch.cat([left[:, :, :13], (left[:, :, 13:] + right[:, :, :19]) / 2, right[:, :, 19:]], dim=2)
    testing = TestingConfig(stride=20, batch_size=1)  # one window in a pass, as here
    assert torch.equal(predict_ids(segmenter, image, testing), logits.argmax(dim=0).byte())
    assert not torch.equal(logits.argmax(dim=0), compute_logits(segmenter, image).argmax(dim=0))


@torch.no_grad()
def test_logits_of_a_resized_image_are_resized_to_the_image() -> None:
    segmenter, image = tiny_segmenter(), draw_image(60, 80)
    logits = compute_logits(segmenter, resize(image, (24, 32)))
    ids = predict_ids(segmenter, image, TestingConfig(short_side=24))
    assert torch.equal(ids, interpolate(logits, (60, 80)).argmax(dim=0).byte())


@torch.no_grad()
def test_probabilities_of_scales_and_flips_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in mmsegmentation: the logits of each view are resized to the image before the softmax."""
    monkeypatch.setattr(prediction, "_PIXELS_AT_ONCE", 1000)
    segmenter, image = tiny_segmenter(), draw_image(60, 80)
    total = torch.zeros(4, 60, 80)
    for size in ((12, 16), (24, 32)):
        for view, is_flipped in ((resize(image, size), False), (resize(image, size).flip(2), True)):
            logits = compute_logits(segmenter, view)
            total += interpolate(logits.flip(2) if is_flipped else logits, (60, 80)).softmax(dim=0)
    ids = predict_ids(segmenter, image, TestingConfig(short_side=24, scales=(0.5, 1.0), flip=True))
    is_close = (total.topk(2, dim=0).values.diff(dim=0).abs() < 1e-5)[0]
    assert torch.equal(ids[~is_close], total.argmax(dim=0).byte()[~is_close])
    assert is_close.float().mean() < 0.01
    assert not torch.equal(ids, predict_ids(segmenter, image, TestingConfig(short_side=24)))


def test_a_flip_of_the_image_flips_the_ids() -> None:
    segmenter, image = tiny_segmenter(), draw_image(32, 32)
    testing = TestingConfig(flip=True)
    flipped = predict_ids(segmenter, image.flip(2), testing).flip(1)
    assert (predict_ids(segmenter, image, testing) == flipped).float().mean() > 0.999


def test_other_weights_replace_those_of_the_segmenter() -> None:
    segmenter, other, image = tiny_segmenter(), tiny_segmenter(seed=1), draw_image(40, 40)
    ids = predict_ids(segmenter, image, TestingConfig(), weights=dict(other.named_parameters()))
    assert torch.equal(ids, predict_ids(other, image, TestingConfig()))
    assert not torch.equal(ids, predict_ids(segmenter, image, TestingConfig()))


def test_grey_images_and_short_floats_are_predicted() -> None:
    segmenter, image = tiny_segmenter(), draw_image(33, 47)
    grey = predict_ids(segmenter, image[:1], TestingConfig())
    assert torch.equal(grey, predict_ids(segmenter, image[:1].expand(3, -1, -1), TestingConfig()))
    short = predict_ids(segmenter, image, TestingConfig(precision="bf16"))
    assert (short == predict_ids(segmenter, image, TestingConfig())).float().mean() > 0.9

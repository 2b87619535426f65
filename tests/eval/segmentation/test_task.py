"""The training step of segmenters: counts, losses, padding and micro-batches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.core.segmentation_head_options import FcnOptions, UperNetOptions
from c2fmae.core.specs import HeadSpec
from c2fmae.data.crops.scaled_crop import ScaledCrop
from c2fmae.data.segmentation_batch import SegmentationBatch, SegmentationSample
from c2fmae.eval.segmentation.task import LabelledCrop, SegmentationTask, check_class_ids
from c2fmae.models.segmenters import Segmenter, segmenter_from_backbone
from tests.eval.segmentation.tiny_segmentation import SPEC, draw_halves
from tests.eval.tiny_backbones import tiny_backbone

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    options = UperNetOptions(
        channels=16,
        pool_scales=(1, 2),
        rescales=(2, 1),
        dropout=0,
        auxiliary=FcnOptions(channels=8, dropout=0),
    )
    return (
        segmenter_from_backbone(
            tiny_backbone(SPEC),
            [ClassInfo(name=name) for name in "abc"],
            head=HeadSpec(name="upernet", options=options.model_dump(mode="json")),
            depths=(1, 2),
            normed=False,
            norm="group",
            relative="none",
            drop_path=0.0,
            image_size=(16, 16),
            generator=torch.Generator().manual_seed(0),
        )
        .double()
        .train()
    )


def make_batch(count: int, *, seed: int = 0) -> SegmentationBatch:
    samples = [
        SegmentationSample(scene.key, scene.maps["rgb"], scene.maps["semantic"])
        for scene in draw_halves(count, seed=seed, size=(16, 16))
    ]
    return SegmentationBatch.stack(samples, (16, 16))


def compute_step(
    segmenter: Segmenter, batch: SegmentationBatch, num_micro_batches: int = 1, weight: float = 0.4
) -> tuple[float, dict[str, float], torch.Tensor]:
    """Return the loss of a step, its terms and the gradient of all parameters."""
    task = SegmentationTask(segmenter, weight)
    parts = task.split(batch, num_micro_batches=num_micro_batches, step=0, progress=0.0, world=World())
    counts = {"labelled": sum((task.compute_counts(part)["labelled"] for part in parts), torch.tensor(0))}
    segmenter.zero_grad()
    losses = [task.compute_losses(segmenter, part, counts) for part in parts]
    for loss in losses:
        loss.total.backward()
    terms = {name: sum(float(loss.terms[name]) for loss in losses) for name in losses[0].terms}
    gradients = [parameter.grad.flatten() for parameter in segmenter.parameters() if parameter.grad is not None]
    return sum(loss.total.item() for loss in losses), terms, torch.cat(gradients)


def test_the_loss_is_a_mean_over_labelled_pixels_of_both_heads(segmenter: Segmenter) -> None:
    batch = make_batch(4)
    total, terms, _ = compute_step(segmenter, batch)
    outputs = segmenter(segmenter.backbone.standardise(batch.images).double())
    for name, loss in terms.items():
        logits = F.interpolate(outputs[name], (16, 16), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(logits, batch.ids.long(), ignore_index=255)
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    assert total == pytest.approx(terms["main"] + 0.4 * terms["auxiliary"])


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_micro_batches_add_up_to_the_batch(segmenter: Segmenter, num_micro_batches: int) -> None:
    batch = make_batch(4)
    batch.ids[0] = 255  # the parts have different numbers of labelled pixels
    batch.ids[1, :10] = 255
    whole, divided = compute_step(segmenter, batch), compute_step(segmenter, batch, num_micro_batches)
    assert divided[0] == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(divided[2], whole[2], rtol=1e-9, atol=1e-12)


def test_padding_never_counts(segmenter: Segmenter) -> None:
    """The crop of a wide image covers a part of the rows."""
    (scene,) = draw_halves(1, size=(10, 40))
    crop = ScaledCrop(size=(16, 16), short_side=10, scale=(1, 1), max_class_share=1, flip=0, distort=False)
    sample = crop(scene, np.random.default_rng(0))
    assert sample.image.shape == (3, 10, 16)
    batch = SegmentationBatch.stack([sample], (16, 16))
    batch.images[:, :, 10:] = 77  # may be anything
    (part,) = SegmentationTask(segmenter, 0.4).split(batch, num_micro_batches=1, step=0, progress=0.0, world=World())
    inside = segmenter.backbone.standardise(sample.image[None]).double()
    assert torch.equal(part.images[:, :, :10], inside)
    assert not part.images[:, :, 10:].any()
    _, terms, _ = compute_step(segmenter, batch)
    logits = segmenter(part.images)["main"]
    upsampled = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)[:, :, :10]
    expected = F.cross_entropy(upsampled, sample.ids.long()[None], ignore_index=255)
    assert terms["main"] == pytest.approx(expected.item(), rel=1e-9)


def test_an_image_without_labels_adds_nothing(segmenter: Segmenter) -> None:
    batch, alone = make_batch(2), make_batch(1)
    batch.ids[1] = 255
    assert torch.equal(batch.images[:1], alone.images)
    (total, _, gradient), (expected, _, expected_gradient) = (compute_step(segmenter, b) for b in (batch, alone))
    assert total == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero(segmenter: Segmenter) -> None:
    batch = make_batch(2)
    batch.ids[:] = 255
    total, _, gradient = compute_step(segmenter, batch)
    assert total == 0
    assert not gradient.any()


def test_ids_that_are_no_class_are_named() -> None:
    ids = torch.tensor([[0, 2], [255, 1]], dtype=torch.uint8)
    check_class_ids("a", ids, 3)
    message = (
        "a: its semantic map has the id 2 (expected 0 to 1, or 255 where nothing is labelled). Correct the map, or "
        "add the class to dataset.json"
    )
    with pytest.raises(UserError) as caught:
        check_class_ids("a", ids, 2)
    assert str(caught.value) == message
    crop = LabelledCrop(ScaledCrop(size=(2, 2), short_side=2, scale=(1, 1), max_class_share=1, flip=0), 2)
    with pytest.raises(UserError) as caught:
        crop(Scene("a", {"rgb": torch.zeros(3, 2, 2, dtype=torch.uint8), "semantic": ids}), np.random.default_rng(0))
    assert str(caught.value) == message

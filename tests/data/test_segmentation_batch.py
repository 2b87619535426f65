import numpy as np
import pytest
import torch

from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data.crops.scaled_crop import ScaledCrop
from c2fmae.data.segmentation_batch import SegmentationBatch, SegmentationSample
from c2fmae.models.segmenters.losses import upsampled_cross_entropy


def make_sample(key: str, height: int, width: int, stride: int = 1) -> SegmentationSample:
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(1, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    cells = (-(-height // stride), -(-width // stride))
    ids = torch.randint(9, cells, generator=generator, dtype=torch.uint8)
    return SegmentationSample(key, image, ids, stride)


@pytest.mark.parametrize("stride", [1, 4])
def test_samples_are_padded_at_the_right_and_the_bottom(stride: int) -> None:
    samples = [make_sample("a", 16, 16, stride), make_sample("b", 7, 13, stride), make_sample("c", 16, 1, stride)]
    batch = SegmentationBatch.stack(samples, (16, 16))
    assert len(batch) == 3
    assert batch.keys == ("a", "b", "c")
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.ids.shape == (3, 16 // stride, 16 // stride)
    assert batch.sizes.tolist() == [[16, 16], [7, 13], [16, 1]]
    for row, sample in enumerate(samples):
        height, width = batch.sizes[row].tolist()
        rows, columns = sample.ids.shape
        assert batch.images[row, :, :height, :width].equal(sample.image)
        assert batch.ids[row, :rows, :columns].equal(sample.ids)
        padding = torch.ones(batch.ids.shape[1:], dtype=torch.bool)
        padding[:rows, :columns] = False
        assert (batch.ids[row][padding] == IGNORE).all()


def test_the_padding_of_a_narrow_image_is_not_labelled() -> None:
    scene = Scene(
        "key",
        {
            "semantic": torch.zeros(40, 600, dtype=torch.uint8),
            "rgb": torch.full((3, 40, 600), 9, dtype=torch.uint8),
        },
    )
    sample = ScaledCrop(size=(128, 128), short_side=128, distort=False)(scene, np.random.default_rng(0))
    batch = SegmentationBatch.stack([sample], (128, 128))
    height, width = batch.sizes[0].tolist()
    assert height < 128
    assert (batch.ids != IGNORE).sum() == height * width
    assert (batch.images != 0).sum() == 3 * height * width


def test_padding_adds_nothing_to_the_loss() -> None:
    sample = make_sample("a", 7, 13)
    batch = SegmentationBatch.stack([sample], (16, 16))
    logits = torch.randn(1, 9, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, part = (
        upsampled_cross_entropy(logits, batch.ids),
        upsampled_cross_entropy(logits[..., :7, :13], sample.ids[None]),
    )
    assert torch.allclose(whole, part, rtol=1e-12, atol=0)


def test_samples_of_two_label_strides_are_not_stacked() -> None:
    samples = [make_sample("a", 8, 8), make_sample("b", 8, 8, 4)]
    with pytest.raises(ValueError, match="one label stride, got"):
        SegmentationBatch.stack(samples, (8, 8))


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = SegmentationBatch.stack([make_sample("a", 8, 8)], (8, 8)).to("meta")
    assert batch.keys == ("a",)
    assert {tensor.device.type for tensor in (batch.images, batch.sizes, batch.ids)} == {"meta"}

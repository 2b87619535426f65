import pytest
import torch

from c2fmae.core.box_masks import BoxMasks
from c2fmae.data.detection_batch import DetectionBatch, DetectionSample


def make_sample(key: str, height: int, width: int, count: int, *, has_masks: bool = True) -> DetectionSample:
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(1, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    windows = torch.tensor([[0, 0, width - k, height] for k in range(count)], dtype=torch.int32).view(-1, 4)
    parts = [torch.ones(height, width - k, dtype=torch.uint8) for k in range(count)]
    labels = torch.arange(count) + 10 * height
    return DetectionSample(
        key, image, windows.float(), labels, BoxMasks.from_masks(parts, windows) if has_masks else None
    )


def test_samples_are_padded_at_the_right_and_the_bottom() -> None:
    samples = [make_sample("a", 16, 16, 2), make_sample("b", 7, 13, 0), make_sample("c", 16, 3, 1)]
    batch = DetectionBatch.stack(samples, size=(18, 20))
    assert len(batch) == 3
    assert batch.keys == ("a", "b", "c")
    assert batch.images.shape == (3, 3, 18, 20)
    assert batch.sizes.tolist() == [[16, 16], [7, 13], [16, 3]]
    for row, sample in enumerate(samples):
        height, width = batch.sizes[row].tolist()
        assert batch.images[row, :, :height, :width].equal(sample.image)
        assert (batch.images[row] != 0).sum() == 3 * height * width
    assert batch.counts.tolist() == [2, 0, 1]
    assert batch.labels.tolist() == [160, 161, 160]
    assert batch.boxes.tolist() == [[0, 0, 16, 16], [0, 0, 15, 16], [0, 0, 3, 16]]
    assert batch.masks is not None
    assert batch.masks.unpack(torch.arange(3)).sum(dim=(1, 2)).tolist() == [16 * 16, 16 * 15, 16 * 3]


@pytest.mark.parametrize(("sides", "expected"), [((32, 64), (32, 64)), ((33, 20), (64, 32)), ((1, 1), (32, 32))])
def test_without_a_size_the_largest_side_of_a_batch_decides(sides: tuple[int, int], expected: tuple[int, int]) -> None:
    batch = DetectionBatch.stack([make_sample("a", sides[0], 1, 0), make_sample("b", 1, sides[1], 0)], divisor=32)
    assert tuple(batch.images.shape[2:]) == expected


def test_a_batch_is_split_with_its_objects() -> None:
    samples = [make_sample(f"{height}", height, 9, height % 3) for height in range(3, 8)]
    parts = list(DetectionBatch.stack(samples, size=(8, 9)).split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    for part, first in zip(parts, (0, 2, 4), strict=True):
        expected = DetectionBatch.stack(samples[first : first + 2], size=(8, 9))
        assert part.keys == expected.keys
        for name in ("images", "sizes", "boxes", "labels", "counts"):
            assert torch.equal(getattr(part, name), getattr(expected, name))
        assert part.masks is not None
        assert expected.masks is not None
        for name in ("windows", "bits", "offsets"):
            assert torch.equal(getattr(part.masks, name), getattr(expected.masks, name))


def test_data_without_masks_gives_batches_without_masks() -> None:
    samples = [make_sample("a", 8, 8, 1, has_masks=False), make_sample("b", 8, 8, 0, has_masks=False)]
    batch = DetectionBatch.stack(samples)
    assert batch.masks is None
    assert [part.masks for part in batch.split(1)] == [None, None]
    with pytest.raises(ValueError, match="expected masks in all samples or in none"):
        DetectionBatch.stack([*samples, make_sample("c", 8, 8, 0)])


def test_a_batch_moves_with_all_its_tensors_but_the_counts() -> None:
    batch = DetectionBatch.stack([make_sample("a", 8, 8, 2)]).to("meta")
    assert batch.masks is not None
    tensors = (batch.images, batch.sizes, batch.boxes, batch.labels, batch.masks.bits)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.counts.tolist() == [2]

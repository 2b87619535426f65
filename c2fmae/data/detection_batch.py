"""Samples of detection, and batches of them: images padded to one size, with the boxes, labels and masks of objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks


@dataclass(frozen=True)
class DetectionSample:
    """An image, or a part of one, with the objects that are visible in it."""

    key: str
    image: UInt8[Tensor, "channels height width"]
    boxes: Float32[Tensor, "object 4"]
    """x0, y0, x1 and y1 of each object in pixels of the sample."""
    labels: Int64[Tensor, " object"]
    masks: BoxMasks | None
    """None for data that has boxes only."""


@dataclass(frozen=True)
class DetectionBatch:
    """Samples that are padded at the right and the bottom to one size, and their objects in the same order."""

    keys: tuple[str, ...]
    images: UInt8[Tensor, "batch channels height width"]
    """Pixels beyond a sample's size are 0: set them to the mean colour after standardisation."""
    sizes: Int64[Tensor, "batch 2"]
    """Height and width of each sample without its padding, in pixels."""
    boxes: Float32[Tensor, "object 4"]
    labels: Int64[Tensor, " object"]
    counts: Int64[Tensor, " batch"]
    """Number of objects of each sample; always on the CPU."""
    masks: BoxMasks | None

    @classmethod
    def stack(
        cls, samples: Sequence[DetectionSample], *, size: tuple[int, int] | None = None, divisor: int = 32
    ) -> "DetectionBatch":
        """Stack samples that are padded to `size`, by default to the largest of them at multiples of `divisor`."""
        if len({sample.masks is None for sample in samples}) > 1:
            raise ValueError("expected masks in all samples or in none, got both")
        sizes = torch.tensor([sample.image.shape[1:] for sample in samples])
        if size is None:
            height, width = (-(-side // divisor) * divisor for side in sizes.amax(dim=0).tolist())
        else:
            height, width = size
        images = samples[0].image.new_zeros((len(samples), len(samples[0].image), height, width))
        for row, sample in enumerate(samples):
            images[row, :, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
        return cls(
            tuple(sample.key for sample in samples),
            images,
            sizes,
            torch.cat([sample.boxes for sample in samples]),
            torch.cat([sample.labels for sample in samples]),
            torch.tensor([len(sample.labels) for sample in samples]),
            None if samples[0].masks is None else BoxMasks.cat(s.masks for s in samples if s.masks is not None),
        )

    def split(self, size: int) -> Iterator["DetectionBatch"]:
        """Yield batches of `size` samples each; their tensors are views."""
        ends = [0, *self.counts.cumsum(dim=0).tolist()]
        for first in range(0, len(self), size):
            last = min(first + size, len(self))
            objects = slice(ends[first], ends[last])
            yield DetectionBatch(
                self.keys[first:last],
                self.images[first:last],
                self.sizes[first:last],
                self.boxes[objects],
                self.labels[objects],
                self.counts[first:last],
                None if self.masks is None else self.masks.select(objects),
            )

    def to(self, device: str | torch.device) -> "DetectionBatch":
        """Return the batch with its tensors on a device, except for `counts`."""
        images, sizes, boxes, labels = (
            tensor.to(device, non_blocking=True) for tensor in (self.images, self.sizes, self.boxes, self.labels)
        )
        masks = None if self.masks is None else self.masks.to(device)
        return DetectionBatch(self.keys, images, sizes, boxes, labels, self.counts, masks)

    def pin_memory(self) -> "DetectionBatch":
        """Return the batch with its tensors in page-locked memory."""
        images, sizes, boxes, labels = (
            tensor.pin_memory() for tensor in (self.images, self.sizes, self.boxes, self.labels)
        )
        masks = None if self.masks is None else self.masks.pin_memory()
        return DetectionBatch(self.keys, images, sizes, boxes, labels, self.counts, masks)

    def __len__(self) -> int:
        return len(self.keys)

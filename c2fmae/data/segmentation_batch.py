"""Samples of semantic segmentation, and batches of them: images and class ids, padded to one size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from c2fmae.core.granularity import IGNORE


@dataclass(frozen=True)
class SegmentationSample:
    """An image, or a part of one, with the class id of each pixel; 255 is "not labelled"."""

    key: str
    image: UInt8[Tensor, "channels height width"]
    ids: UInt8[Tensor, "rows columns"]
    label_stride: int = 1
    """Side in pixels of a cell of `ids`, which has ⌈height / stride⌉ × ⌈width / stride⌉ cells."""


@dataclass(frozen=True)
class SegmentationBatch:
    """Samples that are padded at the right and the bottom to one size."""

    keys: tuple[str, ...]
    images: UInt8[Tensor, "batch channels height width"]
    """Pixels beyond a sample's size are 0: set them to the mean colour after standardisation."""
    sizes: Int64[Tensor, "batch 2"]
    """Height and width of each sample without its padding, in pixels."""
    ids: UInt8[Tensor, "batch rows columns"]
    """Class ids; 255 is "not labelled", which cells of the padding are."""

    @classmethod
    def stack(cls, samples: Sequence[SegmentationSample], size: tuple[int, int]) -> "SegmentationBatch":
        """Stack samples that are padded to `size`; none may be larger, and all must have one label stride."""
        stride = samples[0].label_stride
        if any(sample.label_stride != stride for sample in samples):
            raise ValueError(f"expected samples of one label stride, got {[sample.label_stride for sample in samples]}")
        images = samples[0].image.new_zeros((len(samples), len(samples[0].image), *size))
        ids = samples[0].ids.new_full((len(samples), *(-(-side // stride) for side in size)), IGNORE)
        for row, sample in enumerate(samples):
            height, width = sample.image.shape[1:]
            images[row, :, :height, :width] = sample.image
            ids[row, : sample.ids.shape[0], : sample.ids.shape[1]] = sample.ids
        sizes = torch.tensor([sample.image.shape[1:] for sample in samples])
        return cls(tuple(sample.key for sample in samples), images, sizes, ids)

    def to(self, device: str | torch.device) -> "SegmentationBatch":
        """Return the batch with its tensors on a device."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.sizes, self.ids))
        return SegmentationBatch(self.keys, *tensors)

    def pin_memory(self) -> "SegmentationBatch":
        """Return the batch with its tensors in page-locked memory."""
        return SegmentationBatch(self.keys, *(tensor.pin_memory() for tensor in (self.images, self.sizes, self.ids)))

    def __len__(self) -> int:
        return len(self.keys)

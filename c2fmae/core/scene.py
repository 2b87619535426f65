"""Scenes: one image with its aligned maps, and batches of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import default_collate

from c2fmae.core.errors import UserError
from c2fmae.core.objects import Objects


@dataclass(frozen=True)
class Scene:
    """One image in all its granularities: images [channels, H, W] and id maps [⌈H/s⌉, ⌈W/s⌉], aligned."""

    key: str
    maps: Mapping[str, Tensor]
    label: int | None = None
    label_stride: int = 1
    """Stride s of the id maps: each cell holds the id of the pixel in the middle of s × s pixels."""
    objects: Objects | None = None
    """The objects of the image, in pixels of it; None in data without objects."""
    views: Mapping[str, Tensor] = field(default_factory=dict)
    """Further views of the image, by name: bytes [count, channels, height, width]."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size, stacked: images [B, channels, H, W] and id maps [B, h, w]."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    labels: tuple[int | None, ...] = field(default=())
    views: Mapping[str, Tensor] = field(default_factory=dict)
    """Further views of the images, by name: bytes [B, count, channels, height, width]."""

    @classmethod
    def stack(cls, scenes: Sequence[Scene]) -> "SceneBatch":
        """Stack scenes. Raise a `UserError` that names a scene whose maps or views differ from the first scene's."""
        keys = tuple(scene.key for scene in scenes)
        maps = _stack_tensors(keys, [scene.maps for scene in scenes])
        views = _stack_tensors(keys, [scene.views for scene in scenes])
        return cls(keys, maps, tuple(scene.label for scene in scenes), views)

    def slice_scenes(self, first: int, last: int) -> "SceneBatch":
        """Return the scenes `first` … `last` - 1. Its tensors share their memory with those of this batch."""
        sliced = self._map_tensors(lambda tensor: tensor[first:last])
        return replace(sliced, keys=self.keys[first:last], labels=self.labels[first:last])

    def to(self, device: str | torch.device) -> "SceneBatch":
        """Return the batch with its maps and views on a device."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "SceneBatch":
        """Return the batch with its maps and views in page-locked memory."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> "SceneBatch":
        maps, views = ({name: change(each) for name, each in group.items()} for group in (self.maps, self.views))
        return replace(self, maps=maps, views=views)

    def __len__(self) -> int:
        return len(self.keys)


def _stack_tensors(keys: Sequence[str], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first = tensors[0]
    for key, other in zip(keys, tensors, strict=True):
        for name in first.keys() | other.keys():
            shapes = [tuple(group[name].shape) if name in group else None for group in (first, other)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{key}: {name} has shape {shapes[1]}, but {shapes[0]} in {keys[0]}. Crop both alike")
    # In a worker of a loader it stacks straight into the shared memory through which the batch is sent.
    return {name: default_collate([group[name] for group in tensors]) for name in first}

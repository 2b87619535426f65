"""Scenes: one image with its aligned maps, and batches of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size, stacked: images [B, channels, H, W] and id maps [B, h, w]."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    labels: tuple[int | None, ...] = field(default=())

    @classmethod
    def stack(cls, scenes: Sequence[Scene]) -> "SceneBatch":
        """Stack scenes. Raise a `UserError` that names a scene whose maps differ from the first scene's."""
        first = scenes[0]
        for scene in scenes[1:]:
            for name in first.maps.keys() | scene.maps.keys():
                shapes = [tuple(s.maps[name].shape) if name in s.maps else None for s in (first, scene)]
                if shapes[0] != shapes[1]:
                    raise UserError(
                        f"{scene.key}: {name} has shape {shapes[1]}, but {shapes[0]} in {first.key}. Crop both alike"
                    )
        # In a worker of a loader it stacks straight into the shared memory through which the batch is sent.
        maps = {name: default_collate([scene.maps[name] for scene in scenes]) for name in first.maps}
        return cls(tuple(scene.key for scene in scenes), maps, tuple(scene.label for scene in scenes))

    def to(self, device: str | torch.device) -> "SceneBatch":
        """Return the batch with its maps on a device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.maps.items()}
        return SceneBatch(self.keys, moved, self.labels)

    def pin_memory(self) -> "SceneBatch":
        """Return the batch with its maps in page-locked memory."""
        return SceneBatch(self.keys, {name: tensor.pin_memory() for name, tensor in self.maps.items()}, self.labels)

    def __len__(self) -> int:
        return len(self.keys)

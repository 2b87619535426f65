"""The types in which images travel: what a granularity is, one scene, a batch of scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.registry import Registry

IGNORE = 255
"""The id of pixels that nobody labelled, in memory; a file's own value is turned into it by its reader."""


@dataclass(frozen=True, kw_only=True)
class GranularitySpec:
    """One description of an image; what embeds, predicts and draws it is looked up by `kind`."""

    name: str
    kind: Literal["image", "ids", "continuous"]
    channels: int
    """Channels of an image; classes of an id map, where the data does not name its own."""
    suffix: str
    """File name behind the key: `key.jpg`, `key.semantic.png`."""
    label_stride: int = 1
    """Map cells are this many pixels wide in the model's target."""
    ignore: int | None = None
    """The id that counts as "not labelled"; none for photos."""
    resize: Literal["antialias", "nearest"] = "nearest"
    """How it changes size: ids are never mixed."""
    colouring: Literal["photo", "classes", "instances", "heat"] = "classes"
    """How it is shown."""


GRANULARITIES: Registry[GranularitySpec] = Registry("granularity")

COARSE_TO_FINE = ("semantic", "instance", "rgb")
"""The paper's granularities in the order in which they are predicted."""


SEMANTIC = GRANULARITIES.register("semantic", "Scene level: a class id for every pixel.")(
    GranularitySpec(name="semantic", kind="ids", channels=133, suffix="semantic.png", label_stride=4, ignore=IGNORE)
)
INSTANCE = GRANULARITIES.register("instance", "Object level: 0 for background, an id for each object.")(
    GranularitySpec(
        name="instance",
        kind="ids",
        channels=32,
        suffix="instance.png",
        label_stride=4,
        ignore=IGNORE,
        colouring="instances",
    )
)
RGB = GRANULARITIES.register("rgb", "Pixel level: the photo.")(
    GranularitySpec(name="rgb", kind="image", channels=3, suffix="jpg", resize="antialias", colouring="photo")
)


@dataclass(frozen=True)
class Scene:
    """One image in all its granularities: photos [channels, H, W] and id maps [⌈H/s⌉, ⌈W/s⌉], aligned."""

    key: str
    maps: Mapping[str, Tensor]
    label: int | None = None
    label_stride: int = 1
    """Id maps have a cell for so many pixels each way: the id in its middle."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size, stacked: photos [B, channels, H, W] and id maps [B, h, w]."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    labels: tuple[int | None, ...] = field(default=())

    @classmethod
    def stack(cls, scenes: Sequence[Scene]) -> "SceneBatch":
        """Stack scenes; one that lacks a map, or has it in another size, is named."""
        first = scenes[0]
        for scene in scenes[1:]:
            for name in first.maps.keys() | scene.maps.keys():
                shapes = [tuple(s.maps[name].shape) if name in s.maps else None for s in (first, scene)]
                if shapes[0] != shapes[1]:
                    raise UserError(f"{scene.key}: {name} is {shapes[1]}, but {shapes[0]} in {first.key}")
        maps = {name: torch.stack([scene.maps[name] for scene in scenes]) for name in first.maps}
        return cls(tuple(scene.key for scene in scenes), maps, tuple(scene.label for scene in scenes))

    def to(self, device: str | torch.device) -> "SceneBatch":
        """Return the batch on a device; labels stay where they are."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.maps.items()}
        return SceneBatch(self.keys, moved, self.labels)

    def pin_memory(self) -> "SceneBatch":
        """Return the batch in memory from which a GPU fetches by itself."""
        return SceneBatch(self.keys, {name: tensor.pin_memory() for name, tensor in self.maps.items()}, self.labels)

    def __len__(self) -> int:
        return len(self.keys)

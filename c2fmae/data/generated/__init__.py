"""Generated scenes: textured stuff, overlapping things and exact maps, as a function of (seed, index).

They allow pre-training and evaluation without a download. The modules, in the order of use:
`ground` divides the image into regions of `stuff`; `layout` places `things` on them, by a level of `difficulty`;
`raster` finds the visible region and thing at each pixel; `paint` renders the image, and `domains` other styles of the
same scene.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, get_args

import numpy as np
import torch

from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.data.generated.arrays import Rng, clip_to_unit
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS, Difficulty
from c2fmae.data.generated.domains import DOMAIN_RENDERERS, Domain, displace_ground
from c2fmae.data.generated.layout import sample_layout
from c2fmae.data.generated.paint import paint_image
from c2fmae.data.generated.palettes import GARISH, PALETTE
from c2fmae.data.generated.raster import rasterise_layout
from c2fmae.data.generated.stuff import STUFF
from c2fmae.data.generated.things import THING_PARTS
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.scenes import check_index

__all__ = ["GeneratedScenes"]

_MIN_SIZE = 32  # pixels; on fewer, a small object may cover no pixel centre


@dataclass(frozen=True, kw_only=True)
class GeneratedScenes:
    """Scenes of things on bands of stuff; `label` is the class of the thing with the largest visible area.

    The scene is a function of (seed, index): the same at every size and in any order of access.
    """

    size: int = 224
    length: int = 1024
    seed: int = 0
    difficulty: Difficulty = "medium"
    """From one large thing (plain) to many small, rotated and overlapping ones (hard)."""
    domain: Domain = "photo"
    """Style of the same scenes. `displaced` also places things on stuff that they do not occur on in other domains."""
    classes: ClassVar[tuple[str, ...]] = (*STUFF, *THING_PARTS)
    """Names by semantic id: stuff, then things."""
    labels: ClassVar[tuple[str, ...]] = tuple(THING_PARTS)
    """Names by `label`."""

    def __post_init__(self) -> None:
        if self.size < _MIN_SIZE:
            raise UserError(f"size: generated scenes need at least {_MIN_SIZE} pixels, got {self.size}")
        if self.difficulty not in DIFFICULTY_LEVELS:
            raise unknown_name_error("difficulty", self.difficulty, DIFFICULTY_LEVELS)
        if self.domain not in get_args(Domain):
            raise unknown_name_error("domain", self.domain, get_args(Domain))

    @cached_property
    def info(self) -> DatasetInfo:
        """Names of classes and labels."""
        classes = [{"name": name, "is_thing": name in THING_PARTS} for name in self.classes]
        labels = [{"name": name} for name in self.labels]
        name = f"generated, {self.difficulty}" + (f", {self.domain}" if self.domain != "photo" else "")
        # A label is the class of a thing in the maps.
        return DatasetInfo.from_dict({"name": name, "classes": classes, "labels": labels, "maps_know_labels": True})

    @cached_property
    def keys(self) -> KeyList:
        """Indices as text of eight digits."""
        return KeyList.from_names(f"{index:08d}" for index in range(self.length))

    def read_image_bytes(self, index: int) -> None:
        """Return None: no image is stored."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        check_index(index, self.length)
        level = DIFFICULTY_LEVELS[self.difficulty]
        regions, things = sample_layout(self._rng("scene", index), level)
        raster, palette = rasterise_layout(regions, things, self.size), PALETTE
        if self.domain == "displaced":
            regions, palette = displace_ground(self._rng("displaced", index), regions, things, raster.areas), GARISH
        rng = self._rng("paint", index)
        rgb = paint_image(rng, regions, raster, level.contrast, palette)
        if self.domain in DOMAIN_RENDERERS:
            rgb = DOMAIN_RENDERERS[self.domain](rng, rgb, raster.combined_ids)

        stuff_ids = np.array([self.classes.index(region.stuff) for region in regions], np.uint8)
        kind_ids = np.array([0, *(self.classes.index(thing.class_name) for thing in things)], np.uint8)
        new_ids = np.cumsum([False, *(raster.areas > 0)]).astype(np.uint8)  # ids without gaps for hidden things
        maps = {
            "semantic": np.where(raster.thing_map, kind_ids[raster.thing_map], stuff_ids[raster.region_map]),
            "instance": new_ids[raster.thing_map],
            "rgb": (255 * clip_to_unit(rgb) + 0.5).astype(np.uint8, order="C"),
        }
        tensors = {name: torch.from_numpy(array) for name, array in maps.items()}
        return Scene(f"{index:08d}", tensors, self.labels.index(things[raster.areas.argmax()].class_name))

    def _rng(self, stream: str, index: int) -> Rng:
        return np.random.default_rng(derive_seed(self.seed, stream, index))

"""What each mask hides of a few scenes, and what the blend of the three hides as training goes on."""

import logging
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.pictures import colour_classes, colour_instances, hide_patches, sheet
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import seed_of
from c2fmae.data import open_scenes, resize_and_crop
from c2fmae.masking import mask_scenes, patch_regions
from c2fmae.masking.config import MaskingConfig, Share
from c2fmae.masking.policies import Instance, Policy, Random, Semantic

log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=1)]


class PatchedScenes(Config):
    """Which scenes are looked at, and how they are cut."""

    data: str = "generated"
    """A shard, a folder of scenes or shards, or `generated`."""
    scenes: Count = 4
    size: Count = 224
    patch: Count = 16
    seed: int = 0
    hidden: Share = 0.75
    """Share of the patches that is hidden."""

    @model_validator(mode="after")
    def _check(self) -> "PatchedScenes":
        if self.size % self.patch:
            raise UserError(f"patch: {self.patch} does not divide the size, {self.size}")
        return self

    def load(self) -> SceneBatch:
        """Return the first scenes."""
        log.info("reading %d scenes from %s", self.scenes, self.data)
        source = open_scenes(self.data, size=self.size, seed=self.seed)
        if len(source) < self.scenes:
            raise UserError(f"scenes: {self.data} has {len(source)}, fewer than {self.scenes}")
        return SceneBatch.stack([resize_and_crop(source[index], self.size) for index in range(self.scenes)])

    def regions(self, batch: SceneBatch) -> tuple[Integer[Tensor, "batch patch"], Integer[Tensor, "batch patch"]]:
        """Return the semantic class and the object of every patch."""
        semantic, instance = (patch_regions(batch.maps[name], self.patch) for name in ("semantic", "instance"))
        return semantic, instance

    def generator(self) -> torch.Generator:
        """Return the same noise for every mask, so that they differ by what guides them alone."""
        return torch.Generator().manual_seed(seed_of(self.seed, "masks", 0))

    @property
    def num_patches(self) -> int:
        """How many patches a scene has."""
        return (self.size // self.patch) ** 2

    @property
    def num_visible(self) -> int:
        """How many of them are not hidden."""
        return self.num_patches - round(self.hidden * self.num_patches)


class MasksView(PatchedScenes):
    """Settings of `c2fmae view masks`."""

    progress: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of training at which the blend is shown."""
    masking: MaskingConfig = MaskingConfig()


def draw_masks(config: MasksView) -> Image.Image:
    """Draw a row for each scene: photo, both maps, the three pure masks, the policy at points of training."""
    batch = config.load()
    pure: list[Policy] = [
        Semantic(weights=config.masking.weights),
        Instance(object_share=config.masking.object_share, max_objects=config.masking.max_objects),
        Random(),
    ]
    policy = config.masking.build()
    masks = [_hidden(config, batch, mask, 0.0) for mask in pure]
    masks += [_hidden(config, batch, policy, progress) for progress in config.progress]
    rows = []
    for place in range(config.scenes):
        photo = batch.maps["rgb"][place].permute(1, 2, 0).numpy()
        maps = [
            colour_classes(batch.maps["semantic"][place].numpy()),
            colour_instances(batch.maps["instance"][place].numpy()),
        ]
        rows.append([photo, *maps, *(hide_patches(photo, is_masked[place]) for is_masked in masks)])
    what = f"{config.masking.policy}, {config.masking.blend}" if hasattr(policy, "blend") else config.masking.policy
    return sheet(
        rows,
        column_titles=[
            "photo",
            "semantic map",
            "instance map",
            "semantic-guided\nmask",
            "instance-guided\nmask",
            "random\nmask",
            *(f"{what}\nat {progress:.0%} of training" for progress in config.progress),
        ],
        title="What each mask hides",
        subtitle=f"{config.hidden:.0%} of {config.num_patches} patches, the same noise in every column",
        footer=f"{config.data} · {config.size} px, patch {config.patch} · seed {config.seed}",
    )


def _hidden(config: MasksView, batch: SceneBatch, policy: Policy, progress: float) -> NDArray[np.bool_]:
    """Return is_masked [scene, row, column]."""
    masks = mask_scenes(
        policy,
        *config.regions(batch),
        num_visible=config.num_visible,
        progress=progress,
        generator=config.generator(),
        granularities=("rgb",),
    )
    side = config.size // config.patch
    is_masked: Bool[Tensor, "batch row column"] = masks.is_masked[:, 0].unflatten(1, (side, side))
    return is_masked.numpy()

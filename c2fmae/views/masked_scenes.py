"""The scenes that a picture of masks is drawn from, and one way to hide their patches."""

import logging
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Integer
from pydantic import Field, model_validator
from torch import Tensor

from c2fmae.config.masking import MaskingConfig
from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.data import CentralView, open_scenes
from c2fmae.masking import Policy, mask_scenes, patch_regions

log = logging.getLogger(__name__)

SideLength = Annotated[int, Field(ge=1, le=4096)]


class MaskedScenesConfig(Config):
    """Which scenes are looked at, how they are cut, and how their patches are hidden."""

    data: Annotated[str, Field(min_length=1)] = "generated"
    """A shard, a folder of scenes or shards, or `generated`."""
    scenes: PositiveInt = 4
    size: SideLength = 224
    patch: SideLength = 16
    seed: int = 0
    hidden: UnitInterval = 0.75
    """Share of the patches that is hidden."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)

    @model_validator(mode="after")
    def _check_patch_size(self) -> "MaskedScenesConfig":
        if self.size % self.patch:
            raise UserError(f"patch: {self.patch} does not divide the size, {self.size}")
        return self

    def load_scenes(self) -> SceneBatch:
        """Return the first scenes."""
        log.info("reading %d scenes from %s", self.scenes, self.data)
        options: dict[str, Any] = {"size": self.size, "seed": self.seed} if self.data == "generated" else {}
        source = open_scenes(self.data, granularities=COARSE_TO_FINE, **options)
        if len(source) < self.scenes:
            raise UserError(f"scenes: {self.data} has {len(source)}, fewer than {self.scenes}")
        view = CentralView(size=(self.size, self.size), max_instances=IGNORE)
        batch = SceneBatch.stack([view(source[index]) for index in range(self.scenes)])
        semantic, weights = batch.maps["semantic"], getattr(self.masking.options, "weights", None)
        highest = int(semantic.masked_fill(semantic == IGNORE, 0).max())
        if weights is not None and highest >= len(weights):
            raise UserError(
                f"masking.options.weights: expected a weight for each class up to {highest} of {self.data}, got "
                f"{len(weights)}"
            )
        return batch

    def compute_regions(
        self, batch: SceneBatch
    ) -> tuple[Integer[Tensor, "batch patch"], Integer[Tensor, "batch patch"]]:
        """Return the semantic class and the object of every patch."""
        semantic, instance = (patch_regions(batch.maps[name], self.patch) for name in ("semantic", "instance"))
        return semantic, instance

    @property
    def num_patches(self) -> int:
        """How many patches a scene has."""
        return (self.size // self.patch) ** 2

    def mask_patches(
        self,
        policy: Policy,
        regions: Integer[Tensor, "batch patch"],
        instances: Integer[Tensor, "batch patch"],
        progress: float,
    ) -> Bool[Tensor, "batch patch"]:
        """Hide patches, always by the same draw: a blend is then made of exactly the pure masks shown beside it."""
        return mask_scenes(
            policy,
            regions,
            instances,
            num_visible=self.num_patches - round(self.hidden * self.num_patches),
            progress=progress,
            generator=torch.Generator().manual_seed(derive_seed(self.seed, "masks", 0)),
            granularities=("rgb",),
        ).is_masked[:, 0]

"""The masks of scenes, from the settings of a method and without its model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.masking import Policy, RowGenerator, mask_scenes, patch_regions
from c2fmae.masking.noise import MaskGenerator
from c2fmae.masking.policies import GUIDE_MAPS, get_required_maps
from c2fmae.methods.masked.map_checks import check_guide
from c2fmae.methods.masked.model_inputs import compute_patch_grid


@dataclass(frozen=True)
class MaskSampler:
    """The masking of a method."""

    config: MaskedConfig
    policy: Policy
    patch_size: int

    def sample(
        self,
        scenes: SceneBatch,
        *,
        progress: float,
        generator: MaskGenerator,
        global_rows: tuple[int, int] | None = None,
        decodes_all: bool = True,
    ) -> Masks:
        """Draw masks; `global_rows = (first, total)` is the number of the first scene in a global batch of `total`.

        Without `decodes_all`, they list the patches that a training step decodes, if the method decodes only a share.
        """
        config = self.config
        grid = compute_patch_grid(config, self.patch_size, scenes)
        guides = {name: self._guide_regions(scenes, name, grid) for name in GUIDE_MAPS}
        return mask_scenes(
            self.policy,
            guides["semantic"],
            guides["instance"],
            num_visible=config.resolve_num_visible(grid[0] * grid[1], self.full_num_patches),
            progress=progress,
            generator=generator,
            granularities=config.granularities,
            concentration=[config.concentration.get(name, 1.0) for name in config.granularities],
            grid=grid,
            global_batch=global_rows,
            num_decoded=None if decodes_all else config.decoder.resolve_num_decoded(grid[0] * grid[1]),
        )

    def seed_step(self, seed: int, step: int) -> MaskGenerator:
        """Return the generator of the masks of a step. It draws on the CPU, so that masks are equal on all devices."""
        step_seed = derive_seed(seed, "masks", step)
        if self.config.mask_noise == "rows":
            return RowGenerator(step_seed)
        return torch.Generator().manual_seed(step_seed)

    @property
    def full_num_patches(self) -> int:
        """The patches of one granularity of an image of the method's size."""
        height, width = self.config.image_size
        return height // self.patch_size * (width // self.patch_size)

    def _guide_regions(self, scenes: SceneBatch, name: str, grid: tuple[int, int]) -> Tensor:
        """Return the region of each patch in a map, or a single region if the policy does not use the map."""
        if name in get_required_maps(self.policy):
            if name not in scenes.maps:
                raise UserError(
                    f"masking: {self.config.masking.name!r} needs {name} maps, but the scenes have none. "
                    f"Use masking.name=random, or data with {name} maps"
                )
            check_guide(name, scenes.maps[name], len(scenes), grid)
            return patch_regions(scenes.maps[name], scenes.maps[name].shape[1] // grid[0])
        device = next(iter(scenes.maps.values())).device
        return torch.zeros(len(scenes), grid[0] * grid[1], dtype=torch.uint8, device=device)

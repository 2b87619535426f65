"""Scenes with the regions of their patches, and the masks that a policy samples for them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Integer
from torch import Tensor

from c2fmae.config.data import source_name
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.text import format_count
from c2fmae.masking import Policy, mask_scenes, patch_regions
from c2fmae.views.config import MaskedScenesConfig
from c2fmae.views.scenes import crop_scenes, mask_generator, open_figure_scenes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatchedScenes:
    """Cropped scenes, and the semantic class and the object of each of their patches."""

    batch: SceneBatch
    class_names: Sequence[str]
    regions: Integer[Tensor, "batch patch"]
    instances: Integer[Tensor, "batch patch"]


def load_patched_scenes(config: MaskedScenesConfig) -> PatchedScenes:
    """Load the first scenes of the data; raise if there are too few, or classes without a weight."""
    name = source_name(config.data)
    log.info("reading %d scenes from %s", config.scenes, name)
    source = open_figure_scenes(config.data, size=config.size, seed=config.seed, granularities=COARSE_TO_FINE)
    if len(source) < config.scenes:
        raise UserError(
            f"scenes: {name} has {format_count(len(source), 'scene')}, got {config.scenes}. "
            f"Set scenes={len(source)} or less"
        )
    batch = crop_scenes([source[index] for index in range(config.scenes)], (config.size, config.size))
    semantic, weights = batch.maps["semantic"], getattr(config.masking.options, "weights", None)
    highest = int(semantic.masked_fill(semantic == IGNORE, 0).max())
    if weights is not None and highest >= len(weights):
        raise UserError(
            f"masking.options.weights: expected a weight for each class up to {highest} of {name}, got {len(weights)}"
        )
    regions, instances = (patch_regions(batch.maps[name], config.patch) for name in ("semantic", "instance"))
    return PatchedScenes(batch, source.info.class_names, regions, instances)


def sample_masks(config: MaskedScenesConfig, policy: Policy, scenes: PatchedScenes, progress: float) -> Masks:
    """Mask the images of scenes, always with the same noise, so that blends mix exactly the base masks of a figure."""
    num_patches = scenes.regions.shape[1]
    return mask_scenes(
        policy,
        scenes.regions,
        scenes.instances,
        num_visible=num_patches - round(config.hidden * num_patches),
        progress=progress,
        generator=mask_generator(config.seed),
        granularities=("rgb",),
    )

"""What each mask hides of a few scenes, and what the blend of the three hides as training goes on."""

from PIL import Image

from c2fmae.core.config import UnitInterval
from c2fmae.masking.policies import ProgressivePolicy
from c2fmae.report.drawing import colour_classes, colour_instances, draw_tile_sheet, hide_patches
from c2fmae.views.masked_scenes import MaskedScenesConfig

_BASE_OPTIONS = ("object_share", "max_objects", "weights")


class MasksFigureConfig(MaskedScenesConfig):
    """Settings of `c2fmae view masks`."""

    progress: tuple[UnitInterval, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of training at which the policy is shown."""


def draw_masks(config: MasksFigureConfig) -> Image.Image:
    """Draw a row for each scene: photo, both maps, the three pure masks, the policy at points of training."""
    batch = config.load_scenes()
    regions, instances = config.compute_regions(batch)
    policy = config.masking.build()
    shared = {name: value for name, value in config.masking.options if name in _BASE_OPTIONS}
    base_policies = ProgressivePolicy(**shared).base_policies
    masks = [config.mask_patches(base, regions, instances, 0.0) for base in base_policies]
    masks += [config.mask_patches(policy, regions, instances, progress) for progress in config.progress]
    side = config.size // config.patch
    rows = []
    for index in range(config.scenes):
        image = batch.maps["rgb"][index].permute(1, 2, 0).numpy()
        maps = [
            colour_classes(batch.maps["semantic"][index].numpy()),
            colour_instances(batch.maps["instance"][index].numpy()),
        ]
        grids = [is_masked[index].unflatten(0, (side, side)).numpy() for is_masked in masks]
        rows.append([image, *maps, *(hide_patches(image, grid) for grid in grids)])
    blend = f", {policy.blend}" if isinstance(policy, ProgressivePolicy) else ""
    name = f"{config.masking.name}{blend}"
    return draw_tile_sheet(
        rows,
        column_titles=[
            "photo",
            "semantic map",
            "instance map",
            "semantic-guided\nmask",
            "instance-guided\nmask",
            "random\nmask",
            *(f"{name}\nat {progress:.0%} of training" for progress in config.progress),
        ],
        title="What each mask hides",
        subtitle=f"{config.hidden:.0%} of {config.num_patches} patches, all columns from one draw",
        footer=f"{config.data} · {config.size} px, patch {config.patch} · seed {config.seed}",
    )

"""What each mask hides of a few scenes, and what the blend of the three hides as training goes on."""

from PIL import Image

from c2fmae.masking.config import Share
from c2fmae.masking.policies import Progressive
from c2fmae.report.drawing import colour_classes, colour_instances, hide_patches, sheet
from c2fmae.views.masked_scenes import ScenesView


class MasksView(ScenesView):
    """Settings of `c2fmae view masks`."""

    progress: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of training at which the policy is shown."""


def draw_masks(config: MasksView) -> Image.Image:
    """Draw a row for each scene: photo, both maps, the three pure masks, the policy at points of training."""
    batch = config.load()
    regions, instances = config.regions(batch)
    masking, policy = config.masking, config.masking.build()
    three = Progressive(object_share=masking.object_share, max_objects=masking.max_objects, weights=masking.weights)
    masks = [config.hide(pure, regions, instances, 0.0) for pure in three.pure]
    masks += [config.hide(policy, regions, instances, progress) for progress in config.progress]
    side = config.size // config.patch
    rows = []
    for place in range(config.scenes):
        photo = batch.maps["rgb"][place].permute(1, 2, 0).numpy()
        maps = [
            colour_classes(batch.maps["semantic"][place].numpy()),
            colour_instances(batch.maps["instance"][place].numpy()),
        ]
        grids = [is_masked[place].unflatten(0, (side, side)).numpy() for is_masked in masks]
        rows.append([photo, *maps, *(hide_patches(photo, grid) for grid in grids)])
    name = f"{masking.policy}, {masking.blend}" if masking.policy == "progressive" else masking.policy
    return sheet(
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

"""Figures of masks in a few scenes: the base masks, those of a policy as training progresses, and saved masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from c2fmae.config.data import describe_source
from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.masking import Policy, Quota, explain
from c2fmae.masking.policies import ProgressivePolicy
from c2fmae.report import Table
from c2fmae.report.drawing import Tile, colour_classes, colour_instances, draw_tile_sheet, hide_patches
from c2fmae.views.config import MasksFigureConfig
from c2fmae.views.patched_scenes import PatchedScenes, load_patched_scenes, sample_masks

_BASE_OPTIONS = ("object_share", "max_objects", "weights")
_MAP_TITLES = ("image", "semantic map", "instance map")


@dataclass(frozen=True)
class MaskSample:
    """Masks of all scenes, and the policy and point of training that they are compared with."""

    name: str
    policy: Policy
    progress: float
    masks: Masks


@dataclass(frozen=True)
class MasksFigure:
    """A figure of masks, with the scenes and the masks that it shows."""

    image: Image.Image
    scenes: PatchedScenes
    samples: Sequence[MaskSample]


def draw_masks(config: MasksFigureConfig) -> MasksFigure:
    """Draw a row for each scene: image, maps, the base masks, and the policy's masks in the course of training."""
    scenes, policy = load_patched_scenes(config), config.masking.build()
    base_masks, policy_masks = sample_base_masks(config, scenes), sample_policy_masks(config, scenes)
    maps, samples = _map_tiles(scenes), (*base_masks, *policy_masks)
    covered = [_hide_patches_of_all(maps["rgb"], sample.masks.is_masked[:, 0], config.grid) for sample in samples]
    columns = [maps["rgb"], maps["semantic"], maps["instance"], *covered]
    blend = f", {policy.blend}" if isinstance(policy, ProgressivePolicy) else ""
    sheet = draw_tile_sheet(
        list(zip(*columns, strict=True)),
        column_titles=[
            *_MAP_TITLES,
            *(f"{sample.name}\nmask" for sample in base_masks),
            *(f"{config.masking.name}{blend}\nat {sample.name} of training" for sample in policy_masks),
        ],
        title="Masks",
        subtitle=f"{config.hidden:.0%} of {scenes.regions.shape[1]} patches hidden, the same noise in all columns",
        footer=_describe_scenes(config),
    )
    return MasksFigure(sheet, scenes, samples)


def draw_saved_masks(config: MasksFigureConfig, path: Path) -> MasksFigure:
    """Draw a row for each scene: image, maps, and the saved mask of each granularity, over its map or else the image.

    The samples compare the masks with the configured policy at each point of training.
    """
    masks = load_masks(config, path)
    config = config.model_copy(update={"scenes": len(masks.is_masked)})
    scenes, policy = load_patched_scenes(config), config.masking.build()
    maps = _map_tiles(scenes)
    covered = [
        _hide_patches_of_all(maps.get(granularity, maps["rgb"]), is_masked, config.grid)
        for granularity, is_masked in zip(masks.granularities, masks.is_masked.unbind(1), strict=True)
    ]
    sheet = draw_tile_sheet(
        list(zip(maps["rgb"], maps["semantic"], maps["instance"], *covered, strict=True)),
        column_titles=[*_MAP_TITLES, *(f"{granularity}\nmask" for granularity in masks.granularities)],
        title="Saved masks",
        subtitle=str(path),
        footer=_describe_scenes(config),
    )
    return MasksFigure(
        sheet, scenes, [MaskSample(f"{progress:.0%}", policy, progress, masks) for progress in config.progress]
    )


def sample_base_masks(config: MasksFigureConfig, scenes: PatchedScenes) -> list[MaskSample]:
    """Return semantic-guided, instance-guided and random masks, with the options of `config.masking`."""
    options = {name: value for name, value in config.masking.options if name in _BASE_OPTIONS}
    names = ("semantic-guided", "instance-guided", "random")
    return [
        MaskSample(name, policy, 0.0, sample_masks(config, policy, scenes, 0.0))
        for name, policy in zip(names, ProgressivePolicy(**options).base_policies, strict=True)
    ]


def sample_policy_masks(config: MasksFigureConfig, scenes: PatchedScenes) -> list[MaskSample]:
    """Return the masks of the configured policy at each point of training."""
    policy = config.masking.build()
    return [
        MaskSample(f"{progress:.0%}", policy, progress, sample_masks(config, policy, scenes, progress))
        for progress in config.progress
    ]


def build_quota_table(scenes: PatchedScenes, samples: Sequence[MaskSample]) -> Table:
    """Return requested and masked patches by region, with a row for each scene, granularity and region."""
    quotas = [
        explain(sample.policy, sample.masks, scenes.regions, scenes.instances, progress=sample.progress)
        for sample in samples
    ]
    rows = []
    for region_quotas in zip(*quotas, strict=True):
        image, granularity, group, num_patches, *_ = region_quotas[0]
        name = _region_name(group, scenes.class_names)
        rows.append((scenes.batch.keys[image], granularity, name, num_patches, *map(_format_quota, region_quotas)))
    return Table(
        "Masked patches by region",
        ("scene", "mask", "region", "patches", *(sample.name for sample in samples)),
        rows,
        "Each cell: patches that the policy masks on average / patches masked here. "
        "A percentage is the configured policy at that point of training.",
    )


def save_masks(config: MasksFigureConfig, path: Path) -> None:
    """Write the masks of the configured policy at the only point of training to a file that `load_masks` reads."""
    if len(config.progress) != 1:
        raise UserError(
            f"--save-masks: expected one point of training, got {len(config.progress)}. "
            "Choose one, as in --set progress=[0.5]"
        )
    (sample,) = sample_policy_masks(config, load_patched_scenes(config))
    sample.masks.save(path)


def load_masks(config: MasksFigureConfig, path: Path) -> Masks:
    """Return saved masks of at most `config.scenes` images; raise if they do not fit the grid of patches."""
    masks, (rows, columns) = Masks.load(path), config.grid
    if masks.is_masked.shape[2] != rows * columns:
        raise UserError(
            f"{path}: has masks of {masks.is_masked.shape[2]} patches, but size={config.size} and patch={config.patch} "
            f"make {rows * columns}. Set size and patch to those of the masks"
        )
    return masks.slice_images(0, config.scenes)


def _map_tiles(scenes: PatchedScenes) -> dict[str, list[Tile]]:
    maps = scenes.batch.maps
    return {
        "rgb": list(maps["rgb"].permute(0, 2, 3, 1).numpy()),
        "semantic": [colour_classes(ids) for ids in maps["semantic"].numpy()],
        "instance": [colour_instances(ids) for ids in maps["instance"].numpy()],
    }


def _hide_patches_of_all(
    tiles: Sequence[Tile], is_masked: Bool[Tensor, "batch patch"], grid: tuple[int, int]
) -> list[Tile]:
    return [hide_patches(tile, row.numpy()) for tile, row in zip(tiles, is_masked.unflatten(1, grid), strict=True)]


def _describe_scenes(config: MasksFigureConfig) -> str:
    return f"{describe_source(config.data)} · {config.size} px, patch {config.patch} · seed {config.seed}"


def _region_name(group: str, class_names: Sequence[str]) -> str:
    """Return the name of the class of a group such as `class 7`, if the data has one."""
    index = int(group.removeprefix("class ")) if group.startswith("class ") else len(class_names)
    return class_names[index] if index < len(class_names) else group


def _format_quota(quota: Quota) -> str:
    requested = "–" if quota.requested is None else f"{quota.requested:.1f}"
    return f"{requested} / {quota.num_hidden}"

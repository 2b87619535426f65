"""The fit of the labeller `clusters`, before images are labelled: features of some patches, then k-means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.locks import LOCK_SUFFIX, lock_file
from c2fmae.core.progress import ProgressDisplay
from c2fmae.core.seeding import derive_seed
from c2fmae.core.text import format_count
from c2fmae.data.encode import make_output_dir
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import digest
from c2fmae.labelling.cluster_file import describe_cluster_changes, read_clusters, write_clusters
from c2fmae.labelling.clusters import ClusterConfig, ClusterFitConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.kmeans import fit_kmeans
from c2fmae.labelling.patch_features import PatchFeatures, open_patch_features
from c2fmae.labelling.registry import parse_labeller

_FAILED = "failed_keys"
"""Key of a file of clusters that lists the images which could not be read."""

_NAMED_KEYS = 3


def fit_semantics(
    text: str | None, options: Mapping[str, Any], scenes: Scenes, context: LabellerContext, *, is_quiet: bool = False
) -> None:
    """Fit the labeller of `--semantics`. Raise a `UserError` unless it is `clusters`."""
    spec = parse_labeller(text, options, option="semantics") if text is not None else None
    if spec is None or not isinstance(spec.options, ClusterConfig):
        raise UserError("--fit: finds the clusters of `clusters` only. Write --semantics clusters:BACKBONE,FILE")
    fit_clusters(scenes, spec.options, context, is_quiet=is_quiet)


@dataclass(frozen=True)
class DrawnPatches:
    """Random patches of random images."""

    features: Float32[Tensor, "patch dim"]
    num_images: int
    """Number of images that they are from."""
    failed_keys: Sequence[str]
    """Images that were drawn too, but cannot be read."""


def fit_clusters(scenes: Scenes, config: ClusterConfig, context: LabellerContext, *, is_quiet: bool = False) -> None:
    """Write the file of clusters of images, unless it exists with the same ones.

    Other commands that need the file wait for it. Raise a `UserError` if it has other clusters: those of images with
    other keys, of another backbone or other settings, or found without an image that can be read now.
    """
    path = Path(config.centroids)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: is not a name for a file of clusters (expected *.safetensors). Rename it")
    features = open_patch_features(config, context)
    fit = {**config.fit.model_dump(), "keys": digest(*(key.encode() + b"\n" for key in scenes.keys))}
    metadata = {"features": dict(features.describe()), "fit": fit}
    make_output_dir(path.parent)
    with lock_file(path.parent / f".{path.name}{LOCK_SUFFIX}"):
        if path.exists():
            _check_existing(path, metadata, scenes)
            return
        drawn = draw_patches(scenes, features, config.fit, is_quiet=is_quiet)
        if drawn.failed_keys and not is_quiet:
            print(f"{format_count(len(drawn.failed_keys), 'image')} could not be read: {_name_keys(drawn.failed_keys)}")
        num_patches, num_clusters = len(drawn.features), config.fit.num_clusters
        if num_patches < num_clusters:
            raise UserError(
                f"{format_count(num_patches, 'patch', 'patches')} of {format_count(drawn.num_images, 'image')} cannot"
                f" form {format_count(num_clusters, 'cluster')} (expected at least one patch for each). Use more"
                " images, or a lower semantics.fit.num_clusters"
            )
        generator = torch.Generator().manual_seed(derive_seed(config.fit.seed, "clusters"))
        started_at = perf_counter()
        centroids = fit_kmeans(drawn.features, num_clusters, generator, max_iterations=config.fit.max_iterations)
        write_clusters(path, centroids, {**metadata, "fit": {**fit, _FAILED: list(drawn.failed_keys)}})
    if not is_quiet:
        seconds = perf_counter() - started_at
        print(f"wrote {path}: {len(centroids)} clusters of {num_patches:,} patches, k-means took {seconds:.0f} s")


def draw_patches(scenes: Scenes, features: PatchFeatures, fit: ClusterFitConfig, *, is_quiet: bool) -> DrawnPatches:
    """Draw images, then patches of each; which ones depends on the seed and the keys only.

    Images that cannot be read are left out.
    """
    ranks = sorted((derive_seed(fit.seed, f"cluster images/{key}"), index) for index, key in enumerate(scenes.keys))
    chosen = sorted(index for _, index in ranks[: min(fit.num_images, fit.num_features)])  # one patch of each, or more
    per_image, drawn, failed_keys = fit.num_features // len(chosen), list[Tensor](), list[str]()
    display = ProgressDisplay(
        total_steps=len(chosen), name="clusters", unit="images", value_labels={"failed": "failed"}, is_quiet=is_quiet
    )
    with display:
        for number, index in enumerate(chosen, start=1):
            started_at, key = perf_counter(), scenes.keys[index]
            if (image := _read_image(scenes, index)) is None:
                failed_keys.append(key)
            else:
                patches = features.compute(image).flatten(1).T.cpu()
                generator = torch.Generator().manual_seed(derive_seed(fit.seed, f"cluster patches/{key}"))
                drawn.append(patches[torch.randperm(len(patches), generator=generator)[:per_image]])
            seconds = perf_counter() - started_at
            display.update(number, {"failed": len(failed_keys)}, seconds=seconds, wait_fraction=0.0)
    if not drawn:
        raise UserError("no image can be read. Check the images")
    return DrawnPatches(torch.cat(drawn), len(drawn), failed_keys)


def _check_existing(path: Path, metadata: Mapping[str, Any], scenes: Scenes) -> None:
    """Raise a `UserError` unless a file has the clusters that the fit would find, as far as the images are the same."""
    fix = "Use them without --fit, or choose another file"
    _, stored = read_clusters(path)
    failed_keys = set(stored["fit"].pop(_FAILED, ()))
    if changes := describe_cluster_changes(stored, metadata):
        raise UserError(f"{path}: exists and has other clusters: {changes}. {fix}")
    readable = [
        key for index, key in enumerate(scenes.keys) if key in failed_keys and _read_image(scenes, index) is not None
    ]
    if readable:
        raise UserError(
            f"{path}: exists and has other clusters, found without {format_count(len(readable), 'image')} that can be"
            f" read now: {_name_keys(readable)}. {fix}"
        )


def _read_image(scenes: Scenes, index: int) -> UInt8[Tensor, "3 height width"] | None:
    """Return an image, None if it cannot be read."""
    try:
        return scenes[index].maps["rgb"].expand(3, -1, -1)
    except UserError:
        return None


def _name_keys(keys: Sequence[str]) -> str:
    others = " and others" if len(keys) > _NAMED_KEYS else ""
    return f"{', '.join(repr(key) for key in keys[:_NAMED_KEYS])}{others}"

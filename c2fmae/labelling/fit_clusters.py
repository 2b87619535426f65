"""The fit of the labeller `clusters`, before images are labelled: features of some patches, then k-means."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.locks import LOCK_SUFFIX, lock_file
from c2fmae.core.progress import ProgressDisplay
from c2fmae.core.seeding import derive_seed
from c2fmae.data.encode import make_output_dir
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import digest
from c2fmae.labelling.cluster_file import describe_cluster_changes, read_clusters, write_clusters
from c2fmae.labelling.clusters import ClusterConfig, ClusterFitConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.kmeans import fit_kmeans
from c2fmae.labelling.patch_features import PatchFeatures
from c2fmae.labelling.registry import parse_labeller


def fit_semantics(
    text: str | None, options: Mapping[str, Any], scenes: Scenes, context: LabellerContext, *, is_quiet: bool = False
) -> None:
    """Fit the labeller of `--semantics`. Raise a `UserError` unless it is `clusters`."""
    spec = parse_labeller(text, options, option="semantics") if text is not None else None
    if spec is None or not isinstance(spec.options, ClusterConfig):
        raise UserError("--fit: finds the clusters of `clusters` only. Write --semantics clusters:BACKBONE,FILE")
    fit_clusters(scenes, spec.options, context, is_quiet=is_quiet)


def fit_clusters(scenes: Scenes, config: ClusterConfig, context: LabellerContext, *, is_quiet: bool = False) -> None:
    """Write the file of clusters of images, unless it exists with the same ones.

    Other commands that need the file wait for it. Raise a `UserError` if it has other clusters.
    """
    path = Path(config.centroids)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: is not a name for a file of clusters (expected *.safetensors). Rename it")
    features = PatchFeatures(config, context)
    fit = {**config.fit.model_dump(), "keys": digest(*(key.encode() + b"\n" for key in scenes.keys))}
    metadata = {"features": dict(features.describe()), "fit": fit}
    make_output_dir(path.parent)
    with lock_file(path.parent / f".{path.name}{LOCK_SUFFIX}"):
        if path.exists():
            _, stored = read_clusters(path)
            if changes := describe_cluster_changes(stored, metadata):
                raise UserError(
                    f"{path}: exists and has other clusters: {changes}. Use them without --fit, or choose another file"
                )
            return
        points = draw_features(scenes, features, config.fit, is_quiet=is_quiet)
        if len(points) < config.fit.num_clusters:
            raise UserError(
                f"{len(scenes)} images have {len(points)} patches (expected at least one for each of"
                f" {config.fit.num_clusters} clusters). Use more images, or a lower semantics.fit.num_clusters"
            )
        generator = torch.Generator().manual_seed(derive_seed(config.fit.seed, "clusters"))
        started_at = perf_counter()
        centroids = fit_kmeans(points, config.fit.num_clusters, generator, max_iterations=config.fit.max_iterations)
        write_clusters(path, centroids, metadata)
    if not is_quiet:
        seconds = perf_counter() - started_at
        print(f"wrote {path}: {len(centroids)} clusters of {len(points):,} patches, k-means took {seconds:.0f} s")


def draw_features(
    scenes: Scenes, features: PatchFeatures, fit: ClusterFitConfig, *, is_quiet: bool
) -> Float32[Tensor, "patch dim"]:
    """Return features of random patches of random images; which ones depends on the seed and the keys only.

    Images that cannot be read are left out.
    """
    ranks = sorted((derive_seed(fit.seed, f"cluster images/{key}"), index) for index, key in enumerate(scenes.keys))
    chosen = sorted(index for _, index in ranks[: fit.num_images])
    per_image, drawn = max(fit.num_features // len(chosen), 1), list[Tensor]()
    display = ProgressDisplay(total_steps=len(chosen), name="clusters", unit="images", is_quiet=is_quiet)
    with display:
        for number, index in enumerate(chosen, start=1):
            started_at = perf_counter()
            generator = torch.Generator().manual_seed(derive_seed(fit.seed, f"cluster patches/{scenes.keys[index]}"))
            try:
                image = scenes[index].maps["rgb"].expand(3, -1, -1)
            except UserError:
                continue
            patches = features.compute(image).flatten(1).T.cpu()
            drawn.append(patches[torch.randperm(len(patches), generator=generator)[:per_image]])
            display.update(number, {}, seconds=perf_counter() - started_at, wait_fraction=0.0)
    if not drawn:
        raise UserError("no image can be read. Check the images")
    return torch.cat(drawn)[: fit.num_features]

"""The labeller `clusters`: semantic maps of clusters of patch features. It needs no labels."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.data.geometry import stored_pixels
from c2fmae.eval.cache import compute_tensors_digest
from c2fmae.labelling.cluster_file import describe_cluster_changes, read_clusters
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.kmeans import score_clusters
from c2fmae.labelling.patch_features import PatchFeatureConfig, open_patch_features
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.models.segmenters.upsampling import upsample_at

_SCORES_AT_ONCE = 1 << 24
_DIGEST_LENGTH = 16


class ClusterFitConfig(Config):
    """How --fit finds the clusters."""

    num_clusters: Annotated[int, Field(ge=2, le=IGNORE)] = 128
    """Number of clusters, the classes of the maps."""
    num_images: PositiveInt = 20_000
    """Number of images that are drawn, at most."""
    num_features: PositiveInt = 200_000
    """Number of patches that are drawn from these, approximately and at most."""
    max_iterations: PositiveInt = 20
    """Iterations of k-means, at most."""
    seed: Annotated[int, Field(ge=0)] = 0


class ClusterConfig(PatchFeatureConfig):
    """Settings of `clusters`."""

    path_options: ClassVar[tuple[str, ...]] = ("backbone", "centroids")

    centroids: str
    """The file of clusters (.safetensors), which --fit writes."""
    fit: ClusterFitConfig = ClusterFitConfig()
    """Only of --fit."""


@LABELLERS.register("clusters", options=ClusterConfig)
class ClusterLabeller:
    """Semantic maps of clusters (k-means) of the patch features of any backbone."""

    granularities = frozenset({"semantic"})
    maps_know_labels = False

    def __init__(self, config: ClusterConfig, context: LabellerContext) -> None:
        path = Path(config.centroids)
        if not path.exists():
            raise UserError(
                f"{path}: does not exist. Add --fit to find clusters of these images, or give a file of earlier ones"
            )
        self._features = open_patch_features(config, context)
        centroids, metadata = read_clusters(path)
        if changes := describe_cluster_changes(metadata["features"], self._features.describe()):
            raise UserError(f"{path}: has clusters of other features: {changes}. Use the same backbone and settings")
        self._centroids = centroids.to(context.device)
        self._digest = compute_tensors_digest({"centroids": centroids}, "")[:_DIGEST_LENGTH]
        self.classes = tuple(ClassInfo(name=f"cluster {index}") for index in range(len(centroids)))

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value: images are labelled one by one."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the semantic maps of images."""
        return [LabelResult({"semantic": self._label_image(each.image, stride)}) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        """Return digests of weights and centroids, and the settings of the features."""
        return {"labeller": "clusters", **self._features.describe(), "centroids": self._digest}

    @torch.inference_mode()
    def _label_image(self, image: UInt8[Tensor, "3 height width"], stride: int) -> UInt8[Tensor, "rows columns"]:
        """Return the nearest centroid of the features that are interpolated at each stored cell."""
        features, size = self._features.compute(image), (image.shape[1], image.shape[2])
        scores = score_clusters(features.flatten(1).T, self._centroids).T.unflatten(1, features.shape[1:])
        rows, columns = (torch.from_numpy(stored_pixels(length, stride)).to(scores.device) for length in size)
        at_once = max(_SCORES_AT_ONCE // (len(scores) * len(columns)), 1)
        parts = [upsample_at(scores, size, (part, columns)).argmax(dim=0) for part in rows.split(at_once)]
        return torch.cat(parts).to(torch.uint8).cpu()

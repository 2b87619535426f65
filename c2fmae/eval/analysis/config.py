"""Settings and protocols of the analyses of a backbone's attention and features."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from c2fmae.config.data import DatasetConfig, DataSourceOption, describe_source, source_name
from c2fmae.config.migrations import migrate_source
from c2fmae.core.config import PositiveInt, WorkerCount
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric


class SampledEvaluation(Evaluation):
    """An evaluation that measures images one by one."""

    limit_field: ClassVar[str | None] = "images"

    data: DataSourceOption = Field(default="generated")
    """A folder, shards, a pattern of shards, or a registered data set: `{name: generated, options: {length: 64}}`."""
    images: PositiveInt = 256
    """Maximum number of images, spread evenly over the data."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of images. By default, those of the backbone's training."""
    batch_size: PositiveInt = 32
    workers: WorkerCount = None
    """Processes that load images; by default, one for each core, up to 16."""

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_source(values, "data")

    def resolve_image_size(self, model: ModelUnderTest) -> tuple[int, int]:
        """Return the height and width of images."""
        return self.image_size or model.backbone.spec.image_size

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return a digest of the scenes, and how positions are computed for other image sizes."""
        from c2fmae.data.digest import compute_scenes_digest
        from c2fmae.eval.analysis.sampled import open_sampled_scenes

        options = self.data.given_options() if isinstance(self.data, DatasetConfig) else {}
        source = f"{source_name(self.data)}{sorted(options.items())}"
        digest = compute_scenes_digest(open_sampled_scenes(self, model), source)
        return {"data": digest} | model.identify_positions(self.resolve_image_size(model))

    def describe_images(self, model: ModelUnderTest) -> str:
        """Return the part of the protocol about the images."""
        from c2fmae.eval.analysis.sampled import open_sampled_scenes, resolve_source

        total = len(open_sampled_scenes(self, model))
        number = f"{self.images:,} evenly spaced ones of {total:,}" if self.images < total else f"all {total:,}"
        return f"Images: {number} of {describe_source(resolve_source(self, model))}."


@EVALUATIONS.register("attention")
class AttentionEvaluation(SampledEvaluation):
    """Measure how much of the attention falls on objects, layer by layer."""

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield the attention on objects of each layer and its ratio to chance."""
        from c2fmae.eval.analysis.attention import measure_attention

        return measure_attention(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe how attention on objects, chance and their ratio are computed."""
        height, width = self.resolve_image_size(model)
        has_global_token = model.backbone.encoder.cls_token is not None
        token = "the global token" if has_global_token else "the mean patch (there is no global token)"
        return (
            f"Attention of {token} to the patches of an image of {height}×{width}, without prefix tokens, averaged "
            "over heads, adding up to 100 %. Attention on objects: the percentage that falls on pixels of instances, "
            "where a patch's attention is spread evenly over its pixels and unlabelled pixels are left out. By chance: "
            "the percentage of labelled pixels that belong to instances. Relative to chance: mean percentage divided "
            "by mean chance, 1 for uniform attention. Images without any instance or label are left out. Intervals: "
            f"normal, over images. {self.describe_images(model)}"
        )


@EVALUATIONS.register("representation")
class RepresentationEvaluation(SampledEvaluation):
    """Measure how far attention reaches, how much it depends on the query, and the rank of features."""

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield seven metrics of each layer."""
        from c2fmae.eval.analysis.representation import measure_representation

        return measure_representation(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe the seven metrics."""
        from c2fmae.eval.analysis.representation import compute_patch_distances
        from c2fmae.eval.analysis.sampled import open_sampled_scenes

        height, width = self.resolve_image_size(model)
        grid = height // model.backbone.patch, width // model.backbone.patch
        mean_distance = compute_patch_distances(grid).mean().item()
        num_images = min(self.images, len(open_sampled_scenes(self, model)))
        return (
            f"Images of {height}×{width}. Attention is that of patches to patches, without prefix tokens, adding up to "
            "1. Attention distance: from the centre of a patch to those of the patches it attends to, averaged over "
            f"attention, patches and heads; uniform attention has {mean_distance:.2f} patches. Mutual information "
            "of query and key, all queries equally likely, divided by the geometric mean of their entropies, averaged "
            "over heads: 0 if all queries attend alike, 100 if each attends to a patch of its own. Effective rank: the "
            "exponential of the entropy of the singular values of the centred features (RankMe does not centre them). "
            "Variance along the first direction: its percentage of the total. Of patches: within each image, averaged "
            f"over images. Of pooled features ({model.backbone.spec.pool}): over all images, so that the rank is "
            f"{min(num_images - 1, model.backbone.dim)} at most. The last layer's features are normed. Intervals: "
            f"normal, over images. {self.describe_images(model)}"
        )

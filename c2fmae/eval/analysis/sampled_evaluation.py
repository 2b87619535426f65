"""Evaluations that look at some photos of a source, image by image."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from c2fmae.config.data import DatasetConfig, DataSourceOption, source_name
from c2fmae.config.migrations import migrate_source
from c2fmae.core.config import PositiveInt
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.eval.engine import BatchingConfig, BatchReader, gather_rows, iterate_batches
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.intervals import NORMAL_QUANTILE_975
from c2fmae.eval.metrics import Metric, TagValue


class SampledEvaluation(Evaluation):
    """Which photos are looked at, and how they are cut."""

    data: DataSourceOption = Field(default="generated")
    """A folder, shards, a pattern of shards, or a registered data set: `{name: generated, options: {length: 64}}`."""
    images: PositiveInt = 256
    """At most so many, spread evenly over the data."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width; those that the backbone learned from, unless given."""
    batch_size: PositiveInt = 32
    workers: Annotated[int, Field(ge=0)] = 2

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_source(values, "data")

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Name the scenes."""
        options = self.data.given_options() if isinstance(self.data, DatasetConfig) else {}
        return {
            "data": compute_scenes_digest(
                self._open_scenes(model), f"{source_name(self.data)}{sorted(options.items())}"
            )
        }

    def resolve_image_size(self, model: ModelUnderTest) -> tuple[int, int]:
        """Return the photos' height and width."""
        return self.image_size or model.backbone.spec.image_size

    def count_images(self, model: ModelUnderTest) -> int:
        """Return how many photos are looked at."""
        return min(self.images, len(self._open_scenes(model)))

    def measure_images(
        self,
        model: ModelUnderTest,
        measure_batch: Callable[[SceneBatch], Tensor],
        *,
        granularities: tuple[str, ...] | None = ("rgb",),
    ) -> Float64[Tensor, "image *values"]:
        """Return what `measure_batch` computes of each image, the same bits in every process."""
        scenes, world = self._open_scenes(model, granularities), model.world
        view = CentralView(size=self.resolve_image_size(model), max_instances=IGNORE)
        indices = np.linspace(0, len(scenes), min(self.images, len(scenes)), endpoint=False).astype(int)
        model.backbone.to(world.device).eval()
        batches = iterate_batches(
            BatchReader(scenes, view, indices.tolist()),
            world.rank_chunks(len(indices), self.batch_size),
            world,
            BatchingConfig(batch_size=self.batch_size, num_workers=self.workers),
        )
        with torch.no_grad():
            outputs = ((rows, {"values": measure_batch(batch.to(world.device)).double()}) for rows, batch in batches)
            return gather_rows(outputs, len(indices), world)["values"]

    def _open_scenes(self, model: ModelUnderTest, granularities: tuple[str, ...] | None = None) -> Scenes:
        source = self.data
        if isinstance(source, DatasetConfig) and source.name == "generated":
            source = source.with_defaults(size=max(self.resolve_image_size(model)))
        return open_scenes(source, granularities=granularities)


def mean_metric(key: str, values: Float64[Tensor, " image"], **tags: TagValue) -> Metric:
    """Return the mean of what was measured of images, with a normal interval; a single image has none.

    >>> mean_metric("attention_distance", torch.tensor([0.5, 0.5], dtype=torch.float64)).interval
    (0.5, 0.5)
    """
    return _metric_with_interval(key, values.mean().item(), values, tags)


def ratio_metric(
    key: str, values: Float64[Tensor, " image"], denominators: Float64[Tensor, " image"], **tags: TagValue
) -> Metric:
    """Return the ratio of two means over the same images, with the normal interval of its first-order error.

    >>> values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> ratio_metric("attention_on_objects_ratio", 2 * values, values).interval
    (2.0, 2.0)
    """
    ratio = (values.mean() / denominators.mean()).item()
    return _metric_with_interval(key, ratio, (values - ratio * denominators) / denominators.mean(), tags)


def _metric_with_interval(key: str, value: float, errors: Tensor, tags: Mapping[str, TagValue]) -> Metric:
    if len(errors) < 2:
        return Metric(key, value, len(errors), tags=tags)
    half_width = NORMAL_QUANTILE_975 * (errors.std() / len(errors) ** 0.5).item()
    return Metric(key, value, len(errors), (value - half_width, value + half_width), tags=tags)

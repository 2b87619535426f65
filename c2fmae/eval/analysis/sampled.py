"""Measurement of sampled images of a data set, one by one."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from c2fmae.config.data import DataSourceOption
from c2fmae.config.unseen_scenes import TEST_SEED_OFFSET, UnseenScenes
from c2fmae.core.cores import resolve_num_workers
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.eval.analysis.config import SampledEvaluation
from c2fmae.eval.engine import BatchingConfig, BatchReader, gather_rows, iterate_batches
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.intervals import NORMAL_QUANTILE_975
from c2fmae.eval.metrics import Metric, TagValue


def open_sampled_scenes(
    config: SampledEvaluation, model: ModelUnderTest, granularities: tuple[str, ...] | None = None
) -> Scenes:
    """Open the data of an evaluation."""
    return open_scenes(resolve_source(config, model), granularities=granularities)


def resolve_source(config: SampledEvaluation, model: ModelUnderTest) -> DataSourceOption:
    """Return the data of an evaluation, with the options of generated scenes."""
    size = max(config.resolve_image_size(model))
    key = f"source of {size} {config.model_dump_json()}"
    if key not in model.memo:
        unseen = model.find_unseen_scenes({"data": config.data})
        defaults = {"size": size, **({"seed": unseen.seed + TEST_SEED_OFFSET} if unseen else {})}
        model.memo[key] = (unseen or UnseenScenes()).fill(config.data, **defaults)
    source: DataSourceOption = model.memo[key]
    return source


def measure_images(
    config: SampledEvaluation,
    model: ModelUnderTest,
    measure_batch: Callable[[SceneBatch], Tensor],
    *,
    granularities: tuple[str, ...] | None = ("rgb",),
) -> Float64[Tensor, "image *values"]:
    """Return the values that `measure_batch` computes for each sampled image, bit-identical in every process."""
    scenes, world = open_sampled_scenes(config, model, granularities), model.world
    view = CentralView(size=config.resolve_image_size(model), max_instances=IGNORE)
    indices = np.linspace(0, len(scenes), min(config.images, len(scenes)), endpoint=False).astype(int)
    model.backbone.to(world.device).eval()
    batches = iterate_batches(
        BatchReader(scenes, view, indices.tolist()),
        world.rank_chunks(len(indices), config.batch_size),
        world,
        BatchingConfig(batch_size=config.batch_size, num_workers=resolve_num_workers(config.workers)),
    )
    with torch.no_grad():
        outputs = ((rows, {"values": measure_batch(batch.to(world.device)).double()}) for rows, batch in batches)
        return gather_rows(outputs, len(indices), world)["values"]


def make_mean_metric(key: str, values: Float64[Tensor, " image"], **tags: TagValue) -> Metric:
    """Return the mean over images with a normal 95 % interval; a single image has none.

    >>> make_mean_metric("attention_distance", torch.tensor([0.5, 0.5], dtype=torch.float64)).interval
    (0.5, 0.5)
    """
    return _make_metric_with_interval(key, values.mean().item(), values, tags)


def make_ratio_metric(
    key: str, values: Float64[Tensor, " image"], denominators: Float64[Tensor, " image"], **tags: TagValue
) -> Metric:
    """Return the ratio of two means over the same images, with a normal 95 % interval from its first-order error.

    >>> values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> make_ratio_metric("attention_on_objects_ratio", 2 * values, values).interval
    (2.0, 2.0)
    """
    ratio = (values.mean() / denominators.mean()).item()
    return _make_metric_with_interval(key, ratio, (values - ratio * denominators) / denominators.mean(), tags)


def _make_metric_with_interval(key: str, value: float, errors: Tensor, tags: Mapping[str, TagValue]) -> Metric:
    if len(errors) < 2:
        return Metric(key, value, len(errors), tags=tags)
    half_width = NORMAL_QUANTILE_975 * (errors.std() / len(errors) ** 0.5).item()
    return Metric(key, value, len(errors), (value - half_width, value + half_width), tags=tags)

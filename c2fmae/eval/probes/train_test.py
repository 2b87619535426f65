"""Features of the training and test sets of probes, and subsets of their labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.cores import resolve_num_workers
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.datasets import OpenedSet, draw_stratified_rows, open_set
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric, TagValue, build_accuracy_metric
from c2fmae.eval.probes.config import LabelProbeConfig, ProbeConfig
from c2fmae.eval.probes.extraction import extract_features
from c2fmae.eval.probes.feature_store import FeatureStore

_MAX_OVERLAP = 0.5
"""Maximum fraction of test images that may be in the training set."""


@dataclass(frozen=True)
class TrainTestFeatures:
    """Features of the training and the test set."""

    train: FeatureStore
    test: FeatureStore
    overlap: float
    """Fraction of the test images that are bitwise equal to a training image."""

    @property
    def num_test_images(self) -> int:
        """Number of test images."""
        return len(self.test.labels)

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def overlap_metric(self) -> Metric:
        """Return the train/test overlap as a metric."""
        return Metric("train_test_overlap", 100 * self.overlap, self.num_test_images)


def open_sets(config: ProbeConfig, model: ModelUnderTest) -> tuple[OpenedSet, OpenedSet]:
    """Open the training and the test set, once for each model, and check that they match."""
    size, granularities = config.resolve_image_size(model.backbone), config.required_granularities()
    key = f"sets of {size} {config.model_dump_json()}"
    if key not in model.memo:
        unseen = model.find_unseen_scenes({"train": config.train, "test": config.test})
        train = open_set("train", config.train, size, granularities, unseen, limit=config.limit)
        test = open_set("test", config.test, size, granularities, unseen, limit=config.limit)
        config.check_sets((train, test))
        model.memo[key] = (train, test)
    opened: tuple[OpenedSet, OpenedSet] = model.memo[key]
    return opened


def extract_sets(config: ProbeConfig, model: ModelUnderTest) -> TrainTestFeatures:
    """Return the features of both sets; raise a `UserError` if most test images are in the training set."""
    sets, backbone = open_sets(config, model), model.backbone
    train, test = (
        extract_features(
            model,
            opened.scenes,
            config.make_view(backbone),
            config.feature_spec(backbone),
            identity=opened.identity,
            batching=BatchingConfig(batch_size=config.batch_size, num_workers=resolve_num_workers(config.workers)),
        )
        for opened in sets
    )
    overlap = float(np.isin(test.image_digests, train.image_digests).mean())
    if overlap > _MAX_OVERLAP:
        raise UserError(
            f"test: {overlap:.0%} of the images of {sets[1].name} are in the training set too, so the accuracy would "
            "not measure features. Use another set"
        )
    return TrainTestFeatures(train, test, overlap)


def extract_labelled_sets(config: LabelProbeConfig, model: ModelUnderTest) -> TrainTestFeatures:
    """Return the features of both sets; raise a `UserError` if a scene has no label."""
    sets = extract_sets(config, model)
    for split, features, opened in zip(
        ("train", "test"), (sets.train, sets.test), open_sets(config, model), strict=True
    ):
        if missing := int((features.labels < 0).sum()):
            raise UserError(
                f"{split}: {missing} of {len(features.labels)} scenes of {opened.name} have no label. "
                "Label them, or leave them out"
            )
    return sets


def draw_label_subsets(
    config: LabelProbeConfig, labels: Int64[Tensor, " scene"]
) -> Iterator[tuple[float, list[Int64[Tensor, " row"]]]]:
    """Yield each fraction of the labels, with the training rows of each draw."""
    for fraction in config.fractions:
        num_draws = 1 if fraction == 1 else config.seeds
        seeds = [derive_seed(config.seed, "labels", draw) for draw in range(num_draws)]
        yield fraction, [draw_stratified_rows(labels, fraction, seed) for seed in seeds]


def make_accuracy_metrics(
    key: str, accuracies: Sequence[float], count: int, tags: Mapping[str, TagValue], notes: tuple[str, ...] = ()
) -> Iterator[Metric]:
    """Yield an accuracy in percent with its interval, or the mean and standard deviation of several draws."""
    if len(accuracies) == 1:
        yield build_accuracy_metric(key, accuracies[0], count, tags=tags, notes=notes)
        return
    percent = 100 * np.array(accuracies)
    yield Metric(key, float(percent.mean()), count, tags=tags)
    yield Metric(f"{key}_std", float(percent.std(ddof=1)), len(accuracies), tags=tags)


def label_fraction_tags(fraction: float) -> dict[str, TagValue]:
    """Return the tag of metrics for a fraction of the labels; no tag for all labels."""
    return {} if fraction == 1 else {"label_fraction": fraction}

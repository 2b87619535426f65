"""What all probes of frozen features share: two sets, features of both, how many labels are given, and honesty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Fraction, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import Pooling
from c2fmae.eval.data_config import TrainTestConfig
from c2fmae.eval.datasets import OpenedSet, check_same_names, open_set
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric, TagValue, build_accuracy_metric
from c2fmae.eval.probes.extraction import FeatureColumn, FeatureSpec, Precision, extract_features
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.models.backbones import Backbone

_MAX_OVERLAP = 0.5
"""Share of the test photos from which on being in the training set, too, is no accident."""


@dataclass(frozen=True)
class TrainTestFeatures:
    """Features of the two sets."""

    train: FeatureStore
    test: FeatureStore
    overlap: float
    """Share of the test photos that are among the training photos, byte for byte."""

    @property
    def num_test_images(self) -> int:
        """How many photos are tried."""
        return len(self.test.labels)

    @property
    def num_labels(self) -> int:
        """How many labels there are."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def overlap_metric(self) -> Metric:
        """Return the number that stands before all others."""
        return Metric("train_test_overlap", 100 * self.overlap, self.num_test_images)


class ProbeConfig(TrainTestConfig, Evaluation):
    """A probe of frozen features, of photos alone."""

    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Blocks behind which features are taken, counted from 1; the last, unless given."""
    seed: int = 0
    batch_size: PositiveInt = 64
    """Photos encoded at once."""
    workers: Annotated[int, Field(ge=0)] = 2
    precision: Precision = "fp32"

    def resolve_layers(self, backbone: Backbone) -> tuple[int, ...]:
        """Return the blocks that are asked for."""
        for layer in self.layers or ():
            if layer > backbone.depth:
                raise UserError(f"layers: the backbone has {backbone.depth}, got {layer}")
        return self.layers or (backbone.depth,)

    def feature_spec(self, backbone: Backbone) -> FeatureSpec:
        """Return what is to be known of every scene."""
        raise NotImplementedError

    def required_granularities(self) -> tuple[str, ...]:
        """Return the granularities that scenes have to have."""
        return ("rgb",)

    def open_sets(self, model: ModelUnderTest) -> tuple[OpenedSet, OpenedSet]:
        """Return the two sets, once they are known to fit each other."""
        key = f"pair {self.model_dump_json()}"
        if key not in model.memo:
            size = self.resolve_image_size(model.backbone)
            train = open_set("train", self.train, size, self.required_granularities())
            test = open_set("test", self.test, size, self.required_granularities())
            self.check_sets((train, test))
            model.memo[key] = (train, test)
        opened: tuple[OpenedSet, OpenedSet] = model.memo[key]
        return opened

    def check_sets(self, sets: tuple[OpenedSet, OpenedSet]) -> None:
        """Refuse sets that do not fit each other, before hours are spent on them."""

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Name the two sets."""
        return dict(zip(("train", "test"), (each.identity for each in self.open_sets(model)), strict=True))

    def extract_sets(self, model: ModelUnderTest) -> TrainTestFeatures:
        """Return features of both sets; that the one is the other is refused, and known when the photos are."""
        opened, view, wanted = self.open_sets(model), self.make_view(model.backbone), self.feature_spec(model.backbone)
        hands = BatchingConfig(batch_size=self.batch_size, num_workers=self.workers)
        train, test = (
            extract_features(model, each.scenes, view, wanted, identity=each.identity, batching=hands)
            for each in opened
        )
        overlap = float(np.isin(test.image_digests, train.image_digests).mean())
        if overlap > _MAX_OVERLAP:
            raise UserError(
                f"test: {overlap:.0%} of its photos are in the training set, too. What a probe has been given the "
                f"truth of says nothing about features. Take another set than {opened[1].name}"
            )
        return TrainTestFeatures(train, test, overlap)

    def describe_setup(self, model: ModelUnderTest) -> str:
        """Say what every probe does the same way."""
        backbone, (train, test) = model.backbone, self.open_sets(model)
        height, width = self.resolve_image_size(backbone)
        crop = f"the central {self.crop:g} of each photo" if self.crop < 1 else "the largest central part of each photo"
        norm = "normed behind the pooling of the last layer" if backbone.spec.has_fc_norm else "the last layer normed"
        return (
            f"Frozen features of photos alone ({self.feature_spec(backbone)}; {norm}), in evaluation mode, "
            f"{self.precision}; {crop} at {height}×{width}. Truth from {train}, tried on {test}."
        )


class LabelProbeConfig(ProbeConfig):
    """A probe that asks for the label of a photo."""

    pools: Annotated[tuple[Pooling, ...], Field(min_length=1)] | None = None
    """How a photo's tokens become one vector; as the backbone does it, unless given."""
    fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (1.0,)
    """Shares of each class's labels that the probe is given, rounded up."""
    seeds: PositiveInt = 1
    """How often, each time others; a share of 1 is taken once."""

    def feature_columns(self, backbone: Backbone) -> tuple[FeatureColumn, ...]:
        """Return the kinds of features that are asked for."""
        pools = self.pools or (backbone.spec.pool,)
        return tuple(FeatureColumn(layer, pool) for layer in self.resolve_layers(backbone) for pool in pools)

    def feature_spec(self, backbone: Backbone) -> FeatureSpec:
        """Return what is to be known of every scene."""
        return FeatureSpec(columns=self.feature_columns(backbone), precision=self.precision)

    def check_sets(self, sets: tuple[OpenedSet, OpenedSet]) -> None:
        """Refuse labels that are not there, or not the same."""
        check_same_names(sets, "label_names")
        for split, each in zip(("train", "test"), sets, strict=True):
            if each.scenes[0].label is None:
                raise UserError(
                    f"{split}: {each.name} has no labels. Take a labelled set; for maps there is eval dense"
                )

    def extract_labelled_sets(self, model: ModelUnderTest) -> TrainTestFeatures:
        """Return features of both sets, all of whose scenes have labels."""
        sets = self.extract_sets(model)
        for split, features, opened in zip(
            ("train", "test"), (sets.train, sets.test), self.open_sets(model), strict=True
        ):
            if missing := int((features.labels < 0).sum()):
                raise UserError(
                    f"{split}: {missing} of {len(features.labels)} scenes of {opened.name} have no label. Leave them "
                    "out"
                )
        return sets

    def draw_label_subsets(
        self, labels: Int64[Tensor, " scene"]
    ) -> Iterator[tuple[float, list[Int64[Tensor, " row"]]]]:
        """Return for each share of the labels the rows that are given, once for each seed."""
        for fraction in self.fractions:
            num_draws = 1 if fraction == 1 else self.seeds
            yield (
                fraction,
                [draw_stratified_rows(labels, fraction, derive_seed(self.seed, "labels", n)) for n in range(num_draws)],
            )

    def describe_scores(self) -> str:
        """Say what the numbers are."""
        fraction_sentence = (
            "Shares of the labels are of each class, rounded up, each drawn by " if self.fractions != (1.0,) else ""
        )
        times = f"{self.seeds} seed{'s' * (self.seeds > 1)}. " if fraction_sentence else ""
        return (
            f"{fraction_sentence}{times}Accuracy over all test photos, in percent; Wilson's 95 % interval where it "
            "was taken once, "
            "else the mean and the standard deviation over seeds."
        )


def draw_stratified_rows(labels: Int64[Tensor, " scene"], fraction: float, seed: int) -> Int64[Tensor, " row"]:
    """Return rows, in order, that hold a share of every label, rounded up.

    >>> draw_stratified_rows(torch.tensor([0, 1, 0, 1, 0, 1, 1]), 0.5, seed=0).shape
    torch.Size([4])
    """
    noise = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (labels + noise).argsort()  # by label, then by noise
    counts = labels.bincount()
    rank_in_label = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    num_rows = (fraction * counts.double() - 1e-9).ceil()  # 0.15 of 100 is 15, whatever 0.15 is in binary
    return order[rank_in_label < num_rows[labels[order]]].sort().values


def make_accuracy_metrics(
    key: str, accuracies: Sequence[float], count: int, tags: Mapping[str, TagValue], notes: tuple[str, ...] = ()
) -> Iterator[Metric]:
    """Yield an accuracy in percent with its interval; of several draws, their mean and standard deviation."""
    if len(accuracies) == 1:
        yield build_accuracy_metric(key, accuracies[0], count, tags=tags, notes=notes)
        return
    percent = 100 * np.array(accuracies)
    yield Metric(key, float(percent.mean()), count, tags=tags)
    yield Metric(f"{key}_std", float(percent.std(ddof=1)), len(accuracies), tags=tags)


def label_fraction_tags(fraction: float) -> dict[str, TagValue]:
    """Return the tag of a metric that is about a fraction of the labels, where it is not all."""
    return {} if fraction == 1 else {"label_fraction": fraction}

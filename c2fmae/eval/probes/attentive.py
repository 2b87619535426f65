"""`eval attentive`: what learned queries, looking at all of a photo's frozen patches, can name of it."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.attentive_head import AttentiveProbeSetting, TokenReader, fit_attentive_probe
from c2fmae.eval.probes.extraction import FeatureSpec
from c2fmae.eval.probes.probe_config import (
    LabelProbeConfig,
    TrainTestFeatures,
    label_fraction_tags,
    make_accuracy_metrics,
)
from c2fmae.models.backbones import Backbone

_ROWS_PER_BATCH = 256


@EVALUATIONS.register("attentive")
class AttentiveProbeEvaluation(LabelProbeConfig):
    """Efficient probing: a classifier that attends to frozen patches."""

    num_queries: PositiveInt = 32
    narrowing: PositiveInt = 1
    """How many times narrower than a token is what is classified."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    epochs: PositiveInt = 30
    head_batch_size: Annotated[int, Field(ge=4)] = 256
    """Photos of a step of the probe, at most; its batch norm needs several."""

    @model_validator(mode="after")
    def _check_features(self) -> "AttentiveProbeEvaluation":
        if self.pools or len(self.layers or ()) > 1:
            raise UserError("pools, layers: attentive probes pool by themselves, patches of one layer. Name one layer")
        return self

    def feature_spec(self, backbone: Backbone) -> FeatureSpec:
        """Return what is to be known of every scene."""
        return FeatureSpec(patch_depths=self.resolve_layers(backbone), precision=self.precision)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what is done."""
        return (
            f"{self.describe_setup(model)} Efficient probing: {self.num_queries} learned queries attend to the "
            "patches, which "
            "are their own keys; each reads its group of a linear map of them, and a linear classifier, behind batch "
            f"norm without scale and shift, names the label. AdamW, learning rate {self.lr:g} after a tenth of the "
            f"steps, then a cosine, weight decay {self.weight_decay:g}, {self.epochs} epochs in batches of at most "
            f"{self.head_batch_size}; nothing is chosen. {self.describe_scores()}"
        )

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Fit in one process for all, and try."""
        sets, name, world = (
            self.extract_labelled_sets(model),
            f"patches {self.resolve_layers(model.backbone)[0]}",
            model.world,
        )
        yield sets.overlap_metric()
        readers = (sets.train.make_row_reader(name), sets.test.make_row_reader(name)) if world.is_main else None
        for fraction, subsets in self.draw_label_subsets(sets.train.labels):
            accuracies = [
                world.broadcast_object(self._test_accuracy(sets, *readers, rows) if readers else None)
                for rows in subsets
            ]
            yield from make_accuracy_metrics("top1", accuracies, sets.num_test_images, label_fraction_tags(fraction))

    def _test_accuracy(
        self, sets: TrainTestFeatures, read_train: TokenReader, read_test: TokenReader, rows: Int64[Tensor, " row"]
    ) -> float:
        """Return which share of the test photos a probe of these training photos gets right."""
        setting = AttentiveProbeSetting(
            num_queries=self.num_queries,
            reduction_factor=self.narrowing,
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.head_batch_size,
            seed=self.seed,
        )
        probe = fit_attentive_probe(read_train, sets.train.labels, setting, rows=rows, num_labels=sets.num_labels)
        test_rows = torch.arange(sets.num_test_images).split(_ROWS_PER_BATCH)
        predicted = torch.cat([probe.predict(read_test(some)) for some in test_rows])
        return (predicted == sets.test.labels).double().mean().item()

"""`eval linear`: how well a linear classifier of frozen features names what a photo shows."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.batching import split_training_validation
from c2fmae.eval.probes.lars import BASE_LR, fit_lars_probe
from c2fmae.eval.probes.linear_heads import LinearProbe, choose_linear_head
from c2fmae.eval.probes.probe_config import (
    LabelProbeConfig,
    TrainTestFeatures,
    label_fraction_tags,
    make_accuracy_metrics,
)
from c2fmae.eval.probes.sweep import SweepConfig, describe_chosen_head

_ROWS_PER_BATCH = 8192


class FittedProbe(NamedTuple):
    """A probe, the features that it is of, and what was chosen on the way to it."""

    probe: LinearProbe
    column: str
    description: str


@EVALUATIONS.register("linear")
class LinearProbeEvaluation(SweepConfig, LabelProbeConfig):
    """A linear classifier of frozen features, its settings chosen on a fifth of the training photos."""

    variant: Literal["sweep", "mae"] = "sweep"
    """`mae` is the protocol of MAE: one setting, batch norm, LARS, 90 epochs; for hundreds of thousands of photos."""

    @model_validator(mode="after")
    def _check_variant(self) -> "LinearProbeEvaluation":
        if self.variant == "mae":
            if unused := sorted(self.model_fields_set & SweepConfig.model_fields.keys()):
                raise UserError(f"{', '.join(unused)}: MAE's protocol says what they are. Leave them out")
            if len(self.layers or ()) > 1 or len(self.pools or ()) > 1:
                raise UserError("variant: MAE's protocol takes one layer and one pooling; nothing is chosen in it")
        return self

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what is done."""
        if self.variant == "mae":
            return (
                f"{self.describe_setup(model)} MAE's linear probe: batch norm without scale and shift, LARS with "
                "momentum 0.9, "
                f"rate {BASE_LR:g} × batch/256, 10 of 90 epochs of warm-up, a cosine, no weight decay, batches of at "
                f"most 16,384; unlike MAE's, without augmentation. {self.describe_scores()}"
            )
        number = len(self.list_settings([str(column) for column in self.feature_columns(model.backbone)]))
        return (
            f"{self.describe_setup(model)} A linear classifier of standardised features, {self.describe_fit()}. "
            f"Of {number} settings (learning rate × weight decay × features, fitted in one pass) the best on a fifth "
            "of the training photos is fitted again to all of them; the test photos have no part in the choice. "
            f"{self.describe_scores()}"
        )

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Fit all settings at once, in one process for all, and try the best."""
        sets, world = self.extract_labelled_sets(model), model.world
        yield sets.overlap_metric()
        columns = {str(column): column for column in self.feature_columns(model.backbone)}
        features = {name: sets.train.read_tensor(column) for name, column in columns.items()} if world.is_main else {}
        for fraction, subsets in self.draw_label_subsets(sets.train.labels):
            accuracies, descriptions = [], []
            for rows in subsets:
                fit: FittedProbe = world.broadcast_object(
                    self._fit_probe(features, sets, rows) if world.is_main else None
                )
                accuracies.append(
                    _top_k_accuracies(fit.probe, sets.test.read_tensor(columns[fit.column]), sets.test.labels)
                )
                descriptions.append(fit.description)
            for key in accuracies[0]:
                yield from make_accuracy_metrics(
                    key,
                    [draw[key] for draw in accuracies],
                    sets.num_test_images,
                    label_fraction_tags(fraction),
                    notes=(descriptions[0],) if key == "top1" else (),
                )

    def _fit_probe(
        self, features: Mapping[str, Tensor], sets: TrainTestFeatures, rows: Int64[Tensor, " row"]
    ) -> FittedProbe:
        labels, column = sets.train.labels, next(iter(features))
        if self.variant == "mae":
            probe = fit_lars_probe(features[column], labels, rows=rows, num_labels=sets.num_labels, seed=self.seed)
            return FittedProbe(probe, column, column)
        training_rows, validation_rows = split_training_validation(rows, seed=self.seed)
        chosen = choose_linear_head(
            features,
            labels,
            self.list_settings([*features]),
            rows=training_rows,
            validation_rows=validation_rows,
            num_labels=sets.num_labels,
            epochs=self.resolve_epochs(len(rows)),
            batch_size=self.head_batch_size,
            seed=derive_seed(self.seed, "heads"),
        )
        return FittedProbe(chosen.probe, chosen.setting.column, describe_chosen_head(chosen))


def _top_k_accuracies(
    probe: LinearProbe, features: Float[Tensor, "row dim"], truth: Int64[Tensor, " row"]
) -> dict[str, float]:
    """Return the share of rows whose label comes first, and that of those with the label among the first five."""
    k = min(5, len(probe.bias))
    top_labels = torch.cat([probe.logits(rows).topk(k, dim=1).indices for rows in features.split(_ROWS_PER_BATCH)])
    is_right = top_labels == truth.unsqueeze(1)
    accuracies = {"top1": is_right[:, 0].double().mean().item()}
    return accuracies | ({"top5": is_right.any(dim=1).double().mean().item()} if k == 5 else {})

"""`eval linear`: how well a linear classifier of frozen features names what a photo shows."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import seed_of
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.batching import hold_out
from c2fmae.eval.probes.lars import BASE_RATE, fit_lars
from c2fmae.eval.probes.linear_heads import choose_head
from c2fmae.eval.probes.logistic_regression import LinearProbe
from c2fmae.eval.probes.probe_config import LabelledConfig, Pair, at, told_shares
from c2fmae.eval.probes.sweep import SweepConfig, told

_ROWS_AT_ONCE = 8192


class Fit(NamedTuple):
    """A probe, the features that it is of, and what was chosen on the way to it."""

    probe: LinearProbe
    column: str
    told: str


@EVALUATIONS.register("linear")
class LinearConfig(SweepConfig, LabelledConfig):
    """A linear classifier of frozen features, its settings chosen on a fifth of the training photos."""

    variant: Literal["sweep", "mae"] = "sweep"
    """`mae` is the protocol of MAE: one setting, batch norm, LARS, 90 epochs; for hundreds of thousands of photos."""

    @model_validator(mode="after")
    def _check_variant(self) -> "LinearConfig":
        if self.variant == "mae":
            if idle := sorted(self.model_fields_set & SweepConfig.model_fields.keys()):
                raise UserError(f"{', '.join(idle)}: MAE's protocol says what they are. Leave them out")
            if len(self.layers or ()) > 1 or len(self.pools or ()) > 1:
                raise UserError("variant: MAE's protocol takes one layer and one pooling; nothing is chosen in it")
        return self

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        if self.variant == "mae":
            return (
                f"{self.told(subject)} MAE's linear probe: batch norm without scale and shift, LARS with momentum 0.9, "
                f"rate {BASE_RATE:g} × batch/256, 10 of 90 epochs of warm-up, a cosine, no weight decay, batches of at "
                f"most 16,384; unlike MAE's, without augmentation. {self.told_scores()}"
            )
        number = len(self.sweep([str(column) for column in self.columns(subject.backbone)]))
        return (
            f"{self.told(subject)} A linear classifier of standardised features, {self.told_of_fit()}. "
            f"Of {number} settings (learning rate × weight decay × features, fitted in one pass) the best on a fifth "
            "of the training photos is fitted again to all of them; the test photos have no part in the choice. "
            f"{self.told_scores()}"
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Fit all settings at once, in one process for all, and try the best."""
        pair, world = self.labelled(subject), subject.world
        yield pair.told_overlap()
        columns = {str(column): column for column in self.columns(subject.backbone)}
        features = {name: pair.train.whole(column) for name, column in columns.items()} if world.is_first else {}
        for fraction, draws in self.drawn(pair.train.labels):
            found, notes = [], []
            for rows in draws:
                fit: Fit = world.share(self._fit(features, pair, rows) if world.is_first else None)
                found.append(_shares(fit.probe, pair.test.whole(columns[fit.column]), pair.test.labels))
                notes.append(fit.told)
            for name in found[0]:
                note = notes[0] if name == "top-1" else ""
                yield from told_shares(f"{name}{at(fraction)}", [each[name] for each in found], pair.count, note)

    def _fit(self, features: Mapping[str, Tensor], pair: Pair, rows: Int64[Tensor, " row"]) -> Fit:
        labels, column = pair.train.labels, next(iter(features))
        if self.variant == "mae":
            probe = fit_lars(features[column], labels, rows=rows, num_labels=pair.num_labels, seed=self.seed)
            return Fit(probe, column, column)
        rest, held_out = hold_out(rows, seed=self.seed)
        chosen = choose_head(
            features,
            labels,
            self.sweep([*features]),
            rows=rest,
            held_out=held_out,
            num_labels=pair.num_labels,
            epochs=self.epochs_of(len(rows)),
            batch_size=self.head_batch_size,
            seed=seed_of(self.seed, "heads"),
        )
        return Fit(chosen.probe, chosen.setting.column, told(chosen))


def _shares(probe: LinearProbe, features: Float[Tensor, "row dim"], truth: Int64[Tensor, " row"]) -> dict[str, float]:
    """Return the share of rows whose label comes first, and that of those with the label among the first five."""
    most = min(5, len(probe.bias))
    ranks = torch.cat([probe.logits(rows).topk(most, dim=1).indices for rows in features.split(_ROWS_AT_ONCE)])
    is_right = ranks == truth.unsqueeze(1)
    shares = {"top-1": is_right[:, 0].double().mean().item()}
    return shares | ({"top-5": is_right.any(dim=1).double().mean().item()} if most == 5 else {})

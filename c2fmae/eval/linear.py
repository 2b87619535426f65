"""`eval linear`: how well a linear classifier of frozen features names what a photo shows."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.seeding import seed_of
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.batches import hold_out
from c2fmae.eval.probes.heads import choose_head
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probes.lars import BASE_RATE, fit_lars
from c2fmae.eval.probes.linear import LinearProbe
from c2fmae.eval.probing import LabelledConfig, Pair, at, spread
from c2fmae.eval.sweep import SweepConfig, told

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

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        scores = "Accuracy over all test photos, in percent, with Wilson's 95 % interval."
        if self.variant == "mae":
            return (
                f"{self.told(subject)} MAE's linear probe: batch norm without scale and shift, LARS with momentum 0.9, "
                f"rate {BASE_RATE:g} × batch/256, 10 of 90 epochs of warm-up, a cosine, no weight decay, batches of "
                f"16,384; unlike MAE's, without augmentation. {scores}"
            )
        number = len(self.lrs) * len(self.weight_decays) * len(self.columns(subject.backbone))
        return (
            f"{self.told(subject)} A linear classifier of standardised features, {self.told_of_fit()}. "
            f"Of {number} settings (learning rate × weight decay × features, fitted in one pass) the best on a fifth "
            "of the training photos is fitted again to all of them; the test photos have no part in the choice. "
            f"{scores}"
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Fit all settings at once, in one process for all, and try the best."""
        pair = self.labelled(subject)
        count, truth = len(pair.test.labels), pair.test.labels
        yield Metric("test photos that are in the training set, too, %", 100 * pair.overlap, count)
        columns = {str(column): column for column in self.columns(subject.backbone)}
        features = {name: pair.train.column(column) for name, column in columns.items()}
        tests = {name: pair.test.column(column) for name, column in columns.items()}
        for fraction, draws in self.drawn(pair.train.labels):
            found, notes = [], []
            for rows in draws:
                fit = self._fit(features, pair, rows) if subject.world.is_first else None
                fitted: Fit = subject.world.share(fit)
                found.append(_shares(fitted.probe, tests[fitted.column], truth))
                notes.append(fitted.told)
            for name in found[0]:
                shares, name = [each[name] for each in found], f"{name}{at(fraction)}"
                if len(shares) == 1:
                    note = notes[0] if name.startswith("top-1") else ""
                    yield Metric(name, 100 * shares[0], count, wilson(shares[0], count, scale=100), note)
                else:
                    yield from spread(name, [100 * share for share in shares], count)

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

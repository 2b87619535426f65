"""`eval linear`: how well a linear classifier of frozen features names what a photo shows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.seeding import seed_of
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.batches import hold_out
from c2fmae.eval.probes.heads import Chosen, choose_head
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probing import LabelledConfig, at, spread
from c2fmae.eval.sweep import SweepConfig, told

_ROWS_AT_ONCE = 8192


@EVALUATIONS.register("linear")
class LinearConfig(SweepConfig, LabelledConfig):
    """A linear classifier of frozen features, its settings chosen on a fifth of the training photos."""

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        number = len(self.lrs) * len(self.weight_decays) * len(self.columns(subject.backbone))
        return (
            f"{self.told(subject)} A linear classifier of standardised features, {self.told_of_fit()}. "
            f"Of {number} settings (learning rate × weight decay × features, fitted in one pass) the best on a fifth "
            "of the training photos is fitted again to all of them; the test photos have no part in the choice. "
            "Accuracy over all test photos, in percent, with Wilson's 95 % interval."
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
                best = None
                if subject.world.is_first:
                    rest, held_out = hold_out(rows, seed=self.seed)
                    best = choose_head(
                        features,
                        pair.train.labels,
                        self.sweep([*columns]),
                        rows=rest,
                        held_out=held_out,
                        num_labels=pair.num_labels,
                        epochs=self.epochs_of(len(rows)),
                        batch_size=self.head_batch_size,
                        seed=seed_of(self.seed, "heads"),
                    )
                chosen: Chosen = subject.world.share(best)
                found.append(_shares(chosen, tests[chosen.setting.column], truth))
                notes.append(told(chosen))
            for name in found[0]:
                shares, name = [each[name] for each in found], f"{name}{at(fraction)}"
                if len(shares) == 1:
                    note = notes[0] if name.startswith("top-1") else ""
                    yield Metric(name, 100 * shares[0], count, wilson(shares[0], count, scale=100), note)
                else:
                    yield from spread(name, [100 * share for share in shares], count)


def _shares(chosen: Chosen, features: Float[Tensor, "row dim"], truth: Int64[Tensor, " row"]) -> dict[str, float]:
    """Return the share of rows whose label comes first, and that of those with the label among the first five."""
    most = min(5, len(chosen.probe.bias))
    ranks = torch.cat([chosen.probe.logits(rows).topk(most, dim=1).indices for rows in features.split(_ROWS_AT_ONCE)])
    is_right = ranks == truth.unsqueeze(1)
    shares = {"top-1": is_right[:, 0].double().mean().item()}
    return shares | ({"top-5": is_right.any(dim=1).double().mean().item()} if most == 5 else {})

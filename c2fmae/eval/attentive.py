"""`eval attentive`: what learned queries, looking at all of a photo's frozen patches, can name of it."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.extraction import Wanted
from c2fmae.eval.probes.attentive import AttentiveSetting, fit_attentive
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probing import Count, LabelledConfig, Pair, at, spread
from c2fmae.models.backbones import Backbone

_ROWS_AT_ONCE = 256


@EVALUATIONS.register("attentive")
class AttentiveConfig(LabelledConfig):
    """Efficient probing: a classifier that attends to frozen patches."""

    num_queries: Count = 32
    narrowing: Count = 1
    """How many times narrower than a token is what is classified."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    epochs: Count = 30
    head_batch_size: Count = 256
    """Photos of a step of the probe."""

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        return Wanted(patches=self.layers_of(backbone)[:1])

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        return (
            f"{self.told(subject)} Efficient probing: {self.num_queries} learned queries attend to the patches, which "
            "are their own keys; each reads its group of a linear map of them, and a linear classifier, behind batch "
            f"norm without scale and shift, names the label. AdamW, learning rate {self.lr:g} after a tenth of the "
            f"steps, then a cosine, weight decay {self.weight_decay:g}, {self.epochs} epochs in batches of "
            f"{self.head_batch_size}; nothing is chosen. Accuracy over all test photos, in percent, with Wilson's 95 % "
            "interval."
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Fit in one process for all, and try."""
        pair, name = self.labelled(subject), f"patches {self.layers_of(subject.backbone)[0]}"
        count = len(pair.test.labels)
        yield Metric("test photos that are in the training set, too, %", 100 * pair.overlap, count)
        for fraction, draws in self.drawn(pair.train.labels):
            shares = []
            for rows in draws:
                share = self._share(pair, name, rows) if subject.world.is_first else 0.0
                shares.append(float(subject.world.share(share)))
            if len(shares) == 1:
                yield Metric(f"top-1{at(fraction)}", 100 * shares[0], count, wilson(shares[0], count, scale=100))
            else:
                yield from spread(f"top-1{at(fraction)}", [100 * share for share in shares], count)

    def _share(self, pair: Pair, name: str, rows: Int64[Tensor, " row"]) -> float:
        """Return which share of the test photos a probe of these training photos gets right."""
        setting = AttentiveSetting(
            num_queries=self.num_queries,
            narrowing=self.narrowing,
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.head_batch_size,
            seed=self.seed,
        )
        train, test = pair.train.reader(name), pair.test.reader(name)
        probe = fit_attentive(train, pair.train.labels, setting, rows=rows, num_labels=pair.num_labels)
        places = torch.arange(len(pair.test.labels)).split(_ROWS_AT_ONCE)
        found = torch.cat([probe.predict(test(some)) for some in places])
        return (found == pair.test.labels).double().mean().item()

"""`eval attentive`: what learned queries, looking at all of a photo's frozen patches, can name of it."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.errors import UserError
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.attentive_head import AttentiveSetting, Read, fit_attentive
from c2fmae.eval.probes.extraction import Wanted
from c2fmae.eval.probes.probe_config import LabelledConfig, Pair, at, told_shares
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
    head_batch_size: Annotated[int, Field(ge=4)] = 256
    """Photos of a step of the probe, at most; its batch norm needs several."""

    @model_validator(mode="after")
    def _check_features(self) -> "AttentiveConfig":
        if self.pools or len(self.layers or ()) > 1:
            raise UserError("pools, layers: attentive probes pool by themselves, patches of one layer. Name one layer")
        return self

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        return Wanted(patches=self.layers_of(backbone), precision=self.precision)

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        return (
            f"{self.told(subject)} Efficient probing: {self.num_queries} learned queries attend to the patches, which "
            "are their own keys; each reads its group of a linear map of them, and a linear classifier, behind batch "
            f"norm without scale and shift, names the label. AdamW, learning rate {self.lr:g} after a tenth of the "
            f"steps, then a cosine, weight decay {self.weight_decay:g}, {self.epochs} epochs in batches of at most "
            f"{self.head_batch_size}; nothing is chosen. {self.told_scores()}"
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Fit in one process for all, and try."""
        pair, name, world = self.labelled(subject), f"patches {self.layers_of(subject.backbone)[0]}", subject.world
        yield pair.told_overlap()
        readers = (pair.train.reader(name), pair.test.reader(name)) if world.is_first else None
        for fraction, draws in self.drawn(pair.train.labels):
            shares = [world.share(self._share(pair, *readers, rows) if readers else None) for rows in draws]
            yield from told_shares(f"top-1{at(fraction)}", shares, pair.count)

    def _share(self, pair: Pair, train: Read, test: Read, rows: Int64[Tensor, " row"]) -> float:
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
        probe = fit_attentive(train, pair.train.labels, setting, rows=rows, num_labels=pair.num_labels)
        places = torch.arange(pair.count).split(_ROWS_AT_ONCE)
        found = torch.cat([probe.predict(test(some)) for some in places])
        return (found == pair.test.labels).double().mean().item()

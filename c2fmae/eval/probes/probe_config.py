"""What all probes of frozen features share: two sets, features of both, how many labels are given, and honesty."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import seed_of
from c2fmae.eval.datasets import Opened, PairConfig, open_set, same_names
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.probes.extraction import Column, Hands, Precision, Wanted, extract
from c2fmae.eval.probes.feature_store import Extracted
from c2fmae.eval.probes.intervals import wilson
from c2fmae.models.backbones import Backbone, Pool

Share = Annotated[float, Field(gt=0, le=1)]

_MOSTLY = 0.5
"""Share of the test photos from which on being in the training set, too, is no accident."""


@dataclass(frozen=True)
class Pair:
    """Features of the two sets."""

    train: Extracted
    test: Extracted
    overlap: float
    """Share of the test photos that are among the training photos, byte for byte."""

    @property
    def count(self) -> int:
        """How many photos are tried."""
        return len(self.test.labels)

    @property
    def num_labels(self) -> int:
        """How many labels there are."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def told_overlap(self) -> Metric:
        """Return the number that stands before all others."""
        return Metric("test photos that are in the training set, too, %", 100 * self.overlap, self.count)


class ProbeConfig(PairConfig, Evaluation):
    """A probe of frozen features, of photos alone."""

    layers: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Blocks behind which features are taken, counted from 1; the last, unless given."""
    seed: int = 0
    batch_size: Count = 64
    """Photos encoded at once."""
    workers: Annotated[int, Field(ge=0)] = 2
    precision: Precision = "fp32"

    def layers_of(self, backbone: Backbone) -> tuple[int, ...]:
        """Return the blocks that are asked for."""
        for layer in self.layers or ():
            if layer > backbone.depth:
                raise UserError(f"layers: the backbone has {backbone.depth}, got {layer}")
        return self.layers or (backbone.depth,)

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        raise NotImplementedError

    def needs(self) -> tuple[str, ...]:
        """Return the granularities that scenes have to have."""
        return ("rgb",)

    def open(self, subject: Subject) -> tuple[Opened, Opened]:
        """Return the two sets, once they are known to fit each other."""
        key = f"pair {self.model_dump_json()}"
        if key not in subject.memory:
            size = self.size(subject.backbone)
            train = open_set("train", self.train, self.options, size, self.needs())
            test = open_set("test", self.test, {**self.options, **self.test_options}, size, self.needs())
            self.check((train, test))
            subject.memory[key] = (train, test)
        opened: tuple[Opened, Opened] = subject.memory[key]
        return opened

    def check(self, opened: tuple[Opened, Opened]) -> None:
        """Refuse sets that do not fit each other, before hours are spent on them."""

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Name the two sets."""
        return dict(zip(("train", "test"), (each.identity for each in self.open(subject)), strict=True))

    def features(self, subject: Subject) -> Pair:
        """Return features of both sets; that the one is the other is refused, and known when the photos are."""
        opened, view, wanted = self.open(subject), self.view(subject.backbone), self.wanted(subject.backbone)
        hands = Hands(batch_size=self.batch_size, workers=self.workers)
        train, test = (
            extract(subject, each.scenes, view, wanted, identity=each.identity, hands=hands) for each in opened
        )
        overlap = float(np.isin(test.photos, train.photos).mean())
        if overlap > _MOSTLY:
            raise UserError(
                f"test: {overlap:.0%} of its photos are in the training set, too. What a probe has been given the "
                f"truth of says nothing about features. Take another set than {opened[1].name}"
            )
        return Pair(train, test, overlap)

    def told(self, subject: Subject) -> str:
        """Say what every probe does the same way."""
        backbone, (train, test) = subject.backbone, self.open(subject)
        height, width = self.size(backbone)
        crop = f"the central {self.crop:g} of each photo" if self.crop < 1 else "the largest central part of each photo"
        norm = "normed behind the pooling of the last layer" if backbone.spec.has_fc_norm else "the last layer normed"
        return (
            f"Frozen features of photos alone ({self.wanted(backbone)}; {norm}), in evaluation mode, "
            f"{self.precision}; {crop} at {height}×{width}. Truth from {train}, tried on {test}."
        )


class LabelledConfig(ProbeConfig):
    """A probe that asks for the label of a photo."""

    pools: Annotated[tuple[Pool, ...], Field(min_length=1)] | None = None
    """How a photo's tokens become one vector; as the backbone does it, unless given."""
    fractions: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0,)
    """Shares of each class's labels that the probe is given, rounded up."""
    seeds: Count = 1
    """How often, each time others; a share of 1 is taken once."""

    def columns(self, backbone: Backbone) -> tuple[Column, ...]:
        """Return the kinds of features that are asked for."""
        pools = self.pools or (backbone.spec.pool,)
        return tuple(Column(layer, pool) for layer in self.layers_of(backbone) for pool in pools)

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        return Wanted(columns=self.columns(backbone), precision=self.precision)

    def check(self, opened: tuple[Opened, Opened]) -> None:
        """Refuse labels that are not there, or not the same."""
        same_names(opened, "label_names")
        for part, each in zip(("train", "test"), opened, strict=True):
            if each.scenes[0].label is None:
                raise UserError(f"{part}: {each.name} has no labels. Take a labelled set; for maps there is eval dense")

    def labelled(self, subject: Subject) -> Pair:
        """Return features of both sets, all of whose scenes have labels."""
        pair = self.features(subject)
        for part, table, opened in zip(("train", "test"), (pair.train, pair.test), self.open(subject), strict=True):
            if missing := int((table.labels < 0).sum()):
                raise UserError(
                    f"{part}: {missing} of {len(table.labels)} scenes of {opened.name} have no label. Leave them out"
                )
        return pair

    def drawn(self, labels: Int64[Tensor, " scene"]) -> Iterator[tuple[float, list[Int64[Tensor, " row"]]]]:
        """Return for each share of the labels the rows that are given, once for each seed."""
        for fraction in self.fractions:
            times = 1 if fraction == 1 else self.seeds
            yield fraction, [some_of_each(labels, fraction, seed_of(self.seed, "labels", n)) for n in range(times)]

    def told_scores(self) -> str:
        """Say what the numbers are."""
        few = "Shares of the labels are of each class, rounded up, each drawn by " if self.fractions != (1.0,) else ""
        times = f"{self.seeds} seed{'s' * (self.seeds > 1)}. " if few else ""
        return (
            f"{few}{times}Accuracy over all test photos, in percent; Wilson's 95 % interval where it was taken once, "
            "else the mean and the standard deviation over seeds."
        )


def some_of_each(labels: Int64[Tensor, " scene"], fraction: float, seed: int) -> Int64[Tensor, " row"]:
    """Return rows, in order, that hold a share of every label, rounded up.

    >>> some_of_each(torch.tensor([0, 1, 0, 1, 0, 1, 1]), 0.5, seed=0).shape
    torch.Size([4])
    """
    noise = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (labels + noise).argsort()  # by label, then by noise
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    wanted = (fraction * counts.double() - 1e-9).ceil()  # 0.15 of 100 is 15, whatever 0.15 is in binary
    return order[place < wanted[labels[order]]].sort().values


def told_shares(name: str, shares: Sequence[float], count: int, note: str = "") -> Iterator[Metric]:
    """Return a share in percent: with its interval, or, taken several times, its mean and how far the times differ."""
    if len(shares) == 1:
        yield Metric(name, 100 * shares[0], count, wilson(shares[0], count, scale=100), note)
        return
    percent = 100 * np.array(shares)
    yield Metric(name, float(percent.mean()), count)
    yield Metric(f"{name}, standard deviation of {len(shares)} seeds", float(percent.std(ddof=1)), len(shares))


def at(fraction: float) -> str:
    """Say how much of the labels is given, where it is not all.

    >>> at(0.01), at(1)
    (' at 1 % of the labels', '')
    """
    return "" if fraction == 1 else f" at {100 * fraction:g} % of the labels"

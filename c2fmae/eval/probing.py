"""What all probes of frozen features share: two sets, features of both, how many labels are given, and honesty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import seed_of
from c2fmae.data.config import Source
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.extraction import Column, Extracted, Hands, Precision, Wanted, extract
from c2fmae.eval.pairs import Opened, PairConfig, open_set
from c2fmae.models.backbones import Backbone, Pool

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]

_MOSTLY = 0.5
"""Share of the test photos from which on being in the training set, too, is no accident."""


@dataclass(frozen=True)
class Pair:
    """Features of the two sets."""

    train: Extracted
    test: Extracted
    opened: tuple[Opened, Opened]
    num_labels: int
    overlap: float
    """Share of the test photos that are among the training photos, byte for byte."""


class ProbeConfig(PairConfig, Evaluation):
    """A probe of frozen features, of photos alone."""

    layers: tuple[Count, ...] | None = None
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

    def open(self, backbone: Backbone) -> tuple[Opened, Opened]:
        """Return the two sets."""
        train = open_set("train", self.train, self.options, backbone, self.needs())
        test = open_set("test", self.test, {**self.options, **self.test_options}, backbone, self.needs())
        return train, test

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Name the two sets."""
        return dict(zip(("train", "test"), (each.identity for each in self.open(subject.backbone)), strict=True))

    def features(self, subject: Subject) -> Pair:
        """Return features of both sets; that the one is the other is refused, and known when the photos are."""
        opened, view, wanted = self.open(subject.backbone), self.view(subject.backbone), self.wanted(subject.backbone)
        hands = Hands(batch_size=self.batch_size, workers=self.workers, precision=self.precision)
        train, test = (
            extract(subject, each.scenes, view, wanted, identity=each.identity, hands=hands) for each in opened
        )
        overlap = float(np.isin(test.photos, train.photos).mean())
        if overlap > _MOSTLY:
            raise UserError(
                f"test: {overlap:.0%} of its photos are in the training set, too. What a probe has been given the "
                f"truth of says nothing about features. Take another set than {opened[1].name}"
            )
        num_labels = int(max(train.labels.max(), test.labels.max())) + 1
        return Pair(train, test, opened, num_labels, overlap)

    def told(self, subject: Subject) -> str:
        """Say what every probe does the same way."""
        height, width = self.image_size or subject.backbone.spec.image_size
        crop = f"the central {self.crop:g} of each photo" if self.crop < 1 else "the largest central part of each photo"
        train = _named(self.train, self.options)
        test = _named(self.test, {**self.options, **self.test_options})
        return (
            f"Frozen features of photos alone ({self.wanted(subject.backbone)}; the last layer normed), in evaluation "
            f"mode, {self.precision}; {crop} at {height}×{width}. Truth from {train}, tried on {test}."
        )


class LabelledConfig(ProbeConfig):
    """A probe that asks for the label of a photo."""

    pools: Annotated[tuple[Pool, ...], Field(min_length=1)] | None = None
    """How a photo's tokens become one vector; as the backbone does it, unless given."""
    fractions: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0,)
    """Shares of each class's labels that the probe is given."""
    seeds: Count = 1
    """How often, each time others; a share of 1 is taken once."""

    def columns(self, backbone: Backbone) -> tuple[Column, ...]:
        """Return the kinds of features that are asked for."""
        pools = self.pools or (backbone.spec.pool,)
        return tuple(Column(layer, pool) for layer in self.layers_of(backbone) for pool in pools)

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        return Wanted(columns=self.columns(backbone))

    def labelled(self, subject: Subject) -> Pair:
        """Return features of both sets, all of whose scenes have labels."""
        pair = self.features(subject)
        for part, table, opened in zip(("train", "test"), (pair.train, pair.test), pair.opened, strict=True):
            if missing := int((table.labels < 0).sum()):
                raise UserError(f"{part}: {missing} of {len(table.labels)} scenes of {opened.name} have no label")
        return pair

    def drawn(self, labels: Int64[Tensor, " scene"]) -> Iterator[tuple[float, list[Int64[Tensor, " row"]]]]:
        """Return for each share of the labels the rows that are given, once for each seed."""
        for fraction in self.fractions:
            times = 1 if fraction == 1 else self.seeds
            yield fraction, [some_of_each(labels, fraction, seed_of(self.seed, "labels", n)) for n in range(times)]


def some_of_each(labels: Int64[Tensor, " scene"], fraction: float, seed: int) -> Int64[Tensor, " row"]:
    """Return rows, in order, that hold a share of every label, rounded up.

    >>> some_of_each(torch.tensor([0, 1, 0, 1, 0, 1, 1]), 0.5, seed=0).bincount(minlength=0).sum()
    tensor(4)
    """
    noise = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (labels + noise).argsort()  # by label, then by noise
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[place < (fraction * counts[labels[order]]).ceil()].sort().values


def spread(name: str, values: Sequence[float], count: int) -> Iterator[Metric]:
    """Return a number that was taken several times: its mean, and how far the times lie apart."""
    yield Metric(name, sum(values) / len(values), count)
    if len(values) > 1:
        yield Metric(f"{name}, standard deviation of {len(values)} seeds", float(np.std(values, ddof=1)), len(values))


def at(fraction: float) -> str:
    """Say how much of the labels is given, where it is not all.

    >>> at(0.01), at(1)
    (' at 1 % of the labels', '')
    """
    return "" if fraction == 1 else f" at {100 * fraction:g} % of the labels"


def _named(source: Source | None, options: Mapping[str, Any]) -> str:
    name = ", ".join(source) if isinstance(source, tuple) else str(source)
    told = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({told})" if told else name

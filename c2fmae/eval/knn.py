"""`eval knn`: what a photo shows is what the photos show whose features point the same way."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.world import World
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probes.neighbours import QUERIES_AT_ONCE, nearest, vote
from c2fmae.eval.probing import Count, LabelledConfig, Pair, at, spread


@EVALUATIONS.register("knn")
class KnnConfig(LabelledConfig):
    """k nearest neighbours of frozen features: no training, no settings to search."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10, 20, 50)
    """Numbers of neighbours; those above the number of training photos are left out."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Of the weighted vote: each neighbour counts exp(cosine / temperature)."""

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        return (
            f"{self.told(subject)} k nearest neighbours by cosine, all training photos searched exactly; votes by "
            f"exp(cosine / {self.temperature:g}), and plain ones. "
            "Top-1 accuracy over all test photos, in percent, with Wilson's 95 % interval."
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Search once for the most neighbours, then count votes for every k."""
        pair = self.labelled(subject)
        count = len(pair.test.labels)
        yield Metric("test photos that are in the training set, too, %", 100 * pair.overlap, count)
        for column in self.columns(subject.backbone):
            keys, queries = pair.train.column(column), pair.test.column(column)
            where = f", {column}" if len(self.columns(subject.backbone)) > 1 else ""
            for fraction, draws in self.drawn(pair.train.labels):
                found = [self._shares(subject.world, keys[rows], queries, pair, rows) for rows in draws]
                for name in found[0]:
                    shares = [each[name] for each in found]
                    name = f"{name}{where}{at(fraction)}"
                    if len(shares) == 1:
                        yield Metric(name, 100 * shares[0], count, wilson(shares[0], count, scale=100))
                    else:
                        yield from spread(name, [100 * share for share in shares], count)

    def _shares(self, world: World, keys: Tensor, queries: Tensor, pair: Pair, rows: Tensor) -> dict[str, float]:
        """Return which share of the test photos is right, for each way to vote."""
        ks = [k for k in self.ks if k <= len(keys)]
        if not ks:
            raise UserError(f"ks: there are {len(keys)} training photos, fewer than each of {list(self.ks)}")
        labels, truth = pair.train.labels[rows], pair.test.labels
        ways = {"weighted votes": self.temperature, "plain votes": None}
        right = torch.zeros(len(ways), len(ks), dtype=torch.int64)
        # Whole blocks, whoever's turn it is: so many processes find what one does
        for first in range(world.rank * QUERIES_AT_ONCE, len(queries), world.size * QUERIES_AT_ONCE):
            block = slice(first, first + QUERIES_AT_ONCE)
            neighbours = nearest(keys, queries[block], max(ks))
            for way, temperature in enumerate(ways.values()):
                found = vote(neighbours, labels, ks, num_labels=pair.num_labels, temperature=temperature)
                right[way] += torch.stack([(found[k] == truth[block]).sum() for k in ks])
        right = world.add(right.to(world.device)).cpu()
        return {
            f"top-1, {name}, k = {k}": right[way, place].item() / len(truth)
            for way, name in enumerate(ways)
            for place, k in enumerate(ks)
        }

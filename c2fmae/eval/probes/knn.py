"""`eval knn`: what a photo shows is what the photos show whose features point the same way."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.nearest_neighbours import QUERIES_AT_ONCE, nearest, vote
from c2fmae.eval.probes.probe_config import LabelledConfig, Pair, at, told_shares


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
            f"{self.told(subject)} k nearest neighbours by cosine, all photos whose label is given searched exactly; "
            f"votes by exp(cosine / {self.temperature:g}), and plain ones. {self.told_scores()}"
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Search once for the most neighbours, then count votes for every k."""
        pair, columns = self.labelled(subject), self.columns(subject.backbone)
        yield pair.told_overlap()
        for column in columns:
            keys, queries = pair.train.whole(column), pair.test.whole(column)
            where = f", {column}" if len(columns) > 1 else ""
            for fraction, draws in self.drawn(pair.train.labels):
                found = [self._shares(subject.world, keys, queries, pair, rows) for rows in draws]
                for name in found[0]:
                    shares = [each[name] for each in found]
                    yield from told_shares(f"{name}{where}{at(fraction)}", shares, pair.count)

    def _shares(self, world: World, keys: Tensor, queries: Tensor, pair: Pair, rows: Tensor) -> dict[str, float]:
        """Return which share of the test photos is right, for each way to vote."""
        ks = [k for k in self.ks if k <= len(rows)]
        if not ks:
            raise UserError(f"ks: there are {len(rows)} training photos, fewer than each of {list(self.ks)}")
        # Whole blocks, whoever's turn it is: so many processes find what one does
        blocks = torch.arange(len(queries)).split(QUERIES_AT_ONCE)[world.rank :: world.size]
        mine = torch.cat([*blocks, rows[:0]])
        neighbours = nearest(keys if len(rows) == len(keys) else keys[rows], queries[mine].to(world.device), max(ks))
        labels, truth = pair.train.labels[rows].to(world.device), pair.test.labels[mine].to(world.device)
        ways = {"weighted votes": self.temperature, "plain votes": None}
        right = torch.zeros(len(ways), len(ks), dtype=torch.int64, device=world.device)
        for way, temperature in enumerate(ways.values()) if len(mine) else ():
            found = vote(neighbours, labels, ks, num_labels=pair.num_labels, temperature=temperature)
            right[way] = torch.stack([(found[k] == truth).sum() for k in ks])
        right = world.add(right).cpu()
        return {
            f"top-1, {name}, k = {k}": right[way, place].item() / pair.count
            for way, name in enumerate(ways)
            for place, k in enumerate(ks)
        }

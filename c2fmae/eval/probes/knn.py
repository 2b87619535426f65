"""`eval knn`: what a photo shows is what the photos show whose features point the same way."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.eval.engine import sum_outputs
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric, TagValue
from c2fmae.eval.probes.nearest_neighbours import QUERIES_PER_BLOCK, find_nearest, vote_labels
from c2fmae.eval.probes.probe_config import (
    LabelProbeConfig,
    TrainTestFeatures,
    label_fraction_tags,
    make_accuracy_metrics,
)


@EVALUATIONS.register("knn")
class KnnEvaluation(LabelProbeConfig):
    """k nearest neighbours of frozen features: no training, no settings to search."""

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10, 20, 50)
    """Numbers of neighbours; those above the number of training photos are left out."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Of the weighted vote: each neighbour counts exp(cosine / temperature)."""

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what is done."""
        return (
            f"{self.describe_setup(model)} k nearest neighbours by cosine, all photos whose label is given searched "
            "exactly; "
            f"votes by exp(cosine / {self.temperature:g}), and plain ones. {self.describe_scores()}"
        )

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Search once for the most neighbours, then count votes for every k."""
        sets, columns = self.extract_labelled_sets(model), self.feature_columns(model.backbone)
        yield sets.overlap_metric()
        for column in columns:
            keys, queries = sets.train.read_tensor(column), sets.test.read_tensor(column)
            column_tags: dict[str, TagValue] = {}
            if len(columns) > 1:
                column_tags = {"layer": column.depth, "pooling": column.pool}
            for fraction, subsets in self.draw_label_subsets(sets.train.labels):
                accuracies = [self._test_accuracies(model.world, keys, queries, sets, rows) for rows in subsets]
                for votes, k in accuracies[0]:
                    yield from make_accuracy_metrics(
                        "top1",
                        [draw[votes, k] for draw in accuracies],
                        sets.num_test_images,
                        {"votes": votes, "k": k, **column_tags, **label_fraction_tags(fraction)},
                    )

    def _test_accuracies(
        self, world: World, keys: Tensor, queries: Tensor, sets: TrainTestFeatures, rows: Tensor
    ) -> dict[tuple[str, int], float]:
        """Return which share of the test photos is right, for each way to vote."""
        ks = [k for k in self.ks if k <= len(rows)]
        if not ks:
            raise UserError(f"ks: there are {len(rows)} training photos, fewer than each of {list(self.ks)}")
        chunks = world.rank_chunks(len(queries), QUERIES_PER_BLOCK)
        rank_rows = torch.tensor([row for chunk in chunks for row in chunk], dtype=torch.long)
        temperatures = {"weighted": self.temperature, "plain": None}

        def count_correct() -> Iterator[dict[tuple[str, int], Tensor]]:
            rank_queries = queries[rank_rows].to(world.device)
            neighbours = find_nearest(keys if len(rows) == len(keys) else keys[rows], rank_queries, max(ks))
            labels, truth = sets.train.labels[rows].to(world.device), sets.test.labels[rank_rows].to(world.device)
            for votes, temperature in temperatures.items():
                predicted = vote_labels(neighbours, labels, ks, num_labels=sets.num_labels, temperature=temperature)
                yield {(votes, k): (predicted[k] == truth).sum() for k in ks}

        num_correct = sum_outputs(count_correct() if chunks else (), world)
        return {way: count.item() / sets.num_test_images for way, count in num_correct.items()}

"""k-nearest-neighbour classification of frozen features, with one search for all numbers of neighbours."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.eval.engine import sum_outputs
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric, TagValue
from c2fmae.eval.probes.config import KnnEvaluation
from c2fmae.eval.probes.nearest_neighbours import QUERIES_PER_BLOCK, find_nearest, vote_labels
from c2fmae.eval.probes.train_test import (
    draw_label_subsets,
    extract_labelled_sets,
    label_fraction_tags,
    make_accuracy_metrics,
)


def run_knn(config: KnnEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Yield the accuracy for each number of neighbours, type of vote and feature column."""
    sets, columns = extract_labelled_sets(config, model), config.feature_columns(model.backbone)
    yield sets.overlap_metric()
    for column in columns:
        keys, queries = sets.train.read_tensor(column), sets.test.read_tensor(column)
        column_tags: dict[str, TagValue] = {}
        if len(columns) > 1:
            column_tags = {"layer": column.depth, "pooling": column.pool}
        for fraction, subsets in draw_label_subsets(config, sets.train.labels):
            accuracies = [
                compute_knn_accuracies(
                    config,
                    model.world,
                    keys if len(rows) == len(keys) else keys[rows],
                    queries,
                    (sets.train.labels[rows], sets.test.labels),
                )
                for rows in subsets
            ]
            for votes, k in accuracies[0]:
                yield from make_accuracy_metrics(
                    "top1",
                    [draw[votes, k] for draw in accuracies],
                    sets.num_test_images,
                    {"votes": votes, "k": k, **column_tags, **label_fraction_tags(fraction)},
                )


def compute_knn_accuracies(
    config: KnnEvaluation,
    world: World,
    keys: Float[Tensor, "key dim"],
    queries: Float[Tensor, "query dim"],
    labels: tuple[Int64[Tensor, " key"], Int64[Tensor, " query"]],
) -> dict[tuple[str, int], float]:
    """Return the accuracy on the queries for each type of vote and number of neighbours, in [0, 1].

    `labels` are those of keys and of queries. All ranks call it with the same features.
    """
    ks = [k for k in config.ks if k <= len(keys)]
    if not ks:
        raise UserError(
            f"ks: expected a number up to {len(keys)}, the number of training images, got {list(config.ks)}. Add one"
        )
    num_labels = int(max(split_labels.max() for split_labels in labels)) + 1
    chunks = world.rank_chunks(len(queries), QUERIES_PER_BLOCK)
    rank_rows = torch.tensor([row for chunk in chunks for row in chunk], dtype=torch.long)
    temperatures = {"weighted": config.temperature, "plain": None}

    def count_correct() -> Iterator[dict[tuple[str, int], Tensor]]:
        rank_queries = queries[rank_rows].to(world.device)
        neighbours = find_nearest(keys, rank_queries, max(ks))
        key_labels, truth = labels[0].to(world.device), labels[1][rank_rows].to(world.device)
        for votes, temperature in temperatures.items():
            predicted = vote_labels(neighbours, key_labels, ks, num_labels=num_labels, temperature=temperature)
            yield {(votes, k): (predicted[k] == truth).sum() for k in ks}

    num_correct = sum_outputs(count_correct() if chunks else (), world)
    return {vote: count.item() / len(queries) for vote, count in num_correct.items()}

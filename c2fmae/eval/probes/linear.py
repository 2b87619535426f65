"""Linear probes of frozen features, fitted on the main process and tested on all."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.seeding import derive_seed
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.batching import split_training_validation
from c2fmae.eval.probes.config import LinearProbeEvaluation
from c2fmae.eval.probes.lars import fit_lars_probe
from c2fmae.eval.probes.linear_heads import LinearProbe, choose_linear_head, list_settings
from c2fmae.eval.probes.train_test import (
    draw_label_subsets,
    extract_labelled_sets,
    label_fraction_tags,
    make_accuracy_metrics,
)

_ROWS_PER_BATCH = 8192


class FittedProbe(NamedTuple):
    """A probe, the feature column that it was fitted to, and a description of the chosen settings."""

    probe: LinearProbe
    column: str
    description: str


def run_linear_probe(config: LinearProbeEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Fit all settings at once, and yield the accuracy of the best one for each fraction of the labels."""
    sets, world = extract_labelled_sets(config, model), model.world
    yield sets.overlap_metric()
    columns = {str(column): column for column in config.feature_columns(model.backbone)}
    features = {name: sets.train.read_tensor(column) for name, column in columns.items()} if world.is_main else {}
    for fraction, subsets in draw_label_subsets(config, sets.train.labels):
        accuracies, descriptions = [], []
        for rows in subsets:
            fit: FittedProbe = world.broadcast_object(
                fit_linear_probe(config, features, sets.train.labels, rows, num_labels=sets.num_labels)
                if world.is_main
                else None
            )
            test_features = sets.test.read_tensor(columns[fit.column])
            accuracies.append(compute_top_k_accuracies(fit.probe, test_features, sets.test.labels))
            descriptions.append(fit.description)
        for key in accuracies[0]:
            yield from make_accuracy_metrics(
                key,
                [draw[key] for draw in accuracies],
                sets.num_test_images,
                label_fraction_tags(fraction),
                notes=(descriptions[0],) if key == "top1" else (),
            )


def fit_linear_probe(
    config: LinearProbeEvaluation,
    features: Mapping[str, Float[Tensor, "row _"]],
    labels: Int64[Tensor, " row"],
    rows: Int64[Tensor, " training_row"],
    *,
    num_labels: int,
) -> FittedProbe:
    """Return the probe of the best settings and feature column, fitted to some rows. Call it in one process."""
    column = next(iter(features))
    if config.variant == "mae":
        probe = fit_lars_probe(features[column], labels, rows=rows, num_labels=num_labels, seed=config.seed)
        return FittedProbe(probe, column, column)
    training_rows, validation_rows = split_training_validation(rows, seed=config.seed)
    chosen = choose_linear_head(
        features,
        labels,
        list_settings([*features], config.lrs, config.weight_decays),
        rows=training_rows,
        validation_rows=validation_rows,
        num_labels=num_labels,
        epochs=config.resolve_epochs(len(rows)),
        batch_size=config.head_batch_size,
        seed=derive_seed(config.seed, "heads"),
    )
    return FittedProbe(chosen.probe, chosen.setting.column, str(chosen.setting))


def compute_top_k_accuracies(
    probe: LinearProbe, features: Float[Tensor, "row dim"], truth: Int64[Tensor, " row"]
) -> dict[str, float]:
    """Return top-1, and top-5 if there are at least five labels, in [0, 1]."""
    k = min(5, len(probe.bias))
    top_labels = torch.cat([probe.logits(rows).topk(k, dim=1).indices for rows in features.split(_ROWS_PER_BATCH)])
    is_correct = top_labels == truth.unsqueeze(1)
    accuracies = {"top1": is_correct[:, 0].double().mean().item()}
    return accuracies | ({"top5": is_correct.any(dim=1).double().mean().item()} if k == 5 else {})

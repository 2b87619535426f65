"""All probes of one kind of features: a row of the table that compares them."""

from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.eval.probes.features import PatchFeatures
from c2fmae.eval.probes.logistic_regression import fit_logistic_regression
from c2fmae.eval.probes.nearest_neighbours import find_nearest, vote_labels
from c2fmae.eval.probes.patch_classifier import PatchScores, score_patches


class ProbeScores(NamedTuple):
    """Shares, from 0 to 1; None where the scenes lack what would be looked for."""

    knn: float | None
    linear: float | None
    dense: PatchScores | None


KNN_TEMPERATURE = 0.07
"""Of the votes of neighbours: one that is 0.07 nearer counts e times as much."""


def accuracy(predicted: Int64[Tensor, " row"], truth: Int64[Tensor, " row"]) -> float:
    """Return the share that is right."""
    return (predicted == truth).double().mean().item()


def run_probes(train: PatchFeatures, test: PatchFeatures, *, k: int = 20) -> ProbeScores:
    """Fit all probes to some scenes' features and score them on others'."""
    knn = linear = None
    if (train.labels >= 0).all() and (test.labels >= 0).all():
        neighbours = find_nearest(train.pooled, test.pooled, k)
        votes = vote_labels(
            neighbours, train.labels, [k], num_labels=int(train.labels.max()) + 1, temperature=KNN_TEMPERATURE
        )
        knn = accuracy(votes[k], test.labels)
        linear = accuracy(fit_logistic_regression(train.pooled, train.labels).predict(test.pooled), test.labels)
    return ProbeScores(knn, linear, _patch_scores(train, test))


def _patch_scores(train: PatchFeatures, test: PatchFeatures) -> PatchScores | None:
    is_labelled_train, is_labelled_test = train.classes != IGNORE, test.classes != IGNORE
    if not (is_labelled_train.any() and is_labelled_test.any()):
        return None
    fitted = fit_logistic_regression(train.patches[is_labelled_train], train.classes[is_labelled_train])
    return score_patches(fitted.predict(test.patches[is_labelled_test]), test.classes[is_labelled_test])

"""All probes of one kind of features: a row of the table that compares them."""

from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.scene import IGNORE
from c2fmae.eval.probes.features import Features
from c2fmae.eval.probes.logistic_regression import fit_linear
from c2fmae.eval.probes.nearest_neighbours import nearest, vote
from c2fmae.eval.probes.patch_classifier import DenseScores, score_patches


class Scores(NamedTuple):
    """Shares, from 0 to 1; None where the scenes lack what would be looked for."""

    knn: float | None
    linear: float | None
    dense: DenseScores | None


TEMPERATURE = 0.07
"""Of the votes of neighbours: one that is 0.07 nearer counts e times as much."""


def accuracy(found: Int64[Tensor, " row"], truth: Int64[Tensor, " row"]) -> float:
    """Return the share that is right."""
    return (found == truth).double().mean().item()


def probe(train: Features, test: Features, *, k: int = 20) -> Scores:
    """Fit all probes to some scenes' features and score them on others'."""
    knn = linear = None
    if (train.labels >= 0).all() and (test.labels >= 0).all():
        neighbours = nearest(train.pooled, test.pooled, k)
        votes = vote(neighbours, train.labels, [k], num_labels=int(train.labels.max()) + 1, temperature=TEMPERATURE)
        knn = accuracy(votes[k], test.labels)
        linear = accuracy(fit_linear(train.pooled, train.labels).predict(test.pooled), test.labels)
    return Scores(knn, linear, _dense(train, test))


def _dense(train: Features, test: Features) -> DenseScores | None:
    is_known, is_asked = train.classes != IGNORE, test.classes != IGNORE
    if not (is_known.any() and is_asked.any()):
        return None
    fitted = fit_linear(train.patches[is_known], train.classes[is_known])
    return score_patches(fitted.predict(test.patches[is_asked]), test.classes[is_asked])

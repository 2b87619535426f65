"""Linear probes: multinomial logistic regression on standardised features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.eval.probes.batching import VALIDATION_DIVISOR, split_training_validation

WEIGHT_DECAYS = (1.0, 0.1, 0.01, 0.001)
"""From where hardly more than the means of classes counts to where few thousand rows are fitted as they are."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features."""

    mean: Float[Tensor, " dim"]
    std: Float[Tensor, " dim"]
    weight: Float[Tensor, "label dim"]
    bias: Float[Tensor, " label"]
    weight_decay: float
    """The one that it was fitted with."""

    def logits(self, features: Float[Tensor, "row dim"]) -> Float[Tensor, "row label"]:
        """Return a score for each label."""
        return F.linear((features - self.mean) / self.std, self.weight, self.bias)

    def predict(self, features: Float[Tensor, "row dim"]) -> Int64[Tensor, " row"]:
        """Return the label with the highest score, the lowest of several such."""
        return self.logits(features).argmax(dim=1)


def fit_logistic_regression(
    features: Float[Tensor, "row dim"],
    labels: Int64[Tensor, " row"],
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    max_iter: int = 200,
) -> LinearProbe:
    """Fit a probe; of several weight decays, with the one that does best on a fifth of the rows, fitted to the rest.

    What is minimised is the mean cross-entropy and weight_decay / 2 of the squared weights, but not biases:
    scikit-learn's with C = 1 / (weight_decay × rows). Which rows are that fifth is the same each time.
    """
    if len(features) < VALIDATION_DIVISOR:
        raise UserError(f"a linear probe needs at least {VALIDATION_DIVISOR} training rows, got {len(features)}")
    decay = weight_decays[0]
    if len(weight_decays) > 1:
        training_rows, validation_rows = split_training_validation(torch.arange(len(features)), seed=0)
        probes = _fit_weight_decays(features[training_rows], labels[training_rows], weight_decays, max_iter)
        rows, truth = features[validation_rows], labels[validation_rows]
        accuracies = [(probe.predict(rows) == truth).double().mean().item() for probe in probes]
        decay = weight_decays[accuracies.index(max(accuracies))]
    (probe,) = _fit_weight_decays(features, labels, [decay], max_iter)
    return probe


@torch.enable_grad()
def _fit_weight_decays(
    features: Tensor, labels: Tensor, weight_decays: Sequence[float], max_iter: int
) -> list[LinearProbe]:
    """Fit with one weight decay after the other, each from where the last one ended."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1)  # what is constant stays at 0
    rows, num_labels = (features - mean) / std, int(labels.max()) + 1
    weight = torch.zeros(num_labels, features.shape[1], requires_grad=True)
    bias = torch.zeros(num_labels, requires_grad=True)
    probes = []
    for decay in weight_decays:
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iter,
            tolerance_grad=1e-5,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def loss(optimiser: torch.optim.Optimizer = optimiser, decay: float = decay) -> Tensor:
            optimiser.zero_grad()
            value = F.cross_entropy(F.linear(rows, weight, bias), labels) + decay / 2 * weight.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        probes.append(LinearProbe(mean, std, weight.detach().clone(), bias.detach().clone(), decay))
    return probes

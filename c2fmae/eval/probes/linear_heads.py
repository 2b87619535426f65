"""Many linear probes at once: every setting is fitted to the same batches, in one pass over the features.

The settings of a column, one kind of features, are one matrix: a step is two products of matrices, however many there
are. Fit in one process and share what comes out: with other numbers of threads sums may round otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.schedules import warmup_cosine
from c2fmae.eval.probes.batching import num_batches, shuffled_batches

ClassTargets = Int64[Tensor, " row"] | Float[Tensor, "row label"]
"""Labels, or how much of each class there is in a row; rows that are all 0 say nothing and are left out."""

_MOMENTUM = 0.9
_ROWS_PER_BATCH = 8192


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


@dataclass(frozen=True)
class LinearHeadSetting:
    """How one of many linear probes is fitted."""

    column: str
    """The name of the features."""
    lr: float
    """Of a step, at the start of a cosine that ends at 0."""
    weight_decay: float
    """Half of it times the squared weights, but not biases, is added to the mean cross-entropy."""

    def __str__(self) -> str:
        return f"{self.column}, learning rate {self.lr:g}, weight decay {self.weight_decay:g}"


def list_settings(
    columns: Sequence[str], lrs: Sequence[float], weight_decays: Sequence[float]
) -> list[LinearHeadSetting]:
    """Return every combination."""
    return [LinearHeadSetting(column, lr, decay) for column in columns for lr in lrs for decay in weight_decays]


@dataclass(frozen=True)
class ChosenHead:
    """The best of several settings, and the probe that was fitted with it."""

    probe: LinearProbe
    setting: LinearHeadSetting
    validation_accuracies: tuple[float, ...]
    """Which share of the rows held out each setting got right; 0 where it diverged."""


def fit_linear_heads(
    features: Mapping[str, Float[Tensor, "row _"]],
    targets: ClassTargets,
    settings: Sequence[LinearHeadSetting],
    *,
    rows: Int64[Tensor, " given"],
    num_labels: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[LinearProbe]:
    """Return a probe for each setting, fitted to `rows` by gradient descent with momentum, all at the same time.

    Features are standardised by the mean and deviation of these rows; weights start at 0.
    """
    rows = _labelled_rows(targets, rows)
    if len(rows) == 0:
        raise UserError("a linear probe needs training rows with labels, got none")
    columns = {
        name: _ColumnHeads(
            features[name], rows, [each for each in settings if each.column == name], num_labels, batch_size
        )
        for name in dict.fromkeys(setting.column for setting in settings)
    }
    total = epochs * num_batches(len(rows), batch_size)
    for step, batch in enumerate(shuffled_batches(rows, epochs=epochs, batch_size=batch_size, seed=seed)):
        fractions = class_fractions(targets[batch], num_labels)
        for column in columns.values():
            column.take_step(batch, fractions, warmup_cosine(step, total_steps=total, warmup_steps=0))
    probes = {name: iter(column.probes()) for name, column in columns.items()}
    return [next(probes[setting.column]) for setting in settings]


def choose_linear_head(
    features: Mapping[str, Float[Tensor, "row _"]],
    targets: ClassTargets,
    settings: Sequence[LinearHeadSetting],
    *,
    rows: Int64[Tensor, " given"],
    validation_rows: Int64[Tensor, " held_out"],
    num_labels: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> ChosenHead:
    """Fit all settings to `rows`, take the one that does best on `validation_rows`, and fit it again to both.

    Of several that do equally well, the first is taken. What a probe is tested on has no part in this.
    """

    def fit(settings: Sequence[LinearHeadSetting], rows: Tensor) -> list[LinearProbe]:
        return fit_linear_heads(
            features,
            targets,
            settings,
            rows=rows,
            num_labels=num_labels,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )

    accuracies = tuple(
        target_accuracy(probe, features[setting.column], targets, validation_rows)
        for probe, setting in zip(fit(settings, rows), settings, strict=True)
    )
    best = settings[accuracies.index(max(accuracies))]
    (probe,) = fit([best], torch.cat([rows, validation_rows]).sort().values)
    return ChosenHead(probe, best, accuracies)


def target_accuracy(
    probe: LinearProbe, features: Float[Tensor, "row dim"], targets: ClassTargets, rows: Int64[Tensor, " tried"]
) -> float:
    """Return which share of `rows` a probe gets right: of what they hold, where that is several classes."""
    rows = _labelled_rows(targets, rows)
    if not probe.weight.isfinite().all():
        return 0.0
    correct = 0.0
    for batch_rows in rows.split(_ROWS_PER_BATCH):
        predicted = probe.predict(features[batch_rows].float())
        correct += (
            class_fractions(targets[batch_rows], len(probe.bias)).gather(1, predicted[:, None]).double().sum().item()
        )
    return correct / len(rows)


def class_fractions(targets: ClassTargets, num_labels: int) -> Float[Tensor, "row label"]:
    """Return how much of each class a row holds, 1 in all."""
    if targets.ndim == 1:
        return F.one_hot(targets, num_labels).float()
    return targets.float() / targets.sum(dim=1, keepdim=True)


def _labelled_rows(targets: Tensor, rows: Tensor) -> Tensor:
    """Return the rows that say something."""
    if targets.ndim == 1:
        return rows
    return torch.cat([some[targets[some].sum(dim=1) > 0] for some in rows.split(_ROWS_PER_BATCH)])


class _ColumnHeads:
    """Probes of one kind of features, while they are fitted."""

    def __init__(
        self, features: Tensor, rows: Tensor, settings: Sequence[LinearHeadSetting], num_labels: int, batch_size: int
    ) -> None:
        self.features, self.settings = features, settings
        self.mean, self.std = mean_and_std(features, rows)
        size = (len(settings), num_labels)
        self.weight = torch.zeros(*size, features.shape[1])
        self.bias = torch.zeros(size)
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lr = torch.tensor([setting.lr for setting in settings]).view(-1, 1)
        self.decay = torch.tensor([setting.weight_decay for setting in settings]).view(-1, 1, 1)
        self.buffers = torch.empty(2, batch_size, *size)  # new memory at each step takes longer than what is done in it

    def take_step(self, batch: Tensor, targets: Tensor, lr_factor: float) -> None:
        """Take a step of each setting's own length times `lr_factor`."""
        rows = (self.features[batch].float() - self.mean) / self.std
        logits, error = self.buffers[:, : len(batch)]
        torch.addmm(self.bias.flatten(), rows, self.weight.flatten(0, 1).T, out=logits.flatten(1))
        torch.softmax(logits, dim=2, out=error)
        error.sub_(targets[:, None]).div_(len(batch))
        to_weight, to_bias = self.velocity
        to_weight.flatten(0, 1).addmm_(error.flatten(1).T, rows, beta=_MOMENTUM)
        to_weight.addcmul_(self.weight, self.decay)
        to_bias.mul_(_MOMENTUM).add_(error.sum(dim=0))
        self.weight.addcmul_(to_weight, -lr_factor * self.lr[..., None])
        self.bias.addcmul_(to_bias, -lr_factor * self.lr)

    def probes(self) -> list[LinearProbe]:
        """Return them, in the order of their settings."""
        return [
            LinearProbe(self.mean, self.std, weight, bias, setting.weight_decay)
            for weight, bias, setting in zip(self.weight, self.bias, self.settings, strict=True)
        ]


def mean_and_std(
    features: Float[Tensor, "row dim"], rows: Int64[Tensor, " given"]
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Return the mean and standard deviation of rows, read in parts; 1 for the deviation of what does not change."""
    count, mean, squares = 0, torch.zeros(features.shape[1]).double(), torch.zeros(features.shape[1]).double()
    for batch_rows in rows.split(_ROWS_PER_BATCH):
        part = features[batch_rows].double()
        variance, batch_mean = torch.var_mean(part, dim=0, correction=0)
        # Joined about the mean of both, since squares of what lies far from 0 would leave nothing of small differences
        fraction = len(part) / (count + len(part))
        squares += len(part) * (variance + (1 - fraction) * (batch_mean - mean).square())
        mean += fraction * (batch_mean - mean)
        count += len(part)
    std = (squares / count).sqrt()
    std = std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1)
    return mean.float(), std.float()

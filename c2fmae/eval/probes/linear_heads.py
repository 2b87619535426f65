"""Many linear probes at once: every setting is fitted to the same batches, so features are read once.

The weights of all settings of a feature column form one matrix, so a step takes two matrix products for any number of
settings. Fit them in one process and broadcast the results: sums may round differently in processes with other numbers
of threads.
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
"""Labels, or the amount of each class in a row; rows of zeros are skipped."""

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
    """The weight decay of the fit."""

    def logits(self, features: Float[Tensor, "row dim"]) -> Float[Tensor, "row label"]:
        """Return the logits of labels."""
        return F.linear((features - self.mean) / self.std, self.weight, self.bias)

    def predict(self, features: Float[Tensor, "row dim"]) -> Int64[Tensor, " row"]:
        """Return the label with the highest logit, the lowest label if several are equal."""
        return self.logits(features).argmax(dim=1)


@dataclass(frozen=True)
class LinearHeadSetting:
    """Features and hyper-parameters of one of many linear probes."""

    column: str
    """The name of the feature column."""
    lr: float
    """Initial learning rate of a cosine schedule to 0."""
    weight_decay: float
    """Half of it times the squared weights, without biases, is added to the mean cross-entropy."""

    def __str__(self) -> str:
        return f"{self.column}, learning rate {self.lr:g}, weight decay {self.weight_decay:g}"


def list_settings(
    columns: Sequence[str], lrs: Sequence[float], weight_decays: Sequence[float]
) -> list[LinearHeadSetting]:
    """Return every combination of column, learning rate and weight decay."""
    return [LinearHeadSetting(column, lr, decay) for column in columns for lr in lrs for decay in weight_decays]


@dataclass(frozen=True)
class ChosenHead:
    """The best of several settings, and the probe that was fitted with it."""

    probe: LinearProbe
    setting: LinearHeadSetting
    validation_accuracies: tuple[float, ...]
    """The accuracy of each setting on the validation rows; 0 if it diverged."""


def fit_linear_heads(
    features: Mapping[str, Float[Tensor, "row _"]],
    targets: ClassTargets,
    settings: Sequence[LinearHeadSetting],
    *,
    rows: Int64[Tensor, " training_row"],
    num_labels: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[LinearProbe]:
    """Fit a probe for each setting to `rows` by gradient descent with momentum, all at the same time.

    Features are standardised by the mean and standard deviation of these rows. Weights are initialised to 0.
    """
    rows = _labelled_rows(targets, rows)
    if len(rows) == 0:
        raise UserError("train: expected labelled samples for a linear probe, got none. Use a labelled set")
    columns = {
        name: _ColumnHeads(
            features[name], rows, [setting for setting in settings if setting.column == name], num_labels, batch_size
        )
        for name in dict.fromkeys(setting.column for setting in settings)
    }
    total = epochs * num_batches(len(rows), batch_size)
    for step, batch in enumerate(shuffled_batches(rows, epochs=epochs, batch_size=batch_size, seed=seed)):
        fractions = class_fractions(targets[batch], num_labels)
        for column in columns.values():
            column.take_step(batch, fractions, warmup_cosine(step, total_steps=total, warmup_steps=0))
    probes = {name: iter(column.build_probes()) for name, column in columns.items()}
    return [next(probes[setting.column]) for setting in settings]


def choose_linear_head(
    features: Mapping[str, Float[Tensor, "row _"]],
    targets: ClassTargets,
    settings: Sequence[LinearHeadSetting],
    *,
    rows: Int64[Tensor, " training_row"],
    validation_rows: Int64[Tensor, " validation_row"],
    num_labels: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> ChosenHead:
    """Fit all settings to `rows`, choose the most accurate one on `validation_rows`, and fit it again to both.

    Of equally accurate settings, the first is chosen.
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
    probe: LinearProbe, features: Float[Tensor, "row dim"], targets: ClassTargets, rows: Int64[Tensor, " evaluated_row"]
) -> float:
    """Return the accuracy on `rows`; a row with several classes counts by the fraction of the predicted one."""
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
    """Return the fraction of each class in each row."""
    if targets.ndim == 1:
        return F.one_hot(targets, num_labels).float()
    return targets.float() / targets.sum(dim=1, keepdim=True)


def _labelled_rows(targets: Tensor, rows: Tensor) -> Tensor:
    """Return the rows whose targets are not all 0."""
    if targets.ndim == 1:
        return rows
    return torch.cat([batch[targets[batch].sum(dim=1) > 0] for batch in rows.split(_ROWS_PER_BATCH)])


class _ColumnHeads:
    """Weights of the probes of one feature column during fitting."""

    def __init__(
        self, features: Tensor, rows: Tensor, settings: Sequence[LinearHeadSetting], num_labels: int, batch_size: int
    ) -> None:
        self.features, self.settings = features, settings
        self.mean, self.std = compute_mean_std(features, rows)
        size = (len(settings), num_labels)
        self.weight = torch.zeros(*size, features.shape[1])
        self.bias = torch.zeros(size)
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lr = torch.tensor([setting.lr for setting in settings]).view(-1, 1)
        self.decay = torch.tensor([setting.weight_decay for setting in settings]).view(-1, 1, 1)
        self.buffers = torch.empty(
            2, batch_size, *size
        )  # allocating them in each step would take longer than the computation

    def take_step(self, batch: Tensor, targets: Tensor, lr_factor: float) -> None:
        """Take a step with each setting's learning rate times `lr_factor`."""
        rows = (self.features[batch].float() - self.mean) / self.std
        logits, error = self.buffers[:, : len(batch)]
        torch.addmm(self.bias.flatten(), rows, self.weight.flatten(0, 1).T, out=logits.flatten(1))
        torch.softmax(logits, dim=2, out=error)
        error.sub_(targets[:, None]).div_(len(batch))
        weight_velocity, bias_velocity = self.velocity
        weight_velocity.flatten(0, 1).addmm_(error.flatten(1).T, rows, beta=_MOMENTUM)
        weight_velocity.addcmul_(self.weight, self.decay)
        bias_velocity.mul_(_MOMENTUM).add_(error.sum(dim=0))
        self.weight.addcmul_(weight_velocity, -lr_factor * self.lr[..., None])
        self.bias.addcmul_(bias_velocity, -lr_factor * self.lr)

    def build_probes(self) -> list[LinearProbe]:
        """Return the probes in the order of their settings."""
        return [
            LinearProbe(self.mean, self.std, weight, bias, setting.weight_decay)
            for weight, bias, setting in zip(self.weight, self.bias, self.settings, strict=True)
        ]


def compute_mean_std(
    features: Float[Tensor, "row dim"], rows: Int64[Tensor, " training_row"]
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Return the mean and standard deviation of rows, read in batches; the deviation of a constant feature is 1."""
    count, mean, squares = 0, torch.zeros(features.shape[1]).double(), torch.zeros(features.shape[1]).double()
    for batch_rows in rows.split(_ROWS_PER_BATCH):
        batch = features[batch_rows].double()
        variance, batch_mean = torch.var_mean(batch, dim=0, correction=0)
        # Combined about the joint mean, since sums of squares lose small differences of large values
        fraction = len(batch) / (count + len(batch))
        squares += len(batch) * (variance + (1 - fraction) * (batch_mean - mean).square())
        mean += fraction * (batch_mean - mean)
        count += len(batch)
    std = (squares / count).sqrt()
    std = std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1)
    return mean.float(), std.float()

"""MAE's linear probe: batch norm without scale and shift, then LARS, with large batches and no weight decay.

Steps are in proportion to the weights, so how far it gets is a matter of rows × epochs, whatever the batches: the 115
million of ImageNet in 90 epochs are plenty, and below a few million weights are still mostly what they were at random.
Differs from MAE's own in that features are computed once, of photos that are cut the same way each time, and in that
an epoch's last rows are not left out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.schedules import warmup_cosine
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.probes.batching import num_batches, shuffled_batches
from c2fmae.eval.probes.linear_heads import LinearProbe

BASE_LR = 0.1
"""The highest rate for batches of 256; in proportion for others."""
_EPS = 1e-6


def lars_step(
    parameter: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> None:
    """Change a parameter and its velocity, in place, by one step of LARS without weight decay.

    What has one axis, a bias, takes the step as it is.
    """
    if parameter.ndim > 1:
        parameter_norm, gradient_norm = parameter.norm(), gradient.norm()
        # With nothing to be in proportion to: the step as it is
        gradient = gradient * torch.where(
            (parameter_norm > 0) & (gradient_norm > 0), trust_coefficient * parameter_norm / gradient_norm, 1.0
        )
    velocity.mul_(momentum).add_(gradient)
    parameter.sub_(lr * velocity)


def fit_lars_probe(
    features: Float[Tensor, "row dim"],
    labels: Int64[Tensor, " row"],
    *,
    rows: Int64[Tensor, " given"],
    num_labels: int,
    epochs: int = 90,
    warmup_epochs: int = 10,
    batch_size: int = 16384,
    seed: int,
) -> LinearProbe:
    """Return the probe that MAE's protocol fits to `rows`; it standardises by batch norm's running averages."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe weights"))
    dim, per_epoch = features.shape[1], num_batches(len(rows), batch_size)
    weight, bias = torch.empty(num_labels, dim), torch.zeros(num_labels)
    torch.nn.init.trunc_normal_(weight, std=0.01, generator=generator)
    velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    mean, variance = torch.zeros(dim), torch.ones(dim)
    peak = BASE_LR * len(rows) / per_epoch / 256
    for step, batch in enumerate(shuffled_batches(rows, epochs=epochs, batch_size=batch_size, seed=seed)):
        inputs = F.batch_norm(features[batch].float(), mean, variance, training=True, momentum=0.1, eps=_EPS)
        error = F.linear(inputs, weight, bias).softmax(dim=1) - F.one_hot(labels[batch], num_labels)
        error /= len(batch)
        lr = peak * warmup_cosine(step, total_steps=epochs * per_epoch, warmup_steps=warmup_epochs * per_epoch)
        lars_step(weight, velocity[0], error.T @ inputs, lr=lr)
        lars_step(bias, velocity[1], error.sum(dim=0), lr=lr)
    return LinearProbe(mean, (variance + _EPS).sqrt(), weight, bias, weight_decay=0.0)

"""MAE's linear probe: batch norm without scale and shift, then LARS, with large batches and no weight decay.

LARS scales steps by the norm of the weights, so convergence depends on rows × epochs, whatever the batch size. The 115
million samples of 90 epochs on ImageNet are enough; with less than a few million, weights stay close to their random
initialisation. Unlike in MAE's code, features are computed once, without augmentation, and an epoch's last rows are not
dropped.
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
"""Peak learning rate for batches of 256; scaled linearly for others."""
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
    """Update a parameter and its velocity in place by one step of LARS without weight decay.

    The step of a parameter with one axis, such as a bias, is not scaled.
    """
    if parameter.ndim > 1:
        parameter_norm, gradient_norm = parameter.norm(), gradient.norm()
        # Without a norm to scale by, the step is not scaled
        gradient = gradient * torch.where(
            (parameter_norm > 0) & (gradient_norm > 0), trust_coefficient * parameter_norm / gradient_norm, 1.0
        )
    velocity.mul_(momentum).add_(gradient)
    parameter.sub_(lr * velocity)


def fit_lars_probe(
    features: Float[Tensor, "row dim"],
    labels: Int64[Tensor, " row"],
    *,
    rows: Int64[Tensor, " training_row"],
    num_labels: int,
    epochs: int = 90,
    warmup_epochs: int = 10,
    batch_size: int = 16384,
    seed: int,
) -> LinearProbe:
    """Fit a probe to `rows` with MAE's protocol; it standardises features by batch norm's running statistics."""
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

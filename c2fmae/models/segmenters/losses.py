"""The cross-entropy of a segmenter at the size of its labels, computed image by image."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from c2fmae.core.granularity import IGNORE
from c2fmae.models.segmenters.upsampling import upsample_logits


def upsampled_cross_entropy(
    logits: Float[Tensor, "batch class rows columns"], ids: UInt8[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Return the sum of the cross-entropy over labelled pixels, with the logits resized to the size of `ids`.

    The gradient is computed in the forward pass, so that logits of full size exist for one image at a time. The
    arithmetic is float32, or float64 for logits of float64. A batch without labelled pixels has the loss 0.
    """
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad  # in a forward gradients are always disabled
    loss: Tensor = _UpsampledCrossEntropy.apply(logits, ids, needs_gradient)
    return loss


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, needs_gradient: bool) -> Tensor:
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        gradients = torch.empty_like(logits) if needs_gradient else None
        for index, (image_logits, image_ids) in enumerate(zip(logits, ids, strict=True)):
            loss, gradient = _image_cross_entropy(image_logits, image_ids, needs_gradient=needs_gradient)
            total += loss
            if gradients is not None and gradient is not None:
                gradients[index] = gradient
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients.to(loss_gradient.dtype) * loss_gradient).to(gradients.dtype), None, None


def _image_cross_entropy(
    logits: Float[Tensor, "class rows columns"], ids: UInt8[Tensor, "height width"], *, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the summed cross-entropy of an image, and its gradient for the logits."""
    is_labelled = ids != IGNORE
    targets = ids.where(is_labelled, 0).long()[None, None]
    leaf = logits.detach()[None].requires_grad_(needs_gradient)
    with torch.set_grad_enabled(needs_gradient):
        upsampled = upsample_logits(leaf, (ids.shape[0], ids.shape[1]))
    log_probabilities = upsampled.detach().log_softmax(dim=1)
    loss = -log_probabilities.gather(1, targets).masked_fill(~is_labelled, 0).sum()
    if not needs_gradient:
        return loss, None
    gradient = log_probabilities.exp_()  # probability - 1 for the true class, in place: the memory is the limit
    gradient.scatter_add_(1, targets, torch.full_like(gradient[:, :1], -1))
    gradient.masked_fill_(~is_labelled, 0)
    return loss, torch.autograd.grad(upsampled, leaf, gradient)[0][0]

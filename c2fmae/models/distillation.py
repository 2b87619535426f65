"""Distillation without labels: a student predicts how a teacher distributes an image over prototypes, or its features.

The first is that of DINO and iBOT, the second that of LUT.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from c2fmae.core.precision import without_autocast


def sharpen(
    logits: Float[Tensor, "*batch prototype"], centre: Float[Tensor, " prototype"], temperature: float
) -> Float[Tensor, "*batch prototype"]:
    """Return the teacher's probabilities: of logits that are centred, so that no prototype dominates, and sharpened."""
    return ((_to_full_precision(logits) - centre) / temperature).softmax(dim=-1)


def distil(
    student: Float[Tensor, "*batch prototype"], teacher: Float[Tensor, "*batch prototype"], temperature: float
) -> Float[Tensor, "*batch"]:
    """Return the cross-entropy between the teacher's probabilities and those of the student's logits."""
    return -(teacher * _log_probabilities(student, temperature)).sum(dim=-1)


def distil_views(
    student: Float[Tensor, "view batch prototype"],
    teacher: Float[Tensor, "teacher_view batch prototype"],
    temperature: float,
) -> Float[Tensor, " batch"]:
    """Return each image's mean of `distil` over all pairs of a teacher's and another view of the student.

    The first views of the student are those of the teacher. A pair of a view and itself is left out.
    """
    log_probabilities = _log_probabilities(student, temperature)
    with without_autocast(student.device):
        pairs = -torch.einsum("tbk,vbk->btv", teacher, log_probabilities)
    num_teacher, num_student = len(teacher), len(student)
    is_same = torch.eye(num_teacher, num_student, dtype=torch.bool, device=student.device)
    return pairs.masked_fill(is_same, 0).sum(dim=(1, 2)) / (num_teacher * num_student - num_teacher)


def cosine_loss(student: Float[Tensor, "*batch dim"], teacher: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Return the squared distance between features that are scaled to length 1: 2 - 2 cos."""
    student, teacher = _to_full_precision(student), _to_full_precision(teacher)
    return 2 - 2 * F.cosine_similarity(student, teacher, dim=-1)


def average_masked(
    losses: Float[Tensor, "batch patch"], is_masked: Bool[Tensor, "batch patch"]
) -> Float[Tensor, " batch"]:
    """Return each image's mean over its hidden patches; 0 for an image without any."""
    return torch.where(is_masked, losses, 0).sum(dim=1) / is_masked.sum(dim=1).clamp(min=1)


def update_centre(
    centre: Float[Tensor, " prototype"], mean: Float[Tensor, " prototype"], momentum: float
) -> Float[Tensor, " prototype"]:
    """Return the centre after a step, given the mean of the teacher's logits in the global batch."""
    return momentum * centre + (1 - momentum) * mean


def compute_entropy(probabilities: Float[Tensor, "*batch prototype"]) -> Float[Tensor, "*batch"]:
    """Return the entropy: 0 if one prototype has all, and the logarithm of their number if all have the same."""
    return torch.special.entr(probabilities).sum(dim=-1)  # type: ignore[no-any-return]


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (_to_full_precision(logits) / temperature).log_softmax(dim=-1)


def _to_full_precision(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

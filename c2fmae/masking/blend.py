"""Three ways to blend a semantic, an instance and a random mask: Eq. 10-11, and two that blend smoothly.

The three masks of an image hide the same number of patches. α and β are one number, or one per image.
"""

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from c2fmae.masking._checks import (
    can_read_values,
    check_batch_by_patch,
    check_floating_point,
    check_mask,
    check_noise,
    check_shape,
    validate_coefficients,
)
from c2fmae.masking.rounding import apportion
from c2fmae.masking.selection import descending_key, hide_lowest, key_by_group

Mask = Bool[Tensor, "batch patch"]
Coefficient = float | Float[Tensor, " batch"]


def blend_scores(
    semantic: Mask, instance: Mask, random: Mask, alpha: Coefficient, beta: Coefficient
) -> Float32[Tensor, "batch patch"]:
    """Return the score map α · semantic + β · instance + (1 - α - β) · random (Eq. 10).

    Its `top_k_mask` is a hard switch: where one coefficient exceeds ½, the result is exactly that mask.
    """
    _check_masks(semantic, instance, random)
    coefficients = validate_coefficients(alpha, beta, semantic)
    # Summed in float64, so that equal sums of coefficients are equal scores in float32. A tiny excess over ½ decides
    # and would be lost in float32, so it is raised to 1e-6.
    coefficients = torch.where(coefficients > 0.5, coefficients.clamp(min=0.5 + 1e-6), coefficients)
    first, second, rest = coefficients.split(1, dim=1)
    hidden_by = torch.arange(8, device=semantic.device)  # a bit for each mask
    scores: Tensor = first * (hidden_by & 1) + second * (hidden_by >> 1 & 1) + rest * (hidden_by >> 2)
    return scores.float().gather(1, (semantic + 2 * instance.byte() + 4 * random.byte()).long())


def sample_mask(
    semantic: Mask, instance: Mask, random: Mask, alpha: Coefficient, beta: Coefficient, u: Float[Tensor, " batch"]
) -> Mask:
    """Select one of the three masks per image, with probabilities α, β, 1 - α - β, by `u` uniform in [0, 1)."""
    _check_masks(semantic, instance, random)
    check_shape("u", u, (len(semantic),))
    check_floating_point("u", u)
    borders = validate_coefficients(alpha, beta, semantic).cumsum(dim=1)
    choice = (u.unsqueeze(1) >= borders[:, :2]).sum(dim=1)
    return torch.stack([semantic, instance, random], dim=1)[torch.arange(len(u), device=u.device), choice]


def quota_mask(
    semantic: Mask,
    instance: Mask,
    random: Mask,
    alpha: Coefficient,
    beta: Coefficient,
    noise: Float[Tensor, "batch patch"],
) -> Mask:
    """Take a fraction α of the hidden patches from the semantic mask, β from the instance mask, the rest from random.

    The patches of a mask are chosen by noise, among those that no earlier mask has contributed. Each mask hides as
    many patches as the result, so enough of them always remain.
    """
    _check_masks(semantic, instance, random)
    check_noise(noise, (len(semantic), semantic.shape[1]))
    num_masked = random.sum(dim=1)
    if can_read_values(random) and not all(torch.equal(mask.sum(dim=1), num_masked) for mask in (semantic, instance)):
        raise ValueError("semantic, instance, random: expected masks that hide the same number of patches in each row")
    quotas = apportion(validate_coefficients(alpha, beta, semantic), num_masked, num_masked.unsqueeze(1).expand(-1, 3))
    first = descending_key(noise).long()
    # In the order of the first mask, the patches that remain of it would come last in the second, and so on.
    second = _permute_keys(first)
    third = _permute_keys(second)
    is_masked = torch.zeros_like(semantic)
    quota_by_mask = quotas.split(1, dim=1)
    for mask, quota, key in zip((semantic, instance, random), quota_by_mask, (first, second, third), strict=True):
        is_available = mask & ~is_masked
        is_masked = is_masked | hide_lowest(key_by_group(~is_available, key), quota)
    return is_masked


def _permute_keys(keys: Tensor) -> Tensor:
    """Return keys for another order of the patches: multiplication by an odd number permutes the 32-bit integers."""
    return (keys * 0x2545F491).bitwise_and_(0xFFFFFFFF).sub_(1 << 31)


def _check_masks(semantic: Tensor, instance: Tensor, random: Tensor) -> None:
    rows = check_batch_by_patch("semantic", semantic)
    for name, mask in (("semantic", semantic), ("instance", instance), ("random", random)):
        check_mask(name, mask, rows)

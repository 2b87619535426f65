"""Pure functions that choose the patches that a masked autoencoder hides, and the policies that configs select by name.

Noise and generators are arguments, inputs are never modified, the images of a batch do not influence each other, and
only torch, NumPy and jaxtyping are required.

>>> import torch
>>> from c2fmae.masking import patch_regions, semantic_mask
>>> semantic_map = torch.zeros(1, 224, 224, dtype=torch.uint8)
>>> semantic_map[:, :, 112:] = 17
>>> regions = patch_regions(semantic_map, 16)
>>> noise = torch.rand(1, 196, generator=torch.Generator().manual_seed(0))
>>> is_masked = semantic_mask(regions, noise, torch.tensor([147]))
>>> [is_masked[regions == region].sum().item() for region in (0, 17)]
[74, 73]
"""

from c2fmae.masking.blend import blend_scores, quota_mask, sample_mask
from c2fmae.masking.curricula import CURRICULA
from c2fmae.masking.explanation import Quota, explain
from c2fmae.masking.grid_policies import BlockPolicy, UniformPolicy, UnitPolicy
from c2fmae.masking.guided import instance_mask, semantic_mask
from c2fmae.masking.noise import RowGenerator
from c2fmae.masking.objects import select_instances
from c2fmae.masking.policies import POLICIES, ExplainablePolicy, MaskNoise, PatchMaps, Policy
from c2fmae.masking.regions import patch_regions
from c2fmae.masking.rounding import apportion, compute_quotas, sample_shares
from c2fmae.masking.scenes import mask_scenes
from c2fmae.masking.selection import random_mask, select_decoded, top_k_mask

__all__ = [
    "CURRICULA",
    "POLICIES",
    "BlockPolicy",
    "ExplainablePolicy",
    "MaskNoise",
    "PatchMaps",
    "Policy",
    "Quota",
    "RowGenerator",
    "UniformPolicy",
    "UnitPolicy",
    "apportion",
    "blend_scores",
    "compute_quotas",
    "explain",
    "instance_mask",
    "mask_scenes",
    "patch_regions",
    "quota_mask",
    "random_mask",
    "sample_mask",
    "sample_shares",
    "select_decoded",
    "select_instances",
    "semantic_mask",
    "top_k_mask",
]

"""Masking policies: masks with a name and options, for configs and plug-ins.

A policy is a frozen dataclass of plain options with a method `hide`, which makes a mask from given noise. It may also
have `required_maps`, `mask_probabilities` and `curriculum`. The protocols below declare them, and describe the default
for a policy without them. Another package adds a policy by registering it in `POLICIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from c2fmae.core.registry import Registry
from c2fmae.masking._checks import validate_budget, validate_coefficients
from c2fmae.masking.blend import blend_scores, quota_mask, sample_mask
from c2fmae.masking.curricula import triangle
from c2fmae.masking.guided import (
    build_side_bins,
    find_background,
    gather_class_weights,
    instance_mask,
    semantic_mask,
)
from c2fmae.masking.objects import select_instances
from c2fmae.masking.rounding import compute_quotas
from c2fmae.masking.selection import random_mask, sort_by_group, top_k_mask

Blend = Literal["topk", "sample", "quota"]

_ROUNDING_TOLERANCE = 1e-9
"""1 - α - β may differ from 0 by a rounding error."""


class PatchMaps(NamedTuple):
    """The semantic class and the object of each patch."""

    regions: Integer[Tensor, "batch patch"]
    """Semantic class ids."""
    instances: Integer[Tensor, "batch patch"]
    """Object ids, 0 for background."""
    ignore: int = 255
    """The id of unlabelled patches, in both."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of patches; None means a square."""


class MaskNoise(NamedTuple):
    """Independent uniform noise in [0, 1) for each of the three masks, for ties, and one number per image."""

    semantic: Float[Tensor, "batch patch"]
    instance: Float[Tensor, "batch patch"]
    random: Float[Tensor, "batch patch"]
    tie: Float[Tensor, "batch patch"]
    image: Float[Tensor, " batch"]


@runtime_checkable
class Policy(Protocol):
    """A policy that chooses the patches to hide. A row of the batch is an image, or one granularity of an image."""

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float
    ) -> Bool[Tensor, "batch patch"]:
        """Hide exactly `num_masked` patches of every row."""
        ...


@runtime_checkable
class GuidedPolicy(Policy, Protocol):
    """A policy that declares the maps it reads; any other policy is assumed to read all of `GUIDE_MAPS`."""

    @property
    def required_maps(self) -> tuple[str, ...]:
        """A subset of `GUIDE_MAPS`; `hide` gets a single region in place of any other map."""
        ...


@runtime_checkable
class ExplainablePolicy(Policy, Protocol):
    """A policy that computes how likely it hides each patch; for any other, `explain` lists only the hidden patches."""

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float
    ) -> Float64[Tensor, "batch patch"]:
        """Return the probability that each patch is hidden, before rounding; each row adds up to its budget."""
        ...


@runtime_checkable
class CurriculumPolicy(Policy, Protocol):
    """A policy that follows a curriculum; training logs its α and β."""

    @property
    def curriculum(self) -> Callable[[float], tuple[float, float]]:
        """The function from progress to (α, β)."""
        ...


GUIDE_MAPS = ("semantic", "instance")
"""The maps that a policy can read."""


def get_required_maps(policy: Policy) -> tuple[str, ...]:
    """Return `required_maps` of the policy, or all of `GUIDE_MAPS` if it declares none."""
    return policy.required_maps if isinstance(policy, GuidedPolicy) else GUIDE_MAPS


POLICIES: Registry[Callable[..., Policy]] = Registry("mask")


@POLICIES.register("semantic")
@dataclass(frozen=True, kw_only=True)
class SemanticPolicy:
    """Hide the same fraction of every semantic region, or more of some classes by weight."""

    required_maps: ClassVar = ("semantic",)
    weights: tuple[float, ...] | None = None
    """Weights by class id; None means 1 for every class."""

    def __post_init__(self) -> None:
        if self.weights is not None and not all(weight >= 0 for weight in self.weights):
            raise ValueError(f"weights: expected numbers of at least 0, got {self.weights}")

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Return `semantic_mask` of the regions with the class weights."""
        weights = self._weight_tensor(patches)
        return semantic_mask(patches.regions, noise.semantic, num_masked, weights=weights, ignore=patches.ignore)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float = 0.0
    ) -> Float64[Tensor, "batch patch"]:
        """Return the quota of each region, divided by its size."""
        runs = sort_by_group(patches.regions, torch.zeros_like(patches.regions, dtype=torch.float32))
        weighted, weights = runs.size, self._weight_tensor(patches)
        if weights is not None:
            weighted = weighted * gather_class_weights(runs.group, weights, patches.ignore)
        probabilities = compute_quotas(weighted, num_masked, runs.size) / runs.size.clamp(min=1)
        return runs.to_patches(probabilities.gather(1, runs.run))

    def _weight_tensor(self, patches: PatchMaps) -> Tensor | None:
        if self.weights is None:
            return None
        return torch.tensor(self.weights, dtype=torch.float64).to(patches.regions.device, non_blocking=True)


@POLICIES.register("instance")
@dataclass(frozen=True, kw_only=True)
class InstancePolicy:
    """Put most of the hidden patches on objects."""

    required_maps: ClassVar = ("instance",)
    object_share: float = 0.75
    max_objects: int | None = None
    """Number of objects that count, the largest and most central first; None means all."""

    def __post_init__(self) -> None:
        if not 0 <= self.object_share <= 1:
            raise ValueError(f"object_share: expected a number in [0, 1], got {self.object_share}")
        if self.max_objects is not None and self.max_objects < 0:
            raise ValueError(f"max_objects: expected at least 0, got {self.max_objects}")

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Return `instance_mask` of the selected objects."""
        return instance_mask(
            self._select_objects(patches),
            noise.instance,
            num_masked,
            object_share=self.object_share,
            ignore=patches.ignore,
        )

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float = 0.0
    ) -> Float64[Tensor, "batch patch"]:
        """Return the quota of objects and of background, each divided by its number of patches."""
        is_background = find_background(self._select_objects(patches), patches.ignore)
        budget = validate_budget(num_masked, (is_background.shape[0], is_background.shape[1]))
        weights, total, capacity = build_side_bins(is_background, self.object_share, budget)
        return (compute_quotas(weights, total, capacity) / capacity.clamp(min=1)).gather(1, is_background.long())

    def _select_objects(self, patches: PatchMaps) -> Integer[Tensor, "batch patch"]:
        if self.max_objects is None:
            return patches.instances
        return select_instances(patches.instances, self.max_objects, grid=patches.grid, ignore=patches.ignore)


@POLICIES.register("random")
@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """Hide patches uniformly."""

    required_maps: ClassVar = ()

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """Return `random_mask`, which reads no map."""
        return random_mask(noise.random, num_masked)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float = 0.0
    ) -> Float64[Tensor, "batch patch"]:
        """Return the hidden fraction of each row."""
        patch_count = patches.regions.shape[1]
        return (num_masked.double() / patch_count).unsqueeze(1).expand(-1, patch_count)


@POLICIES.register("progressive")
@dataclass(frozen=True, kw_only=True)
class ProgressivePolicy:
    """Move from the semantic to the instance to the random mask as training progresses (Eq. 10-11)."""

    curriculum: Callable[[float], tuple[float, float]] = triangle
    blend: Blend = "topk"
    object_share: float = 0.75
    max_objects: int | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.blend not in ("topk", "sample", "quota"):
            raise ValueError(f"blend: expected 'topk', 'sample' or 'quota', got {self.blend!r}")
        _ = self.base_policies  # validates the other options

    @property
    def base_policies(self) -> tuple[ExplainablePolicy, ExplainablePolicy, ExplainablePolicy]:
        """The three policies that are blended."""
        instance = InstancePolicy(object_share=self.object_share, max_objects=self.max_objects)
        return SemanticPolicy(weights=self.weights), instance, RandomPolicy()

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float
    ) -> Bool[Tensor, "batch patch"]:
        """Blend the three masks; masks that cannot influence the result are not computed."""
        alpha, beta = self.curriculum(progress)
        coefficients = (alpha, beta, 1 - alpha - beta)
        # A coefficient above ½ determines a top-k blend, and a coefficient of 1 every blend (proof: docs/masking.md).
        decisive_coefficient = 0.5 if self.blend == "topk" else 1 - _ROUNDING_TOLERANCE
        for policy, coefficient in zip(self.base_policies, coefficients, strict=True):
            if coefficient > decisive_coefficient:
                return policy.hide(patches, num_masked, noise, progress=progress)
        masks = [
            policy.hide(patches, num_masked, noise, progress=progress) if coefficient > _ROUNDING_TOLERANCE else None
            for policy, coefficient in zip(self.base_policies, coefficients, strict=True)
        ]
        placeholder = next(mask for mask in masks if mask is not None)  # a coefficient of 0 has no effect in any blend
        semantic, instance, random = (placeholder if mask is None else mask for mask in masks)
        if self.blend == "topk":
            return top_k_mask(blend_scores(semantic, instance, random, alpha, beta), num_masked, noise.tie)
        if self.blend == "sample":
            return sample_mask(semantic, instance, random, alpha, beta, noise.image)
        return quota_mask(semantic, instance, random, alpha, beta, noise.tie)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float
    ) -> Float64[Tensor, "batch patch"]:
        """Return the average of the three policies' probabilities, weighted by α, β and 1 - α - β.

        For `topk`, return those of the policy with a coefficient above ½, if there is one. The masks of `quota` deviate
        from the average by a few per cent, because it takes no patch twice.
        """
        coefficients = validate_coefficients(*self.curriculum(progress), patches.regions)
        if self.blend == "topk":
            coefficients = torch.where((coefficients > 0.5).any(dim=1, keepdim=True), coefficients > 0.5, coefficients)
        probabilities = torch.stack(
            [policy.mask_probabilities(patches, num_masked, progress=progress) for policy in self.base_policies], dim=1
        )
        return (probabilities * coefficients.unsqueeze(2)).sum(dim=1)

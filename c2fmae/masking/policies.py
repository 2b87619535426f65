"""Masking policies: masks with a name and options, for configs and plug-ins.

A policy is a frozen dataclass of plain options with a method `hide`, which makes a mask from given noise. It may also
have `required_maps`, `mask_probabilities` and `curriculum`: each is declared by a protocol below, with what is assumed
of a policy that lacks it. Another package adds a policy by registering it in `POLICIES`.
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
    gather_class_weights,
    instance_mask,
    instances_to_sides,
    semantic_mask,
)
from c2fmae.masking.objects import select_instances
from c2fmae.masking.rounding import compute_quotas
from c2fmae.masking.selection import random_mask, sort_by_group, top_k_mask

Blend = Literal["topk", "sample", "quota"]

_ROUNDING_TOLERANCE = 1e-9
"""1 - α - β may miss 0 by a rounding."""


class PatchMaps(NamedTuple):
    """What is in each patch."""

    regions: Integer[Tensor, "batch patch"]
    """Its semantic class."""
    instances: Integer[Tensor, "batch patch"]
    """Its object, 0 for background."""
    ignore: int = 255
    """The id of patches that nobody labelled, in both."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches; a square unless given."""


class MaskNoise(NamedTuple):
    """Uniform noise in [0, 1): each of the three masks and each tie-break has its own."""

    semantic: Float[Tensor, "batch patch"]
    instance: Float[Tensor, "batch patch"]
    random: Float[Tensor, "batch patch"]
    tie: Float[Tensor, "batch patch"]
    image: Float[Tensor, " batch"]


@runtime_checkable
class Policy(Protocol):
    """Decides which patches are hidden; rows are images, or granularities of images."""

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float
    ) -> Bool[Tensor, "batch patch"]:
        """Hide exactly `num_masked` patches of every row."""
        ...


@runtime_checkable
class GuidedPolicy(Policy, Protocol):
    """A policy that names the maps it reads; one that does not is given all of `GUIDE_MAPS`."""

    @property
    def required_maps(self) -> tuple[str, ...]:
        """Some of `GUIDE_MAPS`; in the place of any other, `hide` gets a single region."""
        ...


@runtime_checkable
class ExplainablePolicy(Policy, Protocol):
    """A policy that states how likely it is to hide each patch; of any other, `explain` lists only what is hidden."""

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float
    ) -> Float64[Tensor, "batch patch"]:
        """Return the probability that each patch is hidden, before rounding; a row adds up to its budget."""
        ...


@runtime_checkable
class CurriculumPolicy(Policy, Protocol):
    """A policy that follows a curriculum, whose α and β are logged in training."""

    @property
    def curriculum(self) -> Callable[[float], tuple[float, float]]:
        """Progress → (α, β)."""
        ...


GUIDE_MAPS = ("semantic", "instance")
"""The maps that can guide a policy."""


def get_required_maps(policy: Policy) -> tuple[str, ...]:
    """Return the names of the maps that the policy reads: both, unless it declares `required_maps`."""
    return policy.required_maps if isinstance(policy, GuidedPolicy) else GUIDE_MAPS


POLICIES: Registry[Callable[..., Policy]] = Registry("mask")


@POLICIES.register("semantic")
@dataclass(frozen=True, kw_only=True)
class SemanticPolicy:
    """Hide the same fraction of every semantic region, or more of some classes."""

    required_maps: ClassVar = ("semantic",)
    weights: tuple[float, ...] | None = None
    """By class id; none gives all classes weight 1."""

    def __post_init__(self) -> None:
        if self.weights is not None and not all(weight >= 0 for weight in self.weights):
            raise ValueError(f"weights: expected numbers of at least 0, got {self.weights}")

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """See `semantic_mask`."""
        weights = self._weight_tensor(patches)
        return semantic_mask(patches.regions, noise.semantic, num_masked, weights=weights, ignore=patches.ignore)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float = 0.0
    ) -> Float64[Tensor, "batch patch"]:
        """Return each region's quota over its size."""
        runs = sort_by_group(patches.regions, torch.zeros_like(patches.regions, dtype=torch.float32))
        weighted, weights = runs.size, self._weight_tensor(patches)
        if weights is not None:
            weighted = weighted * gather_class_weights(runs.group, weights, patches.ignore)
        probabilities = (compute_quotas(weighted, num_masked, runs.size) / runs.size.clamp(min=1)).gather(1, runs.start)
        return torch.zeros_like(probabilities).scatter(1, runs.order, probabilities)

    def _weight_tensor(self, patches: PatchMaps) -> Tensor | None:
        if self.weights is None:
            return None
        return torch.tensor(self.weights, dtype=torch.float64).to(patches.regions.device, non_blocking=True)


@POLICIES.register("instance")
@dataclass(frozen=True, kw_only=True)
class InstancePolicy:
    """Let most of what is hidden fall on objects."""

    required_maps: ClassVar = ("instance",)
    object_share: float = 0.75
    max_objects: int | None = None
    """Only so many objects count as such, the largest and most central ones; all unless given."""

    def __post_init__(self) -> None:
        if not 0 <= self.object_share <= 1:
            raise ValueError(f"object_share: expected a share in [0, 1], got {self.object_share}")
        if self.max_objects is not None and self.max_objects < 0:
            raise ValueError(f"max_objects: expected at least 0, got {self.max_objects}")

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float = 0.0
    ) -> Bool[Tensor, "batch patch"]:
        """See `instance_mask`."""
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
        """Return each side's quota over its size."""
        side = instances_to_sides(self._select_objects(patches), patches.ignore)
        budget = validate_budget(num_masked, (side.shape[0], side.shape[1]))
        weights, total, capacity = build_side_bins(side, self.object_share, budget)
        return (compute_quotas(weights, total, capacity) / capacity.clamp(min=1)).gather(1, side)

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
        """See `random_mask`."""
        return random_mask(noise.random, num_masked)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float = 0.0
    ) -> Float64[Tensor, "batch patch"]:
        """Return the hidden share of the row."""
        patch_count = patches.regions.shape[1]
        return (num_masked.double() / patch_count).unsqueeze(1).expand(-1, patch_count)


@POLICIES.register("progressive")
@dataclass(frozen=True, kw_only=True)
class ProgressivePolicy:
    """Move from one mask to the next with the progress of training (Eq. 10-11)."""

    curriculum: Callable[[float], tuple[float, float]] = triangle
    blend: Blend = "topk"
    object_share: float = 0.75
    max_objects: int | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.blend not in ("topk", "sample", "quota"):
            raise ValueError(f"blend: expected 'topk', 'sample' or 'quota', got {self.blend!r}")
        _ = self.base_policies  # which check the other options

    @property
    def base_policies(self) -> tuple[ExplainablePolicy, ExplainablePolicy, ExplainablePolicy]:
        """The three policies that are blended."""
        instance = InstancePolicy(object_share=self.object_share, max_objects=self.max_objects)
        return SemanticPolicy(weights=self.weights), instance, RandomPolicy()

    def hide(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], noise: MaskNoise, *, progress: float
    ) -> Bool[Tensor, "batch patch"]:
        """Blend the three masks; those that cannot matter are not made."""
        alpha, beta = self.curriculum(progress)
        coefficients = (alpha, beta, 1 - alpha - beta)
        # One above ½ decides every top-k alone, and one of 1 every blend (docs/masking.md has the proof).
        decisive_coefficient = 0.5 if self.blend == "topk" else 1 - _ROUNDING_TOLERANCE
        for policy, coefficient in zip(self.base_policies, coefficients, strict=True):
            if coefficient > decisive_coefficient:
                return policy.hide(patches, num_masked, noise, progress=progress)
        masks = [
            policy.hide(patches, num_masked, noise, progress=progress) if coefficient > _ROUNDING_TOLERANCE else None
            for policy, coefficient in zip(self.base_policies, coefficients, strict=True)
        ]
        placeholder = next(mask for mask in masks if mask is not None)  # no blend takes anything at a coefficient of 0
        semantic, instance, random = (placeholder if mask is None else mask for mask in masks)
        if self.blend == "topk":
            return top_k_mask(blend_scores(semantic, instance, random, alpha, beta), num_masked, noise.tie)
        if self.blend == "sample":
            return sample_mask(semantic, instance, random, alpha, beta, noise.image)
        return quota_mask(semantic, instance, random, alpha, beta, noise.tie)

    def mask_probabilities(
        self, patches: PatchMaps, num_masked: Integer[Tensor, " batch"], *, progress: float
    ) -> Float64[Tensor, "batch patch"]:
        """Return the average of the three with α, β, 1 - α - β; for `topk` with a coefficient above ½, that mask's.

        `quota` strays from it by a few per cent, since what one share takes is not there for the next.
        """
        coefficients = validate_coefficients(*self.curriculum(progress), patches.regions)
        if self.blend == "topk":
            coefficients = torch.where((coefficients > 0.5).any(dim=1, keepdim=True), coefficients > 0.5, coefficients)
        probabilities = torch.stack(
            [policy.mask_probabilities(patches, num_masked, progress=progress) for policy in self.base_policies], dim=1
        )
        return (probabilities * coefficients.unsqueeze(2)).sum(dim=1)

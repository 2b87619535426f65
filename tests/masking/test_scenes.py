"""Whole batches: budgets, ids, ranks, replay and explanations, for every policy there is."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.masking import POLICIES, explain, mask_scenes, random_mask
from c2fmae.masking.curricula import constant
from c2fmae.masking.policies import (
    Blend,
    ExplainablePolicy,
    InstancePolicy,
    MaskNoise,
    PatchMaps,
    Policy,
    ProgressivePolicy,
    RandomPolicy,
    SemanticPolicy,
    get_required_maps,
)
from c2fmae.masking.scenes import repeat_per_granularity

EACH = pytest.mark.parametrize("name", list(POLICIES))
BLENDS: tuple[Blend, ...] = ("topk", "sample", "quota")


def patches(batch: int = 8, count: int = 35, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randint(0, 5, (batch, count), generator=generator)
    instances = torch.randint(-4, 4, (batch, count), generator=generator).clamp(min=0)
    return torch.where(regions == 4, 255, regions), instances


def noise_of(uniform: Tensor) -> MaskNoise:
    return MaskNoise(uniform[0], uniform[1], uniform[2], uniform[3], uniform[4, :, 0])


def masks_of(
    policy: Policy | str, seed: int = 0, progress: float = 0.3, num_visible: int = 20, **options: object
) -> Masks:
    regions, instances = patches()
    generator = torch.Generator().manual_seed(seed)
    return mask_scenes(
        policy,
        regions,
        instances,
        num_visible=num_visible,
        progress=progress,
        generator=generator,
        **options,  # type: ignore[arg-type]
    )


@EACH
@given(num_visible=st.integers(0, 105), progress=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_every_image_shows_exactly_its_budget(name: str, num_visible: int, progress: float, seed: int) -> None:
    masks = masks_of(name, seed, progress, num_visible)
    assert masks.is_masked.shape == (8, 3, 35)
    assert masks.visible_idx.shape == (8, num_visible)
    assert (masks.num_masked.sum(dim=1) == 105 - num_visible).all()
    visible = torch.zeros(8, 105, dtype=torch.bool).scatter(1, masks.visible_idx, True)
    assert torch.equal(visible, ~masks.is_masked.flatten(1))
    assert (masks.visible_idx.diff(dim=1) > 0).all()


@EACH
@pytest.mark.parametrize("batch", [1, 2])
def test_single_patches_and_single_images_work(name: str, batch: int) -> None:
    one = torch.zeros(batch, 1, dtype=torch.uint8)
    masks = mask_scenes(name, one, one, num_visible=2, progress=0.5, generator=torch.Generator())
    assert (masks.num_masked.sum(dim=1) == 1).all()


@EACH
@pytest.mark.parametrize("granularities", [("rgb",), ("semantic", "rgb"), ("semantic", "instance", "rgb", "depth")])
def test_any_number_of_granularities_works(name: str, granularities: tuple[str, ...]) -> None:
    masks = masks_of(name, granularities=granularities)
    assert masks.granularities == granularities
    assert masks.is_masked.shape[1] == len(granularities)


@EACH
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_rows_of_a_global_batch_split_over_ranks_equal_the_whole(name: str, progress: float, ranks: int) -> None:
    regions, instances = patches()
    whole = masks_of(name, progress=progress)
    local = 8 // ranks
    parts = [
        mask_scenes(
            name,
            regions[rank * local :][:local],
            instances[rank * local :][:local],
            num_visible=20,
            progress=progress,
            generator=torch.Generator().manual_seed(0),
            global_batch=(rank * local, 8),
        )
        for rank in range(ranks)
    ]
    assert torch.equal(torch.cat([part.is_masked for part in parts]), whole.is_masked)
    assert torch.equal(torch.cat([part.visible_idx for part in parts]), whole.visible_idx)


@EACH
def test_the_same_generator_gives_the_same_masks_and_another_does_not(name: str) -> None:
    assert torch.equal(masks_of(name, 1).is_masked, masks_of(name, 1).is_masked)
    assert not torch.equal(masks_of(name, 1).is_masked, masks_of(name, 2).is_masked)


@EACH
def test_saved_masks_are_replayed(name: str, tmp_path: Path) -> None:
    masks = masks_of(name)
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert again.granularities == masks.granularities
    assert torch.equal(again.is_masked, masks.is_masked)
    assert torch.equal(again.visible_idx, masks.visible_idx)


def test_a_file_that_holds_no_masks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    with pytest.raises(UserError, match=r"masks.safetensors: cannot be read as masks: "):
        Masks.load(path)
    path.write_bytes(b"not this")
    with pytest.raises(UserError, match=r"masks.safetensors: cannot be read as masks: "):
        Masks.load(path)
    from safetensors.torch import save_file

    masks = masks_of("random")
    wrong = {"is_masked": masks.is_masked, "visible_idx": masks.visible_idx.flip(1).contiguous()}
    save_file(wrong, path, {"format": "c2fmae-masks-1", "granularities": '["semantic", "instance", "rgb"]'})
    with pytest.raises(UserError, match=r"cannot be read as masks: what is hidden and what is visible do not agree$"):
        Masks.load(path)
    save_file(wrong, path, {"format": "c2fmae-masks-1"})
    with pytest.raises(UserError, match=r"masks.safetensors: cannot be read as masks: 'granularities'$"):
        Masks.load(path)
    with pytest.raises(UserError, match=r"the masks cannot be written: "):
        masks.save(tmp_path / "missing" / "masks.safetensors")
    save_file({"is_masked": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"masks.safetensors: not a file of masks \(its format is None\)$"):
        Masks.load(path)


def test_concentration_moves_what_is_visible_towards_a_granularity() -> None:
    even, towards_rgb = (masks_of("random", concentration=c) for c in (None, (0.3, 0.3, 30.0)))
    assert towards_rgb.num_masked[:, 2].float().mean() < even.num_masked[:, 2].float().mean() - 5


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("progress", "pure"), [(0.0, "semantic"), (0.5, "instance"), (1.0, "random")])
def test_at_the_peaks_the_curriculum_is_the_pure_mask(blend: Blend, progress: float, pure: str) -> None:
    blended = masks_of(ProgressivePolicy(blend=blend), progress=progress)
    assert torch.equal(blended.is_masked, masks_of(pure).is_masked)


def test_quota_breaks_ties_with_noise_of_its_own() -> None:
    """If it used a mask's noise, what it takes from another mask would follow that one, and the overlap would be 1."""
    patches = torch.zeros(300, 196, dtype=torch.long)
    noise = noise_of(torch.rand(5, 300, 196, generator=torch.Generator().manual_seed(0)))
    budget = torch.full((300,), 147)
    curriculum = partial(constant, alpha=0.5, beta=0.0)
    is_masked = ProgressivePolicy(blend="quota", curriculum=curriculum).hide(
        PatchMaps(patches, patches), budget, noise, progress=0.5
    )
    random = random_mask(noise.random, budget)
    assert float((is_masked & random).sum() / random.sum()) == pytest.approx(0.5 + 0.5 * 0.75, abs=0.01)


def test_the_progressive_policy_hands_its_options_to_the_masks_it_is_made_of() -> None:
    policy = ProgressivePolicy(object_share=0.9, max_objects=2, weights=(1.0, 2.0))
    assert policy.base_policies == (
        SemanticPolicy(weights=(1.0, 2.0)),
        InstancePolicy(object_share=0.9, max_objects=2),
        RandomPolicy(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_share": 2.0}, "object_share: expected a share in [0, 1], got 2.0"),
        ({"max_objects": -3}, "max_objects: expected at least 0, got -3"),
        ({"weights": (-1.0,)}, "weights: expected numbers of at least 0, got (-1.0,)"),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ProgressivePolicy(**options)


def test_sample_gives_all_granularities_of_an_image_the_same_mask() -> None:
    sampled = masks_of(ProgressivePolicy(blend="sample"), progress=0.4)
    semantic, instance = masks_of("semantic", progress=0.4), masks_of("instance", progress=0.4)
    drawn = set()
    for image, is_masked in enumerate(sampled.is_masked):
        pure = [mask for mask in (semantic, instance) if torch.equal(is_masked, mask.is_masked[image])]
        assert len(pure) == 1
        drawn.add(id(pure[0]))
    assert len(drawn) == 2  # and not all images the same


@given(st.floats(0, 1), st.floats(0, 1))
def test_leaving_out_masks_that_cannot_matter_changes_nothing(alpha: float, rest: float) -> None:
    """The policy skips what a coefficient above ½ decides; the primitives do not."""
    from c2fmae.masking import blend_scores, instance_mask, random_mask, semantic_mask, top_k_mask

    beta = (1 - alpha) * rest
    regions, instances = patches(batch=6)
    noise = noise_of(torch.rand(5, 6, 35, generator=torch.Generator().manual_seed(0)))
    budget = torch.tensor([0, 35, 7, 20, 30, 33])
    policy = ProgressivePolicy(curriculum=lambda progress: constant(progress, alpha=alpha, beta=beta))
    masks = (
        semantic_mask(regions, noise.semantic, budget),
        instance_mask(instances, noise.instance, budget, object_share=0.75),
        random_mask(noise.random, budget),
    )
    expected = top_k_mask(blend_scores(*masks, alpha, beta), budget, noise.tie)
    assert torch.equal(policy.hide(PatchMaps(regions, instances), budget, noise, progress=0.1), expected)


@EACH
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.6, 0.9])
def test_mask_probabilities_are_the_fraction_of_draws_that_hide_a_patch(name: str, progress: float) -> None:
    policies = [ProgressivePolicy(blend=blend) for blend in BLENDS] if name == "progressive" else [POLICIES.get(name)()]
    regions, instances = patches(batch=1, count=196)
    draws = 2_000
    maps = PatchMaps(regions.expand(draws, -1), instances.expand(draws, -1))
    noise = noise_of(torch.rand(5, draws, 196, generator=torch.Generator().manual_seed(1)))
    budget = torch.full((draws,), 80)
    groups = [regions[0] == region for region in regions.unique()] + [instances[0] == 0, instances[0] > 0]
    for policy in policies:
        assert isinstance(policy, ExplainablePolicy)
        probabilities = policy.mask_probabilities(maps, budget, progress=progress)
        torch.testing.assert_close(probabilities.sum(dim=1), budget.double())
        hidden = policy.hide(maps, budget, noise, progress=progress).double().mean(dim=0)
        # Rounding moves less than a patch a region; quota strays further, as it takes no patch twice.
        slack = 4 if getattr(policy, "blend", "") == "quota" else 2
        for group in groups:
            assert float(hidden[group].sum()) == pytest.approx(float(probabilities[0, group].sum()), abs=slack)


@EACH
def test_explanations_add_up_to_the_budget(name: str) -> None:
    masks = masks_of(name)
    regions, instances = patches()
    quotas = explain(POLICIES.get(name)(), masks, regions, instances, progress=0.3)
    for image in range(8):
        for place, granularity in enumerate(masks.granularities):
            mine = [q for q in quotas if (q.image, q.granularity) == (image, granularity)]
            sides = [q for q in mine if q.group in ("objects", "background")]
            for groups in (sides, [q for q in mine if q not in sides]):
                assert sum(q.num_patches for q in groups) == 35
                assert sum(q.num_hidden for q in groups) == masks.num_masked[image, place]
                assert sum(q.requested or 0 for q in groups) == pytest.approx(float(masks.num_masked[image, place]))


def test_the_semantic_policy_gets_what_it_asks_within_one() -> None:
    regions, instances = patches()
    policy = SemanticPolicy(weights=(1.0, 2.0, 0.5, 0.0))
    for quota in explain(policy, masks_of(policy), regions, instances, progress=0.0):
        if quota.group not in ("objects", "background"):
            assert quota.requested is not None
            assert abs(quota.requested - quota.num_hidden) < 1


@dataclass(frozen=True)
class FirstPatches:
    """A policy as another package may write it, with none of the optional members."""

    def hide(self, patches: PatchMaps, num_masked: Tensor, noise: MaskNoise, *, progress: float) -> Tensor:
        return torch.arange(patches.regions.shape[1]) < num_masked.unsqueeze(1)


def test_a_policy_that_only_hides_is_explained_without_requested_quotas() -> None:
    policy, (regions, instances) = FirstPatches(), patches()
    assert isinstance(policy, Policy)
    quotas = explain(policy, masks_of(policy), regions, instances, progress=0.0)
    expected = explain(RandomPolicy(), masks_of(policy), regions, instances, progress=0.0)
    assert {quota.requested for quota in quotas} == {None}
    assert quotas == [quota._replace(requested=None) for quota in expected]


def test_a_policy_needs_both_maps_unless_it_declares_fewer() -> None:
    assert get_required_maps(FirstPatches()) == ("semantic", "instance")
    declared = {name: get_required_maps(POLICIES.get(name)()) for name in ("semantic", "instance", "random")}
    assert declared == {"semantic": ("semantic",), "instance": ("instance",), "random": ()}
    assert get_required_maps(ProgressivePolicy()) == ("semantic", "instance")


def test_a_batch_of_no_images_shows_nothing() -> None:
    none = torch.zeros(0, 9, dtype=torch.long)
    masks = mask_scenes("progressive", none, none, num_visible=9, progress=0.25, generator=torch.Generator())
    assert masks.visible_idx.shape == (0, 9)


def test_per_granularity_repeats_each_image() -> None:
    assert repeat_per_granularity(torch.tensor([[1, 2], [3, 4]]), 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_visible": 106}, "num_visible: 106 patches cannot be visible of 3 × 35"),
        ({"num_visible": -1}, "num_visible: -1 patches cannot be visible of 3 × 35"),
        ({"progress": 1.5}, r"progress: expected a number in \[0, 1\], got 1.5"),
        ({"global_batch": (4, 8)}, "rows: 8 images from 4 on do not lie in a batch of 8"),
        ({"granularities": ("rgb", "rgb")}, r"granularities: expected different names, got \('rgb', 'rgb'\)"),
        ({"granularities": ()}, r"granularities: expected different names, got \(\)"),
        ({"concentration": ()}, "concentration: expected one number for each of semantic, instance, rgb"),
        ({"concentration": (1.0, 1.0)}, "concentration: expected one number for each of semantic, instance, rgb"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        masks_of("random", **options)  # type: ignore[arg-type]


def test_maps_of_different_shapes_are_refused() -> None:
    regions, instances = patches()
    with pytest.raises((ValueError, TypeError)):
        mask_scenes("random", regions, instances[:, :-1], num_visible=9, progress=0.0, generator=torch.Generator())


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no mask named 'semantc'\. Did you mean 'semantic'\? Known: .*progressive"):
        masks_of("semantc")


def test_an_unknown_blend_is_refused() -> None:
    with pytest.raises((ValueError, TypeError)):
        ProgressivePolicy(blend="softmax")  # type: ignore[arg-type]


def test_masks_with_unequal_visible_counts_are_refused() -> None:
    is_masked = torch.zeros(2, 1, 4, dtype=torch.bool)
    is_masked[0, 0, 0] = True
    with pytest.raises(ValueError, match=r"^every image must show 3 patches, but they show \[3, 4\]$"):
        Masks.from_mask(is_masked, ("rgb",), num_visible=3)

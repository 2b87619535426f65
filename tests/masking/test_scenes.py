"""Masks of a batch: budgets, visible indices, ranks, saving and explanations, for every registered policy."""

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

pytestmark = pytest.mark.numeric

EACH_POLICY = pytest.mark.parametrize("name", list(POLICIES))
EACH_EXPLAINABLE_POLICY = pytest.mark.parametrize(
    "name", [name for name in POLICIES if isinstance(POLICIES.get(name)(), ExplainablePolicy)]
)
GRID = (5, 7)
BLENDS: tuple[Blend, ...] = ("topk", "sample", "quota")


def draw_patches(batch: int = 8, count: int = 35, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randint(0, 5, (batch, count), generator=generator)
    instances = torch.randint(-4, 4, (batch, count), generator=generator).clamp(min=0)
    return torch.where(regions == 4, 255, regions), instances


def make_mask_noise(uniform: Tensor) -> MaskNoise:
    return MaskNoise(uniform[0], uniform[1], uniform[2], uniform[3], uniform[4, :, 0])


def draw_masks(
    policy: Policy | str, seed: int = 0, progress: float = 0.3, num_visible: int = 20, **options: object
) -> Masks:
    regions, instances = draw_patches()
    generator = torch.Generator().manual_seed(seed)
    return mask_scenes(
        policy,
        regions,
        instances,
        num_visible=num_visible,
        progress=progress,
        generator=generator,
        **{"grid": GRID, **options},  # type: ignore[arg-type]
    )


@EACH_POLICY
@given(num_visible=st.integers(0, 105), progress=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_every_image_has_exactly_its_budget_of_visible_patches(
    name: str, num_visible: int, progress: float, seed: int
) -> None:
    masks = draw_masks(name, seed, progress, num_visible)
    assert masks.is_masked.shape == (8, 3, 35)
    assert masks.visible_idx.shape == (8, num_visible)
    assert (masks.num_masked.sum(dim=1) == 105 - num_visible).all()
    visible = torch.zeros(8, 105, dtype=torch.bool).scatter(1, masks.visible_idx, True)
    assert torch.equal(visible, ~masks.is_masked.flatten(1))
    assert (masks.visible_idx.diff(dim=1) > 0).all()


@EACH_POLICY
@pytest.mark.parametrize("batch", [1, 2])
def test_a_single_patch_and_a_single_image_are_masked(name: str, batch: int) -> None:
    one = torch.zeros(batch, 1, dtype=torch.uint8)
    masks = mask_scenes(name, one, one, num_visible=2, progress=0.5, generator=torch.Generator())
    assert (masks.num_masked.sum(dim=1) == 1).all()


@EACH_POLICY
@pytest.mark.parametrize("granularities", [("rgb",), ("semantic", "rgb"), ("semantic", "instance", "rgb", "depth")])
def test_any_number_of_granularities_is_masked(name: str, granularities: tuple[str, ...]) -> None:
    masks = draw_masks(name, granularities=granularities)
    assert masks.granularities == granularities
    assert masks.is_masked.shape[1] == len(granularities)


@EACH_POLICY
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_get_their_rows_of_the_global_batch(name: str, progress: float, ranks: int) -> None:
    regions, instances = draw_patches()
    expected = draw_masks(name, progress=progress)
    local = 8 // ranks
    rank_masks = [
        mask_scenes(
            name,
            regions[rank * local :][:local],
            instances[rank * local :][:local],
            num_visible=20,
            progress=progress,
            generator=torch.Generator().manual_seed(0),
            grid=GRID,
            global_batch=(rank * local, 8),
        )
        for rank in range(ranks)
    ]
    assert torch.equal(torch.cat([part.is_masked for part in rank_masks]), expected.is_masked)
    assert torch.equal(torch.cat([part.visible_idx for part in rank_masks]), expected.visible_idx)


@EACH_POLICY
def test_masks_depend_on_the_seed_of_the_generator(name: str) -> None:
    assert torch.equal(draw_masks(name, 1).is_masked, draw_masks(name, 1).is_masked)
    assert not torch.equal(draw_masks(name, 1).is_masked, draw_masks(name, 2).is_masked)


@EACH_POLICY
def test_masks_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    masks = draw_masks(name)
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert again.granularities == masks.granularities
    assert torch.equal(again.is_masked, masks.is_masked)
    assert torch.equal(again.visible_idx, masks.visible_idx)


def test_files_that_are_not_masks_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    with pytest.raises(
        UserError, match=r"masks.safetensors: cannot be read: No such file or directory. Check the path"
    ):
        Masks.load(path)
    path.write_bytes(b"not this")
    with pytest.raises(UserError, match=r"masks.safetensors: cannot read masks: "):
        Masks.load(path)
    from safetensors.torch import save_file

    masks = draw_masks("random")
    wrong = {"is_masked": masks.is_masked, "visible_idx": masks.visible_idx.flip(1).contiguous()}
    save_file(wrong, path, {"format": "c2fmae-masks-1", "granularities": '["semantic", "instance", "rgb"]'})
    with pytest.raises(UserError, match=r"cannot read masks: is_masked and visible_idx are inconsistent$"):
        Masks.load(path)
    save_file(wrong, path, {"format": "c2fmae-masks-1"})
    with pytest.raises(UserError, match=r"masks.safetensors: cannot read masks: 'granularities'$"):
        Masks.load(path)
    for granularities in ("[1, 2, 3]", '"rgb"', "[" * 100_000):
        save_file(wrong, path, {"format": "c2fmae-masks-1", "granularities": granularities})
        with pytest.raises(UserError, match=r"masks.safetensors: cannot read masks: "):
            Masks.load(path)
    with pytest.raises(UserError, match=r"masks.safetensors: cannot be written: "):
        masks.save(path / "masks.safetensors")
    save_file({"is_masked": torch.zeros(1)}, path)
    with pytest.raises(
        UserError, match=r"is not a mask file \(expected format 'c2fmae-masks-1', got None\)\. Use a file "
    ):
        Masks.load(path)


def test_concentration_shifts_visible_patches_to_a_granularity() -> None:
    even, towards_rgb = (draw_masks("random", concentration=c) for c in (None, (0.3, 0.3, 30.0)))
    assert towards_rgb.num_masked[:, 2].float().mean() < even.num_masked[:, 2].float().mean() - 5


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("progress", "pure"), [(0.0, "semantic"), (0.5, "instance"), (1.0, "random")])
def test_blends_give_the_pure_mask_at_the_peaks_of_the_curriculum(blend: Blend, progress: float, pure: str) -> None:
    blended = draw_masks(ProgressivePolicy(blend=blend), progress=progress)
    assert torch.equal(blended.is_masked, draw_masks(pure).is_masked)


def test_the_quota_blend_uses_separate_noise() -> None:
    """With the noise of the random mask, the patches taken from the semantic mask would all be in it: overlap 1."""
    patches = torch.zeros(300, 196, dtype=torch.long)
    noise = make_mask_noise(torch.rand(5, 300, 196, generator=torch.Generator().manual_seed(0)))
    budget = torch.full((300,), 147)
    curriculum = partial(constant, alpha=0.5, beta=0.0)
    is_masked = ProgressivePolicy(blend="quota", curriculum=curriculum).hide(
        PatchMaps(patches, patches), budget, noise, progress=0.5
    )
    random = random_mask(noise.random, budget)
    assert float((is_masked & random).sum() / random.sum()) == pytest.approx(0.5 + 0.5 * 0.75, abs=0.01)


def test_the_progressive_policy_passes_its_options_to_its_base_policies() -> None:
    policy = ProgressivePolicy(object_share=0.9, max_objects=2, weights=(1.0, 2.0))
    assert policy.base_policies == (
        SemanticPolicy(weights=(1.0, 2.0)),
        InstancePolicy(object_share=0.9, max_objects=2),
        RandomPolicy(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_share": 2.0}, "object_share: expected a number in [0, 1], got 2.0"),
        ({"max_objects": -3}, "max_objects: expected at least 0, got -3"),
        ({"weights": (-1.0,)}, "weights: expected numbers of at least 0, got (-1.0,)"),
    ],
)
def test_invalid_options_are_rejected_on_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ProgressivePolicy(**options)


def test_the_sample_blend_selects_one_mask_for_all_granularities_of_an_image() -> None:
    sampled = draw_masks(ProgressivePolicy(blend="sample"), progress=0.4)
    semantic, instance = draw_masks("semantic", progress=0.4), draw_masks("instance", progress=0.4)
    drawn = set()
    for image, is_masked in enumerate(sampled.is_masked):
        pure = [mask for mask in (semantic, instance) if torch.equal(is_masked, mask.is_masked[image])]
        assert len(pure) == 1
        drawn.add(id(pure[0]))
    assert len(drawn) == 2


@given(st.floats(0, 1), st.floats(0, 1))
def test_skipping_masks_without_influence_does_not_change_the_result(alpha: float, rest: float) -> None:
    """The policy skips the other masks when a coefficient exceeds ½; the primitives do not."""
    from c2fmae.masking import blend_scores, instance_mask, random_mask, semantic_mask, top_k_mask

    beta = (1 - alpha) * rest
    regions, instances = draw_patches(batch=6)
    noise = make_mask_noise(torch.rand(5, 6, 35, generator=torch.Generator().manual_seed(0)))
    budget = torch.tensor([0, 35, 7, 20, 30, 33])
    policy = ProgressivePolicy(curriculum=lambda progress: constant(progress, alpha=alpha, beta=beta))
    masks = (
        semantic_mask(regions, noise.semantic, budget),
        instance_mask(instances, noise.instance, budget, object_share=0.75),
        random_mask(noise.random, budget),
    )
    expected = top_k_mask(blend_scores(*masks, alpha, beta), budget, noise.tie)
    assert torch.equal(policy.hide(PatchMaps(regions, instances), budget, noise, progress=0.1), expected)


@EACH_EXPLAINABLE_POLICY
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.6, 0.9])
def test_mask_probabilities_are_the_fraction_of_draws_that_hide_a_patch(name: str, progress: float) -> None:
    policies = [ProgressivePolicy(blend=blend) for blend in BLENDS] if name == "progressive" else [POLICIES.get(name)()]
    regions, instances = draw_patches(batch=1, count=196)
    draws = 2_000
    maps = PatchMaps(regions.expand(draws, -1), instances.expand(draws, -1))
    noise = make_mask_noise(torch.rand(5, draws, 196, generator=torch.Generator().manual_seed(1)))
    budget = torch.full((draws,), 80)
    groups = [regions[0] == region for region in regions.unique()] + [instances[0] == 0, instances[0] > 0]
    for policy in policies:
        assert isinstance(policy, ExplainablePolicy)
        probabilities = policy.mask_probabilities(maps, budget, progress=progress)
        torch.testing.assert_close(probabilities.sum(dim=1), budget.double())
        hidden = policy.hide(maps, budget, noise, progress=progress).double().mean(dim=0)
        # Rounding moves less than one patch per region; quota deviates more, because it takes no patch twice.
        slack = 4 if getattr(policy, "blend", "") == "quota" else 2
        for group in groups:
            assert float(hidden[group].sum()) == pytest.approx(float(probabilities[0, group].sum()), abs=slack)


@EACH_EXPLAINABLE_POLICY
def test_explained_quotas_add_up_to_the_budget(name: str) -> None:
    masks = draw_masks(name)
    regions, instances = draw_patches()
    quotas = explain(POLICIES.get(name)(), masks, regions, instances, progress=0.3)
    for image in range(8):
        for index, granularity in enumerate(masks.granularities):
            granularity_quotas = [q for q in quotas if (q.image, q.granularity) == (image, granularity)]
            sides = [q for q in granularity_quotas if q.group in ("objects", "background")]
            for groups in (sides, [q for q in granularity_quotas if q not in sides]):
                assert sum(q.num_patches for q in groups) == 35
                assert sum(q.num_hidden for q in groups) == masks.num_masked[image, index]
                assert sum(q.requested or 0 for q in groups) == pytest.approx(float(masks.num_masked[image, index]))


def test_the_semantic_policy_realises_its_requested_quotas_within_one_patch() -> None:
    regions, instances = draw_patches()
    policy = SemanticPolicy(weights=(1.0, 2.0, 0.5, 0.0))
    for quota in explain(policy, draw_masks(policy), regions, instances, progress=0.0):
        if quota.group not in ("objects", "background"):
            assert quota.requested is not None
            assert abs(quota.requested - quota.num_hidden) < 1


@dataclass(frozen=True)
class FirstPatches:
    """A policy as another package may write it, with none of the optional members."""

    def hide(self, patches: PatchMaps, num_masked: Tensor, noise: MaskNoise, *, progress: float) -> Tensor:
        return torch.arange(patches.regions.shape[1]) < num_masked.unsqueeze(1)


def test_a_policy_that_only_hides_is_explained_without_requested_quotas() -> None:
    policy, (regions, instances) = FirstPatches(), draw_patches()
    assert isinstance(policy, Policy)
    quotas = explain(policy, draw_masks(policy), regions, instances, progress=0.0)
    expected = explain(RandomPolicy(), draw_masks(policy), regions, instances, progress=0.0)
    assert {quota.requested for quota in quotas} == {None}
    assert quotas == [quota._replace(requested=None) for quota in expected]


def test_a_policy_needs_both_maps_unless_it_declares_fewer() -> None:
    assert get_required_maps(FirstPatches()) == ("semantic", "instance")
    declared = {name: get_required_maps(POLICIES.get(name)()) for name in ("semantic", "instance", "random")}
    assert declared == {"semantic": ("semantic",), "instance": ("instance",), "random": ()}
    assert get_required_maps(ProgressivePolicy()) == ("semantic", "instance")


def test_an_empty_batch_has_no_visible_patches() -> None:
    none = torch.zeros(0, 9, dtype=torch.long)
    masks = mask_scenes("progressive", none, none, num_visible=9, progress=0.25, generator=torch.Generator())
    assert masks.visible_idx.shape == (0, 9)


def test_rows_are_repeated_per_granularity() -> None:
    assert repeat_per_granularity(torch.tensor([[1, 2], [3, 4]]), 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_visible": 106}, "num_visible: expected 0 to 3 × 35 patches, got 106"),
        ({"num_visible": -1}, "num_visible: expected 0 to 3 × 35 patches, got -1"),
        ({"progress": 1.5}, r"progress: expected a number in \[0, 1\], got 1.5"),
        ({"global_batch": (4, 8)}, "global_batch: 8 images from number 4 on exceed the total of 8"),
        (
            {"granularities": ("rgb", "rgb")},
            r"granularities: expected one or more distinct names, got \('rgb', 'rgb'\)",
        ),
        ({"granularities": ()}, r"granularities: expected one or more distinct names, got \(\)"),
        ({"concentration": ()}, "concentration: expected one number for each of semantic, instance, rgb, got 0"),
        (
            {"concentration": (1.0, 1.0)},
            "concentration: expected one number for each of semantic, instance, rgb, got 2",
        ),
    ],
)
def test_invalid_arguments_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        draw_masks("random", **options)  # type: ignore[arg-type]


def test_maps_of_different_shapes_are_rejected() -> None:
    regions, instances = draw_patches()
    with pytest.raises((ValueError, TypeError)):
        mask_scenes("random", regions, instances[:, :-1], num_visible=9, progress=0.0, generator=torch.Generator())


def test_an_unknown_policy_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"^no mask named 'semantc'\. Did you mean 'semantic'\? Known: .*progressive"):
        draw_masks("semantc")


def test_an_unknown_blend_is_rejected() -> None:
    with pytest.raises((ValueError, TypeError)):
        ProgressivePolicy(blend="softmax")  # type: ignore[arg-type]


def test_masks_with_unequal_numbers_of_visible_patches_are_rejected() -> None:
    is_masked = torch.zeros(2, 1, 4, dtype=torch.bool)
    is_masked[0, 0, 0] = True
    with pytest.raises(ValueError, match=r"^is_masked: expected 3 visible patches in every image, got \[3, 4\]$"):
        Masks.from_mask(is_masked, ("rgb",), num_visible=3)

"""The selection of the patches to decode: hidden ones first, uniform, and independent of the masks."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.masks import Masks
from c2fmae.masking import RowGenerator, mask_scenes, random_mask, select_decoded
from c2fmae.masking.noise import MaskGenerator, draw_decoding_noise
from tests.masking.strategies import MaskInputs, mask_inputs

pytestmark = pytest.mark.numeric

TOTAL, PATCHES = 5, 12


@given(mask_inputs(), st.floats(0, 1))
def test_hidden_patches_of_highest_noise_are_first(inputs: MaskInputs, decoded_share: float) -> None:
    patches = inputs.noise.shape[1]
    num_decoded = round(decoded_share * patches)
    is_masked = random_mask(inputs.noise.roll(1, dims=1), inputs.num_masked)
    before = (is_masked.clone(), inputs.noise.clone())
    decoded = select_decoded(is_masked, inputs.noise, num_decoded)
    assert torch.equal(is_masked, before[0])
    assert torch.equal(inputs.noise, before[1])
    assert decoded.dtype == torch.int64
    for hidden, noise, indices in zip(is_masked.tolist(), inputs.noise.tolist(), decoded.tolist(), strict=True):
        order = sorted(range(patches), key=lambda patch: (not hidden[patch], -noise[patch], patch))
        assert indices == sorted(order[:num_decoded])


@given(mask_inputs(distinct_noise=True), st.randoms(use_true_random=False))
def test_rows_are_independent_and_patches_have_no_order(inputs: MaskInputs, random: object) -> None:
    patches = inputs.noise.shape[1]
    order = list(range(patches))
    random.shuffle(order)  # type: ignore[attr-defined]
    is_masked = random_mask(inputs.noise.flip(1), inputs.num_masked)
    decoded = select_decoded(is_masked, inputs.noise, patches // 2)
    permuted = select_decoded(is_masked[:, order], inputs.noise[:, order], patches // 2)
    assert torch.equal(torch.tensor(order)[permuted].sort(dim=1).values, decoded)
    reversed_rows = select_decoded(is_masked.flip(0), inputs.noise.flip(0), patches // 2)
    assert torch.equal(reversed_rows.flip(0), decoded)


def test_every_hidden_patch_is_equally_likely() -> None:
    rows, is_masked = 20_000, torch.tensor([[True, False, True, True, False, True, True, True]])
    noise = draw_decoding_noise(RowGenerator(3), range(rows), rows, 8)
    decoded = select_decoded(is_masked.expand(rows, -1), noise, 3)
    frequency = decoded.flatten().bincount(minlength=8) / rows
    torch.testing.assert_close(frequency, is_masked[0] * 0.5, atol=0.015, rtol=0)


def draw_masks(generator: MaskGenerator, first: int = 0, last: int = TOTAL, num_decoded: int | None = 5) -> Masks:
    regions = torch.arange(TOTAL * PATCHES).view(TOTAL, PATCHES)[first:last] // 3 % 4
    return mask_scenes(
        "progressive",
        regions,
        regions.clamp(max=1),
        num_visible=15,
        progress=0.3,
        generator=generator,
        grid=(3, 4),
        global_batch=(first, TOTAL),
        num_decoded=num_decoded,
    )


def make_generator(kind: str, seed: int = 7) -> MaskGenerator:
    return RowGenerator(seed) if kind == "rows" else torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["rows", "batch"])
def test_masks_are_those_without_a_selection_and_rows_those_of_the_batch(kind: str) -> None:
    masks, plain = draw_masks(make_generator(kind)), draw_masks(make_generator(kind), num_decoded=None)
    assert torch.equal(masks.is_masked, plain.is_masked)
    assert plain.decoded_idx is None
    assert masks.decoded_idx is not None
    assert masks.decoded_idx.shape == (TOTAL, 3, 5)
    for first, last in ((0, 2), (2, 5)):
        own = draw_masks(make_generator(kind), first, last)
        assert torch.equal(own.decoded_idx, masks.decoded_idx[first:last])  # type: ignore[arg-type]
    others = draw_masks(make_generator(kind, seed=8)).decoded_idx
    assert not torch.equal(others, masks.decoded_idx)  # type: ignore[arg-type]


def test_a_patch_that_is_hidden_everywhere_is_decoded_in_all_granularities_or_in_none() -> None:
    empty = torch.zeros(50, 16, dtype=torch.long)
    masks = mask_scenes("random", empty, empty, num_visible=0, progress=0, generator=RowGenerator(0), num_decoded=4)
    assert masks.decoded_idx is not None
    assert torch.equal(masks.decoded_idx, masks.decoded_idx[:, :1].expand(-1, 3, -1))
    assert len(masks.decoded_idx.unique(dim=0)) == 50


def test_the_selection_is_that_of_earlier_runs() -> None:
    """Or no run could be resumed or replayed."""
    expected = {
        "rows": [[1, 4, 6, 8, 10], [0, 8, 9, 10, 11]],
        "batch": [[6, 7, 8, 9, 10], [1, 2, 3, 4, 11]],
    }
    for kind, indices in expected.items():
        masks = draw_masks(make_generator(kind))
        assert masks.decoded_idx is not None
        assert [masks.decoded_idx[0, 0].tolist(), masks.decoded_idx[4, 2].tolist()] == indices, kind


def test_a_number_of_patches_that_do_not_exist_is_rejected() -> None:
    for count in (-1, 3):
        message = f"num_decoded: expected 0 to 2, the number of patches, got {count}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            select_decoded(torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1, 2), count)

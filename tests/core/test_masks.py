from itertools import combinations

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks

NAMES = ("semantic", "instance", "rgb")


@pytest.mark.parametrize("shown", [part for count in range(4) for part in combinations(NAMES, count)])
def test_visible_granularities_equal_a_mask_that_shows_all_their_patches(shown: tuple[str, ...]) -> None:
    masks = Masks.from_visible_granularities(shown, NAMES, batch=2, num_patches=4)
    assert masks.granularities == NAMES
    for index, name in enumerate(NAMES):
        assert masks.is_masked[:, index].all() if name not in shown else not masks.is_masked[:, index].any()
    again = Masks.from_mask(masks.is_masked, NAMES, num_visible=4 * len(shown))
    assert torch.equal(again.visible_idx, masks.visible_idx)


def test_an_unknown_visible_granularity_is_rejected() -> None:
    with pytest.raises(UserError) as caught:
        Masks.from_visible_granularities({"rbg"}, NAMES, batch=1, num_patches=4)
    assert str(caught.value) == "no granularity named 'rbg'. Did you mean 'rgb'? Known: instance, rgb, semantic"


def test_members_list_the_visible_patches_of_each_granularity() -> None:
    is_masked = torch.tensor([[[0, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]]).bool()
    masks = Masks.from_mask(is_masked, ("semantic", "rgb"), num_visible=3)
    semantic, rgb = masks.list_members(is_exact=True)
    assert (semantic.slots.tolist(), semantic.patches.tolist()) == ([0, 3, 4], [0, 4, 5])
    assert (rgb.slots.tolist(), rgb.patches.tolist()) == ([1, 2, 5], [1, 2, 5])
    for exact, fixed in zip((semantic, rgb), masks.list_members(is_exact=False), strict=True):
        assert fixed.slots.tolist() == [*exact.slots.tolist(), 6, 6, 6]  # one past the last of 6 visible patches
        assert fixed.patches.tolist() == [*exact.patches.tolist(), 6, 6, 6]  # one past the last of 2 × 3 patches
    listed = masks.with_members()
    assert listed.members is not None
    assert listed.to("meta").members[0].slots.device.type == "meta"  # type: ignore[index]
    assert listed.slice_images(0, 1).members is None  # those of the batch would be wrong

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

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

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


def test_decoded_patches_are_sliced_moved_and_saved_with_the_masks(tmp_path: Path) -> None:
    is_masked = torch.tensor([[[0, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]]).bool()
    plain = Masks.from_mask(is_masked, ("semantic", "rgb"), num_visible=3)
    assert torch.equal(plain.is_predicted, is_masked)
    assert plain.decoded_idx_of("rgb") is None
    decoded_idx = torch.tensor([[[1, 2], [1, 2]], [[0, 1], [0, 1]]])
    masks = replace(plain, decoded_idx=decoded_idx)
    expected = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 0]]]).bool()
    assert torch.equal(masks.is_predicted, expected)
    assert torch.equal(masks.decoded_idx_of("rgb"), decoded_idx[:, 1])  # type: ignore[arg-type]
    assert torch.equal(masks.slice_images(1, 2).decoded_idx, decoded_idx[1:])  # type: ignore[arg-type]
    assert masks.to("meta").decoded_idx.device.type == "meta"  # type: ignore[union-attr]
    masks.save(tmp_path / "masks")
    assert torch.equal(Masks.load(tmp_path / "masks").decoded_idx, decoded_idx)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoded_idx", [[[[0, 3]]], [[[-1, 0]]], [[[1, 1]]], [[[0], [1]]]])
def test_a_file_with_decoded_patches_that_do_not_exist_is_rejected(
    tmp_path: Path, decoded_idx: list[list[list[int]]]
) -> None:
    masks = Masks.from_mask(torch.ones(1, 1, 3, dtype=torch.bool), ("rgb",), num_visible=0)
    masks.save(tmp_path / "masks")
    with safe_open(tmp_path / "masks", "pt") as file:
        metadata = file.metadata()
    tensors = {"is_masked": masks.is_masked, "visible_idx": masks.visible_idx, "decoded_idx": torch.tensor(decoded_idx)}
    save_file(tensors, tmp_path / "masks", metadata)
    with pytest.raises(UserError, match="cannot read masks: is_masked and decoded_idx are inconsistent$"):
        Masks.load(tmp_path / "masks")

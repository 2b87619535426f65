"""Masks as bits in windows: every operation equals the same on masks of the size of the sample."""

import pytest
import torch
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks

HEIGHT, WIDTH = 23, 31


def draw_masks(seed: int, count: int) -> tuple[BoxMasks, Tensor]:
    """Return random masks in random windows, and the same masks at the size of the sample."""
    generator = torch.Generator().manual_seed(seed)
    windows, parts, full = [], [], torch.zeros(count, HEIGHT, WIDTH, dtype=torch.uint8)
    for row in range(count):
        x0, y0 = (int(torch.randint(side, (), generator=generator)) for side in (WIDTH, HEIGHT))
        x1, y1 = (
            int(torch.randint(start + 1, side + 1, (), generator=generator))
            for start, side in ((x0, WIDTH), (y0, HEIGHT))
        )
        parts.append(torch.randint(2, (y1 - y0, x1 - x0), generator=generator, dtype=torch.uint8))
        full[row, y0:y1, x0:x1] = parts[-1]
        windows.append([x0, y0, x1, y1])
    return BoxMasks.from_masks(parts, torch.tensor(windows, dtype=torch.int32).view(-1, 4)), full


def paint(masks: BoxMasks, border: int = 0) -> Tensor:
    """Return the masks at the size of the sample, from their padded windows."""
    full = torch.zeros(len(masks), HEIGHT + 60, WIDTH + 60, dtype=torch.uint8)
    unpacked = masks.unpack(torch.arange(len(masks)), border)
    for row, (x0, y0, _, _) in enumerate(masks.windows.tolist()):
        top, left = y0 - border + 10, x0 - border + 10
        full[row, top : top + unpacked.shape[1], left : left + unpacked.shape[2]] = unpacked[row]
    assert full.sum() == full[:, 10 : 10 + HEIGHT, 10 : 10 + WIDTH].sum()
    return full[:, 10 : 10 + HEIGHT, 10 : 10 + WIDTH]


@pytest.mark.parametrize("border", [0, 1, 3])
def test_unpacked_masks_are_those_that_were_packed(border: int) -> None:
    masks, full = draw_masks(0, 40)
    assert torch.equal(paint(masks, border), full)
    assert len(masks.bits) == int(masks.offsets[-1])


@pytest.mark.parametrize("rows", [[], [3], [7, 0, 0, 7, 2], list(range(9, -1, -1))])
def test_selected_masks_are_those_of_their_rows(rows: list[int]) -> None:
    masks, full = draw_masks(1, 10)
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(paint(masks.select(index)), full[index])
    assert masks.unpack(index).shape[0] == len(rows)


@pytest.mark.parametrize("rows", [slice(0, 10), slice(3, 7), slice(4, 4), slice(8, 99), slice(7, 3)])
def test_a_range_of_masks_is_a_view(rows: slice) -> None:
    masks, full = draw_masks(2, 10)
    part = masks.select(rows)
    assert torch.equal(paint(part), full[rows])
    assert int(part.offsets[-1]) == len(part.bits)
    assert part.bits.untyped_storage().data_ptr() == masks.bits.untyped_storage().data_ptr()


def test_concatenated_masks_follow_each_other() -> None:
    parts = [draw_masks(seed, count) for seed, count in ((3, 4), (4, 0), (5, 1), (6, 6))]
    assert torch.equal(paint(BoxMasks.cat(part for part, _ in parts)), torch.cat([full for _, full in parts]))
    assert len(BoxMasks.cat([])) == len(BoxMasks.cat([draw_masks(0, 0)[0]])) == 0


def test_pixels_can_be_read_anywhere() -> None:
    masks, full = draw_masks(7, 12)
    rows = torch.tensor([11, 0, 5])
    x, y = torch.randint(-3, WIDTH + 3, (3, 4, 9)), torch.randint(-3, HEIGHT + 3, (3, 4, 9))
    expected = [
        [int(full[row, b, a]) if 0 <= a < WIDTH and 0 <= b < HEIGHT else 0 for a, b in zip(p, q, strict=True)]
        for row, p, q in zip(rows, x.flatten(1).tolist(), y.flatten(1).tolist(), strict=True)
    ]
    assert masks.read_pixels(rows, x, y).flatten(1).tolist() == expected


def test_masks_move_with_all_their_tensors() -> None:
    moved = draw_masks(0, 3)[0].to("meta")
    assert {tensor.device.type for tensor in (moved.windows, moved.bits, moved.offsets)} == {"meta"}


def test_a_mask_of_another_size_than_its_window_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"expected a mask of 2×3 pixels, got \(3, 2\)"):
        BoxMasks.from_masks([torch.ones(3, 2, dtype=torch.uint8)], torch.tensor([[1, 1, 4, 3]]))


def test_an_empty_window_after_the_last_byte_has_no_pixels() -> None:
    parts = [torch.ones(2, 2, dtype=torch.uint8), torch.zeros(0, 3, dtype=torch.uint8)]
    masks = BoxMasks.from_masks(parts, torch.tensor([[0, 0, 2, 2], [4, 4, 7, 4]], dtype=torch.int32))
    assert not masks.unpack(torch.tensor([1]), border=1).any()

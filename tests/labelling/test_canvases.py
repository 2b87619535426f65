import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.data.geometry import subsample_ids
from c2fmae.labelling.canvases import compute_cell_weights, pad_to_canvas, round_up_canvas, sample_cells


def resize(logits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("size", [(33, 70), (64, 9), (1, 1)])
def test_sampled_cells_are_those_of_the_logits_at_full_size(stride: int, size: tuple[int, int]) -> None:
    logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    resized = (40, 57)
    expected = resize(resize(logits, 64, 64)[:, : resized[0], : resized[1]], *size)

    rows, columns = (
        compute_cell_weights(16, [(64, valid), (length, length)], stride)
        for valid, length in zip(resized, size, strict=True)
    )
    sampled = sample_cells(logits, rows, columns)

    for index in range(3):
        torch.testing.assert_close(sampled[index], subsample_ids(expected[index], stride), atol=1e-5, rtol=0)


def test_a_canvas_holds_images_in_its_corner() -> None:
    images = [torch.ones(3, 5, 9), torch.ones(3, 7, 2)]

    values, mask = pad_to_canvas(images, (8, 12))

    assert values.shape == (2, 3, 8, 12)
    assert torch.equal(values, mask[:, None].float().expand_as(values))
    assert mask.sum(dim=(1, 2)).tolist() == [45, 14]


def test_a_canvas_is_a_multiple_of_128() -> None:
    assert [round_up_canvas(*size) for size in [(1, 128), (129, 800), (1333, 1)]] == [
        (128, 128),
        (256, 896),
        (1408, 128),
    ]

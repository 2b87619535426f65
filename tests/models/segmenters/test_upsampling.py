import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.models.segmenters.upsampling import upsample_logits, upsampled_argmax


def draw_logits(classes: int, rows: int, columns: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(classes, rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("shape", "size", "dtype"),
    [
        ((1, 3, 4), (12, 16), torch.float32),
        ((15, 5, 7), (20, 28), torch.float32),
        ((16, 5, 7), (33, 19), torch.float32),
        ((17, 8, 8), (8, 8), torch.float32),
        ((33, 16, 11), (7, 30), torch.float32),
        ((150, 12, 9), (48, 36), torch.float32),
        ((255, 3, 3), (10, 11), torch.float64),
        ((20, 6, 6), (25, 24), torch.bfloat16),
        ((40, 1, 1), (5, 3), torch.float16),
        ((21, 32, 24), (16, 12), torch.float32),
    ],
)
def test_argmax_equals_that_of_all_classes_at_once(
    shape: tuple[int, int, int], size: tuple[int, int], dtype: torch.dtype
) -> None:
    logits = draw_logits(*shape, dtype=dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    plain = F.interpolate(wide[None], size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    assert torch.equal(upsampled_argmax(logits, size), plain.byte())
    channels_last = logits[None].contiguous(memory_format=torch.channels_last)[0]
    assert torch.equal(upsampled_argmax(channels_last, size), plain.byte())


def test_of_equal_logits_the_lowest_class_is_chosen_across_parts() -> None:
    logits = torch.zeros(40, 2, 2)
    logits[[19, 37], 0, 0] = 1.0
    assert upsampled_argmax(logits, (2, 2), at_once=8).tolist() == [[19, 0], [0, 0]]


def test_at_most_some_classes_are_in_memory_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    interpolate = F.interpolate

    def count_classes(maps: Tensor, *args: object, **options: object) -> Tensor:
        counts.append(maps.shape[1])
        return interpolate(maps, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "interpolate", count_classes)
    upsampled_argmax(draw_logits(150, 4, 4), (16, 16))
    assert max(counts) == 16
    assert sum(counts) == 150


def test_corners_are_not_aligned() -> None:
    """Half a cell of the border is constant, as with `align_corners=False` of other libraries."""
    upsampled = upsample_logits(torch.tensor([[[[0.0, 8.0]]]]), (1, 8))
    assert upsampled.flatten().tolist() == [0, 0, 1, 3, 5, 7, 8, 8]
    assert math.prod(upsampled.shape) == 8

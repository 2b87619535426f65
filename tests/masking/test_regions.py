import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking import patch_regions
from tests.masking import reference

pytestmark = pytest.mark.numeric

SHAPES = [(1, 1), (2, 2), (4, 4), (3, 5), (8, 8), (8, 9), (16, 16), (2, 40)]
DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int], int]:
    rows, columns = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (2, rows * draw(st.integers(1, 3)), columns * draw(st.integers(1, 3)))
    labels = torch.randint(draw(st.sampled_from([2, 4, 256])), shape, generator=generator)
    ignore = draw(st.sampled_from([255, 0, 3]))
    labels[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))] = ignore
    return labels.to(draw(st.sampled_from(DTYPES))), (rows, columns), ignore


def split_into_patches(labels: Tensor, patch: tuple[int, int]) -> list[list[list[int]]]:
    """The pixels of every patch of every image."""
    batch, height, width = labels.shape
    cells = labels.reshape(batch, height // patch[0], patch[0], width // patch[1], patch[1]).transpose(2, 3)
    return cells.reshape(batch, -1, patch[0] * patch[1]).tolist()


@given(label_maps())
def test_every_patch_has_its_majority_id(case: tuple[Tensor, tuple[int, int], int]) -> None:
    labels, patch, ignore = case
    regions = patch_regions(labels, patch, ignore=ignore)
    assert regions.dtype == labels.dtype
    assert regions.tolist() == [
        [reference.patch_region(p, ignore) for p in image] for image in split_into_patches(labels, patch)
    ]


@pytest.mark.parametrize("patch", [4, 16])
def test_ids_that_do_not_fit_a_byte_are_counted(patch: int) -> None:
    labels = torch.randint(0, 3, (3, 32, 48), generator=torch.Generator().manual_seed(0)) * 70_000 - 1
    regions = patch_regions(labels, patch, ignore=-1)
    assert regions.tolist() == [
        [reference.patch_region(p, -1) for p in image] for image in split_into_patches(labels, (patch, patch))
    ]


@pytest.mark.parametrize("patch", [2, 16])
def test_an_ignore_id_that_does_not_fit_a_byte_ignores_nothing(patch: int) -> None:
    labels = torch.full((1, patch, patch), 255, dtype=torch.uint8)
    labels[0, 0, 0] = 7
    assert patch_regions(labels, patch, ignore=-1).tolist() == [[255]]


def test_unsigned_16_bit_maps_are_supported() -> None:
    labels = torch.tensor([[[65535, 65535], [65535, 300]]], dtype=torch.int32).to(torch.uint16)
    assert patch_regions(labels, 2, ignore=65535).int().tolist() == [[300]]


def test_large_batches_give_the_same_regions_as_small_ones() -> None:
    labels = torch.randint(0, 5, (50, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    regions = patch_regions(labels, 16)
    assert torch.equal(regions, torch.cat([patch_regions(image, 16) for image in labels.split(7)]))
    assert torch.equal(regions.int(), patch_regions(labels.int() + 300, 16, ignore=999) - 300)


@pytest.mark.parametrize("patch", [4, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_an_empty_batch_has_no_regions(patch: int, dtype: torch.dtype) -> None:
    assert patch_regions(torch.zeros(0, 32, 48, dtype=dtype), patch).shape == (0, 32 * 48 // patch**2)


def test_a_patch_that_does_not_divide_the_map_is_rejected() -> None:
    with pytest.raises(ValueError, match="^patch: expected a divisor of the map's size, 30×32, got 16×16$"):
        patch_regions(torch.zeros(1, 30, 32, dtype=torch.uint8), 16)


def test_a_floating_point_map_is_rejected() -> None:
    with pytest.raises((ValueError, TypeError)):
        patch_regions(torch.zeros(1, 32, 32), 16)


def test_a_map_without_a_batch_dimension_is_rejected() -> None:
    with pytest.raises((ValueError, TypeError)):
        patch_regions(torch.zeros(32, 32, dtype=torch.uint8), 16)

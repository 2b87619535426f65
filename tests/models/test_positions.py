import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from timm.layers.pos_embed import resample_abs_pos_embed
from torch._subclasses import FakeTensorMode

from c2fmae.models import sincos_positions
from c2fmae.models.positions import _stored_positions, cached_sincos_positions

pytestmark = pytest.mark.numeric

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def published(rows: int, columns: int, dim: int) -> NDArray[np.float64]:
    """MAE's published table, generalised to grids that are not square: the half of the column comes first."""
    omega = 1 / 10_000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    across, down = np.meshgrid(np.arange(columns, dtype=np.float64), np.arange(rows, dtype=np.float64))
    halves = []
    for place in (across, down):
        angle = np.einsum("m,d->md", place.reshape(-1), omega)
        halves.append(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))
    return np.concatenate(halves, axis=1)


@given(grids, st.integers(1, 16))
def test_positions_equal_those_of_mae(grid: tuple[int, int], quarter: int) -> None:
    positions = sincos_positions(grid, 4 * quarter)
    assert positions.dtype == torch.float32
    np.testing.assert_allclose(positions.numpy(), published(*grid, 4 * quarter), rtol=0, atol=1e-7)


@pytest.mark.parametrize("side", [1, 3, 14])
def test_positions_equal_those_of_vitmae_in_transformers(side: int) -> None:
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    theirs = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=24, image_size=4 * side, patch_size=4))
    theirs.initialize_weights()  # type: ignore[no-untyped-call]  # transformers 5.23 does not call it and leaves positions at zero
    table = theirs.position_embeddings.detach()[0, 1:]
    torch.testing.assert_close(sincos_positions((side, side), 24), table, rtol=0, atol=1e-6)


@given(grids)
def test_positions_of_the_grid_of_training_are_exact(grid: tuple[int, int]) -> None:
    frequency = 10_000 ** (-torch.arange(16, dtype=torch.float64) / 16)
    axes = [torch.arange(cells, dtype=torch.float64).unsqueeze(1) * frequency for cells in grid]
    row, column = (torch.cat([angle.sin(), angle.cos()], dim=1).float() for angle in axes)
    table = torch.cat([column.repeat(grid[0], 1), row.repeat_interleave(grid[1], dim=0)], dim=1)
    assert torch.equal(sincos_positions(grid, 64), table)
    assert torch.equal(sincos_positions(grid, 64, trained_grid=grid), table)


@pytest.mark.parametrize("grid", [(4, 4), (14, 10)])
def test_stretched_positions_equal_an_interpolated_table(grid: tuple[int, int]) -> None:
    finer = (2 * grid[0], 2 * grid[1])
    table = sincos_positions(grid, 128).unsqueeze(0)
    interpolated = resample_abs_pos_embed(table, list(finer), list(grid), num_prefix_tokens=0)[0]
    stretched = sincos_positions(finer, 128, trained_grid=grid)
    # Bicubic interpolation repeats the outermost patches, so it flattens two rows and columns on each side.
    inner = (stretched - interpolated).abs().view(*finer, 128)[2:-2, 2:-2]
    assert inner.max() < 0.05
    assert F.cosine_similarity(stretched, interpolated, dim=1).min() > 0.998
    assert F.cosine_similarity(sincos_positions(finer, 128), interpolated, dim=1).min() < 0.8


@given(grids, st.integers(1, 4), st.integers(1, 4))
def test_stretched_positions_keep_the_centre_of_an_image(grid: tuple[int, int], more: int, wider: int) -> None:
    stretched = sincos_positions((grid[0] * (2 * more + 1), grid[1] * (2 * wider + 1)), 8, trained_grid=grid)
    rows = stretched.view(grid[0], 2 * more + 1, grid[1], 2 * wider + 1, 8)
    torch.testing.assert_close(rows[:, more, :, wider].flatten(0, 1), sincos_positions(grid, 8))


@given(grids, st.integers(1, 9), st.integers(1, 9))
def test_positions_do_not_depend_on_the_size_of_the_grid(grid: tuple[int, int], more: int, wider: int) -> None:
    whole = sincos_positions((grid[0] + more, grid[1] + wider), 8).view(grid[0] + more, grid[1] + wider, 8)
    assert torch.equal(sincos_positions(grid, 8), whole[: grid[0], : grid[1]].flatten(0, 1))


@pytest.mark.parametrize("dim", [1, 2, 6, 63])
def test_a_width_that_is_not_a_multiple_of_four_is_rejected(dim: int) -> None:
    with pytest.raises(ValueError, match=f"^dim: expected a multiple of 4 for sine and cosine positions, got {dim}$"):
        sincos_positions((2, 2), dim)


def test_positions_are_created_on_the_requested_device() -> None:
    assert sincos_positions((2, 3), 8, device="meta").device.type == "meta"


def test_positions_are_computed_once_for_a_grid_and_device() -> None:
    _stored_positions.cache_clear()
    device = torch.device("cpu")
    table = cached_sincos_positions((3, 5), 8, trained_grid=(2, 2), device=device)
    assert torch.equal(table, sincos_positions((3, 5), 8, trained_grid=(2, 2)))
    assert cached_sincos_positions((3, 5), 8, trained_grid=(2, 2), device=device) is table
    assert not torch.equal(cached_sincos_positions((3, 5), 8, device=device), table)


def test_tables_of_inference_and_of_tracing_are_not_used_for_training() -> None:
    _stored_positions.cache_clear()
    device = torch.device("cpu")
    with torch.inference_mode():
        cached_sincos_positions((2, 3), 8, device=device)
    with FakeTensorMode():
        cached_sincos_positions((2, 3), 8, device=device)
    weight = torch.ones(8, requires_grad=True)
    table = cached_sincos_positions((2, 3), 8, device=device)
    (weight * table).sum().backward()  # saves the table, which inference tensors do not allow
    assert torch.equal(weight.grad, sincos_positions((2, 3), 8).sum(dim=0))  # type: ignore[arg-type]
    with FakeTensorMode():
        assert type(cached_sincos_positions((2, 3), 8, device=device)) is not torch.Tensor

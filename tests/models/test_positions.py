import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from c2fmae.models import sincos_positions

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

"""Attention in windows equals attention under a mask, and detectron2's rule for the zeros that fill windows."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.errors import UserError
from c2fmae.models.backbones import Backbone
from c2fmae.models.windows import check_plain_blocks, partition, run_block, unpartition
from tests.exports.noise_sources import make_noise_backbone
from tests.models.backbones.test_feature_maps import make_backbone_of_maps
from tests.models.tiny_models import draw_input_maps, draw_normal

pytestmark = pytest.mark.numeric

BLOCK: Any = make_noise_backbone(depth=1, drop_path=0.5).double().encoder.blocks[0].eval()
DIM = 64


def draw_patches(grid: tuple[int, int], batch: int = 2) -> Tensor:
    return draw_normal(batch, grid[0] * grid[1], DIM).double()


@pytest.mark.parametrize("side", [7, 14])
def test_unpartition_inverts_partition(side: int) -> None:
    window = (side, side)
    for grid in itertools.product(range(1, 41), range(1, 41)):
        x = torch.arange(2.0 * grid[0] * grid[1]).view(2, *grid, 1)
        assert torch.equal(unpartition(partition(x, window), grid, window), x)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=20)
def test_windows_contain_neighbouring_patches_and_zeros(grid: tuple[int, int], window: tuple[int, int]) -> None:
    x = 1 + torch.arange(2.0 * grid[0] * grid[1]).view(2, *grid, 1)
    windows = iter(partition(x, window))
    for image in x:
        for row, column in itertools.product(range(0, grid[0], window[0]), range(0, grid[1], window[1])):
            patches = torch.zeros(*window, 1)
            part = image[row : row + window[0], column : column + window[1]]
            patches[: part.shape[0], : part.shape[1]] = part
            assert torch.equal(next(windows), patches.flatten(0, 1))
    assert next(windows, None) is None


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 1)])
def test_a_window_of_the_whole_grid_is_a_plain_block(grid: tuple[int, int], mask_padding: bool) -> None:
    x = draw_patches(grid)
    output = run_block(BLOCK, x, grid=grid, window=grid, mask_padding=mask_padding)
    torch.testing.assert_close(output, BLOCK(x), rtol=0, atol=1e-12)
    assert WindowSpec(size=14).choose_window(1, grid) == grid


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=15)
@example((4, 6), (2, 3))
def test_masked_windows_equal_attention_under_a_block_mask(grid: tuple[int, int], window: tuple[int, int]) -> None:
    x = draw_patches(grid)
    row, column = torch.arange(grid[0]) // window[0], torch.arange(grid[1]) // window[1]
    number = (row.unsqueeze(1) * grid[1] + column).flatten()
    expected = BLOCK(x, number.unsqueeze(1) == number)
    output = run_block(BLOCK, x, grid=grid, window=window, mask_padding=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    if not (grid[0] % window[0] or grid[1] % window[1]):
        assert torch.equal(run_block(BLOCK, x, grid=grid, window=window), output)


@pytest.mark.parametrize("grid", [(4, 6), (3, 7), (5, 2)])
def test_masked_windows_have_the_bias_of_their_patches(grid: tuple[int, int]) -> None:
    window, x = (2, 3), draw_patches(grid)
    bias = draw_normal(1, BLOCK.attn.num_heads, 6, 6).double()
    row, column = torch.arange(grid[0]).unsqueeze(1), torch.arange(grid[1])
    number = (row // window[0] * grid[1] + column // window[1]).flatten()
    position = (row % window[0] * window[1] + column % window[1]).flatten()
    between_all = bias[:, :, position][:, :, :, position].masked_fill(number.unsqueeze(1) != number, -torch.inf)
    output = run_block(BLOCK, x, bias, grid=grid, window=window, mask_padding=True)
    torch.testing.assert_close(output, BLOCK(x, between_all), rtol=0, atol=1e-12)


def run_like_detectron2(block: Any, x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The block of ViTDet as a loop over windows: norm, zeros for incomplete windows, attention with them, cut."""
    output = torch.zeros(len(x), *grid, DIM, dtype=x.dtype)
    normed = block.norm1(x).unflatten(1, grid)
    for image, row, column in itertools.product(range(len(x)), range(0, grid[0], side), range(0, grid[1], side)):
        patches = torch.zeros(side, side, DIM, dtype=x.dtype)
        part = normed[image, row : row + side, column : column + side]
        patches[: part.shape[0], : part.shape[1]] = part
        attended = block.attn(patches.view(1, -1, DIM)).view(side, side, DIM)
        output[image, row : row + side, column : column + side] = attended[: part.shape[0], : part.shape[1]]
    x = x + output.flatten(1, 2)
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("grid", [(3, 7), (5, 4), (6, 6)])
def test_attended_padding_is_that_of_detectron2(grid: tuple[int, int]) -> None:
    x = draw_patches(grid)
    output = run_block(BLOCK, x, grid=grid, window=(3, 3))
    torch.testing.assert_close(output, run_like_detectron2(BLOCK, x, grid, 3), rtol=0, atol=1e-12)


def test_stochastic_depth_drops_images_and_not_windows() -> None:
    block: Any = make_noise_backbone(depth=2, drop_path=0.5).encoder.blocks[1].train()
    with torch.no_grad():
        for parameter in block.mlp.parameters():
            parameter.zero_()  # only attention is left, whose every output is dropped or not
    x = draw_patches((4, 4), batch=32).float()
    torch.manual_seed(0)
    changed = (run_block(block, x, grid=(4, 4), window=(2, 2)) - x).abs().amax(dim=2) > 0
    assert torch.equal(changed.all(dim=1), changed.any(dim=1))
    torch.manual_seed(0)
    assert torch.equal(changed.any(dim=1), (block(x) - x).abs().amax(dim=(1, 2)) > 0)
    assert 0 < changed.any(dim=1).sum() < 32


def feature_maps(backbone: Backbone, images: Tensor, windows: WindowSpec | None, depth: int = 2) -> Tensor:
    return backbone.feature_maps(images, (depth,), normed=False, windows=windows)[0]


def test_a_backbone_attends_in_windows_except_in_global_blocks() -> None:
    backbone, images = make_noise_backbone(depth=3), draw_normal(2, 3, 80, 48)
    with torch.no_grad():
        maps = [
            feature_maps(backbone, images, WindowSpec(size=2, global_blocks=blocks, pad_keys="masked"), depth=3)
            for blocks in ((), (2,), (1, 2, 3))
        ]
        changed = images.clone()
        changed[:, :, :32, :32] += 1
        local, _, everywhere = (
            feature_maps(backbone, changed, WindowSpec(size=2, global_blocks=blocks, pad_keys="masked"), depth=3)
            for blocks in ((), (2,), (1, 2, 3))
        )
        assert torch.equal(local[:, :, 2:], maps[0][:, :, 2:])
        assert not torch.equal(local[:, :, :2, :2], maps[0][:, :, :2, :2])
        assert (everywhere != maps[2]).any(dim=1).all()
        large = feature_maps(backbone, images, WindowSpec(size=14, global_blocks=()), depth=3)
        torch.testing.assert_close(large, maps[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(maps[0], maps[1])


def test_windows_leave_out_class_and_register_tokens() -> None:
    backbone, images = make_noise_backbone(), draw_normal(1, 3, 32, 32)
    with torch.no_grad():
        before = feature_maps(backbone, images, WindowSpec(global_blocks=(1, 2)))
        assert backbone.encoder.cls_token is not None
        backbone.encoder.cls_token.add_(1)
        assert torch.equal(feature_maps(backbone, images, WindowSpec(global_blocks=(1, 2))), before)


def test_windowed_blocks_are_recomputed_with_equal_gradients() -> None:
    backbone, images = make_noise_backbone(depth=2).train(), draw_normal(2, 3, 48, 48)
    windows, gradients, calls = WindowSpec(size=2, global_blocks=(2,)), [], []
    first: Any = backbone.encoder.blocks[0]
    first.norm1.register_forward_hook(lambda *call: calls.append(call))
    for recompute in (False, True):
        backbone.encoder.grad_checkpointing = recompute
        backbone.zero_grad()
        feature_maps(backbone, images, windows).sin().sum().backward()
        gradients.append([parameter.grad for layer in backbone.trunk_layers()[1:] for parameter in layer])
    assert len(calls) == 3
    for stored, recomputed in zip(*gradients, strict=True):
        assert stored is not None
        torch.testing.assert_close(recomputed, stored, rtol=1e-5, atol=1e-6)


def test_other_blocks_and_several_granularities_are_refused() -> None:
    check_plain_blocks(make_noise_backbone().encoder.blocks)
    for name in ("ParallelScalingBlock", "Linear"):
        other = nn.Linear(2, 2) if name == "Linear" else type(name, (nn.Module,), {})()
        with pytest.raises(UserError, match=f"blocks with {name}, expected timm's Block with Attention"):
            run_block(other, draw_patches((2, 2)), grid=(2, 2), window=(1, 1))
    backbone = make_backbone_of_maps()
    with pytest.raises(UserError, match="expected a single granularity with windows or relative positions"):
        backbone.feature_maps(draw_input_maps(("semantic", "rgb"), classes=5), (1,), windows=WindowSpec())

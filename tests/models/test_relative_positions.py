"""Relative positions are zero at the start, equal a loop over pairs of patches, and follow other grids."""

import itertools
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.specs import RelativePositions
from c2fmae.models.attention_bias import AxisOffsets, attend, crop_bias
from c2fmae.models.backbones import Backbone
from c2fmae.models.decomposed_positions import DecomposedPositions
from c2fmae.models.relative_bias import RelativePositionBias
from c2fmae.models.relative_positions import (
    RelativePositionModule,
    add_relative_positions,
    create_relative_positions,
)
from tests.exports.noise_sources import make_noise_backbone
from tests.models.tiny_models import draw_normal, randomise_parameters

pytestmark = pytest.mark.numeric

HEADS, DIM = 2, 8
GRID = (2, 3)
KINDS = pytest.mark.parametrize("name", ["bias", "decomposed"])


def make_positions(
    name: RelativePositions, backbone: Backbone, windows: WindowSpec | None = None, grid: tuple[int, int] = (4, 4)
) -> RelativePositionModule:
    relative = create_relative_positions(name, backbone.encoder, grid, windows)
    assert relative is not None
    return relative


def make_attention() -> Any:
    backbone = make_noise_backbone(depth=1, dim=DIM, num_heads=HEADS).double()
    block: Any = backbone.encoder.blocks[0]
    return block.attn


def attend_like_detectron2(attn: Any, x: Tensor, rows: Tensor, columns: Tensor, keys: list[int]) -> Tensor:
    """Attention of ViTDet as a loop over heads, queries and keys, for patches of a grid, with tables of offsets."""
    width = DIM // HEADS
    output = torch.zeros_like(x)
    for image, head in itertools.product(range(len(x)), range(HEADS)):
        q, k, v = F.linear(x[image], attn.qkv.weight, attn.qkv.bias).view(-1, 3, HEADS, width)[:, :, head].unbind(1)
        for query in range(len(q)):
            scores = torch.full((len(k),), -torch.inf, dtype=x.dtype)
            for key in keys:
                down, right = query // GRID[1] - key // GRID[1], query % GRID[1] - key % GRID[1]
                offset = rows[down + GRID[0] - 1] + columns[right + GRID[1] - 1]
                scores[key] = q[query] @ k[key] * width**-0.5 + q[query] @ offset
            output[image, query, head * width : (head + 1) * width] = scores.softmax(dim=0) @ v
    return attn.proj(output)  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_fused", [False, True])
def test_decomposed_positions_equal_a_loop_over_pairs(is_fused: bool) -> None:
    attn, x = make_attention(), draw_normal(2, 6, DIM).double()
    attn.fused_attn = is_fused
    relative = randomise_parameters(DecomposedPositions([GRID], head_dim=DIM // HEADS).double(), std=1)
    expected = attend_like_detectron2(attn, x, relative.rows[0], relative.columns[0], [*range(6)])
    torch.testing.assert_close(attend(attn, x, relative(1, GRID)), expected, rtol=0, atol=1e-12)


@KINDS
@pytest.mark.parametrize("smaller", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_offsets_in_a_part_of_a_window_are_those_of_the_window(
    name: RelativePositions, smaller: tuple[int, int]
) -> None:
    """The first rows and columns attend to each other as if the other patches of the window were no keys."""
    attn, x = make_attention(), draw_normal(2, 6, DIM).double()
    is_key = torch.zeros(GRID, dtype=torch.bool)
    is_key[: smaller[0], : smaller[1]] = True
    is_key = is_key.flatten()
    if name == "bias":
        bias = RelativePositionBias([GRID], num_heads=HEADS, num_prefix_tokens=0).double()
        numbers = randomise_parameters(bias, std=1)(1, GRID)
        part = attend(attn, x[:, is_key], crop_bias(numbers, GRID, *smaller))
        expected = attn(x, numbers.masked_fill(~is_key, -torch.inf))
    else:
        relative = randomise_parameters(DecomposedPositions([GRID], head_dim=DIM // HEADS).double(), std=1)
        part = attend(attn, x[:, is_key], crop_bias(relative(1, GRID), GRID, *smaller))
        keys = is_key.nonzero().flatten().tolist()
        expected = attend_like_detectron2(attn, x, relative.rows[0], relative.columns[0], keys)
    torch.testing.assert_close(part, expected[:, is_key], rtol=0, atol=1e-12)


def test_offsets_of_other_grids_are_interpolated() -> None:
    """As detectron2's `get_rel_pos`: linear, from the 2n - 1 offsets of one side to those of the other."""
    relative = DecomposedPositions([(3, 2)], head_dim=1)
    with torch.no_grad():
        relative.rows[0].copy_(torch.arange(5.0).unsqueeze(1))
    rows = relative(1, (3, 2)).rows.squeeze(2)
    assert torch.equal(rows, torch.tensor([[2.0, 1, 0], [3, 2, 1], [4, 3, 2]]))
    offsets = relative(1, (5, 4))
    assert (offsets.rows.shape, offsets.columns.shape) == ((5, 5, 1), (4, 4, 1))
    expected = F.interpolate(torch.arange(5.0).view(1, 1, 5), 9, mode="linear").flatten()
    assert torch.equal(offsets.rows[4, :, 0], expected[4:].flip(0))
    assert torch.equal(offsets.rows[0, :, 0], expected[:5].flip(0))


@KINDS
@pytest.mark.parametrize(
    "windows", [None, WindowSpec(size=2, global_blocks=(2,)), WindowSpec(size=3), WindowSpec(size=3, pad_keys="masked")]
)
def test_new_positions_change_nothing_and_are_trained(name: RelativePositions, windows: WindowSpec | None) -> None:
    backbone, images = make_noise_backbone().eval(), draw_normal(2, 3, 64, 80)
    relative = make_positions(name, backbone, windows)
    (plain,) = backbone.feature_maps(images, (2,), windows=windows)
    (features,) = backbone.feature_maps(images, (2,), relative=relative, windows=windows)
    torch.testing.assert_close(features, plain, rtol=1e-4, atol=1e-4)
    features.sin().sum().backward()
    for parameter in relative.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@KINDS
def test_windows_have_positions_of_their_own_size(name: RelativePositions) -> None:
    backbone = make_noise_backbone(dim=DIM, num_heads=HEADS)
    relative = make_positions(name, backbone, WindowSpec(size=3, global_blocks=(2,)), grid=(4, 5))
    shapes = {key: tuple(parameter.shape) for key, parameter in relative.named_parameters()}
    if name == "bias":
        assert shapes == {"tables.0": (25, HEADS), "tables.1": (63, HEADS)}
        return
    width = DIM // HEADS
    assert shapes == {"rows.0": (5, width), "rows.1": (7, width), "columns.0": (5, width), "columns.1": (9, width)}


def test_class_tokens_have_no_decomposed_offsets() -> None:
    attn, x = make_attention(), draw_normal(1, 7, DIM).double()
    offsets = AxisOffsets(draw_normal(2, 2, 4).double(), draw_normal(3, 3, 4, seed=1).double())
    with torch.no_grad():
        assert torch.allclose(attend(attn, x, offsets)[:, 0], attn(x)[:, 0], rtol=0, atol=1e-12)
        assert not torch.allclose(attend(attn, x, offsets)[:, 1:], attn(x)[:, 1:])


@KINDS
def test_positions_belong_to_the_layers_of_their_blocks(name: RelativePositions) -> None:
    backbone = make_noise_backbone()
    relative, plain = make_positions(name, backbone), backbone.trunk_layers()
    layers = add_relative_positions(backbone.trunk_layers(), relative)
    assert layers[0] == plain[0]
    added = [layer[len(before) :] for layer, before in zip(layers[1:], plain[1:], strict=True)]
    suffixes = [["tables.{i}"], ["rows.{i}", "columns.{i}"]][name == "decomposed"]
    for index, parameters in enumerate(added):
        expected = [relative.get_parameter(suffix.format(i=index)) for suffix in suffixes]
        assert all(one is other for one, other in zip(parameters, expected, strict=True))
    assert add_relative_positions(plain, None) is plain


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 3])
def test_a_bias_has_the_numbers_of_beits_tables(num_prefix_tokens: int) -> None:
    """A row for each offset, row by row; then those of a query, a key and both before the patches."""
    grids = [(2, 3), (3, 1)]
    relative = RelativePositionBias(grids, num_heads=HEADS, num_prefix_tokens=num_prefix_tokens)
    randomise_parameters(relative)
    for depth, (rows, columns) in enumerate(grids, start=1):
        table, bias = relative.tables[depth - 1], relative(depth, (rows, columns))[0]
        num_offsets = (2 * rows - 1) * (2 * columns - 1)
        assert len(table) == num_offsets + 3 * (num_prefix_tokens > 0)
        for query, key in itertools.product(range(bias.shape[1]), repeat=2):
            q, k = query - num_prefix_tokens, key - num_prefix_tokens
            down, right = q // columns - k // columns, q % columns - k % columns
            row = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
            if q < 0 or k < 0:
                row = num_offsets + (2 if q < 0 and k < 0 else int(k < 0))
            assert torch.equal(bias[:, query, key], table[row])


def test_a_bias_of_another_grid_is_interpolated() -> None:
    relative = randomise_parameters(RelativePositionBias([(2, 2)], num_heads=1, num_prefix_tokens=1))
    offsets = relative.tables[0][:9].T.view(1, 1, 3, 3)
    expected = F.interpolate(offsets, (5, 7), mode="bilinear")[0, 0]
    bias = relative(1, (3, 4))[0, 0]
    assert torch.equal(bias[1 + 11, 1:].view(3, 4), expected[2:, 3:].flip(0, 1))
    assert torch.equal(bias[1, 1:].view(3, 4), expected[:3, :4].flip(0, 1))
    assert torch.equal(bias[0, 1:], relative.tables[0][9].expand(12))


@KINDS
@pytest.mark.parametrize("recompute", [False, True])
def test_only_one_block_has_its_bias_in_memory(name: RelativePositions, recompute: bool) -> None:
    backbone, images = make_noise_backbone(depth=3).eval(), draw_normal(1, 3, 64, 64)
    backbone.encoder.grad_checkpointing = recompute
    backbone.train(recompute)
    relative = make_positions(name, backbone)
    references: list[weakref.ref[Tensor]] = []

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Tensor | AxisOffsets) -> None:
        assert all(reference() is None for reference in references)
        tensors = [output] if isinstance(output, Tensor) else [*output]
        references.extend(weakref.ref(tensor) for tensor in tensors)

    handle = relative.register_forward_hook(check)
    with torch.set_grad_enabled(recompute):
        (features,) = backbone.feature_maps(images, (3,), relative=relative)
        assert len(references) == 3 * (1 if name == "bias" else 2)
        assert all(reference() is None for reference in references)
    handle.remove()
    if recompute:
        features.sin().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in relative.parameters())

"""Relative positions are zero at the start, equal a loop over pairs of patches, and follow other grids."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.specs import RelativePositions
from c2fmae.models.attention_bias import AxisOffsets, attend
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


def attend_like_detectron2(attn: Any, x: Tensor, rows: Tensor, columns: Tensor, is_key: Tensor | None) -> Tensor:
    """Attention of ViTDet as a loop over heads, queries and keys, for patches of a grid, with tables of offsets."""
    width = DIM // HEADS
    output = torch.zeros_like(x)
    for image, head in itertools.product(range(len(x)), range(HEADS)):
        q, k, v = F.linear(x[image], attn.qkv.weight, attn.qkv.bias).view(-1, 3, HEADS, width)[:, :, head].unbind(1)
        for query in range(len(q)):
            scores = torch.full((len(k),), -torch.inf, dtype=x.dtype)
            for key in range(len(k)):
                down, right = query // GRID[1] - key // GRID[1], query % GRID[1] - key % GRID[1]
                offset = rows[down + GRID[0] - 1] + columns[right + GRID[1] - 1]
                if is_key is None or is_key[image, 0, 0, key]:
                    scores[key] = q[query] @ k[key] * width**-0.5 + q[query] @ offset
            output[image, query, head * width : (head + 1) * width] = scores.softmax(dim=0) @ v
    return attn.proj(output)  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_decomposed_positions_equal_a_loop_over_pairs(is_fused: bool, is_masked: bool) -> None:
    attn, x = make_attention(), draw_normal(2, 6, DIM).double()
    attn.fused_attn = is_fused
    relative = randomise_parameters(DecomposedPositions([GRID], head_dim=DIM // HEADS).double(), std=1)
    is_key = torch.tensor([[True] * 6, [True, True, False, True, True, False]]).view(2, 1, 1, 6) if is_masked else None
    (offsets,) = relative([GRID])
    expected = attend_like_detectron2(attn, x, relative.rows[0], relative.columns[0], is_key)
    torch.testing.assert_close(attend(attn, x, offsets, is_key), expected, rtol=0, atol=1e-12)


def test_a_bias_is_not_added_to_masked_keys() -> None:
    attn, x, bias = make_attention(), draw_normal(1, 6, DIM).double(), draw_normal(1, HEADS, 6, 6, seed=1).double()
    is_key = torch.tensor([True, True, True, True, False, False]).view(1, 1, 1, 6)
    expected = attn(x[:, :4], bias[:, :, :4, :4])
    torch.testing.assert_close(attend(attn, x, bias, is_key)[:, :4], expected, rtol=0, atol=1e-12)


def test_offsets_of_other_grids_are_interpolated() -> None:
    """As detectron2's `get_rel_pos`: linear, from the 2n - 1 offsets of one side to those of the other."""
    relative = DecomposedPositions([(3, 2)], head_dim=1)
    with torch.no_grad():
        relative.rows[0].copy_(torch.arange(5.0).unsqueeze(1))
    rows = relative([(3, 2)])[0].rows.squeeze(2)
    assert torch.equal(rows, torch.tensor([[2.0, 1, 0], [3, 2, 1], [4, 3, 2]]))
    offsets = relative([(5, 4)])[0]
    assert (offsets.rows.shape, offsets.columns.shape) == ((5, 5, 1), (4, 4, 1))
    expected = F.interpolate(torch.arange(5.0).view(1, 1, 5), 9, mode="linear").flatten()
    assert torch.equal(offsets.rows[4, :, 0], expected[4:].flip(0))
    assert torch.equal(offsets.rows[0, :, 0], expected[:5].flip(0))


@KINDS
@pytest.mark.parametrize("windows", [None, WindowSpec(size=2, global_blocks=(2,)), WindowSpec(size=3)])
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


def test_a_table_is_for_the_offsets_of_each_block() -> None:
    relative = randomise_parameters(RelativePositionBias([(2, 2), (3, 1)], num_heads=2, num_prefix_tokens=0))
    first, second = relative([(2, 2), (3, 1)])
    assert torch.equal(first[0, :, 3, 0], relative.tables[0][8])
    assert torch.equal(second[0, :, 2, 0], relative.tables[1][4])
    assert isinstance(relative.tables[0], nn.Parameter)

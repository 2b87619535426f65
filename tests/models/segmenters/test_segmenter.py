"""A segmenter has what its maps need and no more, and returns logits at the resolution of its head."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import HeadSpec, SegmenterSpec
from c2fmae.models.norms import check_norm
from c2fmae.models.relative_bias import RelativePositionBias
from c2fmae.models.segmenters import SEGMENTATION_HEADS, HeadLayout, HeadModules, segmenter_from_spec
from tests.exports.noise_sources import make_noise_backbone
from tests.models.segmenters.noise_segmenters import draw_images, make_noise_segmenter, make_segmenter

EACH_HEAD = pytest.mark.parametrize("head", list(SEGMENTATION_HEADS))
RESOLUTION = {"upernet": 4, "convnext": 4}
"""Rows of logits for each row of patches, where it is not 1."""


@EACH_HEAD
def test_logits_are_those_of_the_padded_image_at_the_resolution_of_the_head(head: str) -> None:
    segmenter = make_noise_segmenter(head)
    scale = RESOLUTION.get(head, 1)
    logits = segmenter.logits(draw_images(30, 41))
    assert logits.shape == (2, 5, 4 * scale, 6 * scale)
    padded = torch.nn.functional.pad(draw_images(30, 41), (0, 7, 0, 2))
    assert torch.equal(logits, segmenter.logits(padded))


@EACH_HEAD
def test_every_parameter_has_a_gradient(head: str) -> None:
    segmenter = make_segmenter(head, depths=(1, 2, 3, 3), relative="bias", norm="group").train()
    outputs = segmenter(draw_images(32, 32))
    torch.stack([logits.square().sum() for logits in outputs.values()]).sum().backward()
    assert [name for name, parameter in segmenter.named_parameters() if parameter.grad is None] == []
    assert segmenter.backbone.depth == 3


def test_only_training_returns_logits_of_the_auxiliary_head() -> None:
    segmenter = make_noise_segmenter()
    assert list(segmenter(draw_images(32, 32))) == ["main"]
    outputs = segmenter.train()(draw_images(32, 32))
    assert {name: tuple(logits.shape) for name, logits in outputs.items()} == {
        "main": (2, 5, 16, 16),
        "auxiliary": (2, 5, 4, 4),
    }
    assert list(make_segmenter("linear").train()(draw_images(32, 32))) == ["main"]


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (56, 40)])
def test_images_of_any_size_have_logits(size: tuple[int, int]) -> None:
    logits = make_noise_segmenter(relative="bias").logits(draw_images(*size))
    assert logits.shape[2:] == (size[0] // 2, size[1] // 2)
    assert logits.isfinite().all()


def test_norms_and_granularities_that_no_map_needs_are_left_out() -> None:
    backbone = make_noise_backbone(patch_size=8, depth=4)
    raw, normed = make_segmenter(backbone=backbone), make_segmenter(backbone=backbone, normed=True)
    last_norm = {"backbone.encoder.norm.weight", "backbone.encoder.norm.bias"}
    assert {*normed.state_dict()} - {*raw.state_dict()} == last_norm
    assert not last_norm & {*make_segmenter(backbone=backbone, normed=True, depths=(1, 2, 2, 3)).state_dict()}
    images = draw_images(32, 32)
    expected = {norm: backbone.feature_maps(images, (1, 2, 3, 4), normed=norm) for norm in (False, True)}
    for segmenter, is_normed in ((raw, False), (normed, True)):
        maps = segmenter.backbone.feature_maps(images, (1, 2, 3, 4), normed=is_normed)
        assert all(torch.equal(one, other) for one, other in zip(maps, expected[is_normed], strict=True))


def test_a_norm_after_pooling_becomes_a_new_norm_of_tokens() -> None:
    segmenter = make_segmenter(backbone=make_noise_backbone(patch_size=8, depth=4, has_fc_norm=True), normed=True)
    assert torch.equal(segmenter.get_parameter("backbone.encoder.norm.weight"), torch.ones(segmenter.backbone.dim))
    assert "a new one with weight 1" in str(segmenter.load_report)
    assert not segmenter.spec.backbone.has_fc_norm


@pytest.mark.parametrize("keep_positions", [False, True])
def test_positions_are_those_of_the_backbone_resized_to_the_training_crops(keep_positions: bool) -> None:
    backbone = make_noise_backbone(patch_size=8, depth=4, keep_positions=keep_positions)
    segmenter = make_segmenter(backbone=backbone, image_size=(48, 64))
    rebuilt = segmenter_from_spec(segmenter.spec)
    rebuilt.load_state_dict(segmenter.state_dict())
    for model in (segmenter, rebuilt):
        for grid in ((6, 8), (4, 4)) if not keep_positions else ((6, 8),):
            expected = backbone.encoder.positions(grid, torch.device("cpu"))
            torch.testing.assert_close(model.backbone.encoder.positions(grid, torch.device("cpu")), expected)
    if keep_positions:
        assert segmenter.get_buffer("backbone.encoder.pos_embed").shape == (1, 6 * 8, backbone.dim)


def test_a_segmenter_copies_the_weights_of_the_backbone() -> None:
    backbone = make_noise_backbone(patch_size=8, depth=4)
    before = copy.deepcopy(backbone.state_dict())
    segmenter = make_segmenter(backbone=backbone)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@EACH_HEAD
def test_new_weights_follow_from_the_generator(head: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = make_segmenter(head)
        torch.manual_seed(2)
        same = make_segmenter(head)
    other = make_segmenter(head, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in one.state_dict().items())
    weight, other_weight = (segmenter.get_parameter("head.classifier.weight") for segmenter in (one, other))
    assert not torch.equal(weight, other_weight)
    assert weight.std() < 0.02
    assert not one.get_parameter("head.classifier.bias").any()


def test_initial_weights_are_those_of_mmseg() -> None:
    segmenter = make_segmenter(HeadSpec(options={"channels": 64}))
    conv = segmenter.get_parameter("head.fpn_bottleneck.conv.weight")
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # Kaiming normal, fan-out, ReLU
    deconv = {name: segmenter.get_parameter(f"pyramid.levels.1.{name}") for name in ("weight", "bias")}
    bound = (segmenter.backbone.dim * 4) ** -0.5  # torch's default
    assert 0.95 * bound < deconv["weight"].abs().max() <= bound
    assert deconv["bias"].abs().max() <= bound


def test_a_spec_rebuilds_the_segmenter_with_all_options_of_its_head() -> None:
    segmenter = make_noise_segmenter(relative="bias", norm="layer")
    spec = SegmenterSpec.from_dict(segmenter.spec.model_dump(mode="json"))
    assert spec == segmenter.spec
    assert spec.head.options["pool_scales"] == [1, 2, 3, 6]
    rebuilt = segmenter_from_spec(spec)
    rebuilt.load_state_dict(segmenter.state_dict())
    assert torch.equal(rebuilt.logits(draw_images(32, 32)), segmenter.logits(draw_images(32, 32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 2, 3, 5)}, r"depths: expected blocks from 1 to 4, as .* has, got 5. Change depths"),
        ({"depths": (4,)}, "depths: upernet needs one for each of its 4 rescales, got 1"),
        ({"image_size": (30, 32)}, "image_size: 30 is not a multiple of the patch size 8"),
        ({"head": HeadSpec(name="upernett")}, "head: .*Did you mean 'upernet'"),
        ({"head": HeadSpec(options={"chanels": 4})}, "head: options.chanels: .*Did you mean 'channels'"),
        ({"head": HeadSpec(options={"rescales": (4, 2, 1, 3)})}, "rescales.3: expected one of 4, 2, 1, 0.5, 0.25"),
        ({"head": HeadSpec(options={"rescales": (4, 2, 0.5, 0.25)})}, "auxiliary: needs a map of the grid's size"),
        ({"head": HeadSpec(name="convnext", options={"cells": 8})}, "cells: expected a square number, got 8"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_segmenter(**options)


def test_layers_are_those_of_the_backbone_with_the_bias_of_each_block() -> None:
    segmenter = make_segmenter(relative="bias")
    assert isinstance(segmenter.relative, RelativePositionBias)
    layers = segmenter.trunk_layers()
    assert [len(layer) for layer in layers] == [len(segmenter.backbone.trunk_layers()[0]), *[13] * 4]
    assert all(layer[-1] is table for layer, table in zip(layers[1:], segmenter.relative.tables, strict=True))
    groups = build_parameter_groups(segmenter, weight_decay=0.05, layer_decay=0.5)
    decay = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert decay["relative.tables.0"] == (0.5**4, 0.0)
    assert segmenter.sharding_units() == list(segmenter.backbone.encoder.blocks)


def test_positions_are_stretched_to_the_size_of_the_crops() -> None:
    backbone, images = make_noise_backbone(patch_size=8, depth=4), draw_images(48, 64)
    segmenter = make_segmenter("linear", backbone, image_size=(48, 64))
    assert segmenter.spec.backbone.encoder.position_grid == (4, 4)
    rebuilt = segmenter_from_spec(segmenter.spec)
    rebuilt.load_state_dict(segmenter.state_dict())
    with torch.no_grad():
        expected = backbone.feature_maps(images, (1, 2, 3, 4), normed=False)
        for each in (segmenter, rebuilt):
            assert all(map(torch.equal, each.feature_maps(images), expected))
    assert make_segmenter("linear", backbone).spec.backbone.encoder.position_grid is None


class ThresholdHead(nn.Module):
    """A head of another package."""

    def __init__(self, layout: HeadLayout, offset: float) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(layout.dim, layout.num_classes, 1)
        self.scale = nn.Parameter(torch.randn(()))  # drawn by the module itself
        self.offset = offset

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits of the last map."""
        return self.scale * self.classifier(maps[-1]) + self.offset  # type: ignore[no-any-return]


def test_a_registered_head_of_another_package_trains_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(layout: HeadLayout, *, offset: float = 0.0) -> HeadModules:
        """A linear map plus an offset."""
        return HeadModules(head=ThresholdHead(layout, offset))

    for table in ("_entries", "_summaries", "_option_classes"):
        monkeypatch.setattr(SEGMENTATION_HEADS, table, dict(getattr(SEGMENTATION_HEADS, table)))
    SEGMENTATION_HEADS.register("threshold")(create)
    segmenter = make_segmenter(HeadSpec(name="threshold", options={"offset": 2})).train()
    assert segmenter.spec.head.options == {"offset": 2.0}
    assert (
        make_segmenter(HeadSpec(name="threshold"))
        .get_parameter("head.scale")
        .equal(segmenter.get_parameter("head.scale"))
    )
    ids = torch.randint(5, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(segmenter(draw_images(32, 32))["main"], ids).backward()
    groups = build_parameter_groups(segmenter, weight_decay=0.1)
    trained = {name for group in groups for name in group["names"]}
    for name, parameter in segmenter.head.named_parameters(prefix="head"):
        assert name in trained
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_batch_norms_are_refused_where_the_result_would_depend_on_the_division_of_a_step() -> None:
    def check(norm: str = "batch", **changes: Any) -> None:
        settings: dict[str, Any] = {"micro_batch_size": 4, "micro_batches": 1, "processes": 1, "is_cuda": False}
        check_norm(norm, **({"is_local": False} | settings | changes))  # type: ignore[arg-type]

    check()
    check(processes=2, is_cuda=True, micro_batch_size=1)
    check(micro_batches=2, is_local=True)
    divisions: list[dict[str, Any]] = [{"processes": 2}, {"micro_batches": 2, "is_cuda": True}]
    for divided in divisions:
        with pytest.raises(UserError, match="Set norm=group, or accept this with norm_is_local=true"):
            check(**divided)
        check("group", **divided)
    with pytest.raises(UserError, match="at least 2 images"):
        check(micro_batch_size=1)
    with pytest.raises(UserError, match="at least 2 images"):
        check(processes=2, is_cuda=True, micro_batch_size=1, is_local=True)

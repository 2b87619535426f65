"""Recipes of detectors: their settings, the choice for a ViT, and the learning rate of each step."""

import pytest
import torch

from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.core.training import plan_training
from c2fmae.eval.detection.config import DetectConfig, DetectionDataConfig
from c2fmae.eval.detection.recipes import DETECT_RECIPES, choose_recipe, fit_depths
from c2fmae.models.detectors import detector_from_spec

COCO = 117_266
"""Training images of COCO with objects."""


def make_config(recipe: str) -> DetectConfig:
    return DETECT_RECIPES.get(recipe).make("a")


def build_spec(name: str, size: int = 224, **shape: int) -> BackboneSpec:
    return BackboneSpec(encoder=EncoderConfig(name=name, **shape), image_size=(size, size))


def test_paper_has_the_protocol_of_caes_mask_r_cnn() -> None:
    config = make_config("paper")
    training, data, box, mask = config.training, config.data, config.box_head, config.mask_head
    assert (training.epochs, training.batch_size, training.lr, training.warmup_steps) == (12, 16, 3e-4, 500)
    assert (training.betas, training.weight_decay, training.layer_decay) == ((0.9, 0.999), 0.05, 0.75)
    assert (training.clip, config.drop_path, config.windows, config.relative) == (None, 0.2, None, "none")
    assert (config.pyramid.name, config.pyramid.channels, config.pyramid.depths) == ("fpn", 256, (4, 6, 8, 12))
    assert (config.pyramid.norm, config.pyramid.strides, config.pyramid.top_level) == (
        "batch",
        (4, 8, 16, 32, 64),
        True,
    )
    assert (config.anchors.sizes, config.anchors.ratios) == ((32, 64, 128, 256, 512), (0.5, 1, 2))
    rpn = config.rpn
    assert (rpn.num_convs, rpn.samples_per_image, rpn.positive_fraction, rpn.box_loss.name) == (1, 256, 0.5, "l1")
    assert (rpn.fg_iou, rpn.bg_iou, rpn.nms_threshold) == (0.7, 0.3, 0.7)
    assert (config.rois.canonical_size, config.rois.sampling_ratio, config.rois.aligned) == (224, 0, True)
    assert (training.ema, mask.binary_targets if mask else None) == (None, True)
    assert (rpn.pre_nms_top_n, rpn.post_nms_top_n) == (2000, 2000)
    assert (rpn.test_pre_nms_top_n, rpn.test_post_nms_top_n) == (1000, 1000)
    assert (box.num_convs, box.num_fcs, box.fc_dim, box.norm) == (4, 1, 1024, "batch")
    assert (box.box_loss.name, box.box_loss.weight) == ("giou", 10)
    assert (box.samples_per_image, box.positive_fraction, box.fg_iou) == (512, 0.25, 0.5)
    assert mask is not None
    assert (mask.num_convs, mask.norm, mask.roi_size) == (4, None, 14)
    assert (data.sides, data.max_side, data.crops, data.flip) == (tuple(range(480, 801, 32)), 1333, True, 0.5)
    assert (data.canvas, data.groups_by_size) == (None, True)
    testing = config.testing
    assert (testing.short_side, testing.max_side, testing.canvas) == (800, 1333, None)
    assert (testing.score_threshold, testing.nms_threshold, testing.max_detections) == (0.05, 0.5, 100)


def test_the_learning_rate_of_paper_rises_for_500_steps_and_falls_after_9_and_11_epochs() -> None:
    plan = plan_training(make_config("paper").training, num_samples=COCO, world_size=8)
    epoch = 7329
    assert str(plan) == (
        "87,948 steps (12 epochs of 7329), 500 of warm-up; batch 16 = 8 processes × 2; learning rate up to 0.0003"
    )
    rates = {0: 3e-7, 500: 3e-4, 9 * epoch - 1: 3e-4, 9 * epoch: 3e-5, 11 * epoch - 1: 3e-5, 11 * epoch: 3e-6}
    assert {step: plan.lr(step) for step in rates} == pytest.approx(rates)


@pytest.mark.parametrize("recipe", ["paper", "vitdet"])
def test_the_learning_rate_of_each_parameter_is_that_of_beit(recipe: str) -> None:
    """BEiT's rule: the decay to the power of 13 for the embeddings, 12 - i for block i, 0 for all that follows."""
    config = make_config(recipe)
    spec = DetectorSpec(
        backbone=build_spec("vit_base_patch16_224", 256),
        classes=(ClassInfo(name="a"),),
        **{name: getattr(config, name) for name in ("pyramid", "windows", "relative", "rpn", "box_head", "mask_head")},
    )
    with torch.device("meta"):
        detector = detector_from_spec(spec)
    training = config.training
    groups = build_parameter_groups(detector, weight_decay=training.weight_decay, layer_decay=training.layer_decay)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales.keys() == dict(detector.named_parameters()).keys()
    assert len(set(scales.values())) == 12 + 2
    for name, scale in scales.items():
        parts = name.split(".")
        power = 13
        if parts[0] not in ("backbone", "relative"):
            power = 0
        elif numbers := [int(part) for part in parts if part.isdigit()]:
            power = 12 - numbers[0]
        assert scale == pytest.approx(training.layer_decay**power), name
    assert scales["backbone.encoder.blocks.11.attn.qkv.weight"] == pytest.approx(training.layer_decay)


def test_vitdet_has_the_protocol_of_detectron2() -> None:
    config = make_config("vitdet")
    training, data, windows, mask = config.training, config.data, config.windows, config.mask_head
    assert windows is not None
    assert (windows.size, windows.global_blocks, windows.pad_keys) == (14, (3, 6, 9, 12), "attended")
    assert mask is not None
    assert (config.relative, config.drop_path, config.pyramid.name) == ("decomposed", 0.1, "simple")
    assert (config.pyramid.norm, config.box_head.norm, mask.norm) == ("layer", "layer", "layer")
    rpn, rois, box = config.rpn, config.rois, config.box_head
    assert (rpn.num_convs, rpn.post_nms_top_n, rpn.test_post_nms_top_n) == (2, 1000, 1000)
    assert (rpn.pre_nms_top_n, rpn.test_pre_nms_top_n, rpn.nms_threshold) == (2000, 1000, 0.7)
    assert (rois.canonical_size, rois.sampling_ratio, rois.aligned) == (224, 0, True)
    assert (box.fg_iou, box.samples_per_image, box.positive_fraction) == (0.5, 512, 0.25)
    assert (training.clip, training.ema) == (None, None)
    assert (config.box_head.box_loss.name, config.box_head.box_loss.weight) == ("l1", 1)
    assert (data.canvas, data.scale, config.testing.canvas) == ((1024, 1024), (0.1, 2.0), 1024)
    assert (training.batch_size, training.lr, training.weight_decay, training.layer_decay) == (64, 1e-4, 0.1, 0.7)
    plan = plan_training(training, num_samples=COCO, world_size=64)
    rates = {0: 1e-7, 250: 1e-4, 163_888: 1e-4, 163_889: 1e-5, 177_545: 1e-5, 177_546: 1e-6}
    assert {step: plan.lr(step) for step in rates} == pytest.approx(rates)
    assert (plan.steps, plan.warmup_steps) == (184_375, 250)


def test_lite_is_small() -> None:
    config = make_config("lite")
    plan = plan_training(config.training, num_samples=1024, world_size=1)
    assert [plan.lr(step) for step in (0, 29, 30, 349)] == pytest.approx([1e-3 / 30, 1e-3, 1e-3, 1e-3 / 320])
    assert (config.training.clip, config.training.batch_size, config.drop_path) == (1.0, 16, 0.0)
    assert (config.data.canvas, config.data.scale, config.testing.canvas) == ((96, 96), (0.7, 1.6), 96)
    assert config.anchors.sizes == (6, 12, 24, 48)
    assert config.rois.canonical_size == 24
    norms = {config.pyramid.norm, config.box_head.norm, config.mask_head and config.mask_head.norm}
    assert "batch" not in norms  # so that processes and micro-batches add up


@pytest.mark.parametrize("recipe", list(DETECT_RECIPES))
def test_every_recipe_has_a_reference_and_survives_yaml(recipe: str) -> None:
    config = make_config(recipe)
    assert DETECT_RECIPES.get(recipe).reference
    assert DetectConfig.from_dict(config.model_dump()) == config


@pytest.mark.parametrize(
    ("spec", "recipe", "depths"),
    [
        (build_spec("vit_base_patch16_224"), "paper", (4, 6, 8, 12)),
        (build_spec("vit_large_patch16_224"), "paper", (8, 12, 16, 24)),
        (build_spec("vit_base_patch16_224", 96), "lite", (12,)),
        (build_spec("vit_tiny_patch16_224", dim=128, num_heads=2, depth=4), "lite", (4,)),
    ],
)
def test_the_recipe_and_its_blocks_follow_from_the_size_of_a_vit(
    spec: BackboneSpec, recipe: str, depths: tuple[int, ...]
) -> None:
    assert choose_recipe(spec) == recipe
    assert fit_depths(make_config(recipe), spec).pyramid.depths == depths


def test_a_quarter_of_the_blocks_attend_globally_in_a_vit_of_any_depth() -> None:
    windows = fit_depths(make_config("vitdet"), build_spec("vit_large_patch16_224")).windows
    assert windows is not None
    assert windows.global_blocks == (6, 12, 18, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.repeats=2"], "data: repeats: batches of similar sizes have one view of an image. Set it to 1, or"),
        (["mask_head=null", "select_by=mask"], "select_by: there are no masks without a mask head. Set it to box"),
        (["training.compile=blocks"], "training.compile: is not supported for detectors"),
        (["training.sharded=true", "training.ema=0.9"], "training.sharded: sharded averages cannot be evaluated."),
    ],
)
def test_settings_that_do_not_fit_are_rejected(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config("paper").override(settings)
    assert message in str(caught.value)


def test_a_canvas_needs_no_batches_of_similar_sizes() -> None:
    assert not DetectionDataConfig(canvas=(64, 64), repeats=2).groups_by_size
    assert not DetectionDataConfig(by_size=False, repeats=2).groups_by_size

"""Recipes of segmenters: their settings, the choice for a ViT, and the learning rate of each step and parameter."""

import pytest
import torch

from c2fmae.core.labels import ClassInfo
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import BackboneSpec, EncoderConfig, SegmenterSpec
from c2fmae.core.training import plan_training
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.segmentation.recipes import SEGMENT_RECIPES, choose_recipe
from c2fmae.eval.training_evaluation import without_layer_decay
from c2fmae.models.segmenters import segmenter_from_spec


def make_config(recipe: str) -> SegmentConfig:
    return SEGMENT_RECIPES.get(recipe).make("a")


def build_spec(name: str, size: int = 224, **shape: int) -> BackboneSpec:
    return BackboneSpec(encoder=EncoderConfig(name=name, **shape), image_size=(size, size))


def test_paper_and_mae_have_the_protocol_of_beit_mae_and_cae() -> None:
    for recipe, lr, relative in (("paper", 4e-4, "none"), ("mae", 1e-4, "bias")):
        config = make_config(recipe)
        training, data, testing = config.training, config.data, config.testing
        assert (training.lr, config.relative, training.batch_size, training.steps) == (lr, relative, 16, 160_000)
        assert (training.betas, training.weight_decay, training.layer_decay) == ((0.9, 0.999), 0.05, 0.65)
        assert (config.drop_path, config.norm, config.normed, config.auxiliary_weight) == (0.1, "batch", False, 0.4)
        assert (config.head.name, config.head.options.channels, config.resolve_depths(12)) == (
            "upernet",
            768,
            (4, 6, 8, 12),
        )
        assert config.resolve_depths(24) == (8, 12, 16, 24)
        assert (data.image_size, data.short_side, data.scale) == ((512, 512), 512, (0.5, 2.0))
        assert (data.max_class_share, data.flip, data.distort, data.allow_label_stride) == (0.75, 0.5, True, False)
        assert (testing.mode, testing.short_side) == ("slide", 512)
        assert testing.resolve_window((512, 512)) == ((512, 512), (341, 341))
        assert (testing.scales, testing.flip) == ((1.0,), False)


def test_the_learning_rate_of_paper_rises_from_a_millionth_and_falls_linearly_to_zero() -> None:
    plan = plan_training(make_config("paper").training, num_samples=20_210, world_size=8)
    assert str(plan).startswith("160,000 steps (126.7 epochs of 1263), 1,500 of warm-up; batch 16 = 8 processes × 2")
    steps = {
        0: 4e-10,
        750: 4e-4 * (0.5 + 5e-7),
        1500: 4e-4,
        80_750: 2e-4,
        159_999: 4e-4 / 158_500,
    }
    assert {step: plan.lr(step) for step in steps} == pytest.approx(steps)
    assert plan.describe_schedule() == "a linear schedule"


def test_the_learning_rate_of_each_parameter_of_paper_is_that_of_beit() -> None:
    """BEiT's rule: 0.65 to the power of 13 for the embeddings, 12 - i for block i, 0 for all that follows."""
    config = make_config("paper")
    spec = SegmenterSpec(
        backbone=build_spec("vit_base_patch16_224", 512),
        classes=tuple(ClassInfo(name=str(index)) for index in range(150)),
        head=config.head.to_spec(),
        depths=config.resolve_depths(12),
        norm=config.norm,
    )
    with torch.device("meta"):
        segmenter = segmenter_from_spec(spec)
    groups = build_parameter_groups(segmenter, weight_decay=0.05, layer_decay=config.training.layer_decay)
    found = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found.keys() == dict(segmenter.named_parameters()).keys()
    assert len({scale for scale, _ in found.values()}) == 12 + 2
    for name, (scale, decay) in found.items():
        parts = name.split(".")
        if parts[0] != "backbone":
            power = 0
        elif "blocks" in parts:
            power = 12 - int(parts[parts.index("blocks") + 1])
        else:
            power = 13
        assert scale == pytest.approx(0.65**power), name
        is_one_dimensional = dict(segmenter.named_parameters())[name].ndim == 1 or name.endswith("cls_token")
        assert decay == (0.0 if is_one_dimensional else 0.05), name
    assert found["pyramid.levels.0.0.weight"] == (1.0, 0.05)
    assert found["head.classifier.weight"] == (1.0, 0.05)
    assert found["auxiliary.classifier.bias"] == (1.0, 0.0)


def test_small_and_linear_have_their_own_settings() -> None:
    small, linear = make_config("small"), make_config("linear")
    assert (small.training.lr, small.training.clip, small.training.steps, small.training.warmup_steps) == (
        1e-3,
        1.0,
        300,
        30,
    )
    assert (small.training.schedule, small.training.layer_decay, small.drop_path) == ("linear", 1.0, 0.0)
    assert (small.norm, small.head.options.channels, small.testing.mode) == ("group", 64, "whole")
    assert small.resolve_depths(4) == (1, 2, 3, 4)
    plan = plan_training(small.training, num_samples=16, world_size=1)
    assert [plan.lr(step) for step in (0, 29, 30, 299)] == pytest.approx([1e-3 / 30, 1e-3, 1e-3, 1e-3 / 270])
    assert (linear.head.name, linear.train_blocks, linear.normed, linear.drop_path) == ("linear", 0, True, 0.0)
    assert linear.resolve_depths(12) == (12,)


@pytest.mark.parametrize("recipe", list(SEGMENT_RECIPES))
def test_every_recipe_has_a_reference_and_survives_yaml(recipe: str) -> None:
    config = without_layer_decay(make_config(recipe))
    assert config.training.layer_decay == 1
    assert SEGMENT_RECIPES.get(recipe).reference
    assert SegmentConfig.from_dict(config.model_dump()) == config


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        (build_spec("vit_base_patch16_224"), "paper"),
        (build_spec("vit_small_patch16_224"), "paper"),
        (build_spec("vit_base_patch16_224", 96), "small"),
        (build_spec("vit_tiny_patch16_224", dim=128, num_heads=2), "small"),
    ],
)
def test_small_vits_have_a_recipe_of_their_own(spec: BackboneSpec, recipe: str) -> None:
    assert choose_recipe(spec) == recipe

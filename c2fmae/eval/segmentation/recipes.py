"""Recipes for segmenters, each with its source."""

from c2fmae.config.segmentation_head import SegmentationHeadConfig
from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.registry import Registry
from c2fmae.core.segmentation_head_options import FcnOptions, UperNetOptions
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.segmentation.config import SegmentationDataConfig, SegmentConfig, SegmentTraining
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.eval.training_evaluation import TrainingRecipe
from c2fmae.eval.vit_size import is_small_vit

SegmentRecipe = TrainingRecipe[SegmentConfig]
"""A function from a source of initial weights to a config, and a reference."""

SEGMENT_RECIPES: Registry[SegmentRecipe] = Registry("segmentation recipe")

_DATA = SegmentationDataConfig(image_size=(512, 512), short_side=512)
_TESTING = TestingConfig(mode="slide", short_side=512)  # windows of 512 every 341, which follow from the crop
_WATCHING = WatchingConfig(held_out_every=16_000)


def make_paper(init: str) -> SegmentConfig:
    """Return the config of C2FMAE's results on ADE20K."""
    return SegmentConfig(init=init, data=_DATA, testing=_TESTING, watching=_WATCHING)


def make_mae(init: str) -> SegmentConfig:
    """Return the config of MAE's results on ADE20K."""
    return SegmentConfig(
        init=init,
        relative="bias",
        training=SegmentTraining(lr=1e-4),
        data=_DATA,
        testing=_TESTING,
        watching=_WATCHING,
    )


def make_linear(init: str) -> SegmentConfig:
    """Return the config of a linear classifier of frozen patches."""
    return SegmentConfig(
        init=init,
        head=SegmentationHeadConfig(name="linear"),
        normed=True,
        drop_path=0.0,
        train_blocks=0,
        training=SegmentTraining(steps=40_000, lr=1e-3, weight_decay=1e-4, layer_decay=1.0),
        data=_DATA.model_copy(update={"allow_label_stride": True}),
        testing=_TESTING,
        watching=_WATCHING.model_copy(update={"held_out_every": 4000}),
    )


def make_convnext(init: str) -> SegmentConfig:
    """Return the config of MultiMAE's head and optimisation."""
    training = SegmentTraining(
        steps=None,
        epochs=64,
        lr=1e-4,
        warmup_steps=None,
        warmup_epochs=1,
        schedule="cosine",
        layer_decay=0.75,
    )
    return SegmentConfig(
        init=init,
        head=SegmentationHeadConfig(name="convnext"),
        norm="layer",
        training=training,
        data=_DATA.model_copy(update={"scale": (0.1, 2.0), "max_class_share": 1.0}),
        testing=_TESTING,
    )


def make_small(init: str) -> SegmentConfig:
    """Return the config of small ViTs on small images.

    Colours are not distorted: in runs this short, that costs 5 to 10 points of mIoU on generated scenes.
    """
    training = SegmentTraining(steps=300, lr=1e-3, warmup_steps=30, warmup_start=None, layer_decay=1.0, clip=1.0)
    return SegmentConfig(
        init=init,
        head=SegmentationHeadConfig(
            name="upernet", options=UperNetOptions(channels=64, auxiliary=FcnOptions(channels=64))
        ),
        norm="group",
        drop_path=0.0,
        training=training,
        data=SegmentationDataConfig(image_size=(96, 96), distort=False, allow_label_stride=True, workers=2),
        testing=TestingConfig(mode="whole"),
    )


for _name, _summary, _make, _reference in (
    (
        "paper",
        "ViT-B with UPerNet on ADE20K, as in the paper.",
        make_paper,
        "the C2FMAE paper, section IV, with the settings of CAE's code where it names none",
    ),
    ("mae", "ViT-B with UPerNet and relative positions on ADE20K.", make_mae, "the code of MAE's segmentation"),
    (
        "linear",
        "A linear classifier of the patches of a frozen ViT.",
        make_linear,
        "DINOv2's linear evaluation, with values from memory",
    ),
    (
        "convnext",
        "A ViT with MultiMAE's head.",
        make_convnext,
        "MultiMAE's code: its head and optimisation; its range of scales is that of the shorter side; colours, crops "
        "and tests are those of `paper`",
    ),
    (
        "small",
        "A small ViT on small images, in minutes on a CPU.",
        make_small,
        "none: one of a few short runs on two cores",
    ),
):
    SEGMENT_RECIPES.register(_name, _summary)(SegmentRecipe(_make, _reference))


def choose_recipe(spec: BackboneSpec) -> str:
    """Return the name of the recipe for the size of a ViT."""
    return "small" if is_small_vit(spec) else "paper"

"""Recipes for detectors, each with its source."""

from c2fmae.core.detector_spec import (
    AnchorSpec,
    BoxHeadSpec,
    BoxLossSpec,
    MaskHeadSpec,
    PyramidSpec,
    RoiSpec,
    RpnSpec,
    WindowSpec,
)
from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.detection.config import DetectConfig, DetectionDataConfig, DetectTraining
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.training_evaluation import TrainingRecipe
from c2fmae.eval.vit_size import is_small_vit, read_vit_depth

DetectRecipe = TrainingRecipe[DetectConfig]
"""A function from a source of initial weights to a config, and a reference."""

DETECT_RECIPES: Registry[DetectRecipe] = Registry("detection recipe")

_VITDET_STEPS = 184_375  # 100 epochs of COCO in batches of 64


def make_paper(init: str) -> DetectConfig:
    """Return the config of C2FMAE's results on COCO."""
    return DetectConfig(init=init)


def make_vitdet(init: str) -> DetectConfig:
    """Return the config of ViTDet's Mask R-CNN of 100 epochs."""
    return DetectConfig(
        init=init,
        drop_path=0.1,
        pyramid=PyramidSpec(name="simple", norm="layer", depths=(12,)),
        windows=WindowSpec(),
        relative="decomposed",
        rpn=RpnSpec(num_convs=2, post_nms_top_n=1000),
        box_head=BoxHeadSpec(norm="layer", box_loss=BoxLossSpec(name="l1")),
        mask_head=MaskHeadSpec(norm="layer"),
        training=DetectTraining(
            epochs=None,
            steps=_VITDET_STEPS,
            batch_size=64,
            lr=1e-4,
            warmup_steps=250,
            milestones=(163_889 / _VITDET_STEPS, 177_546 / _VITDET_STEPS),
            weight_decay=0.1,
            layer_decay=0.7,
        ),
        data=DetectionDataConfig(canvas=(1024, 1024)),
        testing=DetectionTestingConfig(canvas=1024),
        watching=WatchingConfig(held_out_every=_VITDET_STEPS // 20),
    )


def make_lite(init: str) -> DetectConfig:
    """Return the config of small ViTs on images of 96 pixels."""
    return _make_compact(
        init,
        canvas=96,
        anchor_sizes=(6, 12, 24, 48),
        channels=64,
        rpn=RpnSpec(
            samples_per_image=64, pre_nms_top_n=300, post_nms_top_n=200, test_pre_nms_top_n=300, test_post_nms_top_n=100
        ),
        roi_samples=64,
        fc_dim=128,
        mask_head=MaskHeadSpec(roi_size=7, num_convs=2, channels=64, norm="layer"),
        steps=350,
    )


def make_small(init: str) -> DetectConfig:
    """Return the config of small ViTs on images of 192 pixels."""
    return _make_compact(
        init,
        canvas=192,
        anchor_sizes=(12, 24, 48, 96),
        channels=128,
        rpn=RpnSpec(
            samples_per_image=128,
            pre_nms_top_n=500,
            post_nms_top_n=300,
            test_pre_nms_top_n=500,
            test_post_nms_top_n=200,
        ),
        roi_samples=128,
        fc_dim=512,
        mask_head=MaskHeadSpec(num_convs=2, channels=128, norm="layer"),
        steps=2000,
    )


def _make_compact(
    init: str,
    *,
    canvas: int,
    anchor_sizes: tuple[float, ...],
    channels: int,
    rpn: RpnSpec,
    roi_samples: int,
    fc_dim: int,
    mask_head: MaskHeadSpec,
    steps: int,
) -> DetectConfig:
    """Return the config of a small detector on a square canvas, with anchors of a sixteenth to a half of its side."""
    return DetectConfig(
        init=init,
        drop_path=0.0,
        pyramid=PyramidSpec(
            name="simple", channels=channels, norm="layer", depths=(12,), strides=(4, 8, 16, 32), top_level=False
        ),
        anchors=AnchorSpec(sizes=anchor_sizes),
        rpn=rpn,
        rois=RoiSpec(canonical_size=canvas / 4, sampling_ratio=2),
        box_head=BoxHeadSpec(
            num_convs=0,
            norm=None,
            num_fcs=2,
            fc_dim=fc_dim,
            samples_per_image=roi_samples,
            box_loss=BoxLossSpec(name="l1"),
        ),
        mask_head=mask_head,
        training=DetectTraining(
            epochs=None,
            steps=steps,
            lr=1e-3,
            warmup_steps=30,
            warmup_start=None,
            schedule="linear",
            milestones=(),
            layer_decay=1.0,
            clip=1.0,
        ),
        data=DetectionDataConfig(canvas=(canvas, canvas), scale=(0.7, 1.6), workers=2),
        testing=DetectionTestingConfig(canvas=canvas),
        watching=WatchingConfig(held_out_every=steps // 2),
    )


for _name, _summary, _make, _reference in (
    (
        "paper",
        "ViT-B with Mask R-CNN on COCO, 12 epochs, as in the paper.",
        make_paper,
        "CAE's code of Mask R-CNN, whose settings are those that the C2FMAE paper names; crops and the batch are "
        "CAE's, and not in the paper",
    ),
    (
        "vitdet",
        "ViT-B with windows and a simple pyramid on COCO, 100 epochs, as in ViTDet.",
        make_vitdet,
        "detectron2's code of ViTDet",
    ),
    (
        "lite",
        "A small ViT on images of 96 pixels, in minutes on a CPU.",
        make_lite,
        "none: one of a few short runs on two cores",
    ),
    (
        "small",
        "A small ViT on images of 192 pixels.",
        make_small,
        "none: `lite` with larger heads, images and lengths, which has not been compared with others",
    ),
):
    DETECT_RECIPES.register(_name, _summary)(DetectRecipe(_make, _reference))


def choose_recipe(spec: BackboneSpec) -> str:
    """Return the name of the recipe for the size of a ViT."""
    return "lite" if is_small_vit(spec) else "paper"


def fit_depths(config: DetectConfig, spec: BackboneSpec) -> DetectConfig:
    """Return the config of a recipe with blocks for the depth of a ViT: the recipes have those of 12 blocks.

    >>> from c2fmae.core.specs import EncoderConfig
    >>> vit_l = BackboneSpec(encoder=EncoderConfig(name="vit_large_patch16_224"), image_size=(224, 224))
    >>> fit_depths(make_paper("vit-l"), vit_l).pyramid.depths
    (8, 12, 16, 24)
    """
    num_blocks = read_vit_depth(spec)

    def fit(blocks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(round(block * num_blocks / 12), 1) for block in blocks)

    windows = config.windows
    if windows is not None:
        windows = windows.model_copy(update={"global_blocks": fit(windows.global_blocks)})
    pyramid = config.pyramid.model_copy(update={"depths": fit(config.pyramid.depths)})
    return config.model_copy(update={"pyramid": pyramid, "windows": windows})

"""Masked autoencoders whose encoder reads mask tokens: SimMIM and MaskFeat, as in their papers and for a laptop."""

from c2fmae.config import presets
from c2fmae.config.data import DataConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.config.target import TargetConfig
from c2fmae.core.config import replace
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.training import TrainingConfig
from c2fmae.recipes.registry import Recipe, register_recipe
from c2fmae.recipes.small import TINY_TITLE, make_tiny_run
from c2fmae.recipes.standard import NOT_REPRODUCED

_UNMEASURED = ("whether more than its loss improves: it was not compared with its untrained encoder",)


def make_simmim_b() -> PretrainConfig:
    """Return the config of simmim-b."""
    training = TrainingConfig(epochs=800, base_lr=5e-5, warmup_epochs=10, batch_size=2048, betas=(0.9, 0.999))
    return _make_config(presets.simmim(), training, scale=(0.67, 1.0), drop_path=0.1)


def make_maskfeat_b() -> PretrainConfig:
    """Return the config of maskfeat-b."""
    training = TrainingConfig(
        epochs=1600, base_lr=2e-4, warmup_epochs=30, batch_size=2048, betas=(0.9, 0.999), clip=0.02
    )
    return _make_config(presets.maskfeat(), training, scale=(0.5, 1.0), drop_path=0.0)


def make_simmim_tiny() -> PretrainConfig:
    """Return the config of simmim-tiny."""
    return make_tiny_run(replace(presets.simmim(), MaskedConfig, num_visible=4))


def make_maskfeat_tiny() -> PretrainConfig:
    """Return the config of maskfeat-tiny."""
    target = TargetConfig(name="hog", options={"cell": 4, "window": 8})
    method = replace(
        presets.maskfeat(), MaskedConfig, num_visible=10, targets={"rgb": (target,)}, masking=presets.hide_blocks(2)
    )
    return make_tiny_run(method)


def _make_config(
    method: MaskedConfig, training: TrainingConfig, *, scale: tuple[float, float], drop_path: float
) -> PretrainConfig:
    encoder = replace(method.encoder, EncoderConfig, drop_path=drop_path)
    return PretrainConfig(
        method=replace(method, MaskedConfig, encoder=encoder), data=DataConfig(scale=scale), training=training
    )


register_recipe(
    Recipe(
        name="simmim-b",
        title="SimMIM with ViT-B: an encoder with mask tokens predicts the pixels of hidden squares.",
        make=make_simmim_b,
        source='SimMIM (Xie et al., 2022), "SimMIM: A Simple Framework for Masked Image Modeling", and its official '
        "code",
        deviations={
            "method.encoder.keep_positions": "sines and cosines, added to the tokens; the official code has relative "
            "position biases",
            "training.schedule": "a cosine; the official code divides the learning rate by 10 after 700 epochs",
        },
        unmeasured=(NOT_REPRODUCED,),
    )
)
register_recipe(
    Recipe(
        name="maskfeat-b",
        title="MaskFeat with ViT-B: an encoder with mask tokens predicts histograms of gradients.",
        make=make_maskfeat_b,
        source='MaskFeat (Wei et al., 2022), "Masked Feature Prediction for Self-Supervised Visual Pre-Training"; '
        "settings as in mmpretrain",
        reported=("the C2FMAE paper, Table I: 84.0 % top-1 on ImageNet-1K, fine-tuned after 1600 epochs",),
        unmeasured=(NOT_REPRODUCED,),
    )
)
register_recipe(
    Recipe(
        name="simmim-tiny",
        title=TINY_TITLE.format("SimMIM"),
        make=make_simmim_tiny,
        source="none",
        deviations={"method.num_visible": "a quarter"},
        unmeasured=_UNMEASURED,
    )
)
register_recipe(
    Recipe(
        name="maskfeat-tiny",
        title=TINY_TITLE.format("MaskFeat"),
        make=make_maskfeat_tiny,
        source="none",
        deviations={"method.targets": "cells of 4 pixels, since patches have 8"},
        unmeasured=_UNMEASURED,
    )
)

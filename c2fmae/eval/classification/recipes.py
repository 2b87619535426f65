"""Fine-tuning recipes: settings by the size of a ViT and the length of its pre-training, each with its source."""

from functools import partial
from pathlib import Path

from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.yaml_file import read_yaml
from c2fmae.eval.classification.config import (
    ClassificationDataConfig,
    FinetuneConfig,
    FinetuneTraining,
    MixingConfig,
)
from c2fmae.eval.training_evaluation import TrainingRecipe
from c2fmae.eval.vit_size import is_small_vit, read_vit_dim

FinetuneRecipe = TrainingRecipe[FinetuneConfig]
"""A function from a source of initial weights to a config, and a reference."""

FINETUNE_RECIPES: Registry[FinetuneRecipe] = Registry("fine-tuning recipe")

_C2FMAE_PAPER = "the C2FMAE paper, section IV-A"
_MAE_CODE = "MAE's code: its fine-tuning of this size"
_UNTESTED = "none: ViT-B's settings with the layer decay of MAE's larger models; not measured"


def make_b_400(init: str) -> FinetuneConfig:
    """Return the config of ViT-B after 400 epochs of pre-training."""
    return FinetuneConfig(init=init, training=FinetuneTraining(base_lr=1e-3, layer_decay=0.7))


def make_b_1600(init: str) -> FinetuneConfig:
    """Return the config of ViT-B after 1600 epochs of pre-training."""
    return FinetuneConfig(init=init, training=FinetuneTraining(base_lr=5e-4, layer_decay=0.65))


def make_untested(init: str, *, drop_path: float) -> FinetuneConfig:
    """Return the config of ViTs smaller than ViT-B."""
    training = FinetuneTraining(epochs=100, base_lr=1e-3, layer_decay=0.75)
    return FinetuneConfig(init=init, training=training, drop_path=drop_path)


def make_large(init: str, *, drop_path: float) -> FinetuneConfig:
    """Return the config of ViTs larger than ViT-B."""
    training = FinetuneTraining(epochs=50, base_lr=1e-3, layer_decay=0.75, batch_size=1024)
    return FinetuneConfig(init=init, training=training, drop_path=drop_path)


def make_b_scratch(init: str) -> FinetuneConfig:
    """Return the config of ViT-B from scratch."""
    training = FinetuneTraining(
        epochs=300,
        batch_size=4096,
        base_lr=1e-4,
        warmup_epochs=20,
        weight_decay=0.3,
        betas=(0.9, 0.95),
        layer_decay=1.0,
        ema=0.9999,
    )
    return FinetuneConfig(init=init, training=training)


def make_small(init: str) -> FinetuneConfig:
    """Return the config of small ViTs on small images."""
    training = FinetuneTraining(
        epochs=20, batch_size=256, base_lr=None, lr=1e-3, warmup_epochs=2, layer_decay=0.75, clip=1.0
    )
    data = ClassificationDataConfig(
        crop=1.0, scale=(0.35, 1.0), rand_augment="rand-m5-mstd0.5-inc1", erasing=0.0, workers=2
    )
    mixing = MixingConfig(mixup=0.2, cutmix=1.0, chance=0.5)
    return FinetuneConfig(init=init, training=training, drop_path=0.0, data=data, mixing=mixing)


for _name, _summary, _make, _reference in (
    ("b-400", "ViT-B after 400 epochs of pre-training.", make_b_400, _C2FMAE_PAPER),
    (
        "b-1600",
        "ViT-B after 1600 epochs of pre-training, or more.",
        make_b_1600,
        f"{_C2FMAE_PAPER}; the same as MAE's",
    ),
    ("ti", "ViT-Ti, whatever the length of pre-training.", partial(make_untested, drop_path=0.0), _UNTESTED),
    ("s", "ViT-S, whatever the length of pre-training.", partial(make_untested, drop_path=0.1), _UNTESTED),
    ("l", "ViT-L, whatever the length of pre-training.", partial(make_large, drop_path=0.2), _MAE_CODE),
    ("h", "ViT-H, whatever the length of pre-training.", partial(make_large, drop_path=0.3), _MAE_CODE),
    (
        "b-scratch",
        "ViT-B from scratch on ImageNet-1K.",
        make_b_scratch,
        "MAE's appendix A.2, the ViT-B that it is compared with",
    ),
    (
        "small",
        "A small ViT on some ten thousand small images.",
        make_small,
        "none: the most accurate of a few short runs on two cores",
    ),
):
    FINETUNE_RECIPES.register(_name, _summary)(FinetuneRecipe(_make, _reference))


def without_rand_augment(config: FinetuneConfig) -> FinetuneConfig:
    """Return the config without RandAugment, for images of other than 3 channels."""
    return config.model_copy(update={"data": config.data.model_copy(update={"rand_augment": None})})


def choose_recipe(spec: BackboneSpec, pretrain_epochs: float | None) -> str:
    """Return the name of the recipe for a ViT by its size and epochs of pre-training (None if unknown)."""
    if is_small_vit(spec):
        return "small"
    dim = read_vit_dim(spec)
    if dim >= 768:
        name = "h" if dim >= 1280 else "l" if dim >= 1024 else "b"
        return name if name != "b" else "b-400" if pretrain_epochs is not None and pretrain_epochs < 1000 else "b-1600"
    return "s" if dim >= 384 else "ti"


def read_pretrain_epochs(source: str) -> float | None:
    """Return the configured pre-training epochs of a run or of one of its checkpoints; None for other sources."""
    for run_dir in (Path(source), Path(source).resolve().parent.parent):
        if (run_dir / "config.yaml").is_file():
            training = read_yaml(run_dir / "config.yaml").get("training")
            epochs = training.get("epochs") if isinstance(training, dict) else None
            return float(epochs) if isinstance(epochs, int | float) else None
    return None

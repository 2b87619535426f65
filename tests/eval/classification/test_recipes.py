"""Fine-tuning recipes: their settings, the choice for a ViT, and the learning rate of each parameter."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.labels import LabelInfo
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import BackboneSpec, ClassifierSpec, EncoderConfig
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.recipes import (
    FINETUNE_RECIPES,
    choose_recipe,
    read_pretrain_epochs,
)
from c2fmae.eval.training_evaluation import without_layer_decay
from c2fmae.models.classifiers import classifier_from_spec

GOLDEN = {
    # recipe: encoder, image size, drop path, and lr_scale of the embeddings and tokens, block 0 and the last block
    "ti": ("vit_tiny_patch16_224", 224, 0.0, (0.0237572, 0.0316763, 0.75)),
    "s": ("vit_small_patch16_224", 224, 0.1, (0.0237572, 0.0316763, 0.75)),
    "b-400": ("vit_base_patch16_224", 224, 0.1, (0.0096889, 0.0138413, 0.7)),
    "b-1600": ("vit_base_patch16_224", 224, 0.1, (0.0036972, 0.0056880, 0.65)),
    "l": ("vit_large_patch16_224", 224, 0.2, (0.00075254, 0.0010034, 0.75)),
    "h": ("vit_huge_patch14_224", 224, 0.3, (7.53393e-5, 1.004524e-4, 0.75)),
}
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
DECAYED = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "rgb.proj.weight", "head.weight")


def build_spec(name: str, size: int = 224, **shape: int) -> BackboneSpec:
    return BackboneSpec(encoder=EncoderConfig(name=name, **shape), image_size=(size, size), has_fc_norm=True)


def make_config(recipe: str) -> FinetuneConfig:
    return FINETUNE_RECIPES.get(recipe).make("a")


@pytest.mark.parametrize("recipe", GOLDEN)
def test_learning_rate_scale_and_weight_decay_of_each_parameter(recipe: str) -> None:
    encoder, size, drop_path, scales = GOLDEN[recipe]
    config = make_config(recipe)
    with torch.device("meta"):
        model = classifier_from_spec(
            ClassifierSpec(backbone=build_spec(encoder, size), labels=(LabelInfo(name="a"),) * 10)
        )
    groups = build_parameter_groups(
        model, weight_decay=config.training.weight_decay, layer_decay=config.training.layer_decay
    )
    actual = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    depth, decay = model.backbone.depth, config.training.layer_decay
    expected = {f"backbone.embeddings.rgb.proj.{kind}": scales[0] for kind in ("weight", "bias")}
    expected["backbone.encoder.cls_token"] = scales[0]
    for block in range(depth):
        scale = scales[1] * decay**-block
        names = [f"backbone.encoder.blocks.{block}.{layer}.{kind}" for layer in BLOCK for kind in ("weight", "bias")]
        expected |= dict.fromkeys(names, scale)
    expected |= dict.fromkeys(
        (f"{layer}.{kind}" for layer in ("backbone.fc_norm", "head") for kind in ("weight", "bias")), 1.0
    )
    assert actual.keys() == expected.keys()
    for name, (scale, weight_decay) in actual.items():
        assert scale == pytest.approx(expected[name], rel=1e-4), name
        assert weight_decay == (0.05 if name.endswith(DECAYED) else 0.0), name
    assert actual[f"backbone.encoder.blocks.{depth - 1}.mlp.fc2.weight"][0] == pytest.approx(scales[2])
    assert config.drop_path == drop_path


def test_recipes_of_the_paper_have_the_settings_of_the_paper_and_mae() -> None:
    for name, rate, decay in (("b-400", 1e-3, 0.7), ("b-1600", 5e-4, 0.65)):
        config = make_config(name)
        training, data, mixing = config.training, config.data, config.mixing
        assert (training.base_lr, training.layer_decay, training.weight_decay) == (rate, decay, 0.05)
        assert (training.epochs, training.warmup_epochs, training.batch_size) == (100, 5, 2048)
        assert (training.betas, training.lr, training.clip, training.ema) == ((0.9, 0.999), None, None, None)
        assert (mixing.mixup, mixing.cutmix, mixing.smoothing, mixing.chance) == (0.8, 1.0, 0.1, 1.0)
        assert (data.rand_augment, data.erasing, data.scale) == ("rand-m9-mstd0.5-inc1", 0.25, (0.08, 1.0))
        assert (config.pool, config.drop_path, data.crop, data.granularities) == ("mean", 0.1, 0.875, ("rgb",))


def test_the_recipe_from_scratch_has_the_settings_of_mae() -> None:
    training = make_config("b-scratch").training
    assert (training.base_lr, training.weight_decay, training.layer_decay) == (1e-4, 0.3, 1)
    assert (training.epochs, training.warmup_epochs, training.batch_size) == (300, 20, 4096)
    assert (training.betas, training.ema) == ((0.9, 0.95), 0.9999)


@pytest.mark.parametrize("recipe", [name for name in FINETUNE_RECIPES if name != "small"])
def test_every_recipe_can_train_from_scratch(recipe: str) -> None:
    config = without_layer_decay(make_config(recipe))
    assert config.training.layer_decay == 1
    assert FinetuneConfig.from_dict(config.model_dump()) == config


@pytest.mark.parametrize(
    ("spec", "epochs", "recipe"),
    [
        (build_spec("vit_base_patch16_224"), 400.0, "b-400"),
        (build_spec("vit_base_patch16_224"), 1600.0, "b-1600"),
        (build_spec("vit_base_patch16_224"), None, "b-1600"),
        (build_spec("vit_large_patch16_224"), 400.0, "l"),
        (build_spec("vit_huge_patch14_224"), None, "h"),
        (build_spec("vit_small_patch16_224"), 400.0, "s"),
        (build_spec("vit_tiny_patch16_224"), None, "ti"),
        (build_spec("vit_tiny_patch16_224", 32, patch_size=8, dim=128, depth=4, num_heads=4), None, "small"),
        (build_spec("vit_base_patch16_224", 64, patch_size=8), None, "small"),
    ],
)
def test_the_recipe_is_chosen_by_size_and_pretraining(spec: BackboneSpec, epochs: float | None, recipe: str) -> None:
    assert choose_recipe(spec, epochs) == recipe


def test_pretraining_epochs_are_read_from_runs_alone(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoints", Checkpoint(1, {"model/a": torch.zeros(1)}, {}))
    assert read_pretrain_epochs(str(tmp_path)) is None  # a directory without a run
    for text, epochs in (("", None), ("training: {steps: 5}", None), ("training: {epochs: 400}", 400)):
        (tmp_path / "config.yaml").write_text(text)
        assert (read_pretrain_epochs(str(tmp_path)), read_pretrain_epochs(str(checkpoint))) == (epochs, epochs)
    assert read_pretrain_epochs("timm:vit_base_patch16_224") is None

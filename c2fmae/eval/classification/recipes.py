"""How to fine-tune a ViT of which size, pre-trained for how long: each recipe with its source."""

from dataclasses import dataclass
from pathlib import Path

import torch

from c2fmae.core.config import read_yaml
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.models.backbones.backbone import vit_from_spec


@dataclass(frozen=True)
class FinetuneRecipe:
    """Settings, as `--set` takes them, and where they are from."""

    overrides: tuple[str, ...]
    reference: str


FINETUNE_RECIPES: Registry[FinetuneRecipe] = Registry("fine-tuning recipe")

_C2FMAE_PAPER = "the C2FMAE paper, section IV-A"
_MAE_CODE = "MAE's code: its fine-tuning of this size"
_UNTESTED = "nobody's: ViT-B's with the layer decay of MAE's larger models; nothing has been measured with it"


def _register(name: str, summary: str, reference: str, *overrides: str) -> None:
    FINETUNE_RECIPES.register(name, summary)(FinetuneRecipe(overrides, reference))


_register(
    "b-400",
    "ViT-B after 400 epochs of pre-training.",
    _C2FMAE_PAPER,
    "training.base_lr=1e-3",
    "training.layer_decay=0.7",
)
_register(
    "b-1600",
    "ViT-B after 1600 epochs of pre-training, or more.",
    f"{_C2FMAE_PAPER}; the same as MAE's",
    "training.base_lr=5e-4",
    "training.layer_decay=0.65",
)
for _name, _model_name, _drop_path, _source in (
    ("ti", "ViT-Ti", 0.0, _UNTESTED),
    ("s", "ViT-S", 0.1, _UNTESTED),
    ("l", "ViT-L", 0.2, _MAE_CODE),
    ("h", "ViT-H", 0.3, _MAE_CODE),
):
    _register(
        _name,
        f"{_model_name}, however long it was pre-trained.",
        _source,
        "training.base_lr=1e-3",
        "training.layer_decay=0.75",
        f"training.epochs={50 if _source == _MAE_CODE else 100}",
        f"drop_path={_drop_path}",
        *(["training.batch_size=1024"] if _source == _MAE_CODE else []),
    )
_register(
    "b-scratch",
    "ViT-B with weights drawn anew, on ImageNet-1K.",
    "MAE's appendix A.2, the ViT-B that it compares itself with",
    "training.epochs=300",
    "training.batch_size=4096",
    "training.base_lr=1e-4",
    "training.warmup_epochs=20",
    "training.weight_decay=0.3",
    "training.betas=[0.9, 0.95]",
    "training.layer_decay=1",
    "training.ema=0.9999",
)
_register(
    "small",
    "A ViT of a laptop on some ten thousand small photos.",
    "nobody's: it learned most of a few tries in minutes on two cores",
    "training.epochs=20",
    "training.batch_size=256",
    "training.base_lr=null",
    "training.lr=1e-3",
    "training.warmup_epochs=2",
    "training.layer_decay=0.75",
    "training.clip=1",
    "drop_path=0",
    "data.crop=1",
    "data.scale=[0.35, 1.0]",
    "data.rand_augment=rand-m5-mstd0.5-inc1",
    "data.erasing=0",
    "data.workers=2",
    "mixing.mixup=0.2",
    "mixing.cutmix=1",
    "mixing.chance=0.5",
)

FROM_SCRATCH_OVERRIDES = ("training.layer_decay=1",)
"""What is changed for weights that are drawn anew: no layer has learned anything that it should keep."""


def choose_recipe(spec: BackboneSpec, pretrain_epochs: float | None) -> str:
    """Return the name of the recipe that suits a ViT which was pre-trained for so many epochs; None is unknown."""
    with torch.device("meta"):
        dim = vit_from_spec(spec).embed_dim
    if dim < 192 or min(spec.image_size) < 128:
        return "small"
    if dim >= 768:
        name = "h" if dim >= 1280 else "l" if dim >= 1024 else "b"
        return name if name != "b" else "b-400" if pretrain_epochs is not None and pretrain_epochs < 1000 else "b-1600"
    return "s" if dim >= 384 else "ti"


def read_pretrain_epochs(source: str) -> float | None:
    """Return for how many epochs a run was to be pre-trained; None where a source does not tell."""
    for folder in (Path(source), Path(source).resolve().parent.parent):  # a run, or one of its checkpoints
        if (folder / "config.yaml").is_file():
            break
    else:
        return None
    training = read_yaml(folder / "config.yaml").get("training")
    epochs = training.get("epochs") if isinstance(training, dict) else None
    return float(epochs) if isinstance(epochs, int | float) else None

"""Two-branch methods with ViT-B, as in their papers: SimCLR, MoCo, DINO and their relatives that hide patches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from c2fmae.config import branch_presets
from c2fmae.config.branches import BranchConfig
from c2fmae.config.data import DataConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import replace
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.training import TrainingConfig
from c2fmae.recipes.registry import Recipe, register_recipe
from c2fmae.recipes.standard import NOT_REPRODUCED

_TABLE_1 = "the C2FMAE paper, Table I: {top1} % top-1 on ImageNet-1K, fine-tuned after {epochs} epochs"
_ADAMW_NOTE = "AdamW with the settings of MoCo v3; the paper trains a ResNet-50 with {optimiser}"
_VIT_NOTE = "a ViT-B; the paper has a ResNet-50"
_CODE_DEFAULTS_NOTE = "those of the code for smaller ViTs"
_UNVERIFIED = "whether the settings equal those of the published ViT-B: they were not compared with its arguments"

MOCO_TRAINING = TrainingConfig(
    epochs=300, base_lr=1.5e-4, warmup_epochs=40, batch_size=4096, weight_decay=0.1, betas=(0.9, 0.999)
)
MASKED_TRAINING = TrainingConfig(epochs=1600, base_lr=1.5e-4, warmup_epochs=40, batch_size=4096)
DINO_TRAINING = TrainingConfig(
    epochs=400,
    base_lr=7.5e-4,
    warmup_epochs=10,
    batch_size=1024,
    weight_decay=0.04,
    final_weight_decay=0.4,
    betas=(0.9, 0.999),
    clip_each=0.3,
)
IBOT_TRAINING = replace(DINO_TRAINING, TrainingConfig, base_lr=5e-4, clip_each=3.0)


@dataclass(frozen=True, kw_only=True)
class BranchRecipe:
    """The recipe of a method with ViT-B."""

    method: Callable[[], BranchConfig]
    title: str
    source: str
    training: TrainingConfig
    scale: tuple[float, float] = (0.2, 1.0)
    """Area of the crops of main views."""
    drop_path: float = 0.0
    reported: tuple[str, ...] = ()
    deviations: Mapping[str, str] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()


BRANCH_RECIPES = {
    "simclr": BranchRecipe(
        method=branch_presets.simclr,
        title="SimCLR with ViT-B: two views find each other among those of the batch.",
        source='SimCLR (Chen et al., 2020), "A Simple Framework for Contrastive Learning of Visual Representations"',
        training=MOCO_TRAINING,
        scale=(0.08, 1.0),
        reported=("SimCLR: 69.3 % top-1 on ImageNet-1K, linear, with a ResNet-50 after 1000 epochs",),
        deviations={"method.encoder.name": _VIT_NOTE, "training": _ADAMW_NOTE.format(optimiser="LARS")},
    ),
    "moco-v1": BranchRecipe(
        method=branch_presets.moco_v1,
        title="MoCo v1 with ViT-B: a view finds a teacher's output among those of earlier batches.",
        source='MoCo (He et al., 2020), "Momentum Contrast for Unsupervised Visual Representation Learning"',
        training=replace(MOCO_TRAINING, TrainingConfig, epochs=200, batch_size=256),
        reported=("MoCo: 60.6 % top-1 on ImageNet-1K, linear, with a ResNet-50 after 200 epochs",),
        deviations={"method.encoder.name": _VIT_NOTE, "training": _ADAMW_NOTE.format(optimiser="SGD")},
    ),
    "moco-v3": BranchRecipe(
        method=branch_presets.moco_v3,
        title="MoCo v3 with ViT-B: each of two views finds a teacher's output for the other.",
        source='MoCo v3 (Chen et al., 2021), "An Empirical Study of Training Self-Supervised Vision Transformers", and '
        "its official code",
        training=MOCO_TRAINING,
        scale=(0.08, 1.0),
        reported=(_TABLE_1.format(top1=83.2, epochs=300),),
    ),
    "dino": BranchRecipe(
        method=branch_presets.dino,
        title="DINO with ViT-B: two large views and ten small ones are distributed over prototypes.",
        source='DINO (Caron et al., 2021), "Emerging Properties in Self-Supervised Vision Transformers", and its '
        "official code",
        training=DINO_TRAINING,
        scale=(0.25, 1.0),
        drop_path=0.1,
        reported=(_TABLE_1.format(top1=82.8, epochs=300),),
        deviations={
            "training.epochs": "400, as for the authors' published ViT-B; the C2FMAE paper compares 300",
            "training.final_lr": "0; DINO ends at about 1e-6",
        },
        unmeasured=(_UNVERIFIED,),
    ),
    "ibot": BranchRecipe(
        method=branch_presets.ibot,
        title="iBOT with ViT-B: DINO, and hidden patches are distributed too.",
        source='iBOT (Zhou et al., 2022), "iBOT: Image BERT Pre-Training with Online Tokenizer", and its official code',
        training=IBOT_TRAINING,
        scale=(0.32, 1.0),
        drop_path=0.1,
        reported=(f"{_TABLE_1.format(top1='84.0', epochs=1600)}, which counts views",),
        deviations={
            "training.epochs": "400 over the images; the C2FMAE paper's 1600 count views",
            "training.base_lr": _CODE_DEFAULTS_NOTE,
            "training.clip_each": _CODE_DEFAULTS_NOTE,
            "training.final_lr": "0; iBOT ends at about 1e-6",
        },
        unmeasured=(_UNVERIFIED,),
    ),
    "attmask": BranchRecipe(
        method=branch_presets.attmask,
        title="AttMask with ViT-B: iBOT that hides what the teacher attends to.",
        source='AttMask (Kakogeorgiou et al., 2022), "What to Hide from Your Students: Attention-Guided Masked Image '
        'Modeling", and its official code',
        training=replace(IBOT_TRAINING, TrainingConfig, epochs=100),
        scale=(0.25, 1.0),
        drop_path=0.1,
        deviations={
            "method.encoder.name": "a ViT-B; most results of the paper are with a ViT-S",
            "training.final_lr": "0; iBOT, on which AttMask builds, ends at about 1e-6",
        },
        unmeasured=(_UNVERIFIED,),
    ),
    "mst": BranchRecipe(
        method=branch_presets.mst,
        title="MST with ViT-B: DINO that hides patches of low attention and restores all pixels.",
        source='MST (Li et al., 2021), "MST: Masked Self-Supervised Transformer for Visual Representation", its text',
        training=replace(DINO_TRAINING, TrainingConfig, epochs=300),
        scale=(0.25, 1.0),
        drop_path=0.1,
        reported=("MST: 76.9 % top-1 on ImageNet-1K, linear, with DeiT-S after 300 epochs",),
        deviations={
            "method.encoder.name": "a ViT-B; the paper has DeiT-S",
            "method.low_fraction": "chosen here, since there is no official code",
            "method.mask_chance": "chosen here",
            "method.restorer_width": "chosen here, with layer norms instead of batch norms",
            "method.pixel_weight": "chosen here",
            "training": "that of DINO with ViT-B",
        },
    ),
    "cmae": BranchRecipe(
        method=branch_presets.cmae,
        title="CMAE with ViT-B: MAE, and decoded features find a teacher's of a shifted view.",
        source='CMAE (Huang et al., 2023), "Contrastive Masked Autoencoders are Stronger Vision Learners", and its '
        "official code",
        training=MASKED_TRAINING,
        reported=("CMAE, abstract: 85.3 % top-1 on ImageNet-1K, fine-tuned; 52.5 mIoU on ADE20K",),
        deviations={
            "method.mask_ratio": "0.65 of units of 2×2 patches, as in the code; the paper's text hides 0.75 of the "
            "patches",
        },
    ),
    "lut": BranchRecipe(
        method=branch_presets.lut,
        title="LUT with ViT-B: MAE, and visible patches predict a teacher's feature of another view.",
        source='LUT (Kim et al., 2024), "Learning with Unmasked Tokens Drives Stronger Vision Learners", and its '
        "official code",
        training=MASKED_TRAINING,
        deviations={
            "method.views.second.colour": "greyscale, blur and solarisation are each drawn for themselves; in the "
            "paper one of the three is",
        },
    ),
    "conmim": BranchRecipe(
        method=branch_presets.conmim,
        title="ConMIM with ViT-B: hidden patches find a teacher's output for themselves.",
        source='ConMIM (Yi et al., 2023), "Masked Image Modeling with Denoising Contrast", and its official code',
        training=TrainingConfig(
            epochs=800, lr=1.5e-3, warmup_epochs=10, batch_size=2048, betas=(0.9, 0.98), clip=1.0
        ),
        reported=(_TABLE_1.format(top1=83.7, epochs=800),),
        deviations={
            "method.encoder.name": "a ViT-B with layer scales; the code's has relative position biases too",
            "training.lr": "1.5e-3, BEiT's for this batch; the code's for a ViT-L is 7.5e-4",
        },
        unmeasured=("whether the learning rate and the crops equal those of the published ViT-B",),
    ),
}  # fmt: skip
"""Recipes by name of the method."""


def make_branch_config(recipe: BranchRecipe) -> PretrainConfig:
    """Return the config of a recipe."""
    method = recipe.method()
    encoder = replace(method.encoder, EncoderConfig, drop_path=recipe.drop_path)
    return PretrainConfig(
        method=method.model_copy(update={"encoder": encoder}) if recipe.drop_path else method,
        data=DataConfig(scale=recipe.scale),
        training=recipe.training,
    )


for _name, _recipe in BRANCH_RECIPES.items():
    register_recipe(
        Recipe(
            name=f"{_name}-b",
            title=_recipe.title,
            make=partial(make_branch_config, _recipe),
            source=_recipe.source,
            reported=_recipe.reported,
            deviations=_recipe.deviations,
            unmeasured=(NOT_REPRODUCED, *_recipe.unmeasured),
        )
    )

"""C2FMAE, MAE and MultiMAE at five sizes. The paper uses ViT-B; the other recipes differ only in the encoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from c2fmae.config import presets
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import replace
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.training import TrainingConfig
from c2fmae.recipes.registry import Recipe, register_recipe

PAPER_CITATION = (
    'the C2FMAE paper, "From Semantics to Pixels: Coarse-to-Fine Masked Autoencoders for Hierarchical Visual '
    'Understanding"'
)

NOT_REPRODUCED = "pre-training on ImageNet-1K and all that follows: no figure that is reported has been reproduced"

VIT_BY_SIZE = {
    "ti": ("ViT-Ti", "vit_tiny_patch16_224"),
    "s": ("ViT-S", "vit_small_patch16_224"),
    "b": ("ViT-B", "vit_base_patch16_224"),
    "l": ("ViT-L", "vit_large_patch16_224"),
    "h": ("ViT-H/14", "vit_huge_patch14_224"),
}

_OTHER_SIZE_NOTE = "the paper has no results at this size; the decoder stays that of ViT-B"
_HUGE_NOTE = "patches of 14 pixels: N = 256 per granularity, T = {visible} of {total} visible"
_HUGE_MAPS_NOTE = "; cells of id maps are 2 pixels wide, 7×7 per patch"


class _MethodFamily(NamedTuple):
    method: Callable[[], MaskedConfig]
    title: str
    source: str
    reported: tuple[str, ...]
    deviations: Mapping[str, str]
    source_sizes: tuple[str, ...]
    """Sizes that the source has."""
    training: TrainingConfig
    huge_note: str
    """Effect of patches of 14 pixels."""


FAMILIES = {
    "c2fmae": _MethodFamily(
        method=presets.c2fmae,
        title="C2FMAE with {size}: three granularities, a cascaded decoder, a curriculum of masks.",
        source=f"{PAPER_CITATION}, sections III and IV-A",
        reported=(
            "Table I: 83.7 % top-1 on ImageNet-1K, fine-tuned after 400 epochs; 84.2 % after 1600; "
            "84.4 % after 1600 with all granularities as input",
            "Table II: 50.1 box AP and 44.1 mask AP on COCO with Mask R-CNN, after 1600 epochs",
            "Table III: 49.1 mIoU on ADE20K with UperNet, after 1600 epochs",
            "Table IV: 35.2 % on IN-A, 50.6 % on IN-R, 37.4 % on IN-S, mCE 48.8 on IN-C, score 43.6",
        ),
        deviations={
            "method.masking.options.curriculum": "straight slopes; the text gives the order of the phases, but not the "
            "curves of Figure 3",
            "method.masking.options.blend": "the patches with the highest scores, as in Eq. 11, which is a hard switch "
            "wherever one coefficient exceeds a half; sample and quota are smooth",
            "method.masking.options.object_share": "0.75; the paper states only that objects get the larger part",
            "method.masking.options.max_objects": "all objects count; the paper uses all or some, and gives no rule",
            "method.channels.instance": "32 ids, background included, the largest object first; the paper gives "
            "neither their number nor their order",
            "method.decoder.options.context": "a stage reads all tokens, hidden ones too, as in Eq. 2; `visible` is "
            "MultiMAE's way, and which of the two is better at this size has not been measured",
            "method.decoder.options.carry": "a stage reads the one before it alone, as in Eq. 2",
            "method.decoder.options.query_residual": "on; the paper does not specify it, and MultiMAE has none",
            "method.encoder.has_norm": "no norm between encoder and decoder, as in MultiMAE; the paper does not "
            "specify it",
            "method.targets": "standardised pixels alone, since Eq. 12 has three terms; MAE's are normalised by patch",
            "method.loss_average": "each image's mean over its hidden cells, then the mean over images, as in "
            "MultiMAE; the paper does not specify it",
            "training.epochs": "400, as in the ablations and for the first figure of Table I; 1600 for the others",
            "training.base_lr": "1e-4 for 256 images, as in MultiMAE, whose recipe the paper follows",
        },
        source_sizes=("b",),
        training=TrainingConfig(epochs=400, base_lr=1e-4, warmup_epochs=40),
        huge_note=_HUGE_NOTE.format(visible=128, total=768) + _HUGE_MAPS_NOTE,
    ),
    "mae": _MethodFamily(
        method=presets.mae,
        title="MAE with {size}: images alone, random masks, a joint decoder.",
        source='MAE (He et al., 2022), "Masked Autoencoders Are Scalable Vision Learners", and its official code',
        reported=(
            "the C2FMAE paper, Table I: 82.9 % top-1 on ImageNet-1K, fine-tuned after 400 epochs (its authors' run); "
            "83.6 % after 1600",
            "the C2FMAE paper, Tables II and III: 48.3 box AP and 42.5 mask AP on COCO, 48.1 mIoU on ADE20K, "
            "after 1600 epochs",
            "the C2FMAE paper, Table IV: 35.9 % on IN-A, 48.3 % on IN-R, 34.5 % on IN-S, mCE 51.7 on IN-C, score 41.8",
        ),
        deviations={"training.epochs": "400, as in the C2FMAE paper's first comparison; MAE's own are 800 and 1600"},
        source_sizes=("b", "l", "h"),
        training=TrainingConfig(epochs=400, base_lr=1.5e-4, warmup_epochs=40, batch_size=4096),
        huge_note=_HUGE_NOTE.format(visible=64, total=256),
    ),
    "multimae": _MethodFamily(
        method=presets.multimae,
        title="MultiMAE with {size}: three granularities, a decoder for each, random masks.",
        source=(
            f'MultiMAE (Bachmann et al., 2022) over the granularities of {PAPER_CITATION}: Table V, "+ Our '
            'Dataset (R+I+S)"'
        ),
        reported=("the C2FMAE paper, Table V: 83.0 % top-1 on ImageNet-1K, fine-tuned after 400 epochs",),
        deviations={
            "method.granularities": "semantic, instance and rgb; MultiMAE's own are rgb, depth and semantic, as in the "
            "recipe table5-multimae",
            "training.epochs": "400, as in Table V; MultiMAE's own are 1600",
        },
        source_sizes=("b",),
        training=TrainingConfig(epochs=400, base_lr=1e-4, warmup_epochs=40),
        huge_note=_HUGE_NOTE.format(visible=128, total=768) + _HUGE_MAPS_NOTE,
    ),
}


def make_standard_config(family: _MethodFamily, encoder: str) -> PretrainConfig:
    """Return the config of a method with another encoder."""
    method = family.method()
    encoder_config = replace(method.encoder, EncoderConfig, name=encoder)
    return PretrainConfig(method=replace(method, MaskedConfig, encoder=encoder_config), training=family.training)


def _standard_recipe(name: str, size: str) -> Recipe:
    family, (vit, encoder) = FAMILIES[name], VIT_BY_SIZE[size]
    notes = [_OTHER_SIZE_NOTE] if size not in family.source_sizes else []
    notes += [family.huge_note] if size == "h" else []
    is_base = size == "b"
    return Recipe(
        name=f"{name}-{size}",
        title=family.title.format(size=vit),
        make=partial(make_standard_config, family, encoder),
        source=family.source,
        reported=family.reported if is_base else (),
        deviations={**({"method.encoder.name": "; ".join(notes)} if notes else {}), **family.deviations},
        unmeasured=(NOT_REPRODUCED if is_base else "training, and every accuracy after it",),
    )


STANDARD_RECIPES = {
    recipe.name: register_recipe(recipe)
    for recipe in (_standard_recipe(name, size) for name in FAMILIES for size in VIT_BY_SIZE)
}

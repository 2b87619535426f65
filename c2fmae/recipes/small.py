"""Recipes for a laptop. They do not reproduce a paper, but check in minutes that all parts work together."""

from typing import Unpack

from c2fmae.config import presets
from c2fmae.config.data import DataConfig, DatasetConfig, GeneratedOptions
from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import MethodConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.config.watching import PretrainWatchingConfig
from c2fmae.core.config import replace
from c2fmae.core.decoder_options import BlockOptions, CascadedOptions, JointOptions, ParallelOptions
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.training import TrainingConfig
from c2fmae.recipes.registry import Recipe, register_recipe

MOSTLY_RGB = {"semantic": 0.3, "instance": 0.3, "rgb": 6}
MOSTLY_RGB_NOTE = "most visible patches are of images, the only input of downstream tasks"
VISIBLE_CONTEXT_NOTE = (
    "visible tokens and the stage before, instead of all tokens: with all tokens, features of small models hardly "
    "separate the classes of images (k-NN 15 against 33 in a first run)"
)
TINY_TITLE = "{} for a laptop: images of 32 pixels, minutes on a CPU, on generated scenes or any of yours."
_TINY_SOURCE = "none; its settings are those with which C2FMAE improved most in three minutes on two cores"
_TINY_UNMEASURED = ("larger images, longer runs, other data than generated scenes and Pascal VOC",)


def make_tiny_run(
    method: MethodConfig, *, size: int = 32, vit: str = "vit_tiny_patch16_224", steps: int = 1500
) -> PretrainConfig:
    """Return a method with a million weights, for images of 32 pixels in 16 patches, and a run of a few minutes."""
    encoder = replace(method.encoder, EncoderConfig, name=vit, patch_size=8, dim=128, depth=4, num_heads=4)
    return PretrainConfig(
        method=method.model_copy(update={"encoder": encoder, "image_size": (size, size)}),
        data=DataConfig(
            train=_generated(size=size, difficulty="plain", length=8192),
            held_out=_generated(size=size, difficulty="plain", length=512, seed=1),
            scale=(0.5, 1.0),
            workers=0,
            cache=True,
        ),
        training=TrainingConfig(steps=steps, warmup_steps=75, batch_size=64, lr=1.5e-3, clip=1.0),
        watching=PretrainWatchingConfig(held_out_every=100, figures_every=500),
    )


def make_tiny_config(method: MaskedConfig, options: BlockOptions, *, size: int = 32) -> PretrainConfig:
    """Return the run of a masked autoencoder with a small decoder.

    A step with 64 scenes takes 60 ms on two cores.
    """
    decoder = DecoderConfig(name=method.decoder.name, options=options)
    return make_tiny_run(replace(method, MaskedConfig, decoder=decoder), size=size)


def make_c2fmae_tiny() -> PretrainConfig:
    """Return the config of c2fmae-tiny."""
    method = replace(presets.c2fmae(), MaskedConfig, num_visible=16, concentration=MOSTLY_RGB)
    return make_tiny_config(method, CascadedOptions(dim=64, num_heads=4, depth=1, context="visible"))


def make_multimae_tiny() -> PretrainConfig:
    """Return the config of multimae-tiny."""
    method = replace(presets.multimae(), MaskedConfig, num_visible=16, concentration=MOSTLY_RGB)
    return make_tiny_config(method, replace(presets.MULTIMAE_DECODER, ParallelOptions, dim=64, num_heads=4, depth=1))


def make_mae_tiny() -> PretrainConfig:
    """Return the config of mae-tiny."""
    options = replace(presets.MAE_DECODER, JointOptions, dim=64, num_heads=4, depth=2)
    return make_tiny_config(presets.mae(), options)


def make_c2fmae_debug() -> PretrainConfig:
    """Return the config of c2fmae-debug."""
    return PretrainConfig(
        method=MaskedConfig(
            encoder=EncoderConfig(name="test_vit"),
            image_size=(64, 64),
            decoder=DecoderConfig(options=CascadedOptions(dim=64, num_heads=4, context="visible")),
            concentration=MOSTLY_RGB,
        ),
        data=DataConfig(
            train=_generated(size=64, length=64, difficulty="easy"),
            held_out=_generated(size=64, length=16, difficulty="easy", seed=1),
            workers=0,
        ),
        training=TrainingConfig(steps=20, warmup_steps=2, batch_size=8, lr=1e-3, clip=1.0),
    )


def _generated(**options: Unpack[GeneratedOptions]) -> DatasetConfig:
    return DatasetConfig(name="generated", options=options)


_TINY_DEVIATIONS = {"method.concentration": MOSTLY_RGB_NOTE, "method.num_visible": "a third"}

register_recipe(
    Recipe(
        name="c2fmae-tiny",
        title=TINY_TITLE.format("C2FMAE"),
        make=make_c2fmae_tiny,
        source=_TINY_SOURCE,
        deviations={"method.decoder.options.context": VISIBLE_CONTEXT_NOTE, **_TINY_DEVIATIONS},
        unmeasured=_TINY_UNMEASURED,
    )
)
register_recipe(
    Recipe(
        name="multimae-tiny",
        title=TINY_TITLE.format("MultiMAE"),
        make=make_multimae_tiny,
        source=_TINY_SOURCE,
        deviations=_TINY_DEVIATIONS,
        unmeasured=_TINY_UNMEASURED,
    )
)
register_recipe(
    Recipe(
        name="mae-tiny",
        title=TINY_TITLE.format("MAE"),
        make=make_mae_tiny,
        source=_TINY_SOURCE,
        unmeasured=_TINY_UNMEASURED,
    )
)
register_recipe(
    Recipe(
        name="c2fmae-debug",
        title="C2FMAE in miniature: generated scenes of 64 pixels, a step in a fraction of a second on a CPU.",
        make=make_c2fmae_debug,
        source="none; it is for tests and first tries",
        deviations={
            "method.decoder.options.context": VISIBLE_CONTEXT_NOTE,
            "method.concentration": MOSTLY_RGB_NOTE,
        },
        unmeasured=("its accuracy",),
    )
)

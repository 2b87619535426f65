"""Two-branch methods for a laptop, on images of 32 pixels. They do not reproduce a paper."""

from collections.abc import Callable

from c2fmae.config import branch_presets
from c2fmae.config.contrastive import MoCoV1Config, MoCoV3Config, SimCLRConfig
from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.distilling import DistillingConfig
from c2fmae.config.masked_branches import CMAEConfig, ConMIMConfig, LUTConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import replace
from c2fmae.core.decoder_options import JointOptions
from c2fmae.core.ramps import Ramp
from c2fmae.core.view_options import ColourOptions, ViewOptions
from c2fmae.recipes.registry import Recipe, register_recipe
from c2fmae.recipes.small import TINY_TITLE, make_tiny_run

COLOUR = ColourOptions(jitter=(0.4, 0.4, 0.2, 0.1), grey_chance=0.2, blur_chance=0.5, blur_sigma=(0.1, 0.5))
SECOND = {"second": ViewOptions(colour=COLOUR)}
LOCAL = {"local": ViewOptions(size=(16, 16), scale=(0.15, 0.5), count=4, colour=COLOUR)}
DECODER = JointOptions(dim=64, num_heads=4, depth=2, has_norm=True)
FEATURE_DECODER = JointOptions(dim=64, num_heads=4, depth=1, has_norm=True)
STEPS, FEW_STEPS = 450, 220
"""Less than three minutes on two cores: a step takes several times as long as one of mae-tiny."""
MOMENTUM = Ramp(start=0.98, end=1.0)
UNMEASURED = (
    "larger images, longer runs, other data than generated scenes",
    "features of several seeds; docs/methods.md has those of one, after 150 seconds of one core",
)


def make_simclr_tiny() -> PretrainConfig:
    """Return the config of simclr-tiny."""
    method = replace(branch_presets.simclr(), SimCLRConfig, views=SECOND, colour=COLOUR, hidden=256, out=64)
    return make_tiny_run(method, steps=STEPS)


def make_moco_v1_tiny() -> PretrainConfig:
    """Return the config of moco-v1-tiny."""
    method = replace(
        branch_presets.moco_v1(),
        MoCoV1Config,
        views=SECOND,
        colour=COLOUR,
        out=64,
        queue_length=1024,
        momentum=0.99,
    )
    return make_tiny_run(method, steps=STEPS)


def make_moco_v3_tiny() -> PretrainConfig:
    """Return the config of moco-v3-tiny."""
    method = replace(
        branch_presets.moco_v3(), MoCoV3Config, views=SECOND, colour=COLOUR, hidden=256, out=64, momentum=MOMENTUM
    )
    return make_tiny_run(method, steps=STEPS)


def make_dino_tiny() -> PretrainConfig:
    """Return the config of dino-tiny."""
    return _make_distilling_run(branch_presets.dino())


def make_ibot_tiny() -> PretrainConfig:
    """Return the config of ibot-tiny."""
    return _make_distilling_run(branch_presets.ibot(), patch_teacher_temperature=0.04)


def make_attmask_tiny() -> PretrainConfig:
    """Return the config of attmask-tiny."""
    return _make_distilling_run(branch_presets.attmask(), patch_teacher_temperature=0.04, hint_fraction=0.5)


def make_mst_tiny() -> PretrainConfig:
    """Return the config of mst-tiny."""
    return _make_distilling_run(branch_presets.mst(), restorer_width=64)


def _make_distilling_run(method: DistillingConfig, **further: float) -> PretrainConfig:
    settings = {
        "views": SECOND | LOCAL,
        "colour": COLOUR,
        "hidden": 256,
        "bottleneck": 64,
        "prototypes": 512,
        "teacher_temperature": 0.04,
        "momentum": MOMENTUM,
        "held_epochs": 0,
    }
    return make_tiny_run(method.model_copy(update=settings | further), steps=FEW_STEPS)


def make_cmae_tiny() -> PretrainConfig:
    """Return the config of cmae-tiny."""
    method = replace(
        branch_presets.cmae(),
        CMAEConfig,
        views={"target": ViewOptions(crop="shifted", shift=4, colour=COLOUR)},
        decoder=DecoderConfig(name="joint", options=DECODER),
        feature_decoder=DecoderConfig(name="joint", options=FEATURE_DECODER),
        hidden=256,
        out=64,
        mask_unit=1,
        momentum=0.98,
    )
    return make_tiny_run(method, steps=STEPS)


def make_lut_tiny() -> PretrainConfig:
    """Return the config of lut-tiny."""
    decoder = DecoderConfig(name="joint", options=DECODER)
    method = replace(branch_presets.lut(), LUTConfig, views=SECOND, decoder=decoder, hidden=256, momentum=MOMENTUM)
    return make_tiny_run(method, steps=STEPS)


def make_conmim_tiny() -> PretrainConfig:
    """Return the config of conmim-tiny."""
    method = replace(
        branch_presets.conmim(),
        ConMIMConfig,
        views={"target": ViewOptions(crop="main", colour=COLOUR)},
        hidden=256,
        out=64,
        mask_unit=1,
        momentum=MOMENTUM,
    )
    return make_tiny_run(method, steps=STEPS, vit=method.encoder.name)  # which has layer scales


def _register(name: str, label: str, make: Callable[[], PretrainConfig]) -> None:
    register_recipe(
        Recipe(
            name=f"{name}-tiny",
            title=TINY_TITLE.format(label),
            make=make,
            source="none; its settings are chosen for generated scenes of 32 pixels",
            unmeasured=UNMEASURED,
        )
    )


_register("simclr", "SimCLR", make_simclr_tiny)
_register("moco-v1", "MoCo v1", make_moco_v1_tiny)
_register("moco-v3", "MoCo v3", make_moco_v3_tiny)
_register("dino", "DINO", make_dino_tiny)
_register("ibot", "iBOT", make_ibot_tiny)
_register("attmask", "AttMask", make_attmask_tiny)
_register("mst", "MST", make_mst_tiny)
_register("cmae", "CMAE", make_cmae_tiny)
_register("lut", "LUT", make_lut_tiny)
_register("conmim", "ConMIM", make_conmim_tiny)

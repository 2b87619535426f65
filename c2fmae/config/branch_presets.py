"""Two-branch methods by name, with the views of their papers."""

from c2fmae.config.contrastive import MoCoV1Config, MoCoV3Config, SimCLRConfig
from c2fmae.config.distilling import AttMaskConfig, DinoConfig, IBOTConfig, MSTConfig
from c2fmae.config.masked_branches import CMAEConfig, ConMIMConfig, LUTConfig
from c2fmae.config.method import METHODS
from c2fmae.core.ramps import Ramp
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.view_options import ColourOptions, ViewOptions

_JITTER = (0.4, 0.4, 0.2, 0.1)
MOCO_COLOURS = (
    ColourOptions(jitter=_JITTER, grey_chance=0.2, blur_chance=1.0),
    ColourOptions(jitter=_JITTER, grey_chance=0.2, blur_chance=0.1, solarise_chance=0.2),
)
"""Those of BYOL, for the main and the second view; DINO and iBOT use them too."""
LOCAL_COLOUR = ColourOptions(jitter=_JITTER, grey_chance=0.2, blur_chance=0.5)
SIMCLR_COLOUR = ColourOptions(jitter=(0.8, 0.8, 0.8, 0.2), grey_chance=0.2, blur_chance=0.5)
MOCO_V1_COLOUR = ColourOptions(jitter=(0.4, 0.4, 0.4, 0.4), jitter_chance=1.0, grey_chance=0.2)
CMAE_COLOUR = ColourOptions(jitter=(0.4, 0.4, 0.4, 0.1), grey_chance=0.2, blur_chance=0.5)
LUT_COLOUR = ColourOptions(jitter=_JITTER, grey_chance=1 / 3, blur_chance=1 / 3, solarise_chance=1 / 3)
"""In the paper one of the last three is drawn; here each is drawn for itself."""


@METHODS.register("simclr")
def simclr() -> SimCLRConfig:
    """SimCLR: two views of an image find each other among all of the batch (Chen et al., 2020)."""
    return SimCLRConfig(colour=SIMCLR_COLOUR, views={"second": ViewOptions(colour=SIMCLR_COLOUR)})


@METHODS.register("moco-v1")
def moco_v1() -> MoCoV1Config:
    """MoCo: a view finds a slow teacher's output for another one among those of earlier batches (He et al., 2020)."""
    return MoCoV1Config(colour=MOCO_V1_COLOUR, views={"second": ViewOptions(colour=MOCO_V1_COLOUR)})


@METHODS.register("moco-v3")
def moco_v3() -> MoCoV3Config:
    """MoCo v3: each view finds a slow teacher's output for the other among those of the batch (Chen et al., 2021)."""
    return MoCoV3Config(colour=MOCO_COLOURS[0], views={"second": ViewOptions(colour=MOCO_COLOURS[1])})


@METHODS.register("dino")
def dino() -> DinoConfig:
    """DINO: all views are distributed over prototypes as a slow teacher distributes large ones (Caron et al., 2021)."""
    return DinoConfig(colour=MOCO_COLOURS[0], views=_large_and_local_views((0.05, 0.25)))


@METHODS.register("ibot")
def ibot() -> IBOTConfig:
    """iBOT: DINO, and the same for hidden patches, which the teacher sees (Zhou et al., 2022)."""
    return IBOTConfig(colour=MOCO_COLOURS[0], views=_large_and_local_views((0.05, 0.32)))


@METHODS.register("attmask")
def attmask() -> AttMaskConfig:
    """AttMask: iBOT, but what the teacher attends to most is hidden, with hints (Kakogeorgiou et al., 2022)."""
    temperature = Ramp(start=0.04, end=0.07, shape="linear", epochs=30)
    return AttMaskConfig(
        colour=MOCO_COLOURS[0],
        views=_large_and_local_views((0.05, 0.25)),
        teacher_temperature=temperature,
        patch_teacher_temperature=temperature,
        held_epochs=1,
    )


@METHODS.register("mst")
def mst() -> MSTConfig:
    """MST: DINO, but some patches of low attention are hidden and all pixels restored (Li et al., 2021)."""
    return MSTConfig(colour=MOCO_COLOURS[0], views=_large_and_local_views((0.05, 0.25)))


@METHODS.register("cmae")
def cmae() -> CMAEConfig:
    """CMAE: MAE, and decoded features find a slow teacher's of the same image, moved and in other colours (2023)."""
    return CMAEConfig(views={"target": ViewOptions(crop="shifted", shift=31, colour=CMAE_COLOUR)})


@METHODS.register("lut")
def lut() -> LUTConfig:
    """LUT: MAE, and visible patches predict a slow teacher's mean feature of another view (Kim et al., 2024)."""
    return LUTConfig(views={"second": ViewOptions(colour=LUT_COLOUR)})


@METHODS.register("conmim")
def conmim() -> ConMIMConfig:
    """ConMIM: hidden patches find a slow teacher's output for the same patch in other colours (Yi et al., 2023)."""
    return ConMIMConfig(
        encoder=EncoderConfig(name="deit3_base_patch16_224", has_norm=True),  # a ViT-B with layer scales
        views={"target": ViewOptions(crop="main", colour=MOCO_COLOURS[1])},
    )


def _large_and_local_views(scale: tuple[float, float]) -> dict[str, ViewOptions]:
    return {
        "second": ViewOptions(colour=MOCO_COLOURS[1]),
        "local": ViewOptions(size=(96, 96), scale=scale, count=10, colour=LOCAL_COLOUR),
    }

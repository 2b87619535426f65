"""A plain ViT of timm by name, with weights from a file or as timm fetches them."""

from typing import Any, get_args

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import read_weights
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.spec import BackboneSpec, Pool
from c2fmae.models.config import EncoderConfig
from c2fmae.models.encoder import create_vit

TIMM = "timm:"

_POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean"}


def read_timm(source: str) -> Found:
    """Return the weights of `timm:NAME@FILE`, or of `timm:NAME`, which timm fetches."""
    name, _, file = source.removeprefix(TIMM).partition("@")
    vit = create_vit(name, image_size=None, fc_norm=None)
    spec = spec_of(vit, name)
    if file:
        tensors = checkpoint_filter_fn(read_weights(file), vit)  # from the names of other codebases
        return Found(source=source, spec=spec, tensors=tensors)
    try:
        donor = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # a download can fail in a hundred ways
        raise UserError(
            f"{source}: cannot be fetched: {' '.join(str(error).split())}. With a file of its weights at hand, "
            f"give timm:{name}@FILE"
        ) from error
    return Found(source=source, spec=spec, tensors=donor.state_dict())


def spec_of(vit: VisionTransformer, name: str) -> BackboneSpec:
    """Return the spec of a ViT as timm makes it by that name."""
    config: Any = vit.pretrained_cfg
    pool = _POOLS.get(vit.global_pool, get_args(Pool)[0])
    return BackboneSpec(
        encoder=EncoderConfig(name=name, has_norm=True, keep_positions=True),
        image_size=vit.patch_embed.img_size,
        channels={"rgb": vit.patch_embed.proj.in_channels},
        mean=config["mean"],
        std=config["std"],
        pool=pool if vit.num_prefix_tokens else "mean",
        has_fc_norm=type(vit.fc_norm).__name__ != "Identity",
    )

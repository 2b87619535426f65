"""What a backbone costs: parameters, and operations of one photo's forward pass."""

import torch

from c2fmae.core.errors import UserError
from c2fmae.core.operation_count import ForwardCost, OperationCounter, PartCost, count_parameters, count_with_torch
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit


def compute_backbone_cost(
    backbone: Backbone, image_size: tuple[int, int] | None = None, *, counter: OperationCounter = count_with_torch
) -> ForwardCost:
    """Return what a photo costs, of the backbone's own size unless a height and width are given; nothing is computed.

    A norm behind the pooling counts as the encoder's, and the embeddings of maps have parameters, but nothing to do.
    """
    size = resolve_cost_image_size(backbone, image_size)
    with torch.device("meta"):
        meta_backbone = wrap_vit(vit_from_spec(backbone.spec), backbone.spec)
        flops = counter(meta_backbone, {"rgb": torch.zeros(1, meta_backbone.spec.channels["rgb"], *size)})
    return ForwardCost(
        {
            "embeddings": PartCost(flops["embeddings"], count_parameters(meta_backbone.embeddings)),
            "encoder": PartCost(
                flops["encoder"], count_parameters(meta_backbone.encoder) + count_parameters(meta_backbone.fc_norm)
            ),
        }
    )


def resolve_cost_image_size(backbone: Backbone, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the height and width of photos, those that the backbone learned from unless others are wanted."""
    if "rgb" not in backbone.granularities:
        granularities = ", ".join(backbone.granularities)
        raise UserError(f"what a photo costs cannot be said of a backbone that takes none, but {granularities}")
    size = image_size or backbone.spec.image_size
    if any(side % backbone.patch for side in size):
        raise UserError(
            f"image_size: {size[0]}×{size[1]} is not divisible into patches of {backbone.patch}×{backbone.patch}"
        )
    return size

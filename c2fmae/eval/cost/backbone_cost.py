"""What a backbone costs: parameters, and operations of one photo's forward pass."""

import torch

from c2fmae.core.errors import UserError
from c2fmae.core.operation_count import Cost, Count, Part, by_torch, size_of
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_of, wrap


def backbone_cost(backbone: Backbone, image_size: tuple[int, int] | None = None, *, count: Count = by_torch) -> Cost:
    """Return what a photo costs, of the backbone's own size unless a height and width are given; nothing is computed.

    A norm behind the pooling counts as the encoder's, and the embeddings of maps have parameters, but nothing to do.
    """
    size = photo_size(backbone, image_size)
    with torch.device("meta"):
        blank = wrap(vit_of(backbone.spec), backbone.spec)
        flops = count(blank, {"rgb": torch.zeros(1, blank.spec.channels["rgb"], *size)})
    return Cost(
        {
            "embeddings": Part(flops["embeddings"], size_of(blank.embeddings)),
            "encoder": Part(flops["encoder"], size_of(blank.encoder) + size_of(blank.fc_norm)),
        }
    )


def photo_size(backbone: Backbone, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the height and width of photos, those that the backbone learned from unless others are wanted."""
    if "rgb" not in backbone.granularities:
        ours = ", ".join(backbone.granularities)
        raise UserError(f"what a photo costs cannot be said of a backbone that takes none, but {ours}")
    size = image_size or backbone.spec.image_size
    if any(side % backbone.patch for side in size):
        raise UserError(
            f"image_size: {size[0]}×{size[1]} is not divisible into patches of {backbone.patch}×{backbone.patch}"
        )
    return size

"""Reproducible images and maps on which an exported model and the original are compared."""

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.exports.target import ExportableModel, get_backbone
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import BackboneInput
from c2fmae.models.classifiers import Classifier
from c2fmae.models.patches import label_stride

EXAMPLE_BATCH_SIZE = 2
_CELL_PIXELS = 8  # pixels from one random colour to the next


def example_images(
    size: tuple[int, int], channels: int, batch: int = EXAMPLE_BATCH_SIZE
) -> UInt8[Tensor, "batch channels height width"]:
    """Return images of smooth colours with noise: like natural images, they have low and high frequencies."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(batch, channels, size[0] // _CELL_PIXELS + 2, size[1] // _CELL_PIXELS + 2, generator=generator)
    noise = torch.randn(batch, channels, *size, generator=generator)
    smooth = F.interpolate(colours, size, mode="bilinear", align_corners=False)
    return (255 * smooth + 12 * noise).clamp(0, 255).to(torch.uint8)


def example_maps(backbone: Backbone, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a map of this size for each granularity of a backbone, in the form that it takes."""
    maps: dict[str, Tensor] = {}
    for name, channels in backbone.spec.channels.items():
        if name == "rgb":
            maps[name] = backbone.standardise(example_images(size, channels))
        elif GRANULARITIES.get(name).kind == "ids":
            maps[name] = _example_ids(size, channels, label_stride(backbone.patch))
        else:
            maps[name] = example_images(size, channels).float() / 255
    return maps


def compute_outputs(model: ExportableModel, maps: BackboneInput) -> tuple[Tensor, ...]:
    """Return tokens, pooled features, and the logits of a classifier."""
    backbone = get_backbone(model)
    with torch.inference_mode():
        tokens = backbone.tokens(maps)
        pooled = backbone.pool(tokens)
        return (tokens, pooled, model.head(pooled)) if isinstance(model, Classifier) else (tokens, pooled)


def _example_ids(size: tuple[int, int], classes: int, stride: int) -> UInt8[Tensor, "batch rows columns"]:
    generator = torch.Generator().manual_seed(classes)
    cells = (EXAMPLE_BATCH_SIZE, size[0] // stride, size[1] // stride)
    return torch.randint(classes, cells, generator=generator).to(torch.uint8)

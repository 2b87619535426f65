"""What features are to be compared with, besides those of an untrained encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2fmae.data import standardise
from c2fmae.eval.probes.features import PatchEncoder
from c2fmae.models.patches import patchify


def make_pixel_encoder(patch: int, mean: Sequence[float], std: Sequence[float]) -> PatchEncoder:
    """Return the standardised pixels of each patch; with `pool_concatenated`, those of the photo."""
    return lambda photos: patchify(standardise(photos, torch.tensor(mean), torch.tensor(std)), patch)


def make_colour_encoder(patch: int) -> PatchEncoder:
    """Return the shares of 4 × 4 × 4 colours in each patch; with `pool_mean`, those in the photo."""

    def encode(images: Tensor) -> Tensor:
        red, green, blue = (images // 64).long().unbind(dim=1)
        colours = patchify(16 * red + 4 * green + blue, patch)
        histogram = torch.zeros(*colours.shape[:2], 64)
        ones = torch.ones(1).expand(colours.shape)
        return histogram.scatter_add_(2, colours, ones) / colours.shape[2]

    return encode

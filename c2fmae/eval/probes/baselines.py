"""What features are to be compared with, besides those of an untrained encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2fmae.data import standardise
from c2fmae.eval.probes.features import Encode
from c2fmae.models.patches import patchify


def pixel_encoder(patch: int, mean: Sequence[float], std: Sequence[float]) -> Encode:
    """Return the standardised pixels of each patch; with `concatenate`, those of the photo."""
    return lambda photos: patchify(standardise(photos, torch.tensor(mean), torch.tensor(std)), patch)


def colour_encoder(patch: int) -> Encode:
    """Return the shares of 4 × 4 × 4 colours in each patch; with `mean_of`, those in the photo."""

    def encode(photos: Tensor) -> Tensor:
        red, green, blue = (photos // 64).long().unbind(dim=1)
        colours = patchify(16 * red + 4 * green + blue, patch)
        shares = torch.zeros(*colours.shape[:2], 64)
        ones = torch.ones(1).expand(colours.shape)
        return shares.scatter_add_(2, colours, ones) / colours.shape[2]

    return encode

"""What several backbones tell apart in the same photos: three principal components of patches as colours."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from c2fmae.report.drawing import sheet
from c2fmae.views.backbone_figures import Named, SourcesView, Tile, cut_for, tile_size

COMPONENTS = 3
_ENDS = (0.01, 0.99)  # shares of the patches between whose values colours run


class PcaView(SourcesView):
    """Settings of `c2fmae view pca`."""


class Components(NamedTuple):
    """Features as seen along the directions in which they differ most."""

    values: Float64[Tensor, "row component"]
    shares: Float64[Tensor, " component"]
    """Of the variance."""


def draw_pca(config: PcaView, sources: Named) -> Image.Image:
    """Draw a row for each scene: the photo, and each backbone's patches, alike in colour where alike in feature."""
    scenes = config.take(sources)
    size = tile_size(config.size_of(sources[0][1]))
    titles, columns = ["photo"], [list(cut_for(scenes, size).maps["rgb"].permute(0, 2, 3, 1).numpy())]
    for name, backbone in sources:
        photos = cut_for(scenes, config.size_of(backbone)).maps["rgb"]
        depth = config.layer_of(name, backbone)
        with torch.no_grad():
            (features,) = backbone.feature_maps(backbone.standardise(photos), [depth])
        found = principal_components(features.permute(0, 2, 3, 1).flatten(0, 2))
        colours = as_colours(found.values).unflatten(0, (len(scenes), *features.shape[2:]))
        titles.append(f"{config.title_of(name, backbone)}\n{_shares(found.shares)} of the variance")
        columns.append([magnify(each, size) for each in colours.numpy()])
    return sheet(
        list(zip(*columns, strict=True)),
        column_titles=titles,
        title="What patches have in common",
        subtitle="Three principal components of the patches' features as red, green and blue.",
        footer=f"Fitted to all photos of a column together: the same colour is the same feature, within a column.\n"
        f"{config.data}",
    )


def principal_components(features: Float[Tensor, "row dim"], count: int = COMPONENTS) -> Components:
    """Return what features are along the directions of most variance, zero where there are no more.

    A direction points to where its largest number is positive, so that nothing about it is left to chance.
    """
    centred = features.double() - features.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    values, shares = centred @ (directions * largest.sign()), variances[:count] / variances.sum().clamp(min=1e-300)
    missing = (0, count - values.shape[1])
    return Components(F.pad(values, missing), F.pad(shares, missing))


def as_colours(values: Float64[Tensor, "row component"]) -> Float64[Tensor, "row component"]:
    """Return values between 0 and 1, but for the lowest and the highest hundredth of each component."""
    low, high = torch.quantile(values, torch.tensor(_ENDS, dtype=values.dtype), dim=0)
    spread: Tensor = high - low
    shades: Tensor = (values - low) / spread.clamp(min=1e-12)
    return shades.clamp(0, 1)


def magnify(colours: Float64[np.ndarray, "rows columns 3"], size: tuple[int, int]) -> Tile:
    """Return a tile in which every patch is a rectangle."""
    row, column = (np.arange(n) * cells // n for n, cells in zip(size, colours.shape[:2], strict=True))
    return np.asarray((255 * colours[row[:, None], column]).round(), np.uint8)


def _shares(shares: Float64[Tensor, " component"]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares.tolist())

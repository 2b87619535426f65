"""What several backbones tell apart in the same photos: three principal components of patches as colours."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from c2fmae.report.drawing import draw_tile_sheet
from c2fmae.views.backbone_figures import BackboneFigureConfig, NamedBackbones, Tile, compute_tile_size, crop_scenes

NUM_COMPONENTS = 3
_COLOUR_QUANTILES = (0.01, 0.99)  # shares of the patches between whose values colours run


class PcaFigureConfig(BackboneFigureConfig):
    """Settings of `c2fmae view pca`."""


class PrincipalComponents(NamedTuple):
    """Features as seen along the directions in which they differ most."""

    values: Float64[Tensor, "row component"]
    explained_variance_ratio: Float64[Tensor, " component"]
    """Of the variance."""


def draw_pca(config: PcaFigureConfig, backbones: NamedBackbones) -> Image.Image:
    """Draw a row for each scene: the photo, and each backbone's patches, alike in colour where alike in feature."""
    scenes = config.load_scenes(backbones)
    size = compute_tile_size(config.resolve_size(backbones[0][1]))
    titles, columns = ["photo"], [list(crop_scenes(scenes, size).maps["rgb"].permute(0, 2, 3, 1).numpy())]
    for name, backbone in backbones:
        images = crop_scenes(scenes, config.resolve_size(backbone)).maps["rgb"]
        depth = config.resolve_layer(name, backbone)
        with torch.no_grad():
            (features,) = backbone.feature_maps(backbone.standardise(images), [depth])
        components = compute_principal_components(features.permute(0, 2, 3, 1).flatten(0, 2))
        colours = components_to_colours(components.values).unflatten(0, (len(scenes), *features.shape[2:]))
        titles.append(
            f"{config.format_title(name, backbone)}\n{_format_ratios(components.explained_variance_ratio)} of the "
            "variance"
        )
        columns.append([upscale_patches(each, size) for each in colours.numpy()])
    return draw_tile_sheet(
        list(zip(*columns, strict=True)),
        column_titles=titles,
        title="What patches have in common",
        subtitle="Three principal components of the patches' features as red, green and blue.",
        footer=f"Fitted to all photos of a column together: the same colour is the same feature, within a column.\n"
        f"{config.data}",
    )


def compute_principal_components(
    features: Float[Tensor, "row dim"], num_components: int = NUM_COMPONENTS
) -> PrincipalComponents:
    """Return what features are along the directions of most variance, zero where there are no more.

    A direction points to where its largest number is positive, so that nothing about it is left to chance.
    """
    centred = features.double() - features.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)[:, :num_components]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    values, variance_ratio = (
        centred @ (directions * largest.sign()),
        variances[:num_components] / variances.sum().clamp(min=1e-300),
    )
    missing = (0, num_components - values.shape[1])
    return PrincipalComponents(F.pad(values, missing), F.pad(variance_ratio, missing))


def components_to_colours(values: Float64[Tensor, "row component"]) -> Float64[Tensor, "row component"]:
    """Return values between 0 and 1, but for the lowest and the highest hundredth of each component."""
    low, high = torch.quantile(values, torch.tensor(_COLOUR_QUANTILES, dtype=values.dtype), dim=0)
    spread: Tensor = high - low
    shades: Tensor = (values - low) / spread.clamp(min=1e-12)
    return shades.clamp(0, 1)


def upscale_patches(colours: Float64[np.ndarray, "rows columns 3"], size: tuple[int, int]) -> Tile:
    """Return a tile in which every patch is a rectangle."""
    row, column = (np.arange(n) * cells // n for n, cells in zip(size, colours.shape[:2], strict=True))
    return np.asarray((255 * colours[row[:, None], column]).round(), np.uint8)


def _format_ratios(ratios: Float64[Tensor, " component"]) -> str:
    return ", ".join(f"{share:.0%}" for share in ratios.tolist())

"""Principal components of the patch features of several backbones, on the same images, as colours."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from c2fmae.config.data import describe_source
from c2fmae.report.drawing import Tile, draw_tile_sheet, image_to_tile
from c2fmae.views.backbone_figures import (
    NamedBackbones,
    column_title,
    compute_tile_size,
    load_scenes,
    resolve_layer,
    resolve_scenes,
    resolve_size,
)
from c2fmae.views.config import BackboneFigureConfig
from c2fmae.views.scenes import crop_scenes

NUM_COMPONENTS = 3
_COLOUR_QUANTILES = (0.01, 0.99)  # the values of the darkest and the brightest colour


class PrincipalComponents(NamedTuple):
    """Features projected onto the directions of largest variance."""

    values: Float64[Tensor, "row component"]
    explained_variance_ratio: Float64[Tensor, " component"]


def draw_pca(config: BackboneFigureConfig, backbones: NamedBackbones) -> Image.Image:
    """Draw a row for each scene: the image, and each backbone's patches, with similar colours for similar features."""
    config = resolve_scenes(config, backbones)
    scenes = load_scenes(config, backbones)
    size = compute_tile_size(resolve_size(config, backbones[0][1]))
    titles, columns = ["image"], [[image_to_tile(image) for image in crop_scenes(scenes, size).maps["rgb"].numpy()]]
    for name, backbone in backbones:
        images = crop_scenes(scenes, resolve_size(config, backbone)).maps["rgb"]
        layer = resolve_layer(config, name, backbone)
        with torch.no_grad():
            (features,) = backbone.feature_maps(backbone.standardise(images), [layer])
        components = compute_principal_components(features.permute(0, 2, 3, 1).flatten(0, 2))
        colours = components_to_colours(components.values).unflatten(0, (len(scenes), *features.shape[2:]))
        ratios = ", ".join(f"{ratio:.0%}" for ratio in components.explained_variance_ratio.tolist())
        titles.append(f"{column_title(config, name, backbone)}\n{ratios} of the variance")
        columns.append([upscale_patches(grid, size) for grid in colours.numpy()])
    return draw_tile_sheet(
        list(zip(*columns, strict=True)),
        column_titles=titles,
        title="Principal components of patch features",
        subtitle="The first three components as red, green and blue.",
        footer="Computed over all images of a column, so colours are comparable within it.\n"
        f"{describe_source(config.data)}",
    )


def compute_principal_components(
    features: Float[Tensor, "row dim"], num_components: int = NUM_COMPONENTS
) -> PrincipalComponents:
    """Return features projected onto the directions of largest variance; missing components are zero.

    The sign of a direction makes its entry of largest magnitude positive, so that the result is deterministic.
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
    """Return values scaled to [0, 1], clipping the lowest and the highest 1 % of each component."""
    low, high = torch.quantile(values, torch.tensor(_COLOUR_QUANTILES, dtype=values.dtype), dim=0)
    spread: Tensor = high - low
    shades: Tensor = (values - low) / spread.clamp(min=1e-12)
    return shades.clamp(0, 1)


def upscale_patches(colours: Float64[np.ndarray, "rows columns 3"], size: tuple[int, int]) -> Tile:
    """Return a tile of size (height, width) in which every patch is a rectangle of its colour."""
    row, column = (np.arange(n) * cells // n for n, cells in zip(size, colours.shape[:2], strict=True))
    return np.asarray((255 * colours[row[:, None], column]).round(), np.uint8)

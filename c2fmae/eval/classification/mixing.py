"""Mixup and CutMix: every image is mixed with its neighbour in the batch, and so are their labels.

How, is drawn once for a step, as timm does by default. Unlike timm's, whose partner is the mirror image's place in a
process's batch, neighbours stay together however a batch is parted: so many small parts learn what the big one does.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config
from c2fmae.core.scene import GRANULARITIES

Probability = Annotated[float, Field(ge=0, le=1)]


class MixConfig(Config):
    """How often and how far images and labels are mixed; the defaults are those of MAE's fine-tuning."""

    mixup: Annotated[float, Field(ge=0)] = 0.8
    """α of the beta distribution of which Mixup's share is drawn; 0 is no Mixup."""
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    """The same of CutMix."""
    chance: Probability = 1.0
    """That the images of a step are mixed at all."""
    cutmix_chance: Probability = 0.5
    """That they are cut, where both are on."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of every label that is given to all labels alike."""


@dataclass(frozen=True)
class Mix:
    """How a step's images are mixed."""

    share: float = 1.0
    """How much of an image is its own."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right, in cells, of what it has from its neighbour (CutMix); without, all is blended."""


def draw_mix(config: MixConfig, cells: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw how images of so many cells are mixed; CutMix's share is that of its box as it fits into the image."""
    chance, choice, *place = rng.random(4)
    is_cut = config.cutmix > 0 and (config.mixup == 0 or choice < config.cutmix_chance)
    alpha = config.cutmix if is_cut else config.mixup
    if chance >= config.chance or alpha == 0:
        return Mix()
    share = float(rng.beta(alpha, alpha))
    if not is_cut:
        return Mix(share)
    sides = [int(side * math.sqrt(1 - share)) for side in cells]
    middles = [int(side * u) for side, u in zip(cells, place, strict=True)]
    low = [max(middle - side // 2, 0) for middle, side in zip(middles, sides, strict=True)]
    high = [min(m + side // 2, most) for m, side, most in zip(middles, sides, cells, strict=True)]
    area = (high[0] - low[0]) * (high[1] - low[1])
    return Mix(1 - area / (cells[0] * cells[1]), (low[0], high[0], low[1], high[1]))


def neighbours(count: int, views: int = 1) -> Int64[Tensor, " sample"]:
    """Return who is mixed with whom: pairs, of other photos where `views` of one stand side by side.

    What has nobody left is left to itself.

    >>> neighbours(5)
    tensor([1, 0, 3, 2, 4])
    >>> neighbours(6, views=2)
    tensor([2, 3, 0, 1, 4, 5])
    """
    rows = torch.arange(count)
    others = ((rows // views) ^ 1) * views + rows % views
    return torch.where(others < count, others, rows)


def mixed_map(
    name: str,
    values: Shaped[Tensor, "batch *map"],
    mix: Mix,
    cells: tuple[int, int],
    whom: Int64[Tensor, " sample"],
) -> Tensor:
    """Return a granularity's maps mixed with others; blended ids are those of whoever has more of the image."""
    if mix == Mix():
        return values
    others = values[whom]
    if mix.box is None:
        if GRANULARITIES.get(name).kind == "ids":
            return values if mix.share >= 0.5 else others
        return torch.lerp(others, values, mix.share)
    top, bottom, left, right = mix.box
    rows, columns = values.shape[-2] // cells[0], values.shape[-1] // cells[1]
    cut = values.clone()
    box = (..., slice(top * rows, bottom * rows), slice(left * columns, right * columns))
    cut[box] = others[box]
    return cut


def soft_targets(
    labels: Int64[Tensor, " sample"],
    num_labels: int,
    *,
    share: float,
    smoothing: float,
    whom: Int64[Tensor, " sample"],
) -> Float[Tensor, "sample label"]:
    """Return what is to be predicted: an image's own label by its share, the other's by the rest, smoothed."""
    sharp = torch.nn.functional.one_hot(labels, num_labels).float()
    smooth = sharp * (1 - smoothing) + smoothing / num_labels
    return smooth if share == 1 else torch.lerp(smooth[whom], smooth, share)

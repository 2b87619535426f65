"""Standardisation of pixels and continuous maps, from stored values to model inputs."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor


def standardise(
    images: UInt8[Tensor, "batch channels height width"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Return (value / 255 - mean) / std.

    Call it after the transfer to the device: uint8 images have a quarter of the bytes of float32 images.
    """
    scale, shift = 1 / (255 * std), -mean / std
    return torch.addcmul(shift.view(-1, 1, 1), images, scale.view(-1, 1, 1))


def trimmed_mean_std(
    maps: Shaped[Tensor, "batch height width"],
) -> tuple[Float[Tensor, "batch 1 1"], Float[Tensor, "batch 1 1"]]:
    """Return the mean and standard deviation of each map without the lowest and the highest tenth of its values.

    MultiMAE standardises depth in this way: its unit differs from data set to data set, and its extremes are often
    wrong.
    """
    values = maps.flatten(1).float()
    tenth = values.shape[1] // 10
    middle = values.sort(dim=1).values[:, tenth : values.shape[1] - tenth]
    variance, mean = torch.var_mean(middle, dim=1, keepdim=True)
    return mean.unsqueeze(2), (variance + 1e-6).sqrt().unsqueeze(2)

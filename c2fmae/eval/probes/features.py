"""What an encoder says of photos alone, and what is in them to be found."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes, standardise
from c2fmae.masking import patch_regions
from c2fmae.methods import MaskedAutoencoding

PatchEncoder = Callable[[UInt8[Tensor, "batch channels height width"]], Float[Tensor, "batch patch dim"]]
"""From photos as bytes to a vector for each of their patches, row by row."""
PatchPooling = Callable[[Float[Tensor, "batch patch dim"]], Float[Tensor, "batch pooled"]]
"""From the patches' vectors to the photo's."""


@dataclass(frozen=True)
class PatchFeatures:
    """Of scenes: their photos' features, and the truth that probes look for in them."""

    pooled: Float[Tensor, "scene pooled"]
    patches: Float[Tensor, "scene patch dim"]
    labels: Int64[Tensor, " scene"]
    """-1 for scenes without one."""
    classes: Int64[Tensor, "scene patch"]
    """The semantic id that most of a patch has; 255 where nobody labelled it, or there is no map."""


def pool_mean(patches: Float[Tensor, "batch patch dim"]) -> Float[Tensor, "batch dim"]:
    """Pool by the mean: where in the photo something is does not count."""
    return patches.mean(dim=1)


def pool_concatenated(patches: Float[Tensor, "batch patch dim"]) -> Float[Tensor, "batch pooled"]:
    """Pool by keeping all, in order."""
    return patches.flatten(1)


def make_image_encoder(method: MaskedAutoencoding) -> PatchEncoder:
    """Return what a method's encoder says of photos, without its global token, in evaluation mode and full precision.

    A method that was only built, from another seed, is the untrained encoder to compare with.
    """
    mean, std = (torch.tensor(values) for values in method.config.mean_and_std("rgb"))
    prefix: int = method.model.get_submodule("encoder").num_prefix_tokens  # type: ignore[assignment]

    def encode(images: Tensor) -> Tensor:
        modes = [(module, module.training) for module in method.model.modules()]
        method.model.eval()  # drop path is for training
        try:
            images = standardise(images, mean.to(images.device), std.to(images.device))
            tokens: Tensor = method.model.encode(images)  # type: ignore[operator]
        finally:
            for module, is_training in modes:
                module.training = is_training
        return tokens[:, prefix:]

    return encode


@torch.no_grad()
def encode_scenes(
    encode: PatchEncoder, scenes: Scenes, view: CentralView, *, pool: PatchPooling = pool_mean, batch_size: int = 256
) -> PatchFeatures:
    """Encode the photos of all scenes, as `view` cuts them, and keep in memory what comes out."""
    batches = []
    for first in range(0, len(scenes), batch_size):
        rows = range(first, min(first + batch_size, len(scenes)))
        batches.append(_encode_batch(encode, SceneBatch.stack([view(scenes[row]) for row in rows]), pool))
    return PatchFeatures(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _encode_batch(
    encode: PatchEncoder, scenes: SceneBatch, pool: PatchPooling
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch's part of each of the features' fields."""
    photos = scenes.maps["rgb"]
    patches = encode(photos).float()
    labels = torch.tensor([-1 if label is None else label for label in scenes.labels])
    if "semantic" not in scenes.maps:
        return pool(patches), patches, labels, torch.full(patches.shape[:2], IGNORE)
    semantic = scenes.maps["semantic"]
    side = math.isqrt(semantic[0].numel() // patches.shape[1])  # cells along a patch
    return pool(patches), patches, labels, patch_regions(semantic, side).long()

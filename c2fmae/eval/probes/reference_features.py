"""Baseline features without training: raw pixels and colour histograms.

They have the interface of a backbone with one block, so every probe can use them.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from c2fmae.core.specs import BackboneSpec, EncoderConfig, Pooling
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import BackboneInput
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.patches import patchify

_COLOURS_PER_CHANNEL = 4


class RawPixels(Backbone):
    """The standardised pixels of each patch; pooled, those of all patches in order."""

    name = "raw pixels"

    def __init__(self, like: BackboneSpec) -> None:
        nn.Module.__init__(self)
        encoder = EncoderConfig(name=self.name, patch_size=like.encoder.patch_size)  # the name is part of the digest
        images = {"image_size": like.image_size, "channels": {"rgb": 3}, "mean": like.mean, "std": like.std}
        self.spec = BackboneSpec.model_validate({"encoder": encoder, **images})
        self.load_report = LoadReport(source=self.name, loaded=())

    @property
    def dim(self) -> int:
        """The number of values of a patch."""
        return 3 * self.patch**2

    @property
    def depth(self) -> int:
        """The number of blocks, 1."""
        return 1

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches, 0."""
        return 0

    def stretches_positions(self, image_size: tuple[int, int]) -> bool:
        """Return False: there are no positions."""
        del image_size
        return False

    def get_intermediate_layers(
        self, maps: BackboneInput | UInt8[Tensor, "batch channels height width"], depths: Sequence[int]
    ) -> list[Float[Tensor, "batch patch dim"]]:
        """Return the features of patches, the same for every depth."""
        return [self._encode_patches(maps["rgb"] if isinstance(maps, Mapping) else maps)] * len(depths)

    def pool(
        self, tokens: Float[Tensor, "batch patch dim"], pooling: Pooling | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch pooled"]:
        """Return the features of all patches in order."""
        del pooling, depth
        return tokens.flatten(1)

    def _encode_patches(self, images: Tensor) -> Float[Tensor, "batch patch dim"]:
        return patchify(images, self.patch)


class ColourHistogram(RawPixels):
    """The fractions of 4 × 4 × 4 colours in each patch; pooled, those in the image."""

    name = "colour histogram"

    @property
    def dim(self) -> int:
        """The number of colours."""
        return _COLOURS_PER_CHANNEL**3

    def standardise(self, images: Tensor) -> Tensor:
        """Return images unchanged: histograms are computed from bytes."""
        return images

    def pool(
        self, tokens: Float[Tensor, "batch patch dim"], pooling: Pooling | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch pooled"]:
        """Return the histogram of the image."""
        del pooling, depth
        return tokens.mean(dim=1)

    def _encode_patches(self, images: Tensor) -> Float[Tensor, "batch patch dim"]:
        red, green, blue = (images // (256 // _COLOURS_PER_CHANNEL)).long().unbind(dim=1)
        colours = patchify((red * _COLOURS_PER_CHANNEL + green) * _COLOURS_PER_CHANNEL + blue, self.patch)
        histogram = torch.zeros(*colours.shape[:2], self.dim, device=images.device)
        ones = torch.ones(1, device=images.device).expand(colours.shape)
        return histogram.scatter_add_(2, colours, ones) / colours.shape[2]

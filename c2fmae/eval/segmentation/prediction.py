"""The class of every pixel of an image: whole or in windows, at one scale or several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.func import functional_call

from c2fmae.core.crop_box import CropBox
from c2fmae.data.geometry import resized_crop_image, stored_pixels
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.eval.segmentation.windows import padded_logits, slide
from c2fmae.models.segmenters import Segmenter
from c2fmae.models.segmenters.upsampling import upsample_at, upsample_logits, upsampled_argmax

_PIXELS_AT_ONCE = 1 << 16  # of probabilities that are added


@torch.inference_mode()
def predict_ids(
    segmenter: Segmenter,
    image: UInt8[Tensor, "channels height width"],
    testing: TestingConfig,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> UInt8[Tensor, "height width"]:
    """Return the class of every pixel, at the image's own size and on its device.

    The segmenter must be in evaluation mode; `weights` replace its own. Logits are resized to the image before the
    argmax; of several views, the sum of the probabilities decides.
    """
    predictor = _Predictor(segmenter, testing, weights)
    size = (image.shape[1], image.shape[2])
    views = testing.list_views(size)
    if len(views) > 1:
        ids = predictor.sum_probabilities(image).argmax(dim=0).to(torch.uint8)
    elif views[0][0] == size:
        ids = predictor.predict_unresized(predictor.standardise(image))
    else:
        ids = upsampled_argmax(predictor.compute_logits(image, views[0][0]), size)
    return ids.to(image.device)


@torch.inference_mode()
def predict_cells(
    segmenter: Segmenter, image: UInt8[Tensor, "channels height width"], testing: TestingConfig, stride: int
) -> tuple[UInt8[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """Return the class of each stored cell of an image at a stride, and its probability, on the image's device.

    The classes are those of `predict_ids`, but for rounding. Logits are resized and normalised at stored cells only.
    """
    predictor = _Predictor(segmenter, testing, None)
    size = (image.shape[1], image.shape[2])
    device = next(segmenter.parameters()).device
    rows, columns = (torch.from_numpy(stored_pixels(length, stride)).to(device) for length in size)
    views = testing.list_views(size)
    probabilities = torch.zeros((), device=device)
    for view_size, is_flipped in views:
        logits = predictor.compute_logits(image, view_size, is_flipped=is_flipped)
        probabilities = probabilities + upsample_at(logits, size, (rows, columns)).softmax(dim=0)
    confidence, ids = (probabilities / len(views)).max(dim=0)
    return ids.to(torch.uint8).to(image.device), confidence.to(image.device)


@dataclass(frozen=True)
class _Predictor:
    """A segmenter with the settings of its test."""

    segmenter: Segmenter
    testing: TestingConfig
    weights: Mapping[str, Tensor] | None

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch class rows columns"]:
        """Return the logits of standardised images, whose sides are multiples of the patch."""
        precision, device_type = self.testing.precision, images.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
            if self.weights is None:
                logits: Tensor = self.segmenter(images)["main"]
            else:
                logits = functional_call(self.segmenter, dict(self.weights), (images,))["main"]
        return logits

    def standardise(self, image: UInt8[Tensor, "stored height width"]) -> Float[Tensor, "channels height width"]:
        """Return the standardised image on the segmenter's device; grey images are repeated for colours."""
        device = next(self.segmenter.parameters()).device
        return self.segmenter.backbone.standardise(image[None].to(device))[0]

    def predict_unresized(self, image: Float[Tensor, "channels height width"]) -> UInt8[Tensor, "height width"]:
        """Return the class of every pixel of a standardised image; no array holds the logits of all pixels."""
        height, width = image.shape[1:]
        window, _ = self._resolve_window((height, width))
        if height <= window[0] and width <= window[1]:
            logits, padded_size = padded_logits(self.forward, image[None], self.segmenter.backbone.patch)
            return upsampled_argmax(logits[0], padded_size)[:height, :width]
        return torch.cat([band.argmax(dim=0).to(torch.uint8) for band in self._slide(image)])

    def compute_logits(
        self, image: UInt8[Tensor, "channels height width"], size: tuple[int, int], *, is_flipped: bool = False
    ) -> Float[Tensor, "class rows columns"]:
        """Return the logits of an image that is resized to `size` and flipped, flipped back."""
        if size != (image.shape[1], image.shape[2]):
            box = CropBox(0, 0, image.shape[1], image.shape[2])
            image = resized_crop_image(image.cpu(), box, size)  # torch resizes bytes with antialiasing only on CPUs
        view = self.standardise(image)
        logits = torch.cat(list(self._slide(view.flip(-1) if is_flipped else view)), dim=1)
        return logits.flip(-1) if is_flipped else logits

    def sum_probabilities(self, image: UInt8[Tensor, "channels height width"]) -> Float[Tensor, "class height width"]:
        """Return the sum of the probabilities of all views, each at the size of the image."""
        size = (image.shape[1], image.shape[2])
        sums: Tensor | None = None
        for view_size, is_flipped in self.testing.list_views(size):
            logits = self.compute_logits(image, view_size, is_flipped=is_flipped)
            if sums is None:
                sums = logits.new_zeros(len(logits), *size)
            upsampled = upsample_logits(logits[None], size)[0].flatten(1)
            for part, pixels in zip(
                sums.flatten(1).split(_PIXELS_AT_ONCE, dim=1), upsampled.split(_PIXELS_AT_ONCE, dim=1), strict=True
            ):
                part += pixels.softmax(dim=0)
        assert sums is not None
        return sums

    def _slide(self, image: Float[Tensor, "channels height width"]) -> Iterator[Tensor]:
        window, stride = self._resolve_window((image.shape[1], image.shape[2]))
        patch, batch_size = self.segmenter.backbone.patch, self.testing.batch_size
        return slide(self.forward, image, window=window, stride=stride, patch=patch, batch_size=batch_size)

    def _resolve_window(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the window and the stride for an image of this size."""
        if self.testing.mode == "whole":
            return size, size
        return self.testing.resolve_window(self.segmenter.spec.backbone.image_size)

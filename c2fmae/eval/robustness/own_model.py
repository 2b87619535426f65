"""Any `nn.Module` that classifies images, as a classifier that `eval robustness` tests."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo, is_wnid
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD
from c2fmae.eval.cache import compute_module_digest
from c2fmae.eval.robustness.image_classifier import ImageClassifier, NormalisedModel, describe_architecture

ImageTransform = Callable[[Image.Image], Any]

_PROBE_SIZE = (300, 400)  # of the images that a transform is tried on
_ALLOWED_LEVELS = 1.0  # of 255, between a transform's black or white and the one that mean and std give


@dataclass(frozen=True, eq=False)  # compared by identity: functions have no equality
class TransformView:
    """A transform of Pillow images. Standardised results are converted back to bytes, which is exact if it began so."""

    transform: ImageTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str
    """Identifies the transform in stored predictions."""

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Return the transformed image."""
        values = self.compute_levels(image).round()
        return values.clamp(0, 255).to(torch.uint8)

    def compute_levels(self, image: UInt8[Tensor, "3 height width"]) -> Tensor:
        """Return the transformed image as real numbers from 0 to 255."""
        result = self.transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        if isinstance(result, Image.Image):
            result = torch.from_numpy(np.array(result.convert("RGB"))).permute(2, 0, 1)
        if not isinstance(result, Tensor) or result.ndim != 3 or len(result) != 3:
            got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UserError(f"transform: expected a tensor [3, height, width] or a Pillow image, got {got}")
        if result.dtype == torch.uint8:
            return result.float()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (result.float() * std + mean) * 255

    @property
    def identity(self) -> dict[str, Any]:
        """All settings of the view, for JSON."""
        return {"kind": "transform", "transform": self.description, "mean": self.mean, "std": self.std}

    def __str__(self) -> str:
        return "the model's own transform"


def classifier_from_module(
    model: nn.Module,
    labels: Sequence[str | LabelInfo | None],
    transform: ImageTransform,
    *,
    name: str = "own model",
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> ImageClassifier:
    """Return a classifier for `eval robustness` from a module that maps standardised images to logits.

    Args:
        model: takes [batch, 3, height, width] and returns [batch, classes]; it is put into evaluation mode.
        labels: the class of each logit: its name, its WordNet id, or both as a `LabelInfo`; None if unknown.
        transform: the transform of Pillow images that the model is evaluated with. It returns a standardised tensor,
            as those of torchvision and timm do, or a tensor of bytes or an image that has not been standardised.
        name: the name in tables and files.
        mean: of the model's inputs, by channel: those of the transform's normalisation, ImageNet's by default.
        std: standard deviation of the model's inputs. Without normalisation, mean and std are 0 and 1.

    Raises a `UserError` if a black or white image, transformed, does not have the values that mean and std give, or if
    the number of labels is not that of the logits.
    """
    # A function's address does not identify it, so predictions that were stored with it are not reused.
    description = repr(transform) if " at 0x" not in repr(transform) else secrets.token_hex(8)
    view = TransformView(transform, mean, std, description)
    for value, colour in ((0, "black"), (255, "white")):
        levels = view.compute_levels(torch.full((3, *_PROBE_SIZE), value, dtype=torch.uint8))
        if (levels - value).abs().max() > _ALLOWED_LEVELS:
            raise UserError(
                f"transform: a {colour} image does not become {colour} again with mean {mean} and std {std}. Set mean"
                " and std to those of the transform's normalisation, or to 0 and 1 if it has none"
            )
    known = tuple(_to_label_info(label) for label in labels)
    normalised = NormalisedModel(model, mean, std).eval()
    image = view(torch.zeros(3, *_PROBE_SIZE, dtype=torch.uint8)).unsqueeze(0)
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    with torch.inference_mode():
        logits = normalised.to(device)(image.to(device))
    if not isinstance(logits, Tensor) or logits.shape != (1, len(known)):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"labels: expected one for each logit of the model, got {len(known)} and an output of {got}")
    digest = compute_module_digest(model, f"{known}{mean}{std}{describe_architecture(model)}")
    size = (image.shape[2], image.shape[3])
    return ImageClassifier(name, known, view, normalised, size, digest, f"{name}: a module in memory")


def _to_label_info(label: str | LabelInfo | None) -> LabelInfo | None:
    return LabelInfo(name=label, wnid=label if is_wnid(label) else None) if isinstance(label, str) else label

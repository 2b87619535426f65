"""Classifiers whose logits count pixels of colours that encode classes, and images of such colours."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.data.suites import Cell, ShiftedSet
from c2fmae.eval.robustness.image_classifier import CentralImageView, ImageClassifier, ImageView
from c2fmae.models.classifiers import imagenet_labels
from tests.eval.tiny_backbones import InMemoryScenes

SIZE = (10, 10)
IMAGENET_LABELS = imagenet_labels()


def class_colour(column: int) -> Tensor:
    """Return the colour that encodes a class by the decimal digits of its index."""
    return torch.tensor([column % 10, column // 10 % 10, column // 100]).mul(25).to(torch.uint8)


def make_class_image(first: int, second: int | None = None, size: int = 10) -> Tensor:
    """Return an image with 60 % of the pixels of one class, and the rest of another."""
    pixels = class_colour(first).view(3, 1, 1).repeat(1, size, size)
    if second is not None:
        pixels[:, 6 * size // 10 :] = class_colour(second).view(3, 1, 1)
    return pixels


class ColourNet(nn.Module):
    """A network whose logits are the numbers of pixels of each class's colour."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_images = num_classes, 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        self.num_images += len(images)
        digits = (images.float() / 25).round().long().flatten(2)
        columns = digits[:, 0] + 10 * digits[:, 1] + 100 * digits[:, 2]
        logits = torch.zeros(len(images), 1000)
        logits.scatter_add_(1, columns.clamp(max=999), torch.ones_like(columns, dtype=torch.float))
        return logits[:, : self.num_classes]


def make_colour_classifier(
    labels: Sequence[LabelInfo | None] = IMAGENET_LABELS,
    *,
    source: str = "planted",
    size: tuple[int, int] = SIZE,
    view: ImageView | None = None,
) -> ImageClassifier:
    """Return a classifier that predicts the class of the most frequent colour."""
    view = view or CentralImageView(CentralView(size=size))
    return ImageClassifier(source, tuple(labels), view, ColourNet(len(labels)), size, f"digest of {source}", "planted")


def make_labelled_scenes(images: Sequence[tuple[int, Tensor]], prefix: str = "image") -> InMemoryScenes:
    """Return scenes of images with labels."""
    return InMemoryScenes(
        [Scene(f"{prefix}-{n:04d}", {"rgb": image}, label) for n, (label, image) in enumerate(images)]
    )


def make_shifted_set(
    cells: Sequence[Cell],
    labels: Sequence[LabelInfo | None],
    *,
    suite: str = "custom",
    name: str | None = None,
    protocol_wnids: tuple[str, ...] | None = None,
    is_cropped: bool = False,
    creation_sentence: str | None = None,
    warnings: tuple[str, ...] = (),
) -> ShiftedSet:
    """Return a set in memory."""
    return ShiftedSet(
        name=name or suite,
        suite=suite,
        cells=tuple(cells),
        labels=tuple(labels),
        protocol_wnids=protocol_wnids,
        is_cropped=is_cropped,
        creation_sentence=creation_sentence,
        warnings=warnings,
        identity=f"identity of {name or suite}",
    )

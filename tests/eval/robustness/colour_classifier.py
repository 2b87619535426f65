"""Classifiers that read their answers from a photo's colours, and photos that hold them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.data.suites.cells import Cell
from c2fmae.data.suites.shifted_set import ShiftedSet
from c2fmae.eval.robustness.image_classifier import Centre, Entrant, View
from c2fmae.models.classifiers import imagenet_labels
from tests.eval.tiny_backbones import Drawn

SIZE = (10, 10)
THOUSAND = imagenet_labels()


def colour(column: int) -> Tensor:
    """The colour that means a class: its decimal digits."""
    return torch.tensor([column % 10, column // 10 % 10, column // 100]).mul(25).to(torch.uint8)


def photo(first: int, second: int | None = None, size: int = 10) -> Tensor:
    """A photo of which six tenths say one class, and the rest another."""
    pixels = colour(first).view(3, 1, 1).repeat(1, size, size)
    if second is not None:
        pixels[:, 6 * size // 10 :] = colour(second).view(3, 1, 1)
    return pixels


class ByColour(nn.Module):
    """A logit is the number of pixels of a class's colour."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.seen = num_classes, 0

    def forward(self, photos: Tensor) -> Tensor:
        """Count."""
        self.seen += len(photos)
        digits = (photos.float() / 25).round().long().flatten(2)
        columns = digits[:, 0] + 10 * digits[:, 1] + 100 * digits[:, 2]
        logits = torch.zeros(len(photos), 1000)
        logits.scatter_add_(1, columns.clamp(max=999), torch.ones_like(columns, dtype=torch.float))
        return logits[:, : self.num_classes]


def entrant(
    labels: Sequence[LabelInfo | None] = THOUSAND,
    *,
    source: str = "planted",
    size: tuple[int, int] = SIZE,
    view: View | None = None,
) -> Entrant:
    """A classifier that is right about every photo whose first colour is its class's."""
    view = view or Centre(CentralView(size=size))
    return Entrant(source, tuple(labels), view, ByColour(len(labels)), size, f"digest of {source}", "planted")


def scenes(photos: Sequence[tuple[int, Tensor]], prefix: str = "photo") -> Drawn:
    """Photos with the set's labels."""
    return Drawn([Scene(f"{prefix}-{n:04d}", {"rgb": each}, label) for n, (label, each) in enumerate(photos)])


def shifted(
    cells: Sequence[Cell],
    labels: Sequence[LabelInfo | None],
    *,
    kind: str = "custom",
    name: str | None = None,
    protocol_wnids: tuple[str, ...] | None = None,
    is_cut: bool = False,
    self_made: str | None = None,
    notes: tuple[str, ...] = (),
) -> ShiftedSet:
    """A set in memory."""
    return ShiftedSet(
        name=name or kind,
        kind=kind,
        cells=tuple(cells),
        labels=tuple(labels),
        protocol_wnids=protocol_wnids,
        is_cut=is_cut,
        self_made=self_made,
        notes=notes,
        identity=f"identity of {name or kind}",
    )


class FolderOf:
    """A folder for each source."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, each: Entrant) -> Path:
        """Name it."""
        return self.root / each.source

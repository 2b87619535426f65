"""The objects of all images of a set, in columns that worker processes share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from c2fmae.core.objects import Objects

Corners = tuple[float, float, float, float]

IDS_PER_IMAGE = 1 << 16
"""Object n of image i has the id i · 65536 + n in data without ids of annotations."""


class ObjectRow(NamedTuple):
    """One object, as it is read."""

    box: Corners
    label: int
    is_crowd: bool
    area: float
    id: int
    mask: bytes | None = None


def rows_to_objects(rows: Sequence[ObjectRow], *, has_masks: bool) -> Objects:
    """Return the objects of an image; `has_masks` matters if there are none."""
    columns = _rows_to_columns(rows)
    return Objects(*columns, tuple(row.mask or b"" for row in rows) if has_masks else None)


@dataclass(frozen=True)
class ObjectTable:
    """Objects in the order of their images; as a list of tuples, each worker would get a copy of those of COCO."""

    boxes: Float32[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    is_crowd: Bool[Tensor, " objects"]
    areas: Float32[Tensor, " objects"]
    ids: Int64[Tensor, " objects"]
    image_ends: Int64[Tensor, " images"]
    """The number of objects up to each image."""
    mask_bytes: UInt8[Tensor, " bytes"] | None
    mask_ends: Int64[Tensor, " objects"]

    @classmethod
    def from_rows(cls, rows_by_image: Sequence[Sequence[ObjectRow]], *, has_masks: bool) -> "ObjectTable":
        """Create a table from the objects of each image."""
        rows = [row for image in rows_by_image for row in image]
        masks = [row.mask or b"" for row in rows]
        return cls(
            *_rows_to_columns(rows),
            torch.tensor([len(image) for image in rows_by_image], dtype=torch.int64).cumsum(0),
            torch.frombuffer(bytearray(b"".join(masks) or b"\0"), dtype=torch.uint8) if has_masks else None,
            torch.tensor([len(mask) for mask in masks], dtype=torch.int64).cumsum(0),
        )

    def __len__(self) -> int:
        return len(self.image_ends)

    def __getitem__(self, index: int) -> Objects:
        """Return the objects of an image."""
        rows = slice(int(self.image_ends[index - 1]) if index else 0, int(self.image_ends[index]))
        masks = None
        if self.mask_bytes is not None:
            start = int(self.mask_ends[rows.start - 1]) if rows.start else 0
            ends = self.mask_ends[rows].tolist()
            encoded = self.mask_bytes[start : ends[-1] if ends else start].numpy().tobytes()
            masks = tuple(encoded[a - start : b - start] for a, b in zip([start, *ends], ends, strict=False))
        return Objects(
            self.boxes[rows], self.labels[rows], self.is_crowd[rows], self.areas[rows], self.ids[rows], masks
        )

    def count_objects(self) -> Int64[Tensor, " images"]:
        """Return how many objects that are no crowds each image has."""
        counted = torch.cat([torch.zeros(1, dtype=torch.int64), (~self.is_crowd).cumsum(0)])
        return counted[self.image_ends].diff(prepend=counted[:1])


def _rows_to_columns(
    rows: Sequence[ObjectRow],
) -> tuple[
    Float32[Tensor, "objects 4"],
    Int64[Tensor, " objects"],
    Bool[Tensor, " objects"],
    Float32[Tensor, " objects"],
    Int64[Tensor, " objects"],
]:
    return (
        torch.tensor([row.box for row in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([row.label for row in rows], dtype=torch.int64),
        torch.tensor([row.is_crowd for row in rows], dtype=torch.bool),
        torch.tensor([row.area for row in rows], dtype=torch.float32),
        torch.tensor([row.id for row in rows], dtype=torch.int64),
    )

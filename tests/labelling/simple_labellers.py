"""Labellers that cost nothing, and images for them."""

import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from c2fmae.core.labels import ClassInfo
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.painting import number_instances
from c2fmae.labelling.objects import make_objects
from c2fmae.labelling.protocol import LabelInput, LabelResult


class Brightness:
    """Semantic maps of dark and bright pixels, and an instance for each of four columns that is bright on average."""

    classes: tuple[ClassInfo, ...] = (ClassInfo(name="dark"), ClassInfo(name="bright"))
    maps_know_labels: bool | None = False

    def __init__(self, limit: int = 128, granularities: Sequence[str] = ("semantic", "instance")) -> None:
        self.limit, self.granularities = limit, frozenset(granularities)
        self.batches: list[tuple[str, ...]] = []

    def batch_key(self, height: int, width: int) -> Hashable:
        return -(-height // 32), -(-width // 32)

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        self.batches.append(tuple(each.key for each in inputs))
        return [self._label_image(each, stride) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        return {"labeller": "brightness", "limit": self.limit}

    def _label_image(self, labelled: LabelInput, stride: int) -> LabelResult:
        grey = subsample_ids(labelled.image.float().mean(dim=0), stride)
        columns = torch.arange(grey.shape[1]) * 4 // grey.shape[1] + 1
        is_bright = torch.stack([grey[:, columns == n].mean() > self.limit for n in range(1, 5)])
        regions = torch.where(is_bright[columns - 1], columns, 0).expand(grey.shape).to(torch.int32)
        instance, found = number_instances(regions.contiguous(), ignore=None)
        maps = {"semantic": (grey > self.limit).to(torch.uint8), "instance": instance}
        size = (labelled.image.shape[1], labelled.image.shape[2])
        objects = make_objects(found, stride=stride, image_size=size) if "instance" in self.granularities else ()
        metadata = {"confidence": 0.123456} if "semantic" in self.granularities else {}
        return LabelResult({name: maps[name] for name in self.granularities}, objects, metadata)


def encode_jpeg(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """Return a JPEG with an EXIF orientation."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def write_images(folder: Path, count: int, *, broken: Sequence[int] = (), dark: Sequence[int] = ()) -> Path:
    """Write JPEGs of several sizes into a flat folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([number])
        height, width = rng.integers(20, 60, size=2).tolist()
        pixels = rng.integers(256, size=(height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)[:height, :width] // (8 if number in dark else 1)
        data = encode_jpeg(pixels, orientation=6 if number % 5 == 0 else 1)
        (folder / f"{number:04d}.jpg").write_bytes(data[: len(data) // 2] if number in broken else data)
    return folder

"""The files that `c2fmae predict` writes for a segmenter: id maps, overlays, and links to the images.

OUT/semantic/KEY.png   ids, with a palette so that viewers show colours
OUT/overlay/KEY.jpg    the image under the colours of the classes; legend.png names them
OUT/rgb/KEY.*          the image, with which OUT is a data set
OUT/dataset.json       the classes by id
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from c2fmae.core.files import read_file, write_atomic
from c2fmae.data import Scenes
from c2fmae.data.decode import decode_ids
from c2fmae.data.encode import encode_image
from c2fmae.data.info import DATASET_FILE
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.eval.predicted_scenes import (
    check_output_keys,
    describe_predicted_maps,
    encode_coloured_ids,
    image_file_name,
    link_image,
    list_colours,
)
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.segmenters import Segmenter
from c2fmae.report.drawing import colour_classes, draw_legend, image_to_tile, save_png

LEGEND_FILE = "legend.png"

_MAX_PIXELS = 40_000_000
_MAX_PROBABILITIES = 1_000_000_000  # 4 GB: 150 classes of 6.7 megapixels
_MAX_PATCHES = 16_384  # 2048² pixels in patches of 16
_OPACITY = 0.5  # of classes in overlays
_LEGEND_WIDTH, _LEGEND_ROW = 320, 18


@dataclass(frozen=True)
class IdMapFiles:
    """The files of images' predictions. Each is written completely or not at all, and never replaced."""

    segmenter: Segmenter
    scenes: Scenes
    out: Path
    testing: TestingConfig
    has_overlays: bool
    has_images: bool

    def __post_init__(self) -> None:
        check_output_keys(self.scenes.keys)

    @property
    def module(self) -> nn.Module:
        """The model, which is to be moved to its device."""
        return self.segmenter

    @property
    def view(self) -> None:
        """Images are predicted as they are."""

    @cached_property
    def digest(self) -> str:
        """A digest of the spec and the weights."""
        return compute_weights_digest(self.segmenter)

    @property
    def protocol(self) -> str:
        """How images are predicted, in words."""
        patches = f"{_MAX_PATCHES:,} patches in windows, " if self.testing.mode == "whole" else ""
        max_pixels = _max_pixels(self.testing, self.segmenter.num_classes)
        return (
            f"{self.testing.describe(self.segmenter.spec.backbone.image_size)}; images of more than {patches}"
            f"{max_pixels / 10**6:.3g} megapixels in windows and at one scale"
        )

    def prepare(self) -> None:
        """Write the description of the classes, and the legend of overlays."""
        has_images = self.has_images or (self.out / "rgb").is_dir()
        granularities = ("semantic", "rgb") if has_images else ("semantic",)
        info = describe_predicted_maps(self.scenes.info, granularities, self.segmenter.spec.classes)
        write_atomic(self.out / DATASET_FILE, info.to_json().encode())
        if self.has_overlays:
            names = [entry.name for entry in self.segmenter.spec.classes]
            entries = dict(zip(names, list_colours(colour_classes), strict=False))
            legend = draw_legend(entries, _LEGEND_ROW * len(entries), _LEGEND_WIDTH)
            save_png(Image.fromarray(legend), self.out / LEGEND_FILE)

    def list_pending(self) -> list[int]:
        """Return the rows of images with a missing file."""
        return [
            row
            for row in range(len(self.scenes))
            if not (
                self._map_path(row).exists()
                and (not self.has_overlays or self._overlay_path(row).exists())
                and (not self.has_images or self._image_path(row).exists())
            )
        ]

    def write(self, rows: Sequence[int], images: Sequence[UInt8[Tensor, "channels height width"]]) -> None:
        """Write the missing files of images; an existing map is not predicted again."""
        for row, image in zip(rows, images, strict=True):
            self._write_files(row, image)

    def _write_files(self, row: int, image: UInt8[Tensor, "channels height width"]) -> None:
        path = self._map_path(row)
        ids = decode_ids(read_file(path), str(path)) if path.exists() else None
        if ids is None or ids.shape != image.shape[1:]:  # another image of the same name
            size = (image.shape[1], image.shape[2])
            testing = limit_size(self.testing, size, self.segmenter.backbone.patch, self.segmenter.num_classes)
            ids = predict_ids(self.segmenter, image, testing).cpu().numpy()
            write_atomic(path, encode_coloured_ids(ids, colour_classes))
        if self.has_overlays and not self._overlay_path(row).exists():
            write_atomic(self._overlay_path(row), _encode_overlay(image, ids))
        if self.has_images and not self._image_path(row).exists():
            link_image(self.scenes, row, image, self._image_path(row))

    def _map_path(self, row: int) -> Path:
        return self.out / "semantic" / f"{self.scenes.keys[row]}.png"

    def _overlay_path(self, row: int) -> Path:
        return self.out / "overlay" / f"{self.scenes.keys[row]}.jpg"

    def _image_path(self, row: int) -> Path:
        return self.out / "rgb" / image_file_name(self.scenes, row)


def limit_size(testing: TestingConfig, size: tuple[int, int], patch: int, num_classes: int) -> TestingConfig:
    """Return the settings for an image of this height and width: a very large one is predicted in windows.

    The time of attention grows with the square of the number of patches; several views take the memory of the
    probabilities of all classes at the size of the image.
    """
    if size[0] * size[1] > _max_pixels(testing, num_classes):
        return testing.model_copy(update={"mode": "slide", "scales": (1.0,), "flip": False})
    height, width = testing.resized_size(size, max(testing.scales))
    if testing.mode == "whole" and height * width > _MAX_PATCHES * patch**2:
        return testing.model_copy(update={"mode": "slide"})
    return testing


def _max_pixels(testing: TestingConfig, num_classes: int) -> int:
    has_several_views = len(testing.scales) > 1 or testing.flip
    return min(_MAX_PIXELS, _MAX_PROBABILITIES // num_classes) if has_several_views else _MAX_PIXELS


def _encode_overlay(image: UInt8[Tensor, "channels height width"], ids: UInt8[np.ndarray, "height width"]) -> bytes:
    colours = np.array(list_colours(colour_classes), np.uint8)[ids]
    mixed = image_to_tile(image.numpy()) * np.float32(1 - _OPACITY) + colours * np.float32(_OPACITY)
    return encode_image(torch.from_numpy(mixed.round().astype(np.uint8)).permute(2, 0, 1))

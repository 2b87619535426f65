"""ImageNet-W: ImageNet's validation images with the watermark of "A Whac-A-Mole Dilemma" (Li et al. 2023).

The watermark is drawn when an image is read, by the authors' package `imagenet-w`: the set is not distributed.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torchvision.transforms.v2.functional as tv
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.data.suites.labelled import LabelledImages
from c2fmae.data.suites.shifted_set import ShiftedSet
from c2fmae.data.suites.suite import Suite, SuiteCheckReport
from c2fmae.data.transforms import CentralView

_IMAGE_SIZE = 224
_CROP = 224 / 256  # of the shorter side, as for models of 224 pixels


class WatermarkedImages:
    """The layout of ImageNet's validation images, which are cropped and watermarked when they are read."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Open a set. The package `imagenet-w` must be installed."""
        draw_watermark = _load_watermark()
        opened = LabelledImages().open(suite, source)
        identity = f"{opened.identity} imagenet-w {version('imagenet-w')}"
        cells = tuple(
            replace(cell, scenes=_WatermarkedScenes(cell.scenes, draw_watermark), identity=identity)
            for cell in opened.cells
        )
        return replace(opened, cells=cells, identity=identity, is_cropped=True)

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Compare the images without watermark with the validation set."""
        return LabelledImages().check(suite, source)


class _WatermarkedScenes(WrappedScenes):
    def __init__(self, source: Scenes, draw_watermark: Callable[[Image.Image], Image.Image]) -> None:
        super().__init__(source)
        self._draw_watermark = draw_watermark
        self._view = CentralView(size=(_IMAGE_SIZE, _IMAGE_SIZE), crop=_CROP)

    def __getitem__(self, index: int) -> Scene:
        scene = self._view(self.source[index])
        image = self._draw_watermark(tv.to_pil_image(scene.maps["rgb"]))
        return replace(scene, maps={**scene.maps, "rgb": tv.pil_to_tensor(image)})

    def read_image_bytes(self, index: int) -> bytes | None:  # noqa: ARG002
        """Return None: the watermarked image is stored nowhere."""
        return None


@cache
def _load_watermark() -> Callable[[Image.Image], Image.Image]:
    try:
        add_watermark = importlib.import_module("imagenet_w").AddWatermark
    except ImportError as error:
        raise UserError(
            "imagenet-w: the package that draws the watermark is not installed. Install it with: pip install imagenet-w"
        ) from error
    return cast(Callable[[Image.Image], Image.Image], add_watermark(_IMAGE_SIZE))

"""Examples of a tested segmenter: the images with the highest, the median and the lowest IoU, and its errors."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data import Scenes
from c2fmae.data.geometry import resized_crop_ids, resized_crop_image
from c2fmae.eval.examples import choose_examples
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.report.drawing import (
    UNLABELLED_COLOUR,
    Colour,
    Tile,
    colour_classes,
    draw_legend,
    draw_tile_sheet,
    image_to_tile,
    list_class_fractions,
    pad_tile,
)

_TILE_SIDE = 208
_WRONG_COLOUR = (214, 48, 49)
_MIN_LEGEND_FRACTION = 0.005  # of an image that is predicted as a class which it does not show
_EXPLANATION = (
    "The images with the highest, the median and the lowest IoU, averaged over the classes of each image alone. Errors "
    "are red; pixels without a label, which do not count, are light grey."
)


def draw_examples(
    scenes: Scenes, store: PredictionStore, image_ious: Float64[Tensor, " image"], class_names: Sequence[str]
) -> Image.Image | None:
    """Return image, truth, prediction, errors and classes of the chosen images; None if no image has a label."""
    rows, titles = [], []
    for group, indices in choose_examples(image_ious).items():
        for index in indices:
            scene = scenes[index]
            predicted = store.read(scene.key)
            if predicted is not None:
                rows.append(_draw_row(scene, predicted, class_names))
                titles.append(f"{group}\nIoU {100 * image_ious[index].item():.1f} %\n{scene.key}")
    if not rows:
        return None
    return draw_tile_sheet(
        rows,
        column_titles=("image", "truth", "prediction", "errors", "classes"),
        row_titles=titles,
        title="Examples",
        subtitle=_EXPLANATION,
    )


def _draw_row(
    scene: Scene, predicted: UInt8[Tensor, "height width"], class_names: Sequence[str]
) -> list[UInt8[np.ndarray, "side side 3"]]:
    height, width = predicted.shape
    size = (max(_TILE_SIDE * height // max(height, width), 1), max(_TILE_SIDE * width // max(height, width), 1))
    box = CropBox(0, 0, height, width)
    image = image_to_tile(resized_crop_image(scene.maps["rgb"], box, size).numpy())
    truth = resized_crop_ids(scene.maps["semantic"], box, size, stride=scene.label_stride).numpy()
    ids = resized_crop_ids(predicted, box, size).numpy()
    tiles = [image, colour_classes(truth), colour_classes(ids), _draw_errors(image, truth, ids)]
    return [
        *(pad_tile(tile, _TILE_SIDE, _TILE_SIDE) for tile in tiles),
        draw_legend(_list_colours(truth, ids, class_names), _TILE_SIDE, _TILE_SIDE),
    ]


def _draw_errors(image: Tile, truth: UInt8[np.ndarray, "height width"], ids: UInt8[np.ndarray, "height width"]) -> Tile:
    """Return the image in light grey with wrong pixels red and unlabelled ones plain."""
    grey: Tile = (160 + 0.35 * image.mean(axis=2, keepdims=True)).astype(np.uint8).repeat(3, axis=2)
    grey[truth == IGNORE] = UNLABELLED_COLOUR
    grey[(truth != ids) & (truth != IGNORE)] = _WRONG_COLOUR
    return grey


def _list_colours(
    truth: UInt8[np.ndarray, "height width"], ids: UInt8[np.ndarray, "height width"], class_names: Sequence[str]
) -> Mapping[str, Colour]:
    """Return the colours of the classes of the truth, largest first, then of those that are only predicted."""
    predicted = [entry for entry in list_class_fractions(ids, class_names) if entry[1] >= _MIN_LEGEND_FRACTION]
    return {name: colour for name, _, colour in [*list_class_fractions(truth, class_names), *predicted]}

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
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.report.drawing import (
    BACKGROUND_COLOUR,
    UNLABELLED_COLOUR,
    Colour,
    Tile,
    colour_classes,
    draw_legend,
    draw_tile_sheet,
    image_to_tile,
    list_class_fractions,
)

_NUM_EXAMPLES, _TILE_SIDE = 4, 208
_WRONG_COLOUR = (214, 48, 49)
_MIN_LEGEND_FRACTION = 0.005  # of an image that is predicted as a class which it does not show
_EXPLANATION = (
    "The images with the highest, the median and the lowest IoU, averaged over the classes of each image alone. Errors "
    "are red; pixels without a label, which do not count, are light grey."
)


def choose_examples(image_ious: Float64[Tensor, " image"], count: int = _NUM_EXAMPLES) -> dict[str, list[int]]:
    """Return the indices of the best, the median and the worst images, at most `count` of each and none twice.

    Images without a score (NaN) are not chosen. Of equal ones, the first is better.

    >>> import torch
    >>> choose_examples(torch.tensor([0.5, 0.9, torch.nan, 0.1, 0.7]).double())
    {'best': [1], 'median': [4], 'worst': [3]}
    """
    ious = image_ious.tolist()
    order = sorted((index for index, iou in enumerate(ious) if iou == iou), key=lambda index: (-ious[index], index))
    if len(order) < 3:
        return {"best": order[:1], "median": [], "worst": order[1:]}
    each = min(count, len(order) // 3)
    first = (len(order) - each) // 2
    return {"best": order[:each], "median": order[first : first + each], "worst": order[-each:]}


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
    return [*map(_pad_tile, tiles), draw_legend(_list_colours(truth, ids, class_names), _TILE_SIDE, _TILE_SIDE)]


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


def _pad_tile(tile: Tile) -> UInt8[np.ndarray, "side side 3"]:
    """Return a tile centred on a square of the common size."""
    square = np.full((_TILE_SIDE, _TILE_SIDE, 3), BACKGROUND_COLOUR, np.uint8)
    top, left = (_TILE_SIDE - tile.shape[0]) // 2, (_TILE_SIDE - tile.shape[1]) // 2
    square[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return square

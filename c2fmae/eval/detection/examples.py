"""Examples of a tested detector: true objects beside detections, with misses and false alarms in colours."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.rle import decode_mask
from c2fmae.data import Scenes
from c2fmae.data.geometry import resized_crop_ids, resized_crop_image
from c2fmae.eval.detection.coco_format import ImageRecord
from c2fmae.eval.detection.matching import CORRECT, IN_CROWD
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.scores import DetectionScores, find_missed, match_record
from c2fmae.eval.examples import choose_examples, pad_tile
from c2fmae.report.drawing import Colour, DrawnObject, Tile, draw_objects, draw_tile_sheet, image_to_tile

_TILE_SIDE = 320
_FOUND, _MISSED, _FALSE, _NEUTRAL = (52, 143, 104), (214, 48, 49), (240, 140, 0), (140, 146, 156)
_EXPLANATION = (
    "The images with the highest, the median and the lowest panoptic quality (PQ) of boxes. Green: objects that are "
    "found, and correct detections. Red: missed objects. Orange: false alarms, and objects that are found with another "
    "class. Grey: crowds, and detections inside of them."
)


def draw_examples(
    scenes: Scenes, store: DetectionStore, scores: DetectionScores, class_names: Sequence[str], *, min_score: float
) -> Image.Image | None:
    """Return image, truth and detections of the chosen images; None if no image has an object or a detection.

    Detections are those with a score of at least `min_score`, as in the confusion matrix.
    """
    stored = store.read()
    rows, titles = [], []
    for group, indices in choose_examples(scores.image_quality).items():
        for index in indices:
            scene = scenes[index]
            image, entry = scene.maps["rgb"], stored.get(scene.key)
            if scene.objects is None or entry is None:
                continue
            size = (image.shape[1], image.shape[2])
            record = ImageRecord(index, scene.key, size, scene.objects, entry.detections)
            rows.append(_draw_row(image, record, class_names, min_score))
            titles.append(f"{group}\nPQ {100 * scores.image_quality[index].item():.1f} %\n{scene.key}")
    if not rows:
        return None
    return draw_tile_sheet(
        rows,
        column_titles=("image", "truth", f"detections with scores from {min_score:g}"),
        row_titles=titles,
        title="Examples",
        subtitle=_EXPLANATION,
    )


def _draw_row(
    image: UInt8[Tensor, "channels height width"], record: ImageRecord, class_names: Sequence[str], min_score: float
) -> list[UInt8[np.ndarray, "side side 3"]]:
    objects, detections, match = record.objects, record.detections, match_record(record, min_score)
    is_crowd, missed = objects.is_crowd.tolist(), set(find_missed(record, match).tolist())
    found = set(match.objects[match.kinds == CORRECT].tolist())
    true_colours = [
        _NEUTRAL if crowd else _FOUND if index in found else _MISSED if index in missed else _FALSE
        for index, crowd in enumerate(is_crowd)
    ]
    true_names = [class_names[label] for label in objects.labels.tolist()]
    chosen, kinds = match.detections.tolist()[::-1], match.kinds.tolist()[::-1]  # the best are drawn last
    colours = [_FOUND if kind == CORRECT else _NEUTRAL if kind == IN_CROWD else _FALSE for kind in kinds]
    captions = [f"{class_names[int(detections.labels[row])]} {detections.scores[row]:.2f}" for row in chosen]
    tile = _Tile(image, record.size)
    return [
        pad_tile(tile.pixels, _TILE_SIDE),
        tile.draw(range(len(objects)), objects.boxes, objects.masks, true_colours, true_names),
        tile.draw(chosen, detections.boxes, detections.masks, colours, captions),
    ]


class _Tile:
    """A small copy of an image, on which objects are drawn."""

    def __init__(self, image: UInt8[Tensor, "channels height width"], size: tuple[int, int]) -> None:
        self.size = size
        self.box = CropBox(0, 0, *size)
        self.tile_size = (max(_TILE_SIDE * size[0] // max(size), 1), max(_TILE_SIDE * size[1] // max(size), 1))
        self.pixels = image_to_tile(resized_crop_image(image, self.box, self.tile_size).numpy())

    def draw(
        self,
        rows: Sequence[int],
        boxes: Tensor,
        masks: Sequence[bytes] | None,
        colours: Sequence[Colour],
        captions: Sequence[str],
    ) -> Tile:
        """Return the copy with some of the objects, in the order of `rows`."""
        across, down = self.tile_size[1] / self.size[1], self.tile_size[0] / self.size[0]
        drawn = []
        for row, colour, caption in zip(rows, colours, captions, strict=True):
            x0, y0, x1, y1 = boxes[row].tolist()
            box = (x0 * across, y0 * down, x1 * across, y1 * down)
            drawn.append(DrawnObject(box, colour, caption, self._shrink(masks[row]) if masks else None))
        return pad_tile(draw_objects(self.pixels, drawn), _TILE_SIDE)

    def _shrink(self, counts: bytes) -> UInt8[np.ndarray, "rows columns"]:
        mask = torch.from_numpy(np.ascontiguousarray(decode_mask(counts, *self.size)))
        return resized_crop_ids(mask, self.box, self.tile_size).numpy()

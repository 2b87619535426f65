"""Examples of a tested detector: true objects beside detections, with misses and false alarms in colours."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.rle import decode_mask
from c2fmae.core.text import format_count
from c2fmae.data import Scenes
from c2fmae.data.geometry import resized_crop_ids, resized_crop_image
from c2fmae.eval.detection.coco_format import ImageRecord
from c2fmae.eval.detection.matching import CORRECT, IN_CROWD
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.scores import DetectionScores, find_missed, match_record
from c2fmae.report.drawing import Colour, DrawnObject, Tile, draw_objects, draw_tile_sheet, image_to_tile, pad_tile

_TILE_SIDE = 320
_FOUND, _MISSED, _FALSE, _NEUTRAL = (52, 143, 104), (214, 48, 49), (240, 140, 0), (140, 146, 156)
_NUM_DRAWN = 8  # detections of an image: more would hide it
_EXPLANATION = (
    "Images with the highest panoptic quality (PQ) of boxes, those with most missed objects, with most false alarms, "
    "with the median PQ, and one without objects. Green: objects that are found, and correct detections. Red: missed "
    "objects. Orange: false alarms, and objects that are found with another class. Grey: crowds, and detections inside "
    "of them."
)


def draw_examples(
    scenes: Scenes, store: DetectionStore, scores: DetectionScores, class_names: Sequence[str], *, min_score: float
) -> Image.Image | None:
    """Return image, truth and detections of the chosen images; None if no image has an object or a detection.

    Detections are those with a score of at least `min_score`, as in the confusion matrix. Of these, the best are drawn.
    """
    stored = store.read()
    rows, titles = [], []
    for group, indices in choose_detection_examples(scores.image_quality, scores.image_counts).items():
        for index in indices:
            scene = scenes[index]
            image, entry = scene.maps["rgb"], stored.get(scene.key)
            if scene.objects is None or entry is None:
                continue
            size = (image.shape[1], image.shape[2])
            record = ImageRecord(index, scene.key, size, scene.objects, entry.detections)
            rows.append(_draw_row(image, record, class_names, min_score))
            num_found, num_missed, num_false = scores.image_counts[index].tolist()
            quality = f"PQ {100 * scores.image_quality[index].item():.1f} %\n" if num_found else ""
            counts = f"{num_found} found, {num_missed} missed, {format_count(num_false, 'false alarm')}"
            titles.append(f"{group}\n{quality}{counts}\n{scene.key}")
    if not rows:
        return None
    return draw_tile_sheet(
        rows,
        column_titles=(
            "image",
            "truth",
            f"detections with scores from {min_score:g}: the best {_NUM_DRAWN}, or as many as there are objects",
        ),
        row_titles=titles,
        title="Examples",
        subtitle=_EXPLANATION,
    )


def choose_detection_examples(
    quality: Float64[Tensor, " image"], counts: Int64[Tensor, "image 3"]
) -> dict[str, list[int]]:
    """Return the indices of images that show most, none twice. Of equal ones, the first is chosen.

    `quality` and `counts` are those of `DetectionScores`.

    >>> counts = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 3, 0], [0, 0, 0], [1, 0, 4]])
    >>> choose_detection_examples(torch.tensor([0.9, 0.6, 0, torch.nan, 0.3]).double(), counts)
    {'best': [0, 1, 4], 'most misses': [2], 'most false alarms': [], 'median': [], 'no objects': [3]}
    """
    num_found, num_missed, num_false = counts.unbind(dim=1)
    chosen: dict[str, list[int]] = {}

    def choose(group: str, values: Tensor, count: int) -> None:
        """Choose the images with the highest positive values."""
        taken = {index for indices in chosen.values() for index in indices}
        order = values.argsort(descending=True, stable=True).tolist()
        chosen[group] = [index for index in order if index not in taken and values[index] > 0][:count]

    choose("best", quality.nan_to_num(0), 3)
    choose("most misses", num_missed, 3)
    choose("most false alarms", num_false, 3)
    middle = quality.nanmedian()
    choose("median", 1 - (quality - middle).abs().nan_to_num(1), 2)
    if any(chosen.values()):
        choose("no objects", (num_found + num_missed == 0).long() * (1 + num_false), 1)
    return chosen


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
    num_drawn = max(_NUM_DRAWN, len(objects))
    chosen, kinds = (rows[:num_drawn].tolist()[::-1] for rows in (match.detections, match.kinds))  # the best last
    colours = [_FOUND if kind == CORRECT else _NEUTRAL if kind == IN_CROWD else _FALSE for kind in kinds]
    captions = [f"{class_names[int(detections.labels[row])]} {detections.scores[row]:.2f}" for row in chosen]
    tile = _Tile(image, record.size)
    return [
        pad_tile(tile.pixels, _TILE_SIDE, _TILE_SIDE),
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
        return pad_tile(draw_objects(self.pixels, drawn), _TILE_SIDE, _TILE_SIDE)

    def _shrink(self, counts: bytes) -> UInt8[np.ndarray, "rows columns"]:
        mask = torch.from_numpy(np.ascontiguousarray(decode_mask(counts, *self.size)))
        return resized_crop_ids(mask, self.box, self.tile_size).numpy()

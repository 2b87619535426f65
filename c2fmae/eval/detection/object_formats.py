"""Detections of an image as labels of YOLO, drawn on the image, and as id maps."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.core.mask_polygons import join_polygons, trace_mask
from c2fmae.core.objects import Detections
from c2fmae.core.rle import decode_mask
from c2fmae.eval.predicted_scenes import list_colours
from c2fmae.report.drawing import DrawnObject, colour_instances, draw_objects, image_to_tile

Size = tuple[int, int]


def format_yolo_labels(detections: Detections, size: Size) -> str:
    """Return a line for each object in YOLO's format: its class and its polygon, or its box if there are no masks.

    An object whose mask is empty is left out.
    """
    height, width = size
    lines = []
    for number, (box, label) in enumerate(zip(detections.boxes.tolist(), detections.labels.tolist(), strict=True)):
        if detections.masks is None:
            x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
            values = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        else:
            mask = decode_mask(detections.masks[number], height, width)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if not len(rows):
                continue
            part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            polygon = join_polygons(trace_mask(part)) + np.array([columns[0], rows[0]])
            values = (polygon / (width, height)).ravel().tolist()
        lines.append(" ".join([str(label), *(f"{value:.6g}" for value in values)]) + "\n")
    return "".join(lines)


def draw_detections(
    image: UInt8[Tensor, "channels height width"], detections: Detections, classes: Sequence[ClassInfo]
) -> UInt8[Tensor, "3 height width"]:
    """Return an image with the masks, boxes, classes and scores of its objects; those of high scores cover others."""
    height, width = image.shape[1:]
    colours = list_colours(colour_instances)[1:-1]
    drawn = []
    for row in detections.scores.argsort(stable=True).tolist():
        x0, y0, x1, y1 = detections.boxes[row].tolist()
        label = int(detections.labels[row])
        mask = None if detections.masks is None else decode_mask(detections.masks[row], height, width)
        caption = f"{classes[label].name} {detections.scores[row]:.2f}"
        drawn.append(DrawnObject((x0, y0, x1, y1), colours[label % len(colours)], caption, mask))
    return torch.from_numpy(draw_objects(image_to_tile(image.numpy()), drawn)).permute(2, 0, 1)


def paint_semantic_map(detections: Detections, size: Size) -> UInt8[np.ndarray, "height width"]:
    """Return the class of the object with the highest score at each pixel; 255, "not labelled", where there is none."""
    labels = np.append(detections.labels.numpy(), IGNORE).astype(np.uint8)
    return labels.take(_paint_rows(detections, size))


def paint_instance_map(detections: Detections, size: Size) -> Integer[np.ndarray, "height width"]:
    """Return the number of the object with the highest score at each pixel, from 1 on; 0 where there is none.

    Objects that others cover completely have no pixel. The ids are of 16 bits for more than 254 objects.
    """
    owners, num_objects = _paint_rows(detections, size), len(detections)
    ids = owners + 1
    ids += ids >= IGNORE  # no object has the number of unlabelled pixels
    return ids.astype(np.uint8 if num_objects < IGNORE else np.uint16)


def _paint_rows(detections: Detections, size: Size) -> Integer[np.ndarray, "height width"]:
    """Return the row of the object with the highest score at each pixel; -1 where there is none."""
    owners = np.full(size, -1)
    for row in detections.scores.argsort(stable=True).tolist():
        assert detections.masks is not None
        owners[decode_mask(detections.masks[row], *size) != 0] = row
    return owners

"""Objects and detections of a set as dictionaries in COCO's format, with the ids of its files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Detections, Objects


@dataclass(frozen=True)
class ImageRecord:
    """The objects of an image, and what a detector found in it."""

    row: int
    """Index of the image in the test set."""
    key: str
    size: tuple[int, int]
    """Height and width."""
    objects: Objects
    detections: Detections


@dataclass(frozen=True)
class CocoIds:
    """The ids of images and classes in files of COCO's format."""

    images: tuple[int, ...]
    """By the index of the image in the test set."""
    categories: tuple[int, ...]
    """By label."""

    @classmethod
    def choose(
        cls, keys: Sequence[str], classes: Sequence[ClassInfo], image_ids: Sequence[int | None] = ()
    ) -> "CocoIds":
        """Return the category ids of the data's file, and its `image_ids` if all are known.

        Else, image ids are the numbers at the end of keys, by which COCO names its images. If keys do not end with
        different numbers, ids count images from 1; likewise those of classes.

        >>> CocoIds.choose(["000000000139", "000000000285"], [ClassInfo(name="cat", coco_id=17)])
        CocoIds(images=(139, 285), categories=(17,))
        >>> CocoIds.choose(["street/1", "park/1"], [ClassInfo(name="cat")])
        CocoIds(images=(1, 2), categories=(1,))
        """
        images = _use_if_unique(image_ids) or _use_if_unique([_parse_last_number(key) for key in keys])
        categories = _use_if_unique([entry.coco_id for entry in classes])
        return cls(images or tuple(range(1, len(keys) + 1)), categories or tuple(range(1, len(classes) + 1)))


def _parse_last_number(key: str) -> int | None:
    number = re.search(r"\d{1,15}$", key, re.ASCII)
    return int(number[0]) if number else None


def choose_ids(records: Sequence[ImageRecord], classes: Sequence[ClassInfo]) -> CocoIds:
    """Return the ids of all images of a set, in the order of the set, and of the classes."""
    return CocoIds.choose([record.key for record in records], classes, [record.objects.image_id for record in records])


def _use_if_unique(ids: Sequence[int | None]) -> tuple[int, ...] | None:
    """Return ids if all are known and none occurs twice."""
    known = tuple(number for number in ids if number is not None)
    return known if len(set(known)) == len(ids) else None


def build_truth(records: Sequence[ImageRecord], ids: CocoIds, classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Return the objects as the content of a file of annotations; masks are left out if one image has none."""
    has_masks = all(record.objects.masks is not None for record in records)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        objects, image_id = record.objects, ids.images[record.row]
        images.append({"id": image_id, "file_name": record.key, "height": record.size[0], "width": record.size[1]})
        columns = (objects.boxes, objects.labels, objects.is_crowd, objects.areas)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, (box, label, is_crowd, area) in enumerate(rows):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": ids.categories[label],
                "iscrowd": int(is_crowd),
                "area": area,
                "bbox": _to_xywh(box),
            }
            if has_masks and objects.masks is not None:
                annotation["segmentation"] = _to_rle(objects.masks[number], record.size)
            annotations.append(annotation)
    categories = [
        {"id": category_id, "name": entry.name} for category_id, entry in zip(ids.categories, classes, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def build_results(records: Sequence[ImageRecord], ids: CocoIds) -> list[dict[str, Any]]:
    """Return the detections as the content of a file of results."""
    results = []
    for record in records:
        detections = record.detections
        rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
        for number, (box, score, label) in enumerate(rows):
            result = {
                "image_id": ids.images[record.row],
                "category_id": ids.categories[label],
                "bbox": _to_xywh(box),
                "score": score,
            }
            if detections.masks is not None:
                result["segmentation"] = _to_rle(detections.masks[number], record.size)
            results.append(result)
    return results


def _to_xywh(box: Sequence[float]) -> list[float]:
    """Return left, top, width and height of a box, exactly: the corners are float32."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _to_rle(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size), "counts": counts.decode()}

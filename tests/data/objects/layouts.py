"""Tiny data sets of objects in the layouts of COCO, YOLO and VOC."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.dataset_files import write_png

SIZE = (20, 30)
"""Height and width of all images."""

Json = dict[str, Any]


def rectangle(left: float, top: float, width: float, height: float) -> list[list[float]]:
    """Return a polygon around a box."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number: int, image: int, category: int, box: tuple[float, float, float, float], **changes: Any) -> Json:
    """Return an annotation whose segmentation is its box."""
    entry = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": rectangle(*box),
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def write_image(path: Path, seed: int = 0) -> None:
    write_png(path, np.random.default_rng(seed).integers(256, size=(*SIZE, 3), dtype=np.uint8))


def write_coco(root: Path, annotations: list[Json], *, num_images: int = 2, split: str = "val", **changes: Any) -> Path:
    """Write images 1.jpg, 2.jpg, … with the ids 10, 20, … and a json; `changes` replaces its lists."""
    images = []
    for number in range(1, num_images + 1):
        write_image(root / split / f"{number}.jpg", seed=number)
        images.append({"id": 10 * number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
    categories = [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}]
    document = {"images": images, "annotations": annotations, "categories": categories} | changes
    path = root / f"annotations/instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def write_yolo(
    root: Path, labels: dict[str, str | None], *, split: str = "val", names: object = ("cat", "dog")
) -> Path:
    """Write an image for each key, and a text file unless it is None."""
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    for seed, (key, text) in enumerate(labels.items()):
        write_image(root / f"images/{split}/{key}.jpg", seed=seed)
        if text is not None:
            (root / f"labels/{split}/{key}.txt").write_text(text)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
    return root / "images" / split


def voc_object(name: str, box: tuple[float, float, float, float], difficult: int = 0) -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{part}</object>"


def write_voc(root: Path, objects: dict[str, str], *, split: str = "val") -> Path:
    """Write an image and an xml with some objects for each key, and the list of keys."""
    for seed, (key, text) in enumerate(objects.items()):
        write_image(root / f"JPEGImages/{key}.jpg", seed=seed)
        path = root / f"Annotations/{key}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation><filename>{key}.jpg</filename>{text}</annotation>")
    listing = root / f"ImageSets/Main/{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{key}  1\n" for key in objects))
    return listing

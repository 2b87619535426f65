"""The files that `c2fmae predict` writes for a detector: results in COCO's format, YOLO labels, overlays and maps.

OUT/detections/        a line for each image, as it is predicted
OUT/predictions.json   all detections in COCO's format of results
OUT/images.json        the images and categories that predictions.json refers to, in COCO's format of annotations
OUT/labels/KEY.txt     a line for each object, in YOLO's format; with images/, links to the images, and data.yaml
OUT/overlay/KEY.jpg    the image with masks, boxes, classes and scores
OUT/semantic/KEY.png   with instance/, rgb/ and dataset.json: id maps, with which OUT is a data set
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Integer, UInt8
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, write_atomic
from c2fmae.core.objects import Detections, Objects
from c2fmae.data import Scenes
from c2fmae.data.encode import encode_ids, encode_image
from c2fmae.data.info import DATASET_FILE
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.eval.detection.coco_format import CocoIds, ImageRecord, build_results, build_truth
from c2fmae.eval.detection.object_formats import (
    draw_detections,
    format_yolo_labels,
    paint_instance_map,
    paint_semantic_map,
)
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.prediction_store import DetectionStore, DetectionWriter, StoredDetections
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.predicted_scenes import (
    check_output_keys,
    describe_predicted_maps,
    encode_coloured_ids,
    image_file_name,
    link_image,
)
from c2fmae.models.detectors import Detector
from c2fmae.report.drawing import colour_classes, colour_instances

RESULTS_FILE, IMAGES_FILE, YOLO_FILE = "predictions.json", "images.json", "data.yaml"


@dataclass
class ObjectFiles:
    """The files of images' detections. Each is written completely or not at all."""

    detector: Detector
    scenes: Scenes
    out: Path
    testing: DetectionTestingConfig
    has_labels: bool
    """Whether to write labels in YOLO's format."""
    has_overlays: bool
    has_maps: bool
    """Whether to write id maps and links to the images."""
    _files: ExitStack | None = field(default=None, init=False)
    _writer: DetectionWriter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_output_keys(self.scenes.keys)
        if self.has_maps and self.detector.spec.mask_head is None:
            raise UserError("--as-scenes: needs masks, but the detector predicts boxes only. Leave it out")

    @property
    def module(self) -> nn.Module:
        """The model, which is to be moved to its device."""
        return self.detector

    @property
    def view(self) -> None:
        """Images are predicted as they are."""

    @cached_property
    def digest(self) -> str:
        """A digest of the spec and the weights."""
        return compute_weights_digest(self.detector)

    @property
    def protocol(self) -> str:
        """How images are predicted, in words."""
        return self.testing.describe_prediction()

    def prepare(self) -> None:
        """Write the description of the classes for YOLO and for the maps."""
        classes = self.detector.spec.classes
        if self.has_labels:
            names = {number: entry.name for number, entry in enumerate(classes)}
            document = {"path": ".", "train": "images", "val": "images", "names": names}
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
            write_atomic(self.out / YOLO_FILE, text.encode())
        if self.has_maps:
            things = tuple(entry.model_copy(update={"is_thing": True}) for entry in classes)
            info = describe_predicted_maps(self.scenes.info, ("semantic", "instance", "rgb"), things)
            write_atomic(self.out / DATASET_FILE, info.to_json().encode())

    def list_pending(self) -> list[int]:
        """Return the rows of images without detections or with a missing file."""
        return [
            row
            for row, key in enumerate(self.scenes.keys)
            if key not in self._stored or not all(path.exists() for path in self._list_paths(row))
        ]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Enter this context to `write`. If it ends without an error, the results of all images are written."""
        with ExitStack() as self._files:
            yield
        self._write_results()

    def write(self, rows: Sequence[int], images: Sequence[UInt8[Tensor, "channels height width"]]) -> None:
        """Write the missing files of images; stored detections are not computed again."""
        for row, image in zip(rows, images, strict=True):
            key, size = self.scenes.keys[row], (image.shape[1], image.shape[2])
            stored = self._stored.get(key)
            is_new = stored is None or stored.size != size  # another image of the same name
            if stored is None or is_new:
                stored = StoredDetections(size, detect_objects(self.detector, image, self.testing))
                self._open_writer().write(key, size, stored.detections)
                self._stored[key] = stored
            self._write_files(row, image, stored.detections, is_new=is_new)

    @cached_property
    def _store(self) -> DetectionStore:
        return DetectionStore(self.out / "detections", {"weights": self.digest, "protocol": self.protocol})

    @cached_property
    def _stored(self) -> dict[str, StoredDetections]:
        """The detections of images by key."""
        return self._store.read()

    def _open_writer(self) -> DetectionWriter:
        """Open the file of detections for the first image that has none."""
        if self._writer is None:
            assert self._files is not None
            self._store.open(World())
            self._writer = self._files.enter_context(self._store.open_writer(World()))
        return self._writer

    def _list_paths(self, row: int) -> list[Path]:
        key, name = self.scenes.keys[row], image_file_name(self.scenes, row)
        labels = [self.out / "labels" / f"{key}.txt", self.out / "images" / name]
        maps = [self.out / "semantic" / f"{key}.png", self.out / "instance" / f"{key}.png", self.out / "rgb" / name]
        return [
            *labels * self.has_labels,
            *[self.out / "overlay" / f"{key}.jpg"] * self.has_overlays,
            *maps * self.has_maps,
        ]

    def _write_files(
        self, row: int, image: UInt8[Tensor, "channels height width"], detections: Detections, *, is_new: bool
    ) -> None:
        classes, size = self.detector.spec.classes, (image.shape[1], image.shape[2])
        for path in self._list_paths(row):
            if path.exists() and not is_new:
                continue
            match path.relative_to(self.out).parts[0]:
                case "labels":
                    write_atomic(path, format_yolo_labels(detections, size).encode())
                case "overlay":
                    write_atomic(path, encode_image(draw_detections(image, detections, classes)))
                case "semantic":
                    write_atomic(path, encode_coloured_ids(paint_semantic_map(detections, size), colour_classes))
                case "instance":
                    write_atomic(path, _encode_instances(paint_instance_map(detections, size)))
                case _:
                    link_image(self.scenes, row, image, path)

    def _write_results(self) -> None:
        """Write the detections of all images in COCO's format, with the ids of images and categories."""
        ids = CocoIds.choose(list(self.scenes.keys), self.detector.spec.classes)
        rows = [row for row, key in enumerate(self.scenes.keys) if key in self._stored]
        no_objects = Objects.empty(has_masks=True)
        records = [
            ImageRecord(row, key, self._stored[key].size, no_objects, self._stored[key].detections)
            for row, key in ((row, self.scenes.keys[row]) for row in rows)
        ]
        described = build_truth(records, ids, self.detector.spec.classes)
        for row, entry in zip(rows, described["images"], strict=True):
            entry["file_name"] = image_file_name(self.scenes, row)
        _write_json_if_changed(self.out / IMAGES_FILE, described)
        _write_json_if_changed(self.out / RESULTS_FILE, build_results(records, ids))


def _encode_instances(ids: Integer[np.ndarray, "height width"]) -> bytes:
    return encode_coloured_ids(ids, colour_instances) if ids.dtype == np.uint8 else encode_ids(ids)


def _write_json_if_changed(path: Path, content: object) -> None:
    data = json.dumps(content, separators=(",", ":")).encode()
    if not path.exists() or read_file(path) != data:
        write_atomic(path, data)

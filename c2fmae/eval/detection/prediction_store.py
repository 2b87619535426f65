"""Detections of a set in files, from which an interrupted test resumes and scores are recomputed."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.objects import Detections
from c2fmae.eval.prediction_dir import open_prediction_dir

log = logging.getLogger(__name__)

_FORMAT = 1
_CHUNK = 256  # images between two flushes to the disk


@dataclass(frozen=True)
class StoredDetections:
    """The detections of an image, and its size."""

    size: tuple[int, int]
    """Height and width."""
    detections: Detections


@dataclass(frozen=True)
class DetectionStore:
    """A directory with a line of JSON for each image, in one file for each process that wrote some."""

    predictions_dir: Path
    identity: Mapping[str, Any]
    """Everything that predictions depend on, as JSON: weights, data and settings."""

    def open(self, world: World) -> None:
        """Delete detections of another identity, and record this one. All processes must call this."""
        open_prediction_dir(self.predictions_dir, {"format": _FORMAT, **self.identity}, world)

    def read(self) -> dict[str, StoredDetections]:
        """Return the detections of all images by key. A line that is not complete is skipped."""
        stored = {}
        for path in sorted(self.predictions_dir.glob("*.jsonl")):
            with open_file(path) as file:
                for number, line in enumerate(file, start=1):
                    try:
                        key, entry = _parse_line(line)
                    except (ValueError, KeyError, TypeError, RuntimeError):  # of a process that was killed
                        log.debug("%s: line %d is not complete. Its image is predicted again", path, number)
                        continue
                    stored[key] = entry
        return stored

    @contextmanager
    def open_writer(self, world: World) -> "Iterator[DetectionWriter]":
        """Open the file of this process, to which detections are added."""
        path = self.predictions_dir / f"{world.rank}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if file.tell():
                    file.write(b"\n")  # the last line may be incomplete
                writer = DetectionWriter(file)
                yield writer
                writer.flush()
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error.strerror or error}. Free space or fix its permissions, then run "
                "again"
            ) from error


@dataclass
class DetectionWriter:
    """Adds detections to a file, one image at a time."""

    file: BinaryIO
    num_images: int = 0

    def write(self, key: str, size: tuple[int, int], detections: Detections) -> None:
        """Add the detections of an image. A process that is killed later does not lose them."""
        masks = None if detections.masks is None else [counts.decode() for counts in detections.masks]
        line = {
            "image": key,
            "size": size,
            "boxes": detections.boxes.tolist(),
            "scores": detections.scores.tolist(),
            "labels": detections.labels.tolist(),
            "masks": masks,
        }
        self.file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self.file.flush()
        self.num_images += 1
        if self.num_images % _CHUNK == 0:
            self.flush()

    def flush(self) -> None:
        """Write everything to the disk, so that it survives a power failure."""
        self.file.flush()
        os.fsync(self.file.fileno())


def _parse_line(line: bytes) -> tuple[str, StoredDetections]:
    values = json.loads(line)
    key, (height, width), masks = values["image"], values["size"], values["masks"]
    detections = Detections(
        torch.tensor(values["boxes"], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(values["scores"], dtype=torch.float32),
        torch.tensor(values["labels"], dtype=torch.int64),
        None if masks is None else tuple(counts.encode() for counts in masks),
    )
    counts = {len(detections.boxes), len(detections.scores), len(detections), len(detections.masks or detections)}
    if not isinstance(key, str) or len(counts) > 1:
        raise ValueError("are not the detections of an image")
    return key, StoredDetections((height, width), detections)

"""Tests of detectors: detections in all images of a set, compared with objects that are never resized."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.objects import Detections, Objects
from c2fmae.core.scene import Scene
from c2fmae.data import Scenes
from c2fmae.eval.detection.coco_format import ImageRecord, build_results, build_truth, choose_ids
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.prediction_store import DetectionStore, DetectionWriter, StoredDetections
from c2fmae.eval.detection.scores import DetectionScores, compute_scores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.engine import BatchingConfig, iterate_batches
from c2fmae.models.detectors import Detector

PREDICTIONS_FILE, TRUTH_FILE = "predictions.json", "truth.json"
"""Files in COCO's format, beside the directory of a store."""

_Predict = Callable[[UInt8[Tensor, "channels height width"]], Detections]


@dataclass(frozen=True)
class DetectorEvaluator:
    """Evaluates detectors on scenes with objects.

    Images are predicted one by one and the main process compares them with the truth, so the scores are the same for
    any number of processes.
    """

    scenes: Scenes
    testing: DetectionTestingConfig
    world: World
    num_workers: int = 2
    show_progress: bool = False

    def evaluate(
        self, detector: Detector, weights: Mapping[str, Tensor] | None = None, *, store: DetectionStore | None = None
    ) -> DetectionScores:
        """Return the scores of a detector, optionally with other `weights`.

        With a `store`, detections are written to it, and images that are in it are not predicted again. Files in COCO's
        format are written beside it.
        """
        num_classes = len(self.scenes.info.object_classes)
        if detector.num_classes != num_classes:
            raise UserError(
                f"test: the data has {num_classes} classes of objects, but the detector {detector.num_classes}. Use a "
                "set with the classes that it was trained on"
            )
        if store is not None:
            store.open(self.world)
        is_training = detector.training
        detector.eval()
        try:
            return self._score(lambda image: detect_objects(detector, image, self.testing, weights=weights), store)
        finally:
            detector.train(is_training)

    def score_predictions(self, store: DetectionStore) -> DetectionScores:
        """Return the scores of stored detections, without a model."""
        return self._score(None, store)

    def _score(self, predict: _Predict | None, store: DetectionStore | None) -> DetectionScores:
        scores = None
        gathered = self.world.gather_objects(self._collect_records(predict, store))
        if self.world.is_main:
            records = sorted((record for part in gathered for record in part), key=lambda record: record.row)
            if all(record.objects.is_crowd.all() for record in records):
                raise UserError(
                    f"test: none of the {len(records):,} images has an object. Check the data: c2fmae data check"
                )
            if store is not None:
                self._write_coco_files(records, store)
            scores = compute_scores(records, self.scenes.info.object_classes, self.testing)
        scores = self.world.broadcast_object(scores)
        assert isinstance(scores, DetectionScores)
        return scores

    def _collect_records(self, predict: _Predict | None, store: DetectionStore | None) -> list[ImageRecord]:
        """Return the objects and the detections of this rank's images."""
        stored = store.read() if store is not None else {}
        self.world.barrier()  # no rank writes before all have read
        with store.open_writer(self.world) if store is not None and predict is not None else nullcontext() as writer:
            return [_record_image(row, scene, stored, predict, writer) for row, scene in self._iterate_scenes()]

    def _iterate_scenes(self) -> Iterator[tuple[int, Scene]]:
        """Yield this rank's scenes with their indices."""
        scenes = iterate_batches(
            _SceneReader(self.scenes),
            self.world.rank_chunks(len(self.scenes), 1),
            self.world,
            BatchingConfig(batch_size=1, num_workers=self.num_workers),
            show_progress=self.show_progress,
        )
        return ((rows.start, scene) for rows, scene in scenes)

    def _write_coco_files(self, records: list[ImageRecord], store: DetectionStore) -> None:
        classes = self.scenes.info.object_classes
        ids = choose_ids(records, classes)
        result_dir = store.predictions_dir.parent
        documents = {PREDICTIONS_FILE: build_results(records, ids), TRUTH_FILE: build_truth(records, ids, classes)}
        for name, document in documents.items():
            write_atomic(result_dir / name, json.dumps(document, separators=(",", ":")).encode())


def _record_image(
    row: int,
    scene: Scene,
    stored: Mapping[str, StoredDetections],
    predict: _Predict | None,
    writer: DetectionWriter | None,
) -> ImageRecord:
    image, objects = scene.maps["rgb"], scene.objects
    if objects is None:
        raise UserError(f"{scene.key}: the data has no objects. Use data with boxes, or with instance maps")
    size = (image.shape[1], image.shape[2])
    entry = stored.get(scene.key)
    if entry is not None and entry.size == size:
        detections = entry.detections
    elif predict is None:
        raise UserError(
            f"{scene.key}: has no stored detections. Test the run again: c2fmae eval detect RUN --recompute"
        )
    else:
        detections = predict(image)
        if writer is not None:
            writer.write(scene.key, size, detections)
    return ImageRecord(row, scene.key, size, _copy_objects(objects), detections)


def _copy_objects(objects: Objects) -> Objects:
    """Return a copy in this process's own memory: a tensor of a worker process keeps a file open."""
    columns = {name: getattr(objects, name).clone() for name in ("boxes", "labels", "is_crowd", "areas", "ids")}
    return replace(objects, **columns)


@dataclass(frozen=True)
class _SceneReader:
    """Reads scenes in worker processes."""

    scenes: Scenes

    def __call__(self, rows: range) -> Scene:
        return self.scenes[rows.start]
